//! The search among keys in few bits: integer products, four elements at a time.
//!
//! Codes of keys are unsigned bytes once their bits are cut out, codes of queries signed ones: the operands of the
//! instruction that multiplies four pairs of bytes and adds them up. What the middle of the keys' codes adds to every
//! product of a query is taken off at the start, and a query's own scale, which orders nothing, comes in at the end. Work is cut and merged as in the search among the keys themselves.

use super::Path;
use super::best::Best;
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Simd, next_rows, with_rows};
use super::top_k::take;
use crate::low_bit::{LowBitKeys, LowBitQuery, TILE};
use crate::{Queries, TopK};
use std::ops::Range;

/// Query rows scored against a tile of keys while it is in cache.
const ROW_BLOCK: usize = 512;

/// Pieces of work to aim for when rows alone give fewer, and keys a piece should at least have.
const PIECES: usize = 16;
const MIN_KEYS: usize = 4096;

/// Keys a piece should at least have for each one wanted: its list has to fill up before it keeps anything out.
const KEYS_PER_WANTED: usize = 128;

/// Multiply-adds below which waking another thread costs more than it saves.
const SMALL: usize = 1 << 19;

/// See [`crate::Backend::top_k_low_bit`].
pub(crate) fn top_k_low_bit(pool: &Pool, path: Path, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK {
    keys.check(q);
    let k = k.min(keys.len());
    let mut found = TopK::unfilled(q.q_len, q.n_heads, k);
    if found.indices.is_empty() {
        return found;
    }
    let heads = keys.n_kv_heads();
    let group = q.n_heads / heads;
    let rows = q.q_len * group;
    let blocks = rows.div_ceil(ROW_BLOCK);
    let least = MIN_KEYS.max(KEYS_PER_WANTED * k);
    let ranges = PIECES.div_ceil(heads * blocks).min(keys.len().div_ceil(least)).max(1);
    let range_len = keys.len().div_ceil(ranges).next_multiple_of(TILE);
    let rows_of = |piece: usize| {
        let (block, head) = (piece / ranges % blocks, piece / ranges / blocks);
        (block * ROW_BLOCK..((block + 1) * ROW_BLOCK).min(rows), head)
    };
    // Index in `[q_len, n_heads]` of a row of a KV head.
    let query = |row: usize, head: usize| row / group * q.n_heads + head * group + row % group;
    let mut lists: Vec<Option<Best>> = (0..heads * blocks * ranges).map(|_| None).collect();
    let slots = Shared::new(&mut lists);
    let is_small = rows * heads * keys.len() * q.head_dim < SMALL;
    pool.each(heads * blocks * ranges, is_small, Vec::new, |words, piece| {
        let (rows, head) = rows_of(piece);
        let start = (piece % ranges * range_len).min(keys.len());
        let mut lists = Best::new(rows.len(), k, f32::NEG_INFINITY);
        let mut excesses = Vec::new();
        words.clear();
        for row in rows.clone() {
            let at = query(row, head) * q.head_dim;
            let query = LowBitQuery::of(keys.bits(), &q.data[at..at + q.head_dim]);
            words.extend_from_slice(&query.words);
            excesses.push(query.excess);
        }
        let scan = Scan {
            keys,
            head,
            range: start..(start + range_len).min(keys.len()),
            words,
            excesses: &excesses,
            worst: vec![f32::NEG_INFINITY; rows.len()],
            lists: &mut lists,
        };
        // SAFETY: the backend only holds available paths; each piece has a slot of its own.
        unsafe {
            path.call(scan);
            slots.part(piece, 1)[0] = Some(lists);
        }
    });
    for first in (0..lists.len()).step_by(ranges) {
        let (rows, head) = rows_of(first);
        let Some(mut merged) = lists[first].take() else { continue };
        for other in lists[first + 1..first + ranges].iter().flatten() {
            merged.merge(other);
        }
        for (i, row) in rows.enumerate() {
            let out = query(row, head) * k;
            merged.finish(i, &mut found.indices[out..out + k], &mut found.scores[out..out + k]);
            let at = query(row, head) * q.head_dim;
            let scale = LowBitQuery::scale_of(&q.data[at..at + q.head_dim]);
            found.scores[out..out + k].iter_mut().filter(|s| s.is_finite()).for_each(|s| *s *= scale);
        }
    }
    found
}

/// One piece: some rows of one KV head against one range of keys.
struct Scan<'a> {
    keys: &'a LowBitKeys,
    head: usize,
    range: Range<usize>,
    /// `[rows, words, fields]`.
    words: &'a [u32],
    /// What the middle of the keys' codes adds to the products of each row.
    excesses: &'a [i32],
    /// The worst score kept of each row.
    worst: Vec<f32>,
    lists: &'a mut Best,
}

