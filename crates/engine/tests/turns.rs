//! Where prompts begin and answers end: seams, templates, end tokens.

use reattention::{KvDtype, Settings, methods};
use reattention_engine::{Cancel, Engine, Finish, GenerateOptions, Package, Prompt, Source};
use reattention_kernels::Cpu;
use reattention_model::synth::{DenseType, Shape, write_hugging_face};
use reattention_model::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const TEMPLATE: &str = "{% for m in messages %}[U] {{ m.content }} {% endfor %}[A]";

fn read(dir: &Path, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join(file)).unwrap()).unwrap()
}

fn write(dir: &Path, file: &str, value: &Value) {
    std::fs::write(dir.join(file), value.to_string()).unwrap();
}

/// A random model whose files `edit` may change.
fn folder(edit: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_hugging_face(dir.path(), &Shape::tiny("llama"), DenseType::F32, 5, None).unwrap();
    let mut config = read(dir.path(), "config.json");
    config["eos_token_id"] = Value::Null;
    write(dir.path(), "config.json", &config);
    let mut tokenizer = read(dir.path(), "tokenizer_config.json");
    tokenizer["chat_template"] = TEMPLATE.into();
    tokenizer["eos_token"] = Value::Null;
    write(dir.path(), "tokenizer_config.json", &tokenizer);
    edit(dir.path());
    dir
}

fn engine(dir: &Path) -> Engine {
    let package = Package::open(dir).unwrap();
    let tokenizer = Arc::new(package.tokenizer().unwrap());
    package.engine(tokenizer, Arc::new(Cpu::new(1).unwrap())).unwrap()
}

/// What a session says that was told nothing of ends.
fn answer(engine: &Engine) -> (Vec<u32>, Finish) {
    let method = methods::build("full", &Settings::new(), engine.model().shape()).unwrap();
    let mut session = engine.session(method, None, KvDtype::F32);
    let prompt = Prompt::from_ids(vec![5, 9, 70, 33]);
    session.prefill(&prompt, &Cancel::default(), |_| {}).unwrap();
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let answer = session.generate(&options, None, &Cancel::default(), |_| {}).unwrap();
    (answer.ids, answer.finish)
}

/// The third token that the model says, and what it said before.
fn third() -> (u32, Vec<u32>) {
    let dir = folder(|_| {});
    let (ids, finish) = answer(&engine(dir.path()));
    assert_eq!((ids.len(), finish), (12, Finish::Length));
    let at = (2..ids.len()).find(|&i| !ids[..i].contains(&ids[i]) && ids[i] > 1).expect("it says new things");
    (ids[at], ids[..at].to_vec())
}

/// Gives a token another name, and makes it an added one.
fn rename(dir: &Path, id: u32, name: &str, special: bool) {
    let mut json = read(dir, "tokenizer.json");
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let old = vocab.iter().find(|(_, v)| v.as_u64() == Some(u64::from(id))).unwrap().0.clone();
    vocab.remove(&old);
    vocab.insert(name.into(), id.into());
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|m| {
        let pair = [m[0].as_str().unwrap(), m[1].as_str().unwrap()];
        pair.concat() != old && !pair.contains(&old.as_str())
    });
    json["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "id": id, "content": name, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": special }));
    write(dir, "tokenizer.json", &json);
}

fn set(dir: &Path, file: &str, key: &str, value: Value) {
    let mut json = if dir.join(file).exists() { read(dir, file) } else { json!({}) };
    json[key] = value;
    write(dir, file, &json);
}

/// Whoever names the token that ends a turn is heard: a session with default options stops there.
#[test]
fn every_place_that_names_an_end_token_is_heard() {
    let (end, before) = third();
    let stops = |what: &str, edit: &dyn Fn(&Path)| {
        let dir = folder(|dir| edit(dir));
        let engine = engine(dir.path());
        assert!(engine.stop_tokens().contains(&end), "{what}");
        assert_eq!(answer(&engine), (before.clone(), Finish::StopToken), "{what}");
    };
    stops("config.json", &|dir| set(dir, "config.json", "eos_token_id", json!([7, end])));
    stops("generation_config.json beside another in config.json", &|dir| {
        set(dir, "config.json", "eos_token_id", json!(7));
        set(dir, "generation_config.json", "eos_token_id", json!(end));
    });
    stops("config.json beside another in generation_config.json", &|dir| {
        set(dir, "config.json", "eos_token_id", json!(end));
        set(dir, "generation_config.json", "eos_token_id", json!(7));
    });
    for special in [true, false] {
        stops("a known name", &|dir| rename(dir, end, "<|im_end|>", special));
    }
    stops("tokenizer_config.json", &|dir| {
        rename(dir, end, "<stop>", true);
        set(dir, "tokenizer_config.json", "eos_token", json!("<stop>"));
        set(dir, "config.json", "eos_token_id", json!(7));
    });
    stops("the chat template", &|dir| {
        rename(dir, end, "<turn_over>", true);
        let template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<turn_over>\n{% endfor %}";
        set(dir, "tokenizer_config.json", "chat_template", json!(template));
    });
}

/// A model tuned on a template whose end of turn its vocabulary does not have spells it.
#[test]
fn an_end_of_turn_that_the_vocabulary_lacks_ends_as_text() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let dir = folder(|dir| set(dir, "tokenizer_config.json", "chat_template", json!(template)));
    let engine = engine(dir.path());
    assert_eq!(engine.stop_strings(), ["<|im_end|>"]);
    assert_eq!(engine.without_template().stop_strings(), ["\n"]);
    // Where it has one, that token ends.
    let dir = folder(|dir| {
        set(dir, "tokenizer_config.json", "chat_template", json!(template));
        rename(dir, 300, "<|im_end|>", true);
    });
    let engine = self::engine(dir.path());
    assert!(engine.stop_strings().is_empty() && engine.stop_tokens().contains(&300));
}

