//! Tokens to text as they come.

use super::Tokenizer;

/// Turns tokens into text one by one, holding back what does not yet make whole characters.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens still needed: those before `read` have been shown and give context, the others are held back.
    ids: Vec<u32>,
    read: usize,
    shown: usize,
}

/// No character needs more tokens than this; whatever still is no UTF-8 then never becomes any.
const HELD: usize = 8;

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), read: 0, shown: 0 }
    }

    /// Takes a token and gives the text that is complete now; special tokens give none.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.decode();
        if text.ends_with('\u{FFFD}') && self.ids.len() - self.read < HELD {
            return String::new();
        }
        self.show(&text)
    }

    /// Gives what is left. The beginning of a character whose end did not come, as where an answer is cut, is left out.
    pub fn finish(mut self) -> String {
        let text = self.decode();
        self.show(&text).trim_end_matches('\u{FFFD}').to_string()
    }

    fn decode(&self) -> String {
        // Decoders of known kinds do not fail; one that does has no text to give.
        self.tokenizer.decode(&self.ids, true).unwrap_or_default()
    }

    fn show(&mut self, text: &str) -> String {
        let new = text.get(self.shown..).unwrap_or_default().to_string();
        // The tokens just shown stay as context: what a decoder makes of a token may depend on the one before.
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        self.shown = self.decode().len();
        new
    }
}
