//! Chinese words, as jieba 0.42.1 cuts them in precise mode with its HMM on.
//!
//! `jieba-rs` has the same dictionary and the same model, but newer rules around them: it takes rare characters into its
//! blocks that Python's `[\u4E00-\u9FD5]` leaves out, and keeps `2024-01-15` or `v1.2.3` together. Here it is given the
//! blocks Python would form, and what it joined is cut again by Python's rule.

use jieba_rs::Jieba;
use std::sync::LazyLock;

/// The words of `text`, spaces and punctuation included: joined they are `text` again.
pub fn cut(text: &str) -> Vec<&str> {
    // Most runs never need the dictionary, and building it is most of the work of a short one.
    static JIEBA: LazyLock<Jieba> = LazyLock::new(Jieba::new);
    let (mut words, mut rest) = (Vec::new(), text);
    while let Some(c) = rest.chars().next() {
        let block = rest.find(|c| !in_block(c)).unwrap_or(rest.len());
        if block > 0 {
            for token in JIEBA.cut(&rest[..block], true) {
                // No word of the dictionary has one of these, so such a token was joined by rule.
                if token.word.contains(['.', '_', '-']) {
                    cut_joined(token.word, &mut words);
                } else {
                    words.push(token.word);
                }
            }
            rest = &rest[block..];
        } else {
            let one = if rest.starts_with("\r\n") { 2 } else { c.len_utf8() };
            words.push(&rest[..one]);
            rest = &rest[one..];
        }
    }
    words
}

/// jieba's `re_han_default`.
fn in_block(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '\u{4E00}'..='\u{9FD5}' | '+' | '#' | '&' | '.' | '_' | '%' | '-')
}

/// Cuts at jieba's `re_skip`, `[a-zA-Z0-9]+(?:\.\d+)?%?`; what lies between two matches is one word.
fn cut_joined<'a>(token: &'a str, words: &mut Vec<&'a str>) {
    let bytes = token.as_bytes();
    let run = |from: usize, of: fn(&u8) -> bool| bytes[from..].iter().take_while(|b| of(b)).count();
    let mut start = 0;
    while start < bytes.len() {
        let mut end = start + run(start, u8::is_ascii_alphanumeric);
        if end == start {
            end += run(start, |b| !b.is_ascii_alphanumeric());
        } else {
            if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
                end += 1 + run(end + 1, u8::is_ascii_digit);
            }
            end += usize::from(bytes.get(end) == Some(&b'%'));
        }
        words.push(&token[start..end]);
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_and_model() {
        assert_eq!(cut("他来到了网易杭研大厦"), ["他", "来到", "了", "网易", "杭研", "大厦"]);
        assert_eq!(cut("C++和c#"), ["C++", "和", "c#"]);
    }

    #[test]
    fn joined_tokens_are_cut_as_in_python() {
        assert_eq!(cut("2024-01-15"), ["2024", "-", "01", "-", "15"]);
        assert_eq!(cut("v1.2.3abc%"), ["v1.2", ".", "3abc%"]);
        assert_eq!(cut("1.2abc%"), ["1.2", "abc%"]);
        assert_eq!(cut("3.14元"), ["3.14", "元"]);
        assert_eq!(cut("-_.%"), ["-_.%"]);
    }

    #[test]
    fn what_is_in_no_block_stands_alone() {
        assert_eq!(cut("㐀㐁"), ["㐀", "㐁"]);
        assert_eq!(cut("a\r\n\n é３"), ["a", "\r\n", "\n", " ", "é", "３"]);
        assert!(cut("").is_empty());
    }
}
