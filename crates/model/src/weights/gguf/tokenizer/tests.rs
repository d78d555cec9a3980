use super::*;
use std::collections::HashMap;

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
    let pieces =
        [("▁", -10.0), ("h", -11.0), ("e", -12.0), ("l", -13.0), ("o", -14.0), ("he", -3.0), ("ll", -2.0)];
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
    assert_eq!(split("smollm", "12 a!\n").unwrap(), ["1", "2", "Ġa", "!", "Ċ"]);
    let error = |pre| split(pre, "a").unwrap_err().to_string();
    assert!(error("smollm3").contains("`smollm3` is not known; near it are smollm;"), "{}", error("smollm3"));
    assert!(error("gemma4").contains("raw UTF-8"), "{}", error("gemma4"));
}

#[test]
fn what_is_missing_or_foreign_is_named() {
    let error = |pairs| build(&header(pairs), "a.gguf").unwrap_err().to_string();
    assert!(error(vec![]).contains("tokens"));
    assert!(error(vec![("tokens", texts(&["a"])), ("model", Value::Text("bert".into()))]).contains("bert"));
    let gpt2 =
        |merges| vec![("tokens", texts(&["a"])), ("model", Value::Text("gpt2".into())), ("merges", merges)];
    assert!(error(gpt2(texts(&["ab"]))).contains("merge"));
    assert!(error(gpt2(texts(&["a b"]))).contains("a.gguf"));
}

/// A SentencePiece vocabulary of bytes and `pieces` (spelling, score, type), with ids from 259 on.
fn scored(pieces: &[(&str, f32, f32)], more: Vec<(&str, Value)>) -> Tokenizer {
    let mut tokens = vec!["<unk>".to_string(), "<s>".into(), "</s>".into()];
    tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
    let mut scores = vec![0.0; tokens.len()];
    let mut types = vec![2.0, 3.0, 3.0];
    types.resize(tokens.len(), 6.0);
    for &(piece, score, kind) in pieces {
        tokens.push(piece.into());
        scores.push(score);
        types.push(kind);
    }
    let mut pairs = vec![
        ("model", Value::Text("llama".into())),
        ("tokens", Value::Texts(tokens)),
        ("scores", Value::Numbers(scores)),
        ("token_type", Value::Numbers(types)),
    ];
    pairs.extend(more);
    build(&header(pairs), "a.gguf").unwrap()
}

fn spelled(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
}

/// Equal scores: the leftmost pair is joined first, whatever it makes. Ranked joins would make `aa` twice before `aaa`.
#[test]
fn equal_scores_join_from_the_left() {
    let tokenizer = scored(
        &[("a", 0.0, 1.0), ("aa", 0.0, 1.0), ("aaa", 0.0, 1.0), ("▁", 0.0, 1.0)],
        vec![("add_space_prefix", Value::Bool(false))],
    );
    let ids = tokenizer.encode("aaaaa", false).unwrap();
    assert_eq!(spelled(&tokenizer, &ids.ids), ["aaa", "aa"]);
    assert_eq!(ids.offsets, [0..3, 3..5]);
    // Where the file names none, SentencePiece's own ids hold.
    assert_eq!(tokenizer.encode("a", true).unwrap().ids, [1, 259]);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
}

#[test]
fn a_space_stands_before_texts_and_behind_special_tokens() {
    let pieces = [("a", -1.0, 1.0), ("▁", -2.0, 1.0), ("▁a", -0.5, 1.0), ("<x>", 0.0, 4.0)];
    let tokenizer = scored(&pieces, vec![]);
    let of = |text: &str| spelled(&tokenizer, &tokenizer.encode(text, false).unwrap().ids);
    assert_eq!(of("a a"), ["▁a", "▁a"]);
    assert_eq!(of("<s>a<x>a</s>"), ["<s>", "▁a", "<x>", "▁a", "</s>"]);
    assert!(of("").is_empty());
    let follows = tokenizer.encode_parts(&[crate::Part::Text("a a")], crate::Place::Follows).unwrap();
    assert_eq!(spelled(&tokenizer, &follows.ids), ["a", "▁a"]);
}

/// `<s` and `>` could be joined to the begin token: a document must not become one.
#[test]
fn no_text_is_joined_to_a_control_token() {
    let pieces = [("<", -1.0, 1.0), ("s", -2.0, 1.0), (">", -2.0, 1.0), ("<s", -0.5, 1.0)];
    let tokenizer = scored(&pieces, vec![("add_space_prefix", Value::Bool(false))]);
    assert_eq!(spelled(&tokenizer, &tokenizer.encode_text("<s>").unwrap().ids), ["<s", ">"]);
    assert_eq!(tokenizer.encode("<s>", false).unwrap().ids, [1]);
}

