//! Tokens that end what a model says, by their names.
//!
//! The names are those that llama.cpp ends generation at, whatever a file's ids say; published files name the wrong token,
//! or none, often enough.

use super::Tokenizer;

/// Names of tokens that end a turn, a message or a text.
const ENDS: [&str; 17] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// Names that end a turn in vocabularies where they are special: in others they are words like any other.
const ENDS_IF_SPECIAL: [&str; 6] = ["</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"];

/// What a code model writes between files: the answer is over there too.
const FILE_ENDS: [&str; 8] = [
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<reponame>",
    "<|file_sep|>",
];

/// Whether a spelling is a known name of an end token.
pub(crate) fn is_end_name(name: &str) -> bool {
    ENDS.contains(&name) || ENDS_IF_SPECIAL.contains(&name)
}

impl Tokenizer {
    /// Tokens of the vocabulary that end an answer by their names, and the end token that tokenizer_config.json or the file
    /// names. Where a model has `<|return|>` and `<|call|>` (gpt-oss; `<|flush|>` and `<|calls|>` elsewhere), `<|end|>` only ends a
    /// message, after which the model goes on.
    pub fn end_tokens(&self) -> Vec<u32> {
        let has = |name: &str| self.token_to_id(name).is_some();
        let goes_on = has("<|call|>") && has("<|return|>") || has("<|calls|>") && has("<|flush|>");
        let named = ENDS.iter().chain(&ENDS_IF_SPECIAL).chain(&FILE_ENDS).filter_map(|&name| {
            let id = self.token_to_id(name)?;
            let plain = ENDS_IF_SPECIAL.contains(&name);
            let ends = !plain || (self.is_added(id) && !self.by_name.contains(&id));
            (ends && !(goes_on && name == "<|end|>")).then_some(id)
        });
        let mut ids: Vec<u32> = named.chain(self.eos_id()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
