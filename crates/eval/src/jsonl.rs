//! JSON files that users bring, read one record at a time. A file is hostile until it is checked: a record that is too long, or
//! no JSON object, is a problem with a line number, and the others are read on.

use serde_json::{Map, Value};
use std::io::{BufRead, Read, Result};

/// One record of a file.
#[derive(Debug)]
pub(crate) struct Record {
    /// Number of the line it begins on, from 1.
    pub line: usize,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes, or what is wrong with it.
    pub bytes: std::result::Result<Vec<u8>, String>,
}

/// The records of a file: its lines, blank ones left out, or the elements of the list that it is.
#[derive(Debug)]
pub(crate) struct Records<R> {
    input: R,
    longest: usize,
    line: usize,
    offset: u64,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Lines,
    List,
    Done,
}

/// The byte order mark of UTF-8, which editors put before a text.
const MARK: &[u8] = b"\xef\xbb\xbf";

impl<R: BufRead> Records<R> {
    /// One record a line, of at most `longest` bytes.
    pub(crate) fn lines(input: R, longest: usize) -> Self {
        Self { input, longest, line: 1, offset: 0, form: Form::Lines }
    }

    /// Elements of one list where the file begins with `[`, else one record a line.
    pub(crate) fn of(input: R, longest: usize) -> Result<Self> {
        let mut records = Self::lines(input, longest);
        records.skip_mark()?;
        if records.skip_space()? == Some(b'[') {
            records.take()?;
            records.form = Form::List;
        }
        Ok(records)
    }

    /// The next record.
    pub(crate) fn next(&mut self) -> Result<Option<Record>> {
        match self.form {
            Form::Lines => self.next_line(),
            Form::List => self.next_element(),
            Form::Done => Ok(None),
        }
    }

    fn next_line(&mut self) -> Result<Option<Record>> {
        loop {
            let (line, offset, mut bytes) = (self.line, self.offset, Vec::new());
            let mut read = self.input.by_ref().take(self.longest as u64 + 1).read_until(b'\n', &mut bytes)?;
            if read == 0 {
                return Ok(None);
            }
            let mut too_long = false;
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            } else if bytes.len() > self.longest {
                read += self.input.skip_until(b'\n')?;
                too_long = true;
            }
            self.line += 1;
            self.offset += read as u64;
            if offset == 0 && bytes.starts_with(MARK) {
                bytes.drain(..MARK.len());
            }
            if too_long {
                return Ok(Some(Record { line, offset, bytes: Err(self.too_long()) }));
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(Record { line, offset, bytes: Ok(bytes) }));
            }
        }
    }

    fn next_element(&mut self) -> Result<Option<Record>> {
        let mut next = self.skip_space()?;
        if next == Some(b',') {
            self.take()?;
            next = self.skip_space()?;
        }
        let (line, offset) = (self.line, self.offset);
        let broken = |problem: &str| Ok(Some(Record { line, offset, bytes: Err(problem.into()) }));
        match next {
            Some(b']') => {
                self.take()?;
                self.form = Form::Done;
                return match self.skip_space()? {
                    None => Ok(None),
                    Some(_) => {
                        let (line, offset) = (self.line, self.offset);
                        let bytes = Err("something follows the list that the file is".into());
                        Ok(Some(Record { line, offset, bytes }))
                    }
                };
            }
            None => {
                self.form = Form::Done;
                return broken("the list that the file is has no end");
            }
            Some(_) => {}
        }
        let (mut bytes, mut depth, mut in_text, mut escaped) = (Vec::new(), 0usize, false, false);
        while let Some(byte) = self.peek()? {
            if in_text {
                in_text = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
            } else {
                match byte {
                    b',' | b']' | b'}' if depth == 0 => {
                        if byte == b'}' {
                            self.form = Form::Done;
                            return broken("a `}` without its `{`; the rest of the file is not read");
                        }
                        let bytes = if bytes.len() > self.longest { Err(self.too_long()) } else { Ok(bytes) };
                        return Ok(Some(Record { line, offset, bytes }));
                    }
                    b'"' => in_text = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
            }
            if bytes.len() <= self.longest {
                bytes.push(byte);
            }
            self.take()?;
        }
        self.form = Form::Done;
        broken("the file ends within this record")
    }

    fn too_long(&self) -> String {
        format!("longer than {} MiB, the most a record may have", self.longest >> 20)
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    fn take(&mut self) -> Result<()> {
        if self.peek()? == Some(b'\n') {
            self.line += 1;
        }
        self.input.consume(1);
        self.offset += 1;
        Ok(())
    }

    /// Takes a byte order mark off the beginning.
    fn skip_mark(&mut self) -> Result<()> {
        if self.offset == 0 && self.input.fill_buf()?.starts_with(MARK) {
            self.input.consume(MARK.len());
            self.offset += MARK.len() as u64;
        }
        Ok(())
    }

    fn skip_space(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.take()?;
        }
        Ok(None)
    }
}

