//! Prompts: sources, question and template put together, with the origin of every token.

use reattention::Origin;
use reattention_model::{ChatTemplate, Message, ModelError, Tokenizer};

/// A text to read, under the name evidence gives for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// File name or other label.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Tokens to read, with where they came from.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where each token stands in the sources, with indices into `sources`.
    pub origins: Vec<Option<Origin>>,
    /// The token the question starts at.
    pub question: Option<usize>,
    /// Name and text of each source.
    pub sources: Vec<(String, String)>,
}

impl Prompt {
    /// A prompt of bare tokens.
    pub fn from_ids(ids: Vec<u32>) -> Self {
        Self { origins: vec![None; ids.len()], ids, question: None, sources: Vec::new() }
    }

    /// The begin token (if the model has one), the sources, and a question in the model's chat template, or, for a model
    /// without one, as `\nQuestion: ...\nAnswer:`.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn ask(
        sources: &[Source],
        question: &str,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let (mut prompt, asked) =
            (Self::context(sources, tokenizer, template)?, Self::question(question, tokenizer, template)?);
        prompt.question = Some(prompt.ids.len());
        prompt.push_plain(&asked.ids);
        Ok(prompt)
    }

    /// What stands before the question: begin token or template, and the sources.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn context(
        sources: &[Source],
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let mut prompt = Self::default();
        prompt.push_plain(&match template {
            Some(template) => tokenizer.encode(&around(None, template)?.0, false)?.ids,
            None => tokenizer.encode("", true)?.ids,
        });
        for source in sources {
            prompt.push_source(source, tokenizer)?;
        }
        prompt.question = Some(prompt.ids.len());
        Ok(prompt)
    }

    /// The question and what stands behind it.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn question(
        question: &str,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let mut prompt = Self { question: Some(0), ..Self::default() };
        match template {
            Some(template) => {
                prompt.push_plain(&tokenizer.encode_text(&format!("\n\n{question}"))?.ids);
                prompt.push_plain(&tokenizer.encode(&around(None, template)?.1, false)?.ids);
            }
            None => {
                let asked = format!("\nQuestion: {question}\nAnswer:");
                prompt.push_plain(&tokenizer.encode_text(&asked)?.ids);
            }
        }
        Ok(prompt)
    }

    /// What stands before a question in a form of its own: begin token or template head, `before`, the source. `before` and the
    /// source are put into tokens together, as one text.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn opening(
        system: Option<&str>,
        before: &str,
        source: &Source,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let mut prompt = Self::default();
        let head = match template {
            Some(template) => tokenizer.encode(&around(system, template)?.0, false)?.ids,
            None => tokenizer.encode("", true)?.ids,
        };
        prompt.push_plain(&head);
        // A model without a template has no place for a system message but the text itself.
        let before = match (system, template) {
            (Some(system), None) => format!("{system}\n\n{before}"),
            _ => before.to_string(),
        };
        prompt.push(&before, source, tokenizer)?;
        prompt.question = Some(prompt.ids.len());
        Ok(prompt)
    }

    /// What follows an [`Prompt::opening`]: `after`, the rest of the template, and `prefix`, with which the answer begins.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn closing(
        after: &str,
        prefix: &str,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let mut prompt = Self { question: Some(0), ..Self::default() };
        match template {
            Some(template) => {
                prompt.push_plain(&tokenizer.encode_text(after)?.ids);
                prompt.push_plain(&tokenizer.encode(&around(None, template)?.1, false)?.ids);
                prompt.push_plain(&tokenizer.encode_text(prefix)?.ids);
            }
            None => prompt.push_plain(&tokenizer.encode_text(&format!("{after}{prefix}"))?.ids),
        }
        Ok(prompt)
    }

    /// The begin token and a text to continue, without question or template.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn text(source: &Source, tokenizer: &Tokenizer) -> Result<Self, PromptError> {
        let mut prompt = Self::default();
        prompt.push_plain(&tokenizer.encode("", true)?.ids);
        prompt.push_source(source, tokenizer)?;
        Ok(prompt)
    }

    /// Tokens that stand in a source.
    pub fn context_tokens(&self) -> usize {
        self.origins.iter().flatten().count()
    }

    fn push_plain(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.origins.resize(self.ids.len(), None);
    }

    fn push_source(&mut self, source: &Source, tokenizer: &Tokenizer) -> Result<(), PromptError> {
        self.push("", source, tokenizer)
    }

    /// `before` and a source, put into tokens together.
    fn push(&mut self, before: &str, source: &Source, tokenizer: &Tokenizer) -> Result<(), PromptError> {
        if u32::try_from(source.text.len()).is_err() {
            return Err(PromptError::SourceTooLarge { name: source.name.clone(), bytes: source.text.len() });
        }
        let index = self.sources.len() as u32;
        let encoded = match before.is_empty() {
            true => tokenizer.encode_text(&source.text)?,
            false => tokenizer.encode_text(&format!("{before}{}", source.text))?,
        };
        self.ids.extend_from_slice(&encoded.ids);
        let origin = |r: &std::ops::Range<usize>| {
            let in_source = |byte: usize| byte.saturating_sub(before.len()) as u32;
            (r.end > before.len()).then(|| Origin {
                source: index,
                start: in_source(r.start),
                end: in_source(r.end),
            })
        };
        self.origins.extend(encoded.offsets.iter().map(origin));
        self.sources.push((source.name.clone(), source.text.clone()));
        Ok(())
    }
}

/// A private-use character that marks the place of the user's words in a rendered template.
const MARK: &str = "\u{F8FF}";

/// What a template puts before and behind the user's words.
fn around(system: Option<&str>, template: &ChatTemplate) -> Result<(String, String), PromptError> {
    let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
    messages.push(Message::user(MARK));
    let marked = template.render(&messages, true)?;
    let (before, after) = marked.split_once(MARK).ok_or(PromptError::TemplateDropsUser)?;
    Ok((before.to_string(), after.to_string()))
}

/// Why a prompt could not be put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// Template or tokenizer failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The template leaves out the user's message.
    #[error("the chat template does not render the user's message; use --no-template")]
    TemplateDropsUser,
    /// Byte offsets are kept in 32 bits.
    #[error("source `{name}` has {bytes} bytes; a source may have at most 4 GiB: split it")]
    SourceTooLarge {
        /// Name of the source.
        name: String,
        /// Its size.
        bytes: usize,
    },
}
