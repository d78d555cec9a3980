//! The long plain text that needles are hidden in: Paul Graham's essays from the user's copy, as RULER, NeedleBench and the original
//! needle test have them, or this project's own prose.

use super::generate::GenerateError;
use crate::text::Haystack;
use std::path::{Path, PathBuf};

/// What stands in for the essays, as tables name it.
pub const OWN: &str = "generated prose in place of the essays";

/// Texts and where they are from.
#[derive(Clone, Debug, PartialEq)]
pub struct Essays {
    /// The essays, each by itself where the files keep them apart; own prose in paragraphs.
    pub texts: Vec<String>,
    /// Its file or folder, or [`OWN`].
    pub name: String,
}

impl Essays {
    /// The essays in the user's folder: `PaulGrahamEssays.json` (`{"text"}`, RULER), `PaulGrahamEssays.jsonl` (a `{"text"}` a line,
    /// NeedleBench), or `.txt` files in the folder or its `PaulGrahamEssays`, put together in the order of their names. Without
    /// any of them, prose of `seed` of at least `bytes` bytes.
    ///
    /// # Errors
    /// When a file cannot be read or is something else.
    pub fn load(data: Option<&Path>, seed: u64, bytes: usize) -> Result<Self, GenerateError> {
        if let Some(data) = data {
            for name in ["PaulGrahamEssays.json", "PaulGrahamEssays.jsonl"] {
                let file = data.join(name);
                if file.is_file() {
                    return Ok(Self { texts: json_texts(&file)?, name: name.to_string() });
                }
            }
            for folder in [data.join("PaulGrahamEssays"), data.to_path_buf()] {
                let texts = text_files(&folder)?;
                if !texts.is_empty() {
                    return Ok(Self { texts, name: "the user's .txt files".to_string() });
                }
            }
        }
        let mut haystack = Haystack::new(seed);
        let mut paragraph = || haystack.by_ref().take(PARAGRAPH).collect::<Vec<_>>().join(" ");
        let (mut texts, mut written) = (vec![paragraph()], 0);
        while written + texts.last().map_or(0, String::len) < bytes {
            written += texts.last().map_or(0, String::len) + 1;
            texts.push(paragraph());
        }
        Ok(Self { texts, name: OWN.to_string() })
    }

    /// All of it, with a line break between two texts.
    pub fn text(&self) -> String {
        self.texts.join("\n")
    }
}

/// Sentences of a paragraph of own prose.
const PARAGRAPH: usize = 11;

/// A file of the user's as text.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read(file: &Path, expected: &str) -> Result<String, GenerateError> {
    reattention_engine::read_text(file).map_err(|e| broken(file, &e.to_string(), expected))
}

/// The error of a file that is not what was expected.
pub fn broken(file: &Path, reason: &str, expected: &str) -> GenerateError {
    GenerateError::Data { file: file.to_path_buf(), reason: reason.into(), expected: expected.into() }
}

/// The `text` of every JSON object in a file of one, or of one a line.
fn json_texts(file: &Path) -> Result<Vec<String>, GenerateError> {
    const EXPECTED: &str = "JSON objects with a `text`";
    let (read, mut texts) = (read(file, EXPECTED)?, Vec::new());
    for object in serde_json::Deserializer::from_str(&read).into_iter::<serde_json::Value>() {
        let object = object.map_err(|e| broken(file, &e.to_string(), EXPECTED))?;
        let text = object.get("text").and_then(|t| t.as_str());
        texts.push(text.ok_or_else(|| broken(file, "an object has no `text`", EXPECTED))?.to_string());
    }
    texts.retain(|t: &String| !t.trim().is_empty());
    match texts.is_empty() {
        true => Err(broken(file, "there is no text", EXPECTED)),
        false => Ok(texts),
    }
}

/// All `.txt` files of a folder that are not empty.
fn text_files(folder: &Path) -> Result<Vec<String>, GenerateError> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.is_file() && p.extension().is_some_and(|x| x == "txt"))
        .collect();
    files.sort();
    let texts: Vec<String> = files.iter().map(|f| read(f, "plain text")).collect::<Result<_, _>>()?;
    Ok(texts.into_iter().filter(|t| !t.trim().is_empty()).collect())
}

/// Cuts a text into sentences: behind `.`, `!` or `?` and closing quotes or brackets, at white space, unless a small letter
/// follows. In place of NLTK's punkt model, which also knows abbreviations.
pub fn sentences(text: &str) -> Vec<&str> {
    let (mut found, mut from, mut ended) = (Vec::new(), 0, false);
    let mut at = text.char_indices().peekable();
    while let Some((i, c)) = at.next() {
        match c {
            '.' | '!' | '?' => ended = true,
            '"' | '\'' | ')' | ']' | '”' | '’' => {}
            _ if c.is_whitespace() => {
                let next = at.peek().map(|(_, c)| *c);
                if ended && next.is_some_and(|c| !c.is_lowercase() && !c.is_whitespace()) {
                    found.push(text[from..i].trim());
                    from = i + c.len_utf8();
                }
                ended &= next.is_some_and(char::is_whitespace);
            }
            _ => ended = false,
        }
    }
    let rest = text[from..].trim();
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_should() {
        let text = "It is late. \"Is it?\" asked Ann. He paid 3.50 coins (not 4.) and left!  Then: nothing";
        assert_eq!(
            sentences(text),
            [
                "It is late.",
                "\"Is it?\" asked Ann.",
                "He paid 3.50 coins (not 4.) and left!",
                "Then: nothing"
            ]
        );
        assert_eq!(sentences("One.\nTwo.\n\nThree."), ["One.", "Two.", "Three."]);
        assert!(sentences(" \n ").is_empty());
        let prose = crate::text::prose(4, 5_000);
        assert_eq!(sentences(&prose).join(" "), prose);
    }

    #[test]
    fn essays_come_from_the_folder_that_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let load = || Essays::load(Some(dir.path()), 1, 100);
        let own = load().unwrap();
        assert!(own.name == OWN && own.text().len() >= 100 && own.texts.len() == 1, "{own:?}");
        let long = Essays::load(None, 1, 5_000).unwrap();
        assert!((5_000..7_000).contains(&long.text().len()) && long.texts[0] == own.texts[0]);
        assert_eq!(long.text().replace('\n', " "), crate::text::prose(1, long.text().len()));
        std::fs::write(dir.path().join("b.txt"), "Second.").unwrap();
        std::fs::write(dir.path().join("a.txt"), "First. ").unwrap();
        assert_eq!(load().unwrap().text(), "First. \nSecond.");
        let lines = dir.path().join("PaulGrahamEssays.jsonl");
        std::fs::write(&lines, "{\"text\": \"One.\"}\n{\"text\": \"Two.\"}\n").unwrap();
        assert_eq!(load().unwrap().texts, ["One.", "Two."]);
        std::fs::write(dir.path().join("PaulGrahamEssays.json"), r#"{"text": "Essay."}"#).unwrap();
        assert_eq!(
            load().unwrap(),
            Essays { texts: vec!["Essay.".into()], name: "PaulGrahamEssays.json".into() }
        );
        std::fs::write(dir.path().join("PaulGrahamEssays.json"), r#"{"txt": 1}"#).unwrap();
        let error = load().unwrap_err().to_string();
        assert!(error.contains("PaulGrahamEssays.json: an object has no `text`"), "{error}");
    }
}
