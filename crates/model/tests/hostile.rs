//! Damaged and hostile files: the fuzz bodies on mutations of valid files.
#![allow(missing_docs)]

use proptest::prelude::*;
use reattention_model::fuzzing;
use reattention_model::synth::{DenseType, GgufType, Shape, write_gguf, write_hugging_face};
use std::sync::OnceLock;

/// One damage to a file: where, as a part of its length, and what.
#[derive(Clone, Debug)]
enum Damage {
    Byte(f64, u8),
    Word(f64, u64),
    Cut(f64),
    Repeat(f64, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    // Headers are at the front: half of the damage goes there.
    let place = || prop_oneof![0.0..1.0f64, 0.0..0.02f64];
    let word = prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|b| 1 << b),
        (0u64..16).prop_map(|i| u64::MAX - i),
        0u64..64,
    ];
    let one = prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, b)| Damage::Byte(at, b)),
        4 => (place(), word).prop_map(|(at, w)| Damage::Word(at, w)),
        1 => place().prop_map(Damage::Cut),
        1 => (place(), 1usize..64).prop_map(|(at, n)| Damage::Repeat(at, n)),
    ];
    prop::collection::vec(one, 1..6)
}

fn apply(valid: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut data = valid.to_vec();
    for damage in damages {
        let place = |at: f64| ((data.len() as f64 * at) as usize).min(data.len().saturating_sub(1));
        match *damage {
            _ if data.is_empty() => {}
            Damage::Byte(at, byte) => {
                let at = place(at);
                data[at] = byte;
            }
            Damage::Word(at, word) => {
                let at = place(at);
                let end = data.len().min(at + 8);
                data[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
            }
            Damage::Cut(at) => data.truncate(place(at)),
            Damage::Repeat(at, n) => {
                let at = place(at);
                let piece = data[at..data.len().min(at + n)].to_vec();
                data.splice(at..at, piece);
            }
        }
    }
    data
}

fn valid(kind: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    if kind == "safetensors" {
        write_hugging_face(dir.path(), &Shape::tiny("llama"), DenseType::Bf16, 1, None).unwrap();
        return std::fs::read(dir.path().join("model.safetensors")).unwrap();
    }
    let path = dir.path().join("a.gguf");
    write_gguf(&path, &Shape::tiny("llama"), GgufType::Q8_0, 1).unwrap();
    std::fs::read(path).unwrap()
}

/// The peak of this process's memory; files here are far below a megabyte.
fn memory_stayed_small() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(peak.is_none_or(|kib| kib < 512 << 10), "{peak:?} KiB");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_safetensors(damages in damage()) {
        static VALID: OnceLock<Vec<u8>> = OnceLock::new();
        fuzzing::safetensors(&apply(VALID.get_or_init(|| valid("safetensors")), &damages));
        memory_stayed_small();
    }

    #[test]
    fn damaged_gguf(damages in damage()) {
        static VALID: OnceLock<Vec<u8>> = OnceLock::new();
        fuzzing::gguf(&apply(VALID.get_or_init(|| valid("gguf")), &damages));
        memory_stayed_small();
    }

    #[test]
    fn damaged_config(damages in damage()) {
        fuzzing::config(&apply(Shape::tiny("qwen2").config_json("float32").as_bytes(), &damages));
    }

    #[test]
    fn any_value_under_any_key_of_a_config(key in 0usize..24, value in any_json()) {
        let mut config: serde_json::Value = serde_json::from_str(&Shape::tiny("qwen3").config_json("float32")).unwrap();
        let map = config.as_object_mut().unwrap();
        let names = ["rope_parameters", "sliding_window", "layer_types", "num_experts", "attention_bias", "head_dim"];
        let name = map.keys().nth(key).cloned().unwrap_or_else(|| names[key % names.len()].to_string());
        map.insert(name, value);
        fuzzing::config(config.to_string().as_bytes());
    }

    #[test]
    fn damaged_templates(damages in damage()) {
        let source = "{%- for m in messages[1:] %}{%- if loop.first and m.role == 'user' %}{{ m.content | trim }}\
            {%- else %}{{ m['content'].split('x')[0] ~ bos_token }}{%- endif %}{%- endfor %}";
        fuzzing::template(&apply(source.as_bytes(), &damages));
    }

    #[test]
    fn arbitrary_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzzing::safetensors(&data);
        fuzzing::gguf(&[&b"GGUF\x03\0\0\0"[..], &data].concat());
        fuzzing::config(&data);
        fuzzing::template(&data);
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just("yarn"), Just("linear"), Just("llama3"), Just("dynamic"), Just("longrope")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        let scaling = (inner.clone(), inner.clone(), inner.clone()).prop_map(|(kind, factor, original)| {
            json!({ "rope_type": kind, "factor": factor, "original_max_position_embeddings": original })
        });
        prop_oneof![prop::collection::vec(inner, 0..4).prop_map(Value::from), scaling]
    })
}

/// The bodies say yes to what is valid: otherwise the tests above would test nothing.
#[test]
fn undamaged_files_pass() {
    assert!(fuzzing::safetensors(&valid("safetensors")));
    assert!(fuzzing::gguf(&valid("gguf")));
    assert!(fuzzing::config(Shape::tiny("qwen2").config_json("float32").as_bytes()));
    assert!(fuzzing::template(b"{{ messages[0].content }}"));
}