impl Kernel for Scan<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        for first in self.range.clone().step_by(TILE) {
            let mut row = 0;
            while row < self.excesses.len() {
                let rows = next_rows(self.excesses.len() - row);
                // SAFETY: the path's contract; `rows` rows from `row` on exist.
                unsafe {
                    with_rows!(rows, R => match (self.keys.bits(), S::COLS) {
                        (8, 4) => self.tile::<S, R, 4, 8>(row, first),
                        (8, _) => self.tile::<S, R, 2, 8>(row, first),
                        (4, 4) => self.tile::<S, R, 4, 4>(row, first),
                        (4, _) => self.tile::<S, R, 2, 4>(row, first),
                        (_, 4) => self.tile::<S, R, 4, 2>(row, first),
                        _ => self.tile::<S, R, 2, 2>(row, first),
                    });
                }
                row += rows;
            }
        }
    }
}

impl Scan<'_> {
    /// Scores rows `row..row + R` against the tile of keys from `first` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const C: usize, const BITS: usize>(
        &mut self,
        row: usize,
        first: usize,
    ) {
        let (codes, scales) = self.keys.tile(self.head, first);
        let (words, fields) = (self.keys.words(), 8 / BITS);
        for column in (0..TILE).step_by(C * S::LANES) {
            // SAFETY: a tile holds `words` rows of TILE words, and the queries `words · fields` words a row.
            unsafe {
                let mut acc = [[S::splat(0.0); C]; R];
                for r in 0..R {
                    acc[r] = [S::splat(f32::from_bits(-self.excesses[row + r] as u32)); C];
                }
                let queries = self.words.as_ptr().add(row * words * fields);
                for w in 0..words {
                    let packed = codes.as_ptr().add(w * TILE + column).cast::<f32>();
                    for field in 0..fields {
                        let mut bytes = [S::splat(0.0); C];
                        for c in 0..C {
                            // Loaded again for every field: the accumulators leave no registers to keep them in.
                            let packed = S::load(packed.add(c * S::LANES));
                            bytes[c] = if BITS < 8 { S::field::<BITS>(packed, field) } else { packed };
                        }
                        for r in 0..R {
                            let word = *queries.add((r * words + w) * fields + field);
                            let x = S::splat(f32::from_bits(word));
                            for c in 0..C {
                                acc[r][c] = S::dot_quads(acc[r][c], bytes[c], x);
                            }
                        }
                    }
                }
                let mut scale = [S::splat(0.0); C];
                for c in 0..C {
                    scale[c] = S::load_bf16(scales.as_ptr().add(column + c * S::LANES));
                }
                for r in 0..R {
                    let worst = S::splat(self.worst[row + r]);
                    let mut better = 0u64;
                    for c in 0..C {
                        acc[r][c] = S::mul(S::ints_to_floats(acc[r][c]), scale[c]);
                        better |= u64::from(S::gt(acc[r][c], worst)) << (c * S::LANES);
                    }
                    if better == 0 {
                        continue;
                    }
                    let mut scores = [0.0f32; 64];
                    for c in 0..C {
                        S::store(scores.as_mut_ptr().add(c * S::LANES), acc[r][c]);
                    }
                    take(self.lists, &mut self.worst[row + r], row + r, &scores, better, first + column);
                }
            }
        }
    }
}