/// The object that a record is.
pub(crate) fn parse(record: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(record).map_err(|e| format!("not UTF-8 from byte {}", e.valid_up_to()))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(format!("{} where an object belongs", kind(&other))),
        Err(error) => Err(format!("not JSON at column {}: {error}", error.column())),
    }
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line, offset and bytes of every record, or what is wrong with it.
    fn all(text: &[u8], longest: usize) -> Vec<(usize, u64, String)> {
        let mut records = Records::of(text, longest).unwrap();
        let mut found = Vec::new();
        while let Some(record) = records.next().unwrap() {
            let bytes = record.bytes.map(|b| String::from_utf8_lossy(&b).into_owned());
            found.push((record.line, record.offset, bytes.unwrap_or_else(|e| format!("! {e}"))));
        }
        found
    }

    fn check(text: &str, expected: &[(usize, &str)]) {
        let found = all(text.as_bytes(), 64);
        let short: Vec<(usize, &str)> = found.iter().map(|(line, _, text)| (*line, text.as_str())).collect();
        assert_eq!(short, expected, "{text}");
        for (_, offset, record) in found.iter().filter(|r| !r.2.starts_with('!')) {
            assert!(text[*offset as usize..].starts_with(record.as_str()), "{record} is not at {offset}");
        }
    }

    #[test]
    fn lines_and_elements_are_found_where_they_begin() {
        check("{\"a\":1}\n\n \r\n{\"b\":2}", &[(1, "{\"a\":1}"), (4, "{\"b\":2}")]);
        check("", &[]);
        check("[]", &[]);
        check(
            "[\n  {\"a\": \"]},{\\\"\"},\n  {\"b\":\n [2, 3]}\n]\n",
            &[(2, "{\"a\": \"]},{\\\"\"}"), (3, "{\"b\":\n [2, 3]}\n")],
        );
        check("[1,\"\\\\\",2]", &[(1, "1"), (1, "\"\\\\\""), (1, "2")]);
    }

    #[test]
    fn a_byte_order_mark_hides_no_row() {
        let mark = "\u{feff}";
        check(&format!("{mark}{{\"a\":1}}\n{{\"b\":2}}"), &[(1, "{\"a\":1}"), (2, "{\"b\":2}")]);
        check(&format!("{mark}[{{\"a\":1}}]"), &[(1, "{\"a\":1}")]);
        // Within a file it is a character like any other.
        check(&format!("1\n{mark}2"), &[(1, "1"), (2, &format!("{mark}2"))]);
        let text = format!("{mark}{{}}\n");
        let mut lines = Records::lines(text.as_bytes(), 64);
        assert_eq!(lines.next().unwrap().unwrap().bytes.unwrap(), b"{}");
    }

    #[test]
    fn broken_lists_say_where_they_break() {
        check("[1", &[(1, "! the file ends within this record")]);
        check("[1,\n", &[(1, "1"), (2, "! the list that the file is has no end")]);
        check("[1]\n2", &[(1, "1"), (2, "! something follows the list that the file is")]);
        check("[1}]", &[(1, "! a `}` without its `{`; the rest of the file is not read")]);
    }

    #[test]
    fn what_is_too_long_is_passed_over() {
        let long = "x".repeat(100);
        for text in [format!("\"{long}\"\n7"), format!("[\"{long}\",\n7]")] {
            let found = all(text.as_bytes(), 64);
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(found[0].2.contains("longer than"), "{found:?}");
            assert_eq!((found[1].0, found[1].2.as_str()), (2, "7"));
        }
    }
}
