//! The tokenizer in a GGUF file's metadata, rewritten as a tokenizer.json.

use super::header::{Header, Value};
use crate::synth::GPT2_PATTERN;
use crate::{ModelError, Tokenizer};
use serde_json::{Map, json};
use std::collections::HashMap;

/// As published with Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As published with Qwen 2: single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does for byte-level vocabularies of unnamed kind: several passes, each splitting what is left.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// SentencePiece never makes longer pieces; splitting absurd ones in every way would take forever.
const MAX_PIECE: usize = 256;

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
const CONTROL: f32 = 3.0;
const USER_DEFINED: f32 = 4.0;

pub(super) fn build(header: &Header, file: &str) -> Result<Tokenizer, ModelError> {
    let metadata = Metadata { header, file };
    let tokens =
        metadata.texts("tokens").ok_or_else(|| metadata.error("tokenizer.ggml.tokens is missing"))?;
    let types = metadata.numbers("token_type");
    let kind = |id: usize| types.get(id).copied().unwrap_or(1.0);
    let added: Vec<_> = tokens
        .iter()
        .enumerate()
        .filter(|(id, token)| !token.is_empty() && (kind(*id) == CONTROL || kind(*id) == USER_DEFINED))
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind(id) == CONTROL })
        })
        .collect();
    let token = |key: &str| metadata.token(key, tokens);
    let mut json = match metadata.text("model") {
        Some("gpt2") => metadata.byte_level(tokens)?,
        Some("llama") => metadata.sentencepiece(tokens),
        other => {
            let other = other.unwrap_or("none");
            return Err(metadata.error(&format!(
                "a tokenizer of the kind `{other}` is not supported, gpt2 and llama are; use the Hugging Face folder"
            )));
        }
    };
    json["added_tokens"] = added.into();
    let by_default = metadata.text("model") == Some("llama") || metadata.is_llama3();
    if let (true, Some(bos)) =
        (metadata.boolean("add_bos_token").unwrap_or(by_default), token("bos_token_id"))
    {
        let id = metadata.integer("bos_token_id").unwrap_or_default() as u32;
        let single = json!([{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }]);
        json["post_processor"] = json!({ "type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } } });
    }
    let config = json!({ "bos_token": token("bos_token_id"), "eos_token": token("eos_token_id") });
    Tokenizer::from_json(&json.to_string(), Some(&config.to_string()), file)
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

    /// The spelling of the token whose id is under `key`.
    fn token(&self, key: &str, tokens: &'a [String]) -> Option<&'a str> {
        tokens.get(usize::try_from(self.integer(key)?).ok()?).map(String::as_str).filter(|t| !t.is_empty())
    }

    fn is_llama3(&self) -> bool {
        matches!(self.text("pre"), Some("llama-bpe" | "llama3" | "llama-v3"))
    }

    fn error(&self, reason: &str) -> ModelError {
        ModelError::Tokenizer { file: self.file.into(), reason: reason.into() }
    }

    fn byte_level(&self, tokens: &[String]) -> Result<serde_json::Value, ModelError> {
        let patterns: &[&str] = match self.text("pre") {
            Some("llama-bpe" | "llama3" | "llama-v3") => &[LLAMA3],
            Some("qwen2" | "deepseek-r1-qwen") => &[QWEN2],
            Some("gpt-2" | "gpt2") => &[GPT2_PATTERN],
            None | Some("default") => &DEFAULT,
            Some(other) => {
                return Err(self.error(&format!(
                    "the pre-tokenizer `{other}` is not known; known are llama-bpe, qwen2, gpt-2, default; use the Hugging \
                     Face folder"
                )));
            }
        };
        let split = |p: &&str| json!({ "type": "Split", "pattern": { "Regex": p }, "behavior": "Isolated", "invert": false });
        let mut pretokenizers: Vec<_> = patterns.iter().map(split).collect();
        pretokenizers.push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }));
        let merges = self.texts("merges").ok_or_else(|| self.error("tokenizer.ggml.merges is missing"))?;
        let pair = |merge: &String| merge.split_once(' ').map(|(a, b)| json!([a, b]));
        let merges: Option<Vec<_>> = merges.iter().map(pair).collect();
        Ok(json!({
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": pretokenizers },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "vocab": vocabulary(tokens), "ignore_merges": self.is_llama3(),
                "merges": merges.ok_or_else(|| self.error("a merge is not two tokens with a space between them"))? }
        }))
    }

    /// SentencePiece BPE: joins are ranked by the score of what they make, which gives the same pieces.
    fn sentencepiece(&self, tokens: &[String]) -> serde_json::Value {
        let scores = self.numbers("scores");
        let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
        let mut merges: Vec<(f32, usize, usize)> = Vec::new();
        for (id, token) in tokens.iter().enumerate().filter(|(_, t)| t.len() <= MAX_PIECE) {
            let score = scores.get(id).copied().unwrap_or_default();
            for (at, _) in token.char_indices().skip(1) {
                if let (Some(&left), Some(&right)) = (ids.get(&token[..at]), ids.get(&token[at..])) {
                    merges.push((score, left, right));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0));
        let merges: Vec<_> = merges.iter().map(|&(_, a, b)| json!([tokens[a], tokens[b]])).collect();
        let prefix = self.boolean("add_space_prefix").unwrap_or(true);
        let mut normalizers =
            vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let unknown = self.token("unknown_token_id", tokens).or(tokens.first().map(String::as_str));
        json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": { "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
                "vocab": vocabulary(tokens), "merges": merges }
        })
    }
}

