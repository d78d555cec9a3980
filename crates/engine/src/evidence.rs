//! Evidence: the passages of the sources that an answer's tokens looked at most.

use reattention::SourceMap;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::OnceLock;

/// Longest passage shown, in bytes.
const LONGEST: usize = 400;

/// A passage of a source and how much the answer looked at it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Name of the source.
    pub source: String,
    /// First byte of the passage.
    pub start_byte: usize,
    /// One past its last byte.
    pub end_byte: usize,
    /// Line of its first byte, from 1.
    pub line: usize,
    /// Its share of all attention that the answer's tokens paid to the sources, 0 to 1.
    pub weight: f64,
    /// The passage.
    pub text: String,
}

/// A source's text. It is cut into sentences when they are first asked for, and once: many answers may look into one book.
#[derive(Debug)]
pub(crate) struct Text {
    text: String,
    sentences: OnceLock<Vec<Range<usize>>>,
}

impl Text {
    pub(crate) fn new(text: String) -> Self {
        Self { text, sentences: OnceLock::new() }
    }

    fn sentences(&self) -> &[Range<usize>] {
        self.sentences.get_or_init(|| sentences(&self.text))
    }
}

/// The `most` passages (sentences) with the largest share of `mass`, the attention paid to each token.
///
/// `texts` are the sources by index. The very first token is left out: every query looks at it, whatever it says.
pub(crate) fn passages(mass: &[f32], sources: &SourceMap, texts: &[Text], most: usize) -> Vec<Evidence> {
    let sentences: Vec<&[Range<usize>]> = texts.iter().map(Text::sentences).collect();
    let mut weights: Vec<Vec<f64>> = sentences.iter().map(|s| vec![0.0; s.len()]).collect();
    let mut total = 0.0;
    for (token, &m) in mass.iter().enumerate().skip(1) {
        let Some(origin) = sources.origin(token) else { continue };
        let of = origin.source as usize;
        // A token may begin with the space before its word: its last byte tells the sentence it belongs to.
        let byte = (origin.end as usize).saturating_sub(1);
        let Some(sentences) = sentences.get(of) else { continue };
        let index = sentences.partition_point(|s| s.end <= byte);
        if let Some(weight) = weights[of].get_mut(index) {
            *weight += f64::from(m);
            total += f64::from(m);
        }
    }
    let mut ranked: Vec<(f64, usize, usize)> = Vec::new();
    for (source, weights) in weights.iter().enumerate() {
        ranked.extend(weights.iter().enumerate().filter(|w| *w.1 > 0.0).map(|(i, w)| (*w, source, i)));
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    ranked.truncate(most);
    ranked
        .into_iter()
        .map(|(weight, source, index)| {
            let range = sentences[source][index].clone();
            let whole = &texts[source].text;
            let text = &whole[range.clone()];
            let start_byte = range.start + (text.len() - text.trim_start().len());
            let text = text.trim().to_string();
            Evidence {
                source: sources.names()[source].clone(),
                start_byte,
                end_byte: start_byte + text.len(),
                line: whole.as_bytes()[..start_byte].iter().filter(|b| **b == b'\n').count() + 1,
                weight: weight / total,
                text,
            }
        })
        .collect()
}

/// Cuts a text into sentences (or lines, or pieces of at most [`LONGEST`] bytes) without gaps.
fn sentences(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut cuts = Vec::new();
    let mut start = 0;
    for i in 0..bytes.len() {
        let ends = match bytes[i] {
            b'\n' => true,
            b'.' | b'!' | b'?' => bytes.get(i + 1).is_none_or(|b| b.is_ascii_whitespace()),
            _ => false,
        };
        let long = i + 1 - start >= LONGEST && text.is_char_boundary(i + 1);
        if ends || long {
            cut(text, start..i + 1, &mut cuts);
            start = i + 1;
        }
    }
    if start < bytes.len() {
        cut(text, start..bytes.len(), &mut cuts);
    }
    cuts
}

/// Adds a piece; what holds nothing but white space belongs to the piece before it.
fn cut(text: &str, piece: Range<usize>, cuts: &mut Vec<Range<usize>>) {
    match cuts.last_mut() {
        Some(last) if text[piece.clone()].trim().is_empty() => last.end = piece.end,
        _ => cuts.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reattention::Origin;

    #[test]
    fn sentences_cover_the_text_without_gaps() {
        for text in ["", "One. Two! Three", "a\n\nb.c d. ", &"ö".repeat(500)] {
            let s = sentences(text);
            assert_eq!(s.iter().map(|r| &text[r.clone()]).collect::<String>(), text);
            assert!(s.iter().all(|r| r.len() <= LONGEST + 2));
        }
        assert_eq!(sentences("One. Two! Three").len(), 3);
        assert_eq!(sentences("One.\n\n  \nTwo.\n").len(), 2);
    }

    #[test]
    fn the_passage_most_looked_at_comes_first_with_its_line() {
        let text = "First line.\nThe code is 5. Nothing here.".to_string();
        let mut map = SourceMap::default();
        let source = map.add_source("a.txt");
        map.push(None);
        let words: Vec<(usize, &str)> = text
            .split_inclusive(' ')
            .scan(0, |at, w| {
                *at += w.len();
                Some((*at - w.len(), w))
            })
            .collect();
        for (start, word) in &words {
            map.push(Some(Origin {
                source,
                start: *start as u32,
                end: (start + word.trim_end().len()) as u32,
            }));
        }
        let mass: Vec<f32> = std::iter::once(50.0)
            .chain(words.iter().map(|(_, w)| if w.contains('5') { 6.0 } else { 1.0 }))
            .collect();
        let found = passages(&mass, &map, &[Text::new(text)], 2);
        assert_eq!(found[0].text, "The code is 5.");
        assert_eq!((found[0].line, found[0].start_byte, found[0].end_byte), (2, 12, 26));
        assert_eq!(found[0].source, "a.txt");
        assert!(found[0].weight > 0.5 && found.iter().map(|e| e.weight).sum::<f64>() <= 1.0);
    }
}
