//! The tokenizer in a GGUF file's metadata, rewritten as a tokenizer.json.
//!
//! Token ids are those that llama.cpp gives: no Unicode normalisation (which Hugging Face's Qwen, OLMo and Command R do), and
//! tokens with the name of an end token are special, whatever the file calls them.

mod kinds;
mod pre;
#[cfg(test)]
mod tests;

use super::header::{Header, Value};
use crate::tokenizer::SentencePiece;
use crate::{ModelError, Tokenizer};
use kinds::{Kind, Kinds};
use pre::PreTokenizer;
use serde_json::{Map, json};

/// Kinds of tokenizers that are known and not served, with what they are.
const UNSERVED: [(&str, &str); 9] = [
    ("bert", "WordPiece, of encoder models"),
    ("t5", "Unigram"),
    ("rwkv", "a trie, of recurrent models"),
    ("plamo2", "a table of its own"),
    ("gemma4", "joins over raw UTF-8"),
    ("hybriddna", "k-mers of DNA"),
    ("whitespace", "one token a word"),
    ("none", "ids alone, without texts"),
    ("no_vocab", "ids alone, without texts"),
];

pub(super) fn build(header: &Header, file: &str) -> Result<Tokenizer, ModelError> {
    let metadata = Metadata { header, file };
    let tokens =
        metadata.texts("tokens").ok_or_else(|| metadata.error("tokenizer.ggml.tokens is missing"))?;
    let model = metadata.text("model").unwrap_or("none");
    let kinds = Kinds::of(&metadata, tokens);
    let mut sentencepiece = None;
    let (mut json, add_bos) = match model {
        "gpt2" => {
            let pre = pre::named(metadata.text("pre")).map_err(|reason| metadata.error(&reason))?;
            (metadata.byte_level(tokens, pre)?, pre.add_bos)
        }
        "llama" => {
            sentencepiece = Some(metadata.sentencepiece(tokens, &kinds));
            (metadata.sentencepiece_json(tokens), true)
        }
        other => return Err(metadata.error(&unserved(other))),
    };
    json["added_tokens"] = kinds.added(tokens).into();
    let bos = metadata.special_id("bos_token_id", 1, tokens);
    let eos = metadata.special_id("eos_token_id", 2, tokens);
    let named = |id: Option<usize>| id.map(|id| tokens[id].as_str());
    let bos = bos.filter(|_| metadata.boolean("add_bos_token").unwrap_or(add_bos));
    let eos_added = eos.filter(|_| metadata.boolean("add_eos_token").unwrap_or(false));
    if bos.is_some() || eos_added.is_some() {
        json["post_processor"] = around_texts(bos, eos_added, tokens);
    }
    let bos = metadata.special_id("bos_token_id", 1, tokens);
    let config = json!({ "bos_token": named(bos), "eos_token": named(eos) });
    let tokenizer = Tokenizer::from_json(&json.to_string(), Some(&config.to_string()), file)?
        .with_special_by_name(kinds.by_name().collect());
    let tokenizer = match metadata.header.metadata.get("tokenizer.chat_template") {
        Some(Value::Text(template)) => tokenizer.with_template(template),
        _ => tokenizer,
    };
    Ok(match sentencepiece {
        Some(pieces) => tokenizer.with_sentencepiece(pieces),
        None => tokenizer,
    })
}

fn unserved(model: &str) -> String {
    let shown: String = model.chars().take(80).collect();
    let known = UNSERVED.iter().find(|(name, _)| *name == model).map(|(_, what)| format!(" ({what})"));
    format!(
        "a tokenizer of the kind `{shown}`{} is not supported; gpt2 and llama are: use the Hugging Face folder",
        known.unwrap_or_default()
    )
}

/// A post-processor that puts begin and end token around every text.
fn around_texts(bos: Option<usize>, eos: Option<usize>, tokens: &[String]) -> serde_json::Value {
    let special = |id: usize| json!({ "SpecialToken": { "id": tokens[id], "type_id": 0 } });
    let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut used = Map::new();
    let mut describe = |id: usize| {
        used.insert(tokens[id].clone(), json!({ "id": tokens[id], "ids": [id], "tokens": [tokens[id]] }));
        special(id)
    };
    if let Some(id) = bos {
        single.insert(0, describe(id));
    }
    if let Some(id) = eos {
        single.push(describe(id));
    }
    json!({ "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": used })
}

