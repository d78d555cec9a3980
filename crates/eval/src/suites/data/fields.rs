//! A row of a file, with its fields in the types they must have.

use crate::jsonl::kind;
use serde_json::{Map, Value};

/// The fields of a row. What is missing or of another type is said in words.
#[derive(Clone, Debug, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of a JSON object.
    pub fn new(row: Map<String, Value>) -> Self {
        Self(row)
    }

    /// A field; null counts as missing.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn value(&self, name: &str) -> Result<&Value, String> {
        self.get(name).ok_or_else(|| format!("`{name}` is missing"))
    }

    /// A text.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.value(name)?;
        value.as_str().ok_or_else(|| wrong(name, value, "a text"))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let value = self.value(name)?;
        let list = value.as_array().ok_or_else(|| wrong(name, value, "a list of texts"))?;
        let text = |v: &Value| {
            v.as_str()
                .map(str::to_string)
                .ok_or_else(|| format!("`{name}` has {} where a text belongs", kind(v)))
        };
        list.iter().map(text).collect()
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn whole(&self, name: &str) -> Result<u64, String> {
        let value = self.value(name)?;
        value.as_u64().ok_or_else(|| wrong(name, value, "a whole number"))
    }

    /// The row's id, a text or a number, under the first of these names that it has; none without one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn id(&self, names: &[&str]) -> Result<Option<String>, String> {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, self.get(name)?))) else {
            return Ok(None);
        };
        match value {
            Value::String(id) => Ok(Some(id.clone())),
            Value::Number(id) => Ok(Some(id.to_string())),
            other => Err(wrong(name, other, "a text or a number")),
        }
    }

    /// A text that can be left out, and must be one of these if it is not: what tells rows of other tasks.
    ///
    /// # Errors
    /// When it is another.
    pub fn is(&self, name: &str, expected: &[&str]) -> Result<(), String> {
        match self.get(name) {
            None => Ok(()),
            Some(Value::String(found)) if expected.contains(&found.as_str()) => Ok(()),
            Some(found) => Err(format!("`{name}` is {found} where {} belongs", expected.join(" or "))),
        }
    }
}

fn wrong(name: &str, found: &Value, wanted: &str) -> String {
    format!("`{name}` is {} where {wanted} belongs", kind(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_have_types() {
        let Value::Object(row) =
            json!({ "t": "x", "l": ["a", "b"], "m": ["a", 1], "n": 7, "f": 1.5, "z": null, "o": {} })
        else {
            panic!("it is an object")
        };
        let row = Fields::new(row);
        assert_eq!(row.text("t"), Ok("x"));
        assert_eq!(row.texts("l"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(row.whole("n"), Ok(7));
        assert_eq!(row.id(&["_id", "n"]), Ok(Some("7".into())));
        assert_eq!(row.id(&["_id"]), Ok(None));
        assert_eq!(row.is("t", &["y", "x"]), Ok(()));
        for (found, part) in [
            (row.text("n").map(drop), "a number where a text"),
            (row.text("z").map(drop), "`z` is missing"),
            (row.texts("m").map(drop), "has a number"),
            (row.texts("t").map(drop), "a text where a list"),
            (row.whole("f").map(drop), "where a whole number"),
            (row.id(&["o"]).map(drop), "an object where a text or a number"),
            (row.is("t", &["y"]), "is \"x\" where y belongs"),
        ] {
            assert!(found.as_ref().is_err_and(|e| e.contains(part)), "{found:?} lacks {part}");
        }
    }
}