fn vocabulary(tokens: &[String]) -> Map<String, serde_json::Value> {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(pairs: Vec<(&str, Value)>) -> Header {
        let metadata = pairs.into_iter().map(|(k, v)| (format!("tokenizer.ggml.{k}"), v)).collect();
        Header { metadata, tensors: HashMap::new() }
    }

    fn texts(list: &[&str]) -> Value {
        Value::Texts(list.iter().map(|s| s.to_string()).collect())
    }

    /// A SentencePiece vocabulary: `hell` outranks `lo`, so that "hello" is not `he` `llo`.
    #[test]
    fn sentencepiece_joins_by_score() {
        let mut tokens = vec!["<unk>".to_string(), "<s>".into(), "</s>".into()];
        tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
        let pieces = [
            ("▁", -10.0),
            ("h", -11.0),
            ("e", -12.0),
            ("l", -13.0),
            ("o", -14.0),
            ("he", -3.0),
            ("ll", -2.0),
        ];
        let joined = [("hell", -4.0), ("lo", -5.0), ("▁hell", -6.0), ("llo", -7.0), ("<|x|>", 0.0)];
        let mut scores = vec![0.0; tokens.len()];
        let mut types = vec![2.0, 3.0, 3.0];
        types.resize(tokens.len(), 6.0);
        for (piece, score) in pieces.into_iter().chain(joined) {
            tokens.push(piece.into());
            scores.push(score);
            types.push(if piece == "<|x|>" { 4.0 } else { 1.0 });
        }
        let header = header(vec![
            ("model", Value::Text("llama".into())),
            ("tokens", Value::Texts(tokens)),
            ("scores", Value::Numbers(scores)),
            ("token_type", Value::Numbers(types)),
            ("bos_token_id", Value::Int(1)),
            ("eos_token_id", Value::Int(2)),
        ]);
        let tokenizer = build(&header, "a.gguf").unwrap();
        let spelled = |text: &str| {
            let ids = tokenizer.encode(text, true).unwrap().ids;
            ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(spelled("hello"), ["<s>", "▁hell", "o"]);
        assert_eq!(spelled("lo é"), ["<s>", "▁", "lo", "▁", "<0xC3>", "<0xA9>"]);
        assert_eq!(spelled("o<|x|>")[1..], ["▁", "o", "<|x|>"]);
        let ids = tokenizer.encode("hello é  lo", false).unwrap().ids;
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello é  lo");
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    }

    /// What the named pre-tokenizers keep apart: with every join allowed, words and digit groups stay separate.
    #[test]
    fn pre_tokenizers_split_as_named() {
        let tokens = ["1", "2", "12", "123", "3", "Ġ", "a", "Ġa", "!", "!!", "Ċ", "!Ċ"];
        let merges = ["1 2", "12 3", "Ġ a", "! !", "! Ċ"];
        let split = |pre: &str, text: &str| {
            let header = header(vec![
                ("model", Value::Text("gpt2".into())),
                ("pre", Value::Text(pre.into())),
                ("tokens", texts(&tokens)),
                ("merges", texts(&merges)),
            ]);
            let tokenizer = build(&header, "a.gguf")?;
            let ids = tokenizer.encode(text, false)?.ids;
            Ok::<_, ModelError>(ids.iter().map(|&i| tokens[i as usize]).collect::<Vec<_>>())
        };
        assert_eq!(split("llama-bpe", "123123 a!\n").unwrap(), ["123", "123", "Ġa", "!Ċ"]);
        assert_eq!(split("qwen2", "123 a!\n").unwrap(), ["1", "2", "3", "Ġa", "!Ċ"]);
        assert_eq!(split("gpt-2", "12 a!\n").unwrap(), ["12", "Ġa", "!", "Ċ"]);
        assert_eq!(split("default", "1231 a").unwrap(), ["123", "1", "Ġa"]);
        assert!(split("tekken", "a").unwrap_err().to_string().contains("tekken"));
    }

    #[test]
    fn what_is_missing_or_foreign_is_named() {
        let error = |pairs| build(&header(pairs), "a.gguf").unwrap_err().to_string();
        assert!(error(vec![]).contains("tokens"));
        assert!(
            error(vec![("tokens", texts(&["a"])), ("model", Value::Text("bert".into()))]).contains("bert")
        );
        let gpt2 = |merges| {
            vec![("tokens", texts(&["a"])), ("model", Value::Text("gpt2".into())), ("merges", merges)]
        };
        assert!(error(gpt2(texts(&["ab"]))).contains("merge"));
        assert!(error(gpt2(texts(&["a b"]))).contains("a.gguf"));
    }
}