/// A tokenizer of Llama 2's kind, which puts a space before every text.
fn llama2() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: &str| {
        let id = vocab.len();
        vocab.insert(token.to_string(), id.into());
    };
    ["<unk>", "<s>", "</s>"].into_iter().for_each(&mut add);
    (0..=255).for_each(|b| add(&format!("<0x{b:02X}>")));
    "▁abcdefghijklmnopqrstuvwxyzIOMNSTW[]/.,?".chars().for_each(|c| add(&c.to_string()));
    add("▁t");
    let added = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let json = json!({
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["▁", "t"]] }
    });
    Tokenizer::from_json(&json.to_string(), None, "llama").unwrap()
}

fn source(text: &str) -> Source {
    Source { name: "dog.txt".into(), text: text.into() }
}

/// `[INST] text question [/INST]` has the tokens of one pass, however many seams the prompt has.
#[test]
fn no_space_is_added_at_seams() {
    let tokenizer = llama2();
    let template = "<s>{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}";
    let template = ChatTemplate::new(template, None, None).unwrap();
    let text = "Once there was a dog.\n";
    let whole = tokenizer.encode(&format!("<s>[INST] {text}\n\nWhat? [/INST]"), false).unwrap();
    let prompt = Prompt::ask(&[source(text)], "What?", &tokenizer, Some(&template)).unwrap();
    assert_eq!(prompt.ids, whole.ids);
    let opening =
        Prompt::opening(None, "Once ", &source("there was a dog.\n"), &tokenizer, Some(&template)).unwrap();
    let closing = Prompt::closing("\n\nWhat?", "", &tokenizer, Some(&template)).unwrap();
    assert_eq!([opening.ids.clone(), closing.ids].concat(), whole.ids);
    // Tokens know their places in the source.
    let at = |p: &Prompt, i: usize| p.origins[i].map(|o| (o.start as usize, o.end as usize));
    let spelled = |range: (usize, usize)| text["Once ".len()..][range.0..range.1].to_string();
    let told: String = (0..opening.ids.len()).filter_map(|i| at(&opening, i)).map(spelled).collect();
    assert_eq!(told, "there was a dog.\n");
    let two = Prompt::context(&[source("a b"), source("c d")], &tokenizer, None).unwrap();
    let mut told: Vec<u32> = two.origins.iter().flatten().map(|o| o.source).collect();
    assert_eq!(told.iter().filter(|&&source| source == 1).count(), 3);
    told.dedup();
    assert_eq!(told, [0, 1]);
    let plain = Prompt::ask(&[source(text)], "What?", &tokenizer, None).unwrap();
    let whole = tokenizer.encode_text(&format!("{text}\nQuestion: What?\nAnswer:")).unwrap();
    assert_eq!(plain.ids, whole.ids);
}

/// The begin token stands there once, whether the tokenizer or the template puts it.
#[test]
fn the_begin_token_is_not_doubled() {
    let dir = folder(|dir| {
        let template = "{{ bos_token }}{% for m in messages %}[U] {{ m.content }}{% endfor %}";
        set(dir, "tokenizer_config.json", "chat_template", json!(template));
    });
    let engine = engine(dir.path());
    let bos = engine.tokenizer().bos_id().unwrap();
    let begins = |engine: &Engine| {
        let ids = engine.ask(&[source("a dog")], "what?").unwrap().ids;
        (ids[0] == bos, ids.iter().filter(|&&id| id == bos).count())
    };
    assert_eq!(begins(&engine), (true, 1));
    assert_eq!(begins(&engine.without_template()), (true, 1));
}

/// The private-use character that marks the user's words never reaches the model.
#[test]
fn a_template_that_shows_the_message_twice_repeats_the_question() {
    let tokenizer = llama2();
    let template = "[INST] {{ messages[0].content }} [/INST] {{ messages[0].content }} [/INST]";
    let template = ChatTemplate::new(template, None, None).unwrap();
    let prompt = Prompt::ask(&[source("Once. ")], "What?", &tokenizer, Some(&template)).unwrap();
    let text = tokenizer.decode(&prompt.ids, false).unwrap();
    assert_eq!(text, "[INST] Once. \n\nWhat? [/INST] What? [/INST]");
}

/// Gemma 2 refuses a system message, others leave it out: it stands before the user's words then.
#[test]
fn a_system_message_that_has_no_place_stands_before_the_text() {
    let tokenizer = llama2();
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}[INST] {{ messages[0].content }}";
    let drops = "{% for m in messages if m.role == 'user' %}[INST] {{ m.content }}{% endfor %}";
    let takes = "{% for m in messages %}[{{ m.role[:1] }}] {{ m.content }}{% endfor %}";
    for (template, want) in [
        (refuses, "[INST] Short.\n\nOnce."),
        (drops, "[INST] Short.\n\nOnce."),
        (takes, "[s] Short.[u] Once."),
    ] {
        let template = ChatTemplate::new(template, None, None).unwrap();
        let prompt =
            Prompt::opening(Some("Short."), "", &source("Once."), &tokenizer, Some(&template)).unwrap();
        assert_eq!(tokenizer.decode(&prompt.ids, false).unwrap(), want);
    }
}
