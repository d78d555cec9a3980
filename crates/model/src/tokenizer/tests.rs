use super::*;
use crate::synth::{tokenizer_config_json, tokenizer_json};

fn byte_level() -> Tokenizer {
    Tokenizer::from_json(&tokenizer_json(400), Some(&tokenizer_config_json()), "tokenizer.json").unwrap()
}

/// A SentencePiece-like tokenizer as Llama 2 has it: a space before the text, bytes for unknown characters.
fn sentencepiece() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: &str| {
        let id = vocab.len();
        vocab.insert(token.to_string(), id.into());
    };
    ["<unk>", "<s>", "</s>"].into_iter().for_each(&mut add);
    (0..=255).for_each(|b| add(&format!("<0x{b:02X}>")));
    "▁abcdefghijklmnopqrstuvwxyz.,\n".chars().for_each(|c| add(&c.to_string()));
    let merges =
        [["t", "h"], ["th", "e"], ["▁", "the"], ["▁", "a"], ["o", "r"], ["▁", "w"], ["▁w", "or"], ["▁", "▁"]];
    merges.iter().for_each(|m| add(&m.concat()));
    let added = |id: u32, content: &str| {
        serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let json = serde_json::json!({
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": merges }
    });
    Tokenizer::from_json(&json.to_string(), None, "llama").unwrap()
}

const MIXED: &str = "The naïve café, in 東京 & 日本語 — 🦀 and the\tend.\r\n\n  Two  spaces.";

#[test]
fn text_round_trips_and_offsets_are_bytes() {
    let tokenizer = byte_level();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()), (Some(0), Some(1), 400));
    let encoded = tokenizer.encode(MIXED, true).unwrap();
    assert_eq!(encoded.ids[0], 0);
    assert_eq!(encoded.offsets[0], 0..0);
    assert_eq!(tokenizer.decode(&encoded.ids, true).unwrap(), MIXED);
    let mut covered = 0;
    for (id, range) in encoded.ids.iter().zip(&encoded.offsets).skip(1) {
        let slice = MIXED.get(range.clone()).expect("offsets fall on characters");
        assert!(range.start <= covered && range.end >= covered, "a gap before {range:?}");
        covered = range.end;
        let token = tokenizer.decode(&[*id], true).unwrap();
        assert!(token == slice || token == "\u{FFFD}", "{token:?} stands for {slice:?}");
    }
    assert_eq!(covered, MIXED.len());
    let the = tokenizer.token_to_id("Ġthe").unwrap();
    let at = encoded.ids.iter().position(|&id| id == the).unwrap();
    assert_eq!(tokenizer.decode(&[the], false).unwrap(), " the");
    assert_eq!(&MIXED[encoded.offsets[at].clone()].trim(), &"the");
    assert_eq!(tokenizer.encode("", true).unwrap().ids, [0]);
    assert_eq!(tokenizer.encode("", false).unwrap(), Encoded::default());
}

#[test]
fn special_tokens_in_documents_stay_text() {
    let tokenizer = byte_level();
    let text = "stop <|eos|> here";
    assert!(tokenizer.encode(text, false).unwrap().ids.contains(&1));
    let plain = tokenizer.encode_text(text).unwrap();
    assert!(!plain.ids.contains(&1));
    assert_eq!(tokenizer.decode(&plain.ids, true).unwrap(), text);
}

/// A long text with words, lines, wide characters, numbers, runs of spaces and spelled-out special tokens.
fn long_text(words: usize, seed: u64) -> String {
    let stock = [
        "the", "and", "wor", "naïve", "東京", "x1", "12345", "—", "a", "end.", "\n", "\n\n", "  ", "🦀",
        "it's", "of",
    ];
    let mut state = seed;
    let mut text = String::new();
    for _ in 0..words {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        text += stock[(state >> 33) as usize % stock.len()];
        if !state.is_multiple_of(11) {
            text.push(' ');
        }
    }
    text
}

#[test]
fn pieces_give_the_tokens_and_offsets_of_the_whole() {
    for (name, tokenizer) in [("byte level", byte_level()), ("sentencepiece", sentencepiece())] {
        let text = long_text(60_000, 7);
        let whole = tokenizer.inner.encode(text.as_str(), false).unwrap();
        let pieces = pieces::cut(&text, |s| bare(&tokenizer.inner, s));
        assert!(
            pieces.len() >= text.len() / (64 << 10),
            "{name}: {} pieces of {} bytes",
            pieces.len(),
            text.len()
        );
        let encoded = tokenizer.encode(&text, false).unwrap();
        assert!(encoded.ids == whole.get_ids(), "{name}: ids differ");
        let offsets: Vec<_> = whole.get_offsets().iter().map(|&(s, e)| s..e).collect();
        let first = encoded.offsets.iter().zip(&offsets).position(|(a, b)| a != b);
        assert_eq!(first, None, "{name}: offsets differ");
    }
}

#[test]
fn a_text_without_places_to_cut_is_taken_whole() {
    let tokenizer = byte_level();
    let text = "東京".repeat(20_000);
    let pieces = pieces::cut(&text, |s| bare(&tokenizer.inner, s));
    assert_eq!(pieces.len(), 1);
    let short = "x".repeat(100);
    assert_eq!(pieces::cut(&short, |_| Err("none".into())).len(), 1);
}

#[test]
fn streaming_gives_whole_characters_and_all_the_text() {
    for tokenizer in [byte_level(), sentencepiece()] {
        let ids = tokenizer.encode(MIXED, false).unwrap().ids;
        let mut stream = tokenizer.decode_stream();
        let mut text = String::new();
        for &id in &ids {
            let now = stream.push(id);
            assert!(!now.contains('\u{FFFD}'), "half a character in {now:?}");
            text += &now;
        }
        text += &stream.finish();
        assert_eq!(text, tokenizer.decode(&ids, true).unwrap());
    }
}

#[test]
fn streaming_does_not_hold_back_bytes_that_are_no_text() {
    let tokenizer = byte_level();
    let bad = tokenizer.encode("é", false).unwrap().ids[0];
    let mut stream = tokenizer.decode_stream();
    let shown: String = (0..20).map(|_| stream.push(bad)).collect();
    assert!(shown.contains('\u{FFFD}'));
    // Eight bytes at a time; what is held back at the end may be the beginning of a character, and is left out.
    assert_eq!((shown + &stream.finish()).chars().filter(|&c| c == '\u{FFFD}').count(), 16);
}

#[test]
fn an_answer_cut_within_a_character_ends_before_it() {
    let tokenizer = byte_level();
    let mut ids = tokenizer.encode("fine é", false).unwrap().ids;
    ids.pop();
    let mut stream = tokenizer.decode_stream();
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text += &stream.finish();
    assert_eq!(text, "fine ");
}

#[test]
fn malformed_files_are_errors() {
    for json in ["", "{}", "[1]", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}"#]
    {
        let error = Tokenizer::from_json(json, None, "tokenizer.json").unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
    assert!(Tokenizer::from_json(&tokenizer_json(300), Some("{"), "t").is_err());
}