/// By name of the model alone: white space behind a special token of Phi-3 is swallowed, but not behind `<s>`.
#[test]
fn special_tokens_of_phi_3_swallow_spaces() {
    let of = |name: &str| {
        let mut header = header(vec![
            ("model", Value::Text("llama".into())),
            ("tokens", texts(&["<unk>", "<s>", "</s>", "a", "▁", "▁a", "<|user|>", "<0x0A>"])),
            ("scores", Value::Numbers(vec![0.0, 0.0, 0.0, -1.0, -2.0, -0.5, 0.0, 0.0])),
            ("token_type", Value::Numbers(vec![2.0, 3.0, 3.0, 1.0, 1.0, 1.0, 3.0, 6.0])),
        ]);
        header.metadata.insert("general.name".into(), Value::Text(name.into()));
        let tokenizer = build(&header, "a.gguf").unwrap();
        spelled(&tokenizer, &tokenizer.encode("<|user|>\n a<s> a", false).unwrap().ids)
    };
    assert_eq!(of("Phi-3 mini"), ["<|user|>", "▁a", "<s>", "▁", "▁a"]);
    assert_eq!(of("Other"), ["<|user|>", "▁", "<0x0A>", "▁a", "<s>", "▁", "▁a"]);
}

/// A byte-level vocabulary of letters and these tokens, with types.
fn byte_level(tokens: &[(&str, f32)]) -> Tokenizer {
    let mut all: Vec<String> = "<>|/[]_abcdefghijklmnopqrstuvwxyzEOT".chars().map(String::from).collect();
    let mut types = vec![1.0; all.len()];
    for &(token, kind) in tokens {
        all.push(token.into());
        types.push(kind);
    }
    let pairs = vec![
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text("gpt-2".into())),
        ("tokens", Value::Texts(all)),
        ("token_type", Value::Numbers(types)),
        ("merges", texts(&[])),
    ];
    build(&header(pairs), "a.gguf").unwrap()
}

#[test]
fn end_tokens_are_known_by_their_names() {
    let ends = |tokens: &[(&str, f32)]| {
        let tokenizer = byte_level(tokens);
        spelled(&tokenizer, &tokenizer.end_tokens())
    };
    // Whatever the file calls them.
    for kind in [1.0, 3.0, 4.0] {
        assert_eq!(ends(&[("<|im_end|>", kind), ("<|user|>", 3.0)]), ["<|im_end|>"]);
    }
    // `</s>` is a word of Qwen's vocabulary like any other, and an end token of Mistral's.
    assert!(ends(&[("</s>", 1.0), ("<EOT>", 1.0)]).is_empty());
    assert_eq!(ends(&[("</s>", 3.0), ("<EOT>", 3.0)]), ["</s>", "<EOT>"]);
    // gpt-oss goes on after a message.
    assert_eq!(ends(&[("<|end|>", 3.0), ("<|return|>", 3.0)]), ["<|end|>", "<|return|>"]);
    let harmony = [("<|end|>", 3.0), ("<|return|>", 3.0), ("<|call|>", 3.0), ("<|channel|>", 3.0)];
    assert_eq!(ends(&harmony), ["<|return|>", "<|call|>"]);
}

/// As llama.cpp: user-defined tokens are found in every text, control tokens only where they are parsed, and `</s>` is parsed
/// even where it is a joined token.
#[test]
fn kinds_of_tokens_are_found_where_they_may_be() {
    let tokenizer = byte_level(&[("<tool>", 4.0), ("<|im_end|>", 3.0), ("</s>", 1.0), ("[PAD1]", 5.0)]);
    let n = |text: &str, parsed: bool| {
        let encoded = if parsed { tokenizer.encode(text, false) } else { tokenizer.encode_ordinary(text) };
        encoded.unwrap().ids.len()
    };
    assert_eq!((n("a<tool>b", false), n("a<tool>b", true)), (3, 3));
    assert_eq!((n("a<|im_end|>b", false), n("a<|im_end|>b", true)), (12, 3));
    assert_eq!((n("a</s>b", false), n("a</s>b", true)), (6, 3));
}

