//! Text as a terminal may show it: control characters, with which a file or a model's answer could rewrite what stands on the
//! screen or reach the clipboard, appear as escapes.

use std::fmt::Write as _;
use std::io::Write;

/// `text` with its control characters, and those that turn the direction of writing, as `\u{1b}` and the like. Line breaks
/// and tabs stay.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            // A line that ends in both shows as one that ends in a line break.
            '\r' => {}
            c if c.is_control() || turns_writing(c) => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// The same on one line: breaks and tabs are spaces.
pub(crate) fn plain(text: &str) -> String {
    shown(text).chars().map(|c| if matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
}

/// JSON with what would steer a terminal written as JSON's own escapes: the same value for whoever parses it.
pub(crate) fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Outside of texts there is nothing but ASCII, and line breaks of its layout.
            '\n' => out.push(c),
            c if c.is_control() || turns_writing(c) => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// Writes lines that steer no terminal; each must come in one piece, as logs do.
pub(crate) struct SafeWriter<W>(pub(crate) W);

impl<W: Write> Write for SafeWriter<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(shown(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Marks, embeddings, overrides and isolates of bidirectional text (Unicode Standard Annex 9).
fn turns_writing(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        assert_eq!(shown("plain text, naïve\n\tnext"), "plain text, naïve\n\tnext");
        assert_eq!(shown("\u{1b}[31mred\u{1b}[0m"), "\\u{1b}[31mred\\u{1b}[0m");
        // Writes to the clipboard, by the two-byte and the one-byte introducer.
        assert_eq!(shown("\u{1b}]52;c;YQ==\u{7}"), "\\u{1b}]52;c;YQ==\\u{7}");
        assert_eq!(shown("\u{9d}52;c;YQ==\u{9c}"), "\\u{9d}52;c;YQ==\\u{9c}");
        assert_eq!(shown("a\u{202e}b\u{8}\0\u{7f}"), "a\\u{202e}b\\u{8}\\u{0}\\u{7f}");
        let mut log = SafeWriter(Vec::new());
        log.write_all("a\u{9b}2Jb\n".as_bytes()).unwrap();
        assert_eq!(log.0, b"a\\u{9b}2Jb\n");
        assert_eq!(plain("two\r\nlines\tand \u{1b}c"), "two lines and \\u{1b}c");
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "text": "\u{9b}31m\u{7f}\u{202e}é\n", "list": [1, 2] });
        let escaped = escaped_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!escaped.chars().any(|c| turns_writing(c) || (c.is_control() && c != '\n')), "{escaped:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }
}
