//! The bodies of the fuzz targets, also run by property tests: whatever the bytes, no panic and no absurd allocation.

use crate::weights::gguf::Gguf;
use crate::weights::{self, Layout, SafeTensors, Source};
use crate::{ChatTemplate, Config, Message, synth::Shape};
use reattention::rope::RopeError;
use std::path::Path;

/// Loads nothing beyond this; what a valid header may hold is not what is tested here.
const MOST: u64 = 1 << 24;

/// `data` as a safetensors file, and as the index of shards; `true` when a tiny Llama could be loaded from it.
pub fn safetensors(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let _ = weights::safetensors::parse_index("index", &text);
    let source = Source::memory("data", data.to_vec());
    let Ok(tensors) = SafeTensors::from_sources(Path::new("data"), vec![source]) else { return false };
    let Ok(config) = Shape::tiny("llama").config() else { return false };
    let layout = Layout::hugging_face(config.family).as_found(&config, &tensors);
    weights::load(&config, layout, &tensors).is_ok()
}

/// `data` as a GGUF file; `true` when a model, a tokenizer and an answer of the tokenizer came out.
pub fn gguf(data: &[u8]) -> bool {
    let Ok(gguf) = Gguf::from_source(Source::memory("data", data.to_vec())) else { return false };
    let tokenizer = gguf.tokenizer().and_then(|t| t.encode("the 東 <|eos|>", true));
    let _ = gguf.chat_template().map(|t| t.map(|t| t.render(&[Message::user("a")], true)));
    let Ok(config) = gguf.config() else { return false };
    let layout = Layout::gguf(config.family).as_found(&config, &gguf);
    let fits = weights::plan(&config, layout, &gguf).is_ok_and(|plan| plan.bytes_resident < MOST);
    fits && weights::load(&config, layout, &gguf).is_ok() && tokenizer.is_ok()
}

/// `data` as a config.json and a generation_config.json; `true` when it is a valid configuration.
pub fn config(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let Ok(config) = Config::from_json(&text, "config.json") else { return false };
    let shape = config.shape();
    match shape.rope.frequencies(shape.window) {
        Ok((frequencies, _)) => assert_eq!(frequencies.len(), shape.rope.dim / 2),
        Err(error) => assert_eq!(error, RopeError::Unsolved),
    }
    assert_eq!(shape.group() * shape.n_kv_heads, shape.n_heads);
    config.with_generation_config(&text, "generation_config.json").is_ok()
}

/// `data` as a chat template; `true` when it rendered a conversation.
pub fn template(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let messages = [Message::system("s"), Message::user("u"), Message::assistant("a")];
    ChatTemplate::new(&text, Some("<s>"), None).and_then(|t| t.render(&messages, true)).is_ok()
}
