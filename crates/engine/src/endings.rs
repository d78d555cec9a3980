//! What ends an answer: one set of tokens from every place that names some, and texts for models that spell their end.

use crate::prompt::MARK;
use reattention_model::{ChatTemplate, Config, Message, Tokenizer};

/// What ends an answer of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endings {
    /// Tokens.
    pub(crate) tokens: Vec<u32>,
    /// Texts: what the template closes a turn with, where the vocabulary has no such token and the model spells it.
    pub(crate) texts: Vec<String>,
}

impl Endings {
    /// The union of what config.json and generation_config.json (or a GGUF file's ids) say, what tokenizer_config.json calls the end
    /// token, tokens with known names, and what the chat template puts behind the model's words.
    pub(crate) fn of(config: &Config, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Self {
        let mut endings = Self { tokens: config.eos_ids.clone(), texts: Vec::new() };
        endings.tokens.extend(tokenizer.end_tokens());
        if let Some(closing) = template.and_then(closing) {
            endings.close(&closing, tokenizer);
        }
        endings.tokens.retain(|id| (*id as usize) < config.vocab_size);
        endings.tokens.sort_unstable();
        endings.tokens.dedup();
        endings
    }

    /// Takes what a template puts behind the model's words.
    fn close(&mut self, closing: &str, tokenizer: &Tokenizer) {
        let Some(mark) = markup(closing.trim_start()) else { return };
        match tokenizer.token_to_id(mark) {
            // Either it is among them already, or it ends a message, after which the model goes on.
            Some(_) if mark == "<|end|>" => {}
            Some(id) if tokenizer.is_added(id) => self.tokens.push(id),
            Some(id) if self.tokens.contains(&id) => {}
            // Brackets are too common in answers to end one.
            _ if mark.starts_with('<') => self.texts.push(mark.to_string()),
            _ => {}
        }
    }
}

/// What a template puts behind the last words of the model, before anything else is said.
fn closing(template: &ChatTemplate) -> Option<String> {
    let said = template.render(&[Message::user("a"), Message::assistant(MARK)], false).ok()?;
    let (_, closing) = said.rsplit_once(MARK)?;
    Some(closing.to_string())
}

/// The markup that a text begins with: `<...>` or `[...]` without white space.
fn markup(text: &str) -> Option<&str> {
    let close = match text.chars().next()? {
        '<' => '>',
        '[' => ']',
        _ => return None,
    };
    let end = text.find(close)? + 1;
    let mark = &text[..end];
    (mark.len() > 2 && !mark.contains(char::is_whitespace)).then_some(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_what_brackets_hold() {
        assert_eq!(markup("<|im_end|>\n<|im_start|>"), Some("<|im_end|>"));
        assert_eq!(markup("</s><s>"), Some("</s>"));
        assert_eq!(markup("[/INST] x"), Some("[/INST]"));
        for none in ["", "end", "<", "<>", "a < b > c", "< b>"] {
            assert_eq!(markup(none), None, "{none}");
        }
    }
}
