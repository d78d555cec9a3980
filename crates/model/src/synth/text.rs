//! A byte-level tokenizer for random models: any text round-trips.

use serde_json::{Map, json};

/// Letters that are joined, in this order, as a trained tokenizer would join frequent pairs.
const MERGES: [(&str, &str); 24] = [
    ("t", "h"),
    ("th", "e"),
    ("i", "n"),
    ("e", "r"),
    ("a", "n"),
    ("Ġ", "a"),
    ("Ġ", "the"),
    ("o", "n"),
    ("e", "n"),
    ("an", "d"),
    ("Ġ", "and"),
    ("in", "g"),
    ("o", "r"),
    ("e", "s"),
    ("a", "t"),
    ("Ġ", "t"),
    ("Ġ", "o"),
    ("Ġo", "f"),
    ("i", "s"),
    ("Ġ", "is"),
    ("e", "d"),
    ("Ġt", "o"),
    ("Ä", "ĥ"),
    ("Ġ", "w"),
];

/// Begin and end token, ids 0 and 1.
pub(super) const SPECIAL: [&str; 2] = ["<|bos|>", "<|eos|>"];

/// The smallest vocabulary: special tokens and one token a byte.
pub(super) const MIN_VOCAB: usize = SPECIAL.len() + 256;

/// The pre-tokenisation pattern of GPT-2.
pub(crate) const GPT2_PATTERN: &str =
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Every token in order of its id: begin, end, the 256 bytes, merges, and unreachable fillers up to `vocab_size`.
pub(super) fn tokens(vocab_size: usize) -> Vec<String> {
    let special = SPECIAL.iter().map(|s| s.to_string());
    let bytes = (0..=255).map(|b| byte_char(b).to_string());
    let merged = MERGES.iter().map(|(a, b)| format!("{a}{b}"));
    let fill = (0..vocab_size).map(|i| format!("Ġ<{i}>"));
    special.chain(bytes).chain(merged).chain(fill).take(vocab_size).collect()
}

/// The merges whose tokens fit into `vocab_size`.
pub(super) fn merges(vocab_size: usize) -> impl Iterator<Item = (&'static str, &'static str)> {
    MERGES.into_iter().take(vocab_size.saturating_sub(MIN_VOCAB))
}

/// The text of a tokenizer.json with `vocab_size` tokens (at least 258).
pub fn tokenizer_json(vocab_size: usize) -> String {
    let vocab_size = vocab_size.max(MIN_VOCAB);
    let vocab: Map<_, _> = tokens(vocab_size).into_iter().enumerate().map(|(id, t)| (t, json!(id))).collect();
    let merges: Vec<_> = merges(vocab_size).map(|(a, b)| json!([a, b])).collect();
    let special = |id: usize| {
        json!({ "id": id, "content": SPECIAL[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let bos = json!({ "SpecialToken": { "id": SPECIAL[0], "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1)],
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": GPT2_PATTERN }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }
        ] },
        "post_processor": { "type": "TemplateProcessing", "single": [bos, sequence("A")],
            "pair": [bos, sequence("A"), sequence("B")],
            "special_tokens": { SPECIAL[0]: { "id": SPECIAL[0], "ids": [0], "tokens": [SPECIAL[0]] } } },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges }
    })
    .to_string()
}

/// The text of the tokenizer_config.json that goes with [`tokenizer_json`].
pub fn tokenizer_config_json() -> String {
    json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1],
        "clean_up_tokenization_spaces": false })
    .to_string()
}

/// The character by which byte-level tokenizers write a byte: itself if it is printable in Latin-1, else the next free
/// one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}
