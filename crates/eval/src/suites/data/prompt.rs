//! Published prompts, with `{name}` where Python's `str.format` puts the value.

use serde::de::DeserializeOwned;

/// The content of a file of published prompts that is compiled into the program.
///
/// # Panics
/// If it is not of that form; no input reaches it, and a test of its suite reads it.
pub fn published<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("the file is part of the program")
}

/// What stands before and behind `{context}` in a template, with the other values put in. Values are put in as they are: braces
/// in them mean nothing. A name without a value stays.
pub fn around(template: &str, values: &[(&str, &str)]) -> (String, String) {
    let (before, after) = template.split_once("{context}").unwrap_or((template, ""));
    (fill(before, values), fill(after, values))
}

fn fill(mut text: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(text.len());
    while let Some(open) = text.find('{') {
        let rest = &text[open..];
        let value = values.iter().find_map(|(name, value)| {
            let after = rest[1..].strip_prefix(*name)?.strip_prefix('}')?;
            Some((*value, after))
        });
        filled.push_str(&text[..open]);
        text = match value {
            Some((value, after)) => {
                filled.push_str(value);
                after
            }
            None => {
                filled.push('{');
                &rest[1..]
            }
        };
    }
    filled.push_str(text);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_in_once() {
        let (before, after) = around("{a}: {context} {b}/{a}{c}", &[("a", "{b}"), ("b", "{context}")]);
        assert_eq!((before.as_str(), after.as_str()), ("{b}: ", " {context}/{b}{c}"));
        assert_eq!(around("{ {a", &[("a", "x")]), ("{ {a".to_string(), String::new()));
    }
}