/// Pieces of each class, as the pattern says; joins are none, so that a token is a character, and pieces are seen by offsets
/// of the pre-tokenizer.
#[test]
fn every_named_pre_tokenizer_compiles_and_cuts() {
    let pieces = |name: &str, text: &str| {
        let pre = pre::named(Some(name)).unwrap();
        let mut pieces = vec![text.to_string()];
        for pass in pre.passes {
            use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
            use tokenizers::{
                OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
            };
            let split =
                Split::new(SplitPattern::Regex((*pass).into()), SplitDelimiterBehavior::Isolated, false)
                    .unwrap();
            pieces = pieces
                .iter()
                .flat_map(|piece| {
                    let mut text = PreTokenizedString::from(piece.as_str());
                    split.pre_tokenize(&mut text).unwrap();
                    text.get_splits(OffsetReferential::Original, OffsetType::Byte)
                        .iter()
                        .map(|s| s.0.to_string())
                        .collect::<Vec<_>>()
                })
                .collect();
        }
        pieces
    };
    for name in pre::names() {
        let text =
            "It's ＦＵＬＬ 12345 naïve 東京タワー 한국어 a  b\t\n\n (x)!?/\r\n iPhone's <sentinel:12> $5~";
        assert_eq!(pieces(name, text).concat(), text, "{name} loses text");
    }
    assert_eq!(pieces("qwen2", "it's 12\n\n x"), ["it", "'s", " ", "1", "2", "\n\n", " x"]);
    assert_eq!(pieces("llama-bpe", "HELLO'S 12345!!\n"), ["HELLO", "'S", " ", "123", "45", "!!\n"]);
    assert_eq!(pieces("qwen35", "e\u{301}a b\u{301}"), ["e\u{301}a", " b\u{301}"]);
    assert_eq!(pieces("qwen2", "e\u{301}a"), ["e", "\u{301}a"]);
    assert_eq!(
        pieces("tekken", "camelCase HTTPServer's 12 a/\n"),
        ["camel", "Case", " HTTPServer", "'s", " ", "1", "2", " a", "/\n"]
    );
    assert_eq!(pieces("tekken", "приветМир ÉtéÀ"), ["привет", "Мир", " Été", "À"]);
    assert_eq!(pieces("gpt-4o", "camelCase's 12345"), ["camel", "Case's", " ", "123", "45"]);
    // A contraction may follow a word, and need not.
    assert_eq!(pieces("gpt-4o", "two words, 12 A"), ["two", " words", ",", " ", "12", " A"]);
    assert_eq!(pieces("youtu", "two words 12"), ["two", " words", " ", "1", "2"]);
    assert_eq!(pieces("smollm", "a 12 b"), ["a", " ", "1", "2", " b"]);
    assert_eq!(pieces("deepseek-v3", "a 12345東京abc.def"), ["a", " ", "123", "45", "東京", "abc", ".def"]);
    assert_eq!(pieces("deepseek-coder", "a b,c\n12"), ["a", " b", ",", "c", "\n", "1", "2"]);
    // Its punctuation, as published, reaches from `:` to `~` and so takes small letters from accented ones.
    assert_eq!(pieces("deepseek-llm", "été 12 東京, b"), ["é", "t", "é", " ", "12", " ", "東京", ",", " b"]);
    assert_eq!(pieces("falcon", "a=1234 b`c"), ["a", "=", "123", "4", " b", "`", "c"]);
    assert_eq!(pieces("default", "a,b 12345"), ["a", ",", "b", " ", "123", "45"]);
    assert_eq!(pieces("bloom", "Hello, you. x"), ["Hello", ",", " you", ".", " x"]);
    assert_eq!(pieces("viking", "a12 b"), ["a", "1", "2", " b"]);
    assert_eq!(pieces("superbpe", "a b 1234567 c"), ["a b ", "1", "234", "567", " c"]);
    assert_eq!(pieces("tiny_aya", "1234567 a"), ["1", "234", "567", " a"]);
    assert_eq!(pieces("exaone-moe", "two words 1"), ["two words", " ", "1"]);
    assert_eq!(pieces("jais-2", "a\u{20}\u{20}\u{20}\u{20}\u{20}b"), ["a", "    ", " b"]);
}

#[test]
fn names_that_are_not_served_say_why() {
    let error = |name: &str| pre::named(Some(name)).unwrap_err();
    assert!(error("kimi-k2").contains("no joins"));
    assert!(error("roberta-bpe").contains("encoder"));
    assert!(error("qwen3").contains("`qwen3` is not known; near it are qwen2, "), "{}", error("qwen3"));
    assert!(error("zzz").contains("among them"), "{}", error("zzz"));
    for model in ["gemma4", "t5", "bert", "rwkv"] {
        let error =
            build(&header(vec![("tokens", texts(&["a"])), ("model", Value::Text(model.into()))]), "a.gguf");
        assert!(error.unwrap_err().to_string().contains(&format!("`{model}` (")));
    }
}
