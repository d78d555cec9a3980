//! What each token is: by the file, and by its name.

use super::Metadata;
use crate::tokenizer::is_end_name;
use serde_json::json;

/// Kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    /// Special: found in templates alone.
    Control,
    /// Found in every text.
    UserDefined,
    /// Fills up the matrix; no text has it.
    Unused,
    Byte,
}

/// The kinds of all tokens.
#[derive(Debug)]
pub(super) struct Kinds {
    kinds: Vec<Kind>,
    /// Tokens that are special for their names, and normal by the file.
    by_name: Vec<u32>,
    /// Special tokens swallow the white space behind them, all but a few.
    strips: bool,
}

/// Tokens for the parts of a file to be completed: the keys of their ids, and the names by which they are known where the file has
/// no such key.
const FILL_IN: [(&[&str], &[&str]); 6] = [
    (
        &["fim_pre_token_id", "prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        &["fim_suf_token_id", "suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        &["fim_mid_token_id", "middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    (&["fim_pad_token_id"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (&["fim_rep_token_id"], &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    (&["fim_sep_token_id"], &["<|file_sep|>"]),
];

/// What gpt-oss writes within an answer: shown, though the file calls it control.
const WITHIN_ANSWERS: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Special tokens of Phi-3 that leave the white space behind them alone.
const KEEP_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

impl Kinds {
    pub(super) fn of(metadata: &Metadata<'_>, tokens: &[String]) -> Self {
        let types = metadata.numbers("token_type");
        let name = |key: &str| metadata.header.metadata.get(key);
        let fill_in: Vec<&str> = FILL_IN
            .iter()
            .filter(|(keys, _)| keys.iter().all(|key| metadata.integer(key).is_none()))
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let has = |wanted: &str| tokens.iter().any(|t| t == wanted);
        let goes_on = has("<|return|>") && has("<|call|>") || has("<|flush|>") && has("<|calls|>");
        let mut by_name = Vec::new();
        let kinds = tokens.iter().enumerate().map(|(id, token)| {
            let stored = match types.get(id).map_or(1, |&t| t as i64) {
                2 => Kind::Unknown,
                3 => Kind::Control,
                4 => Kind::UserDefined,
                5 => Kind::Unused,
                6 => Kind::Byte,
                _ => Kind::Normal,
            };
            if WITHIN_ANSWERS.contains(&token.as_str()) || (goes_on && token == "<|end|>") {
                return Kind::UserDefined;
            }
            if is_end_name(token) || fill_in.contains(&token.as_str()) {
                if stored == Kind::Normal {
                    by_name.push(id as u32);
                }
                return Kind::Control;
            }
            stored
        });
        let kinds = kinds.collect();
        let strips = match name("general.name") {
            Some(super::Value::Text(name)) => {
                let name = name.to_lowercase();
                name.contains("phi-3") || name.contains("phi3")
            }
            _ => false,
        };
        Self { kinds, by_name, strips }
    }

    /// Kind of a token.
    pub(super) fn of_token(&self, id: usize) -> Kind {
        self.kinds.get(id).copied().unwrap_or(Kind::Normal)
    }

    /// Tokens that are special for their names, and normal by the file.
    pub(super) fn by_name(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_name.iter().copied()
    }

    /// The tokens that are looked for in a text before any joins, as tokenizer.json lists them.
    pub(super) fn added(&self, tokens: &[String]) -> Vec<serde_json::Value> {
        let wanted = |kind| matches!(kind, Kind::Unknown | Kind::Control | Kind::UserDefined);
        let tokens = tokens.iter().enumerate();
        let added = tokens.filter(|(id, token)| !token.is_empty() && wanted(self.of_token(*id)));
        added
            .map(|(id, token)| {
                let kind = self.of_token(id);
                let strips = self.strips && !KEEP_SPACE.contains(&token.as_str());
                json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": strips,
                    "normalized": false, "special": kind != Kind::UserDefined })
            })
            .collect()
    }
}
