//! Cutting a long text where its tokens do not notice.
//!
//! Tokenising a text as a whole takes about 150 times its size in memory. Between two words, or after a line, tokens of
//! the usual tokenizers never join; but "usual" is not taken on trust: around each cut, a few hundred bytes are
//! tokenised both whole and cut, and a cut that changes anything is not made.

use super::Encoded;
use std::ops::Range;

/// A part of a text to be tokenised by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its bytes.
    pub(super) range: Range<usize>,
    /// Bytes of its first token, where that has more than the range: a tokenizer which begins every text with a space of
    /// its own is not given the one that stands there.
    pub(super) first: Option<Range<usize>>,
}

/// Bytes of a piece, about.
const PIECE: usize = 32 << 10;
/// Bytes on each side of a cut that are compared.
const AROUND: usize = 192;
/// Places tried before the text is taken as one that cannot be cut there.
const TRIES: usize = 16;

/// Cuts `text` into pieces whose tokens, by `encode`, are together those of the whole.
pub(super) fn cut(text: &str, encode: impl Fn(&str) -> Result<Encoded, tokenizers::Error>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut start, mut first) = (0, None);
    let mut search = PIECE;
    while text.len().saturating_sub(search) > PIECE / 2 {
        let (mut last, mut tried) = (search, 0);
        let mut places = places(text, search).take(TRIES).inspect(|&at| (last, tried) = (at, tried + 1));
        match places.find_map(|at| keeps_tokens(text, at, &encode).map(|next| (at, next))) {
            Some((at, next)) => {
                pieces.push(Piece { range: start..at, first });
                (start, first) = next;
                search = start + PIECE;
            }
            None if tried < TRIES => break,
            None => search = last.max(search + PIECE),
        }
    }
    pieces.push(Piece { range: start..text.len(), first });
    pieces
}

/// Byte positions at or after `from` between a word and a single space before another word, or after a single line
/// break.
fn places(text: &str, from: usize) -> impl Iterator<Item = usize> + '_ {
    let from = (from..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
    let mut before = [' '; 2];
    text[from..].char_indices().filter_map(move |(i, next)| {
        let [first, second] = before;
        before = [second, next];
        let between_words = second == ' ' && first.is_alphabetic() && next.is_alphabetic();
        let after_line = second == '\n' && !first.is_whitespace() && !next.is_whitespace();
        match (between_words, after_line) {
            (true, _) => Some(from + i - 1),
            (_, true) => Some(from + i),
            _ => None,
        }
    })
}

/// Whether the tokens around `at` are the same when the text is cut there: where the next piece starts, and the bytes of
/// its first token if it leaves some out.
fn keeps_tokens(
    text: &str,
    at: usize,
    encode: &impl Fn(&str) -> Result<Encoded, tokenizers::Error>,
) -> Option<(usize, Option<Range<usize>>)> {
    let start = (at.saturating_sub(AROUND)..at).find(|&i| text.is_char_boundary(i))?;
    let end = (at + 1..=text.len().min(at + AROUND)).rev().find(|&i| text.is_char_boundary(i))?;
    let whole = encode(&text[start..end]).ok()?;
    let before = encode(&text[start..at]).ok()?.ids;
    let skips = if text[at..].starts_with(' ') { 2 } else { 1 };
    let skip = (0..skips).find(|skip| {
        let after = encode(&text[at + skip..end]).unwrap_or_default().ids;
        whole.ids.len() == before.len() + after.len()
            && whole.ids.starts_with(&before)
            && whole.ids.ends_with(&after)
    })?;
    let first = whole.offsets.get(before.len()).filter(|_| skip > 0);
    Some((at + skip, first.map(|r| start + r.start..start + r.end)))
}
