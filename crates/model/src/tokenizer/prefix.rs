//! The space that some tokenizers put before a text: which do, and how to keep them from it where a text follows other text.

use serde_json::Value;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

/// Before which texts a space is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// None.
    Never,
    /// The first of all, but none behind a special token: `Metaspace` with `prepend_scheme` `first`.
    First,
    /// Each that does not follow text: Llama 2's `Prepend`, `Metaspace` with `always`, `ByteLevel` with
    /// `add_prefix_space`.
    Always,
}

impl Rule {
    /// The rule of a tokenizer.
    pub(super) fn of(inner: &tokenizers::Tokenizer) -> Self {
        let (normalizer, pre_tokenizer) = steps(inner);
        let (mut rule, mut steps) = (Self::Never, vec![&normalizer, &pre_tokenizer]);
        while let Some(step) = steps.pop() {
            match kind(step) {
                "Prepend" => return Self::Always,
                "ByteLevel" if step.get("add_prefix_space") == Some(&Value::Bool(true)) => {
                    return Self::Always;
                }
                "Metaspace" => match step.get("prepend_scheme").and_then(Value::as_str) {
                    Some("never") => {}
                    Some("first") => rule = Self::First,
                    _ => return Self::Always,
                },
                _ => steps.extend(parts(step).into_iter().flatten()),
            }
        }
        rule
    }
}

/// Takes from a tokenizer what puts a space before texts.
pub(super) fn remove(inner: &mut tokenizers::Tokenizer) {
    let (normalizer, pre_tokenizer) = steps(inner);
    let normalizer = serde_json::from_value::<NormalizerWrapper>(without(normalizer)).ok();
    let pre_tokenizer = serde_json::from_value::<PreTokenizerWrapper>(without(pre_tokenizer)).ok();
    // Fails only where an added token cannot be normalised, which it could before.
    let _ = inner.with_normalizer(normalizer);
    inner.with_pre_tokenizer(pre_tokenizer);
}

/// Normalizer and pre-tokenizer as tokenizer.json writes them.
fn steps(inner: &tokenizers::Tokenizer) -> (Value, Value) {
    let normalizer = inner.get_normalizer().and_then(|n| serde_json::to_value(n).ok());
    let pre_tokenizer = inner.get_pre_tokenizer().and_then(|p| serde_json::to_value(p).ok());
    (normalizer.unwrap_or_default(), pre_tokenizer.unwrap_or_default())
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The steps of a sequence.
fn parts(step: &Value) -> Option<&Vec<Value>> {
    ["normalizers", "pretokenizers"].into_iter().find_map(|key| step.get(key)?.as_array())
}

/// A step without what puts a space before texts; null for one that does nothing else.
fn without(mut step: Value) -> Value {
    match kind(&step) {
        "Prepend" => return Value::Null,
        "Metaspace" => step["prepend_scheme"] = "never".into(),
        "ByteLevel" if step.get("add_prefix_space").is_some() => step["add_prefix_space"] = false.into(),
        _ => {
            for key in ["normalizers", "pretokenizers"] {
                if let Some(list) = step.get_mut(key).and_then(Value::as_array_mut) {
                    let kept = std::mem::take(list).into_iter().map(without).filter(|s| !s.is_null());
                    *list = kept.collect();
                }
            }
        }
    }
    step
}
