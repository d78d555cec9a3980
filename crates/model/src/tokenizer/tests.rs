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
        let pieces = pieces::cut(&text, |s| tokenizer.bare(&tokenizer.inner, s, Place::Leads));
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
    let pieces = pieces::cut(&text, |s| tokenizer.bare(&tokenizer.inner, s, Place::Leads));
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

/// The byte-level tokenizer with two more added tokens: a marker and a run of spaces, neither special.
fn with_markers(template: &str) -> Tokenizer {
    let mut json: Value = serde_json::from_str(&tokenizer_json(400)).unwrap();
    for (id, content) in [(400, "<think>"), (401, "   "), (402, "<b>")] {
        json["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({ "id": id, "content": content,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false }));
    }
    let mut config: Value = serde_json::from_str(&tokenizer_config_json()).unwrap();
    config["chat_template"] = template.into();
    Tokenizer::from_json(&json.to_string(), Some(&config.to_string()), "t").unwrap()
}

/// As Qwen3 has `<think>`: a token of the template which tokenizer.json does not call special.
#[test]
fn markers_of_the_template_stay_text_in_documents() {
    let tokenizer = with_markers("{{ '<think>' }}   ");
    let text = "a <think>   <b>";
    let document = tokenizer.encode_text(text).unwrap();
    assert!(!document.ids.contains(&400), "a marker was taken from a document");
    assert!(document.ids.contains(&401) && document.ids.contains(&402), "ordinary added tokens are text too");
    assert_eq!(tokenizer.decode(&document.ids, false).unwrap(), text);
    for ids in [tokenizer.encode(text, false).unwrap().ids, tokenizer.encode_ordinary(text).unwrap().ids] {
        assert!([400, 401, 402].iter().all(|id| ids.contains(id)), "{ids:?}");
    }
    // Without a template that spells it, it is a token like the others.
    assert!(with_markers("").encode_text(text).unwrap().ids.contains(&400));
}

#[test]
fn parts_are_put_into_tokens_as_one_text() {
    let tokenizer = byte_level();
    let parts = [Part::Markup("<|bos|>a"), Part::Text("nd <|eos|>"), Part::Markup(" the<|eos|>")];
    let encoded = tokenizer.encode_parts(&parts, Place::Leads).unwrap();
    assert_eq!((encoded.ids[0], encoded.ids[encoded.ids.len() - 1]), (0, 1));
    assert_eq!(encoded.ids.iter().filter(|&&id| id <= 1).count(), 2, "a document's text became a token");
    // "a" of the first part and "nd" of the second are one token.
    let and = encoded.ids.iter().position(|&id| Some(id) == tokenizer.token_to_id("and")).unwrap();
    assert_eq!(encoded.offsets[and], 7..10);
    let whole = "<|bos|>and <|eos|> the<|eos|>";
    assert_eq!(tokenizer.decode(&encoded.ids, false).unwrap(), whole);
    assert_eq!(encoded.offsets.last(), Some(&(whole.len() - 7..whole.len())));
}

/// Tokenizers that put a space before a text, in every way a tokenizer.json can say so.
#[test]
fn a_text_that_follows_another_gets_no_space() {
    let meta = |scheme: &str| {
        let json = serde_json::json!({
            "added_tokens": [{ "id": 6, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true }],
            "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true },
            "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true },
            "model": { "type": "BPE", "unk_token": null, "vocab": { "▁": 0, "a": 1, "b": 2, "▁a": 3, "▁b": 4, "\n": 5 },
                "merges": [["▁", "a"], ["▁", "b"]] }
        });
        Tokenizer::from_json(&json.to_string(), None, "t").unwrap()
    };
    let ids = |t: &Tokenizer, text: &str, place| t.encode_parts(&[Part::Markup(text)], place).unwrap().ids;
    for (scheme, leads, after) in [("always", 3, 3), ("first", 3, 1), ("never", 1, 1)] {
        let tokenizer = meta(scheme);
        assert_eq!(ids(&tokenizer, "a b", Place::Leads), [leads, 4], "{scheme}");
        assert_eq!(ids(&tokenizer, "a b", Place::Follows), [1, 4], "{scheme}");
        assert_eq!(ids(&tokenizer, "<s>a", Place::Leads), [6, after], "{scheme}");
        // As the tokenizer itself does it in one pass.
        assert_eq!(tokenizer.inner.encode("<s>a b", false).unwrap().get_ids(), [6, after, 4], "{scheme}");
    }
    let tokenizer = sentencepiece();
    let text = "the words\nand a 東";
    let follows = ids(&tokenizer, text, Place::Follows);
    assert_eq!(tokenizer.token_to_id("t").map(|_| ()), Some(()));
    assert_eq!(follows[0], tokenizer.token_to_id("the").unwrap());
    assert_eq!(ids(&tokenizer, text, Place::Leads)[0], tokenizer.token_to_id("▁the").unwrap());
}