struct Metadata<'a> {
    header: &'a Header,
    file: &'a str,
}

impl<'a> Metadata<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        match self.get(key) {
            Some(Value::Text(t)) => Some(t),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Option<&'a [String]> {
        match self.get(key) {
            Some(Value::Texts(t)) => Some(t),
            _ => None,
        }
    }

    fn numbers(&self, key: &str) -> &'a [f32] {
        match self.get(key) {
            Some(Value::Numbers(n)) => n,
            _ => &[],
        }
    }

    fn integer(&self, key: &str) -> Option<i128> {
        match self.get(key) {
            Some(Value::Int(i)) => Some(*i),
            _ => None,
        }
    }

    fn boolean(&self, key: &str) -> Option<bool> {
        match self.get(key) {
            Some(Value::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    /// The token whose id is under `key`; where the file has none, SentencePiece's own default.
    fn special_id(&self, key: &str, default: usize, tokens: &[String]) -> Option<usize> {
        let absent = (self.text("model") == Some("llama")).then_some(default);
        let id = self.integer(key).map_or(absent, |id| usize::try_from(id).ok())?;
        tokens.get(id).filter(|t| !t.is_empty()).map(|_| id)
    }

    fn error(&self, reason: &str) -> ModelError {
        ModelError::Tokenizer { file: self.file.into(), reason: reason.into() }
    }

    /// Byte-level BPE: words by the pre-tokenizer's patterns, joins by `merges` within a word.
    fn byte_level(&self, tokens: &[String], pre: &PreTokenizer) -> Result<serde_json::Value, ModelError> {
        let split = |p: &&str| json!({ "type": "Split", "pattern": { "Regex": p }, "behavior": "Isolated", "invert": false });
        let mut pretokenizers: Vec<_> = pre.passes.iter().map(split).collect();
        pretokenizers.push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }));
        let merges = self.texts("merges").ok_or_else(|| self.error("tokenizer.ggml.merges is missing"))?;
        let merges: Option<Vec<_>> =
            merges.iter().map(|m| merge_pair(m).map(|(a, b)| json!([a, b]))).collect();
        Ok(json!({
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": pretokenizers },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "vocab": vocabulary(tokens), "ignore_merges": pre.ignore_merges,
                "merges": merges.ok_or_else(|| self.error("a merge is not two tokens with a space between them"))? }
        }))
    }

    /// The pieces that a text may be joined to. Control, unknown and byte tokens are none: a text that spells one would turn
    /// into it.
    fn sentencepiece(&self, tokens: &[String], kinds: &Kinds) -> SentencePiece {
        let scores = self.numbers("scores");
        let pieces = tokens.iter().enumerate().filter(|(id, token)| {
            !token.is_empty() && !matches!(kinds.of_token(*id), Kind::Unknown | Kind::Control | Kind::Byte)
        });
        let pieces = pieces
            .map(|(id, token)| (token.as_str(), id as u32, scores.get(id).copied().unwrap_or_default()));
        let bytes = tokens.iter().enumerate().filter_map(|(id, token)| {
            let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
            Some((u8::from_str_radix(digits, 16).ok()?, id as u32))
        });
        let unknown = self.special_id("unknown_token_id", 0, tokens).unwrap_or_default();
        SentencePiece::new(pieces, bytes, unknown as u32, self.space_prefix())
    }

    fn space_prefix(&self) -> bool {
        self.boolean("add_space_prefix").unwrap_or(true)
    }

    /// What tells tokens back into text; texts become tokens by [`SentencePiece`].
    fn sentencepiece_json(&self, tokens: &[String]) -> serde_json::Value {
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.space_prefix() {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let unknown = self.special_id("unknown_token_id", 0, tokens).map(|id| tokens[id].as_str());
        json!({
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": { "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
                "vocab": vocabulary(tokens), "merges": [] }
        })
    }
}

/// A merge's two tokens: what stands before and after the first space behind the first character.
fn merge_pair(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}

fn vocabulary(tokens: &[String]) -> Map<String, serde_json::Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
}
