//! SentencePiece's joins by score, as llama.cpp makes them.
//!
//! A text starts as characters. Of all neighbours whose join is a token, the pair whose token has the best score is
//! joined, the leftmost one among equals, until no join is left; a character without a token becomes its bytes. A list
//! of ranked joins cannot say "leftmost among equals", so this is not the byte-pair encoder of a tokenizer.json.

use super::{Encoded, Place};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use tokenizers::{AddedVocabulary, NormalizerWrapper, OffsetReferential, OffsetType};

/// What stands for a space.
const SPACE: char = '\u{2581}';

/// A vocabulary of pieces with scores.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    /// Id and score of each piece that a text may be joined to.
    pieces: HashMap<Box<str>, (u32, f32)>,
    bytes: [Option<u32>; 256],
    unknown: u32,
    /// A space is put before a text, and before what follows a special token.
    prefix: bool,
}

impl SentencePiece {
    /// A vocabulary of `pieces` (spelling, id, score), `bytes` (value, id), the token for what neither has, and whether a
    /// space is put before texts.
    pub(crate) fn new<'a>(
        pieces: impl Iterator<Item = (&'a str, u32, f32)>,
        bytes: impl Iterator<Item = (u8, u32)>,
        unknown: u32,
        prefix: bool,
    ) -> Self {
        // Negative zero is zero here too.
        let pieces = pieces.map(|(piece, id, score)| (piece.into(), (id, score + 0.0))).collect();
        let mut table = [None; 256];
        bytes.for_each(|(byte, id)| table[usize::from(byte)] = Some(id));
        Self { pieces, bytes: table, unknown, prefix }
    }

    /// Tokens of a text in which the tokens of `added` are found first.
    pub(super) fn encode(&self, added: &AddedVocabulary, text: &str, place: Place) -> Encoded {
        let mut all = Encoded::default();
        let mut leads = place == Place::Leads;
        let split = added.extract_and_normalize(None::<&NormalizerWrapper>, text);
        for (_, (start, end), tokens) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match tokens {
                Some(tokens) => {
                    tokens.iter().for_each(|token| all.push(token.id, start..end));
                    leads = true;
                }
                None if start < end => {
                    self.join(
                        text.get(start..end).unwrap_or_default(),
                        start,
                        leads && self.prefix,
                        &mut all,
                    );
                    leads = false;
                }
                None => {}
            }
        }
        all
    }

    /// Joins the characters of a text that starts at byte `base` of the whole.
    fn join(&self, text: &str, base: usize, prefix: bool, all: &mut Encoded) {
        // The text with its spaces replaced, and for each character where it lies there and in the whole.
        let mut written = String::with_capacity(text.len() + SPACE.len_utf8());
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut add = |c: char, origin: Range<usize>| {
            let start = written.len();
            written.push(if c == ' ' { SPACE } else { c });
            let n = symbols.len();
            symbols.push(Symbol {
                written: start..written.len(),
                origin,
                before: n.checked_sub(1),
                after: n + 1,
            });
        };
        if prefix {
            add(SPACE, base..base);
        }
        for (at, c) in text.char_indices() {
            add(c, base + at..base + at + c.len_utf8());
        }
        let mut candidates = BinaryHeap::new();
        for left in 1..symbols.len() {
            self.propose(&written, &symbols, left - 1, left, &mut candidates);
        }
        while let Some(best) = candidates.pop() {
            let (left, right) = (&symbols[best.left], &symbols[best.right]);
            // Either side may have been joined to another meanwhile.
            if left.written.start != best.written.start
                || left.written.is_empty()
                || right.written.is_empty()
                || left.after != best.right
                || right.written.end != best.written.end
            {
                continue;
            }
            let (end, to, after) = (right.written.end, right.origin.end, right.after);
            symbols[best.right].written.end = symbols[best.right].written.start;
            let joined = &mut symbols[best.left];
            (joined.written.end, joined.origin.end, joined.after) = (end, to, after);
            let before = joined.before;
            if let Some(next) = symbols.get_mut(after) {
                next.before = Some(best.left);
                self.propose(&written, &symbols, best.left, after, &mut candidates);
            }
            if let Some(before) = before {
                self.propose(&written, &symbols, before, best.left, &mut candidates);
            }
        }
        let mut at = 0;
        while let Some(symbol) = symbols.get(at) {
            self.push(&written[symbol.written.clone()], &symbol.origin, all);
            at = symbol.after;
        }
    }

    /// Takes a pair of neighbours as a candidate if their join is a token.
    fn propose(
        &self,
        written: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        candidates: &mut BinaryHeap<Candidate>,
    ) {
        let joined = symbols[left].written.start..symbols[right].written.end;
        if let Some(&(_, score)) = written.get(joined.clone()).and_then(|piece| self.pieces.get(piece)) {
            candidates.push(Candidate { score, left, right, written: joined });
        }
    }

    /// A piece's token, or those of its bytes.
    fn push(&self, piece: &str, origin: &Range<usize>, all: &mut Encoded) {
        if let Some(&(id, _)) = self.pieces.get(piece) {
            return all.push(id, origin.clone());
        }
        for byte in piece.bytes() {
            all.push(self.bytes[usize::from(byte)].unwrap_or(self.unknown), origin.clone());
        }
    }
}

/// A part of the text; empty once it is joined to the one before.
struct Symbol {
    written: Range<usize>,
    origin: Range<usize>,
    before: Option<usize>,
    after: usize,
}

/// Two neighbours that may be joined.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// What the join spells, in the text with spaces replaced.
    written: Range<usize>,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
