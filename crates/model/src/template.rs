//! Chat templates: the Jinja program with which a model's makers lay out a conversation.

mod date;
mod source;
#[cfg(test)]
mod tests;

use crate::ModelError;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, context};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// What the model is told to be.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".into(), content: content.into() }
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    thinking: Option<bool>,
}

const NAME: &str = "chat_template";
/// What templates call the switch for thinking.
const THINKING: [&str; 2] = ["enable_thinking", "thinking"];
/// Steps a template may take; published ones take some hundred a message.
const FUEL: u64 = 10_000_000;
/// Longest template taken, in bytes; published ones have up to some 20,000.
const LONGEST: usize = 64 << 10;
/// Stack that suffices for any template of that length, one operator a byte; reserved, not used.
const STACK: usize = 256 << 20;

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is not valid Jinja.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(template_error)?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| date::strftime(&format, date::now()));
        let environment = compile(environment, &source::prepared(source))?;
        let text = |token: Option<&str>| token.unwrap_or_default().to_string();
        Ok(Self { environment, bos_token: text(bos_token), eos_token: text(eos_token), thinking: None })
    }

    /// Asks models that can think before they answer to do so, or not to: the template sees it as `enable_thinking` (Qwen3,
    /// SmolLM3, GLM) and `thinking` (Granite, DeepSeek). `None` leaves the choice to the template.
    pub fn with_thinking(mut self, thinking: Option<bool>) -> Self {
        self.thinking = thinking;
        self
    }

    /// What [`ChatTemplate::with_thinking`] was told.
    pub fn thinking(&self) -> Option<bool> {
        self.thinking
    }

    /// Whether the template asks if the model is to think.
    pub fn can_think(&self) -> bool {
        let Ok(template) = self.environment.get_template(NAME) else { return false };
        let asked = template.undeclared_variables(false);
        THINKING.iter().any(|name| asked.contains(*name))
    }

    /// The template of a model folder: `chat_template.jinja`, or `chat_template` in tokenizer_config.json, which is a
    /// text or a list of named ones (`default` is taken). `None` when there is none.
    ///
    /// # Errors
    /// When a file cannot be read or the template is not valid.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, ModelError> {
        let read = |name: &str| match crate::files::read_text(&dir.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ModelError::io(&dir.join(name))(e)),
        };
        Self::from_texts(read("tokenizer_config.json")?.as_deref(), read("chat_template.jinja")?.as_deref())
    }

    /// As [`ChatTemplate::from_dir`], from the texts of tokenizer_config.json and chat_template.jinja.
    ///
    /// # Errors
    /// When a text is not valid.
    pub fn from_texts(config: Option<&str>, jinja: Option<&str>) -> Result<Option<Self>, ModelError> {
        let config: Value = match config.map(serde_json::from_str).transpose() {
            Ok(config) => config.unwrap_or_default(),
            Err(e) => return Err(ModelError::Template { reason: format!("tokenizer_config.json: {e}") }),
        };
        let token = |key: &str| {
            let token = config.get(key)?;
            token.as_str().or_else(|| token.get("content")?.as_str())
        };
        let Some(source) = jinja.or_else(|| default_template(config.get("chat_template")?)) else {
            return Ok(None);
        };
        Self::new(source, token("bos_token"), token("eos_token")).map(Some)
    }

    /// Lays out `messages`; with `add_generation_prompt`, up to where the model begins to answer. Special tokens are
    /// spelled out in the text, the begin token too if the template has it.
    ///
    /// # Errors
    /// When the template refuses the messages or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        let (bos_token, eos_token) = (&self.bos_token, &self.eos_token);
        let message = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let messages: Vec<_> = messages.iter().map(message).collect();
        // transformers gives the last two to every template; some tell "none" from "not defined".
        let mut values = BTreeMap::from([
            ("messages", minijinja::Value::from(messages)),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("bos_token", bos_token.into()),
            ("eos_token", eos_token.into()),
            ("tools", ().into()),
            ("documents", ().into()),
        ]);
        if let Some(thinking) = self.thinking {
            values.extend(THINKING.map(|name| (name, thinking.into())));
        }
        template.render(values).map_err(template_error)
    }
}

/// Adds the template. The parser calls itself for every operator, and a file chooses how many there are, so it gets a
/// stack of its own.
fn compile(mut environment: Environment<'static>, source: &str) -> Result<Environment<'static>, ModelError> {
    let failed = |reason: String| ModelError::Template { reason };
    if source.len() > LONGEST {
        return Err(failed(format!("it has {} bytes; at most {LONGEST} are taken", source.len())));
    }
    let source = source.to_string();
    let parse = move || environment.add_template_owned(NAME, source).map(|()| environment);
    let parser = std::thread::Builder::new().stack_size(STACK).spawn(parse);
    let parser = parser.map_err(|e| failed(format!("no thread to parse it: {e}")))?;
    match parser.join() {
        Ok(parsed) => parsed.map_err(template_error),
        Err(_) => Err(failed("the parser failed".into())),
    }
}

/// A template, or the one named `default` (or else the first) of a list.
fn default_template(value: &Value) -> Option<&str> {
    if let Some(text) = value.as_str() {
        return Some(text);
    }
    let list = value.as_array()?;
    let named = |name: &str| list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(name));
    named("default").or(list.first())?.get("template")?.as_str()
}

fn template_error(e: Error) -> ModelError {
    let line = e.line().map(|l| format!(" (line {l})")).unwrap_or_default();
    let reason = match (e.kind(), e.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => format!("it refuses the messages: {detail}"),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    ModelError::Template { reason: format!("{reason}{line}") }
}
