//! One piece of attention: the rows of a block of queries and one KV head against some runs of keys.

use super::attend::{Run, visible};
use super::attend_few;
use super::keys::Store;
use super::simd::{Kernel, Load, MAX_ROWS, Operand, Simd, next_rows, tile, with_rows};
use crate::profile::AttendClock;
use crate::{PAGE, Queries, Segment};
use half::bf16;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Keys of a tile, a multiple of every path's register tile. Keys and values of 64 dimensions take 32 KiB then.
pub(crate) const TILE: usize = 128;

/// Keys rotated before they are transposed.
const GROUP: usize = 16;

/// Running softmax of some rows.
#[derive(Default)]
pub(crate) struct State {
    dim: usize,
    pub(crate) stride: usize,
    /// `[rows, stride]`, not yet divided by the sum.
    pub(crate) out: Vec<f32>,
    /// Largest logit of each row, base two.
    pub(crate) max: Vec<f32>,
    /// Sum of the weights of each row, relative to the largest.
    pub(crate) sum: Vec<f32>,
}

impl State {
    pub(crate) fn reset(&mut self, rows: usize, dim: usize) {
        let padded = attend_few::padded(rows);
        // Sixteen is a multiple of every path's lanes.
        (self.dim, self.stride) = (dim, dim.next_multiple_of(16));
        self.out.clear();
        self.out.resize(padded * self.stride, 0.0);
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(rows, 0.0);
    }

    /// Adds what another piece found for the same rows.
    pub(crate) fn merge(&mut self, other: &Self) {
        for row in 0..self.max.len() {
            let max = self.max[row].max(other.max[row]);
            if max == f32::NEG_INFINITY {
                // Neither has seen a logit above it: nothing, or no numbers, whose sum is NaN.
                self.sum[row] += other.sum[row];
                continue;
            }
            let (a, b) = ((self.max[row] - max).exp2(), (other.max[row] - max).exp2());
            let range = row * self.stride..row * self.stride + self.dim;
            for (x, y) in self.out[range.clone()].iter_mut().zip(&other.out[range]) {
                *x = *x * a + y * b;
            }
            self.max[row] = max;
            self.sum[row] = self.sum[row] * a + other.sum[row] * b;
        }
    }

    /// Writes the normalised output of `row`; zeros if it saw no key.
    pub(crate) fn finish(&self, row: usize, out: &mut [f32]) {
        let sum = self.sum[row];
        let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        for (o, x) in out.iter_mut().zip(&self.out[row * self.stride..]) {
            *o = x * factor;
        }
    }
}

/// Buffers of one thread, kept from piece to piece. None grows with the number of keys.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) state: State,
    /// Rotated queries, `[rows, units]`.
    queries: Vec<u32>,
    /// Rotated keys, `[GROUP, units]`, and those of a tile transposed, `[units, TILE]`.
    rotated: Vec<u32>,
    keys: Vec<u32>,
    /// Values by units of keys, `[TILE / PER_UNIT, stride]`.
    values: Vec<u32>,
    /// Logits and weights of one register tile of rows, `[MAX_ROWS, TILE]`.
    logits: Vec<f32>,
    weights: Vec<u32>,
    /// Factors on the outputs so far.
    shrink: [f32; MAX_ROWS],
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Ranks of the run each query token sees.
    seen: Vec<Range<usize>>,
    pub(crate) few: attend_few::Scratch,
}

/// Where the keys and values of a tile lie.
pub(crate) struct Rows<E> {
    pub(crate) n: usize,
    keys: [*const E; TILE],
    values: [*const E; TILE],
}

/// The work of one piece.
pub(crate) struct Piece<'a, M, E: bytemuck::Pod> {
    pub(crate) q: &'a Queries<'a>,
    pub(crate) store: Store<'a, E>,
    pub(crate) scale: f32,
    /// Soft cap of logits, in base two as they are.
    pub(crate) cap: Option<f32>,
    pub(crate) group: usize,
    pub(crate) kv_head: usize,
    pub(crate) tokens: Range<usize>,
    pub(crate) runs: &'a [Run<'a>],
    pub(crate) state: &'a mut State,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) clock: Option<&'a AttendClock>,
    #[allow(dead_code, reason = "names the operand type")]
    pub(crate) operand: M,
}

impl<M: Operand, E: Load> Kernel for Piece<'_, M, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let (stride, rows) = (self.state.stride, self.tokens.len() * self.group);
        self.make_room();
        self.scratch.values.resize(TILE / M::PER_UNIT * stride, 0);
        self.scratch.weights.resize(MAX_ROWS * TILE / M::PER_UNIT, 0);
        // Where nobody measures, no clock is read.
        let clock = self.clock;
        let now = || clock.map(|_| Instant::now());
        let (start, mut gather) = (now(), Duration::ZERO);
        for run in self.runs {
            let Run { segment, ranks } = run;
            // SAFETY: the buffers were sized above; the path's contract holds.
            unsafe {
                let before = now();
                self.load_queries::<S>(segment);
                gather += before.map_or(Duration::ZERO, |t| t.elapsed());
                let mut tile = self.locate(segment, ranks.start, TILE.min(ranks.len()));
                for start in ranks.clone().step_by(TILE) {
                    let before = now();
                    let n = tile.n;
                    let ahead = self.locate(segment, start + n, TILE.min(ranks.end - start - n));
                    self.load_keys::<S>(segment, start, &tile, &ahead);
                    self.load_values::<S>(&tile, &ahead);
                    gather += before.map_or(Duration::ZERO, |t| t.elapsed());
                    let mut row = 0;
                    while row < rows {
                        let count = next_rows(rows - row);
                        self.rows::<S>(row, count, start, n);
                        row += count;
                    }
                    tile = ahead;
                }
            }
        }
        if let (Some(clock), Some(start)) = (clock, start) {
            clock.add(gather, start.elapsed());
        }
    }
}

impl<M: Operand, E: Load> Piece<'_, M, E> {
    /// Makes room for queries, keys and logits.
    pub(crate) fn make_room(&mut self) {
        let (dim, rows) = (self.q.head_dim, self.tokens.len() * self.group);
        let (units, s) = (dim / M::PER_UNIT, &mut *self.scratch);
        s.queries.resize(rows * units, 0);
        s.rotated.resize(GROUP * units, 0);
        s.keys.resize(TILE * units, 0);
        s.logits.resize(MAX_ROWS * TILE, 0.0);
        s.cos.resize(dim / 2, 0.0);
        s.sin.resize(dim / 2, 0.0);
    }

    /// Rotates the queries to where they stand towards `segment`, and scales them; finds what they see of it.
    #[inline(always)]
    pub(crate) unsafe fn load_queries<S: Simd>(&mut self, segment: &Segment) {
        let dim = self.q.head_dim;
        let (units, s) = (dim / M::PER_UNIT, &mut *self.scratch);
        let (keys, band, first) = (&segment.keys, segment.band, self.q.first);
        s.seen.clear();
        s.seen.extend(self.tokens.clone().map(|t| visible(keys, band, first + t)));
        for (i, token) in self.tokens.clone().enumerate() {
            let position = segment.query_position.at(self.q.first + token, token);
            // SAFETY: row `i · group + g` of the queries has `units` units.
            unsafe {
                segment.query_rope.cos_sin(position, &mut s.cos, &mut s.sin);
                s.cos.iter_mut().chain(&mut s.sin).for_each(|x| *x *= self.scale);
                for g in 0..self.group {
                    let row = self.q.row(token, self.kv_head * self.group + g);
                    let out = s.queries.as_mut_ptr().add((i * self.group + g) * units);
                    rotate::<S, M, f32>(row.as_ptr(), &s.cos, &s.sin, out);
                }
            }
        }
    }

    /// Finds the rows of the `n` keys of `segment` from rank `start` on, and of their values.
    #[inline(always)]
    pub(crate) fn locate(&self, segment: &Segment, start: usize, n: usize) -> Rows<E> {
        let nowhere: [*const E; TILE] = [std::ptr::null(); TILE];
        let mut rows = Rows { n, keys: nowhere, values: nowhere };
        let mut before = usize::MAX;
        for i in 0..n {
            let token = segment.keys.token(start + i);
            // Most keys follow the one before them, in the same page.
            if i > 0 && token == before + 1 && !token.is_multiple_of(PAGE) {
                rows.keys[i] = rows.keys[i - 1].wrapping_add(self.store.head_dim);
                rows.values[i] = rows.values[i - 1].wrapping_add(self.store.head_dim);
            } else {
                rows.keys[i] = self.store.row(self.store.keys, self.kv_head, token);
                rows.values[i] = self.store.row(self.store.values, self.kv_head, token);
            }
            before = token;
        }
        rows
    }

    /// Rotates and transposes the keys of a tile, which start at rank `start`.
    #[inline(always)]
    pub(crate) unsafe fn load_keys<S: Simd>(
        &mut self,
        segment: &Segment,
        start: usize,
        tile: &Rows<E>,
        ahead: &Rows<E>,
    ) {
        let (dim, s) = (self.q.head_dim, &mut *self.scratch);
        let units = dim / M::PER_UNIT;
        // SAFETY: both buffers hold TILE rows of units, and the pointers name rows of `dim` elements.
        unsafe {
            for i in 0..tile.n {
                prefetch_row::<S, E>(ahead.keys[i], dim);
                let position = segment.key_position.at(segment.keys.token(start + i), start + i);
                let out = s.rotated.as_mut_ptr().add(i % GROUP * units);
                match segment.key_rope.parts(position) {
                    Some([coarse, fine]) => rotate_by_parts::<S, M, E>(tile.keys[i], coarse, fine, out),
                    None => {
                        segment.key_rope.cos_sin(position, &mut s.cos, &mut s.sin);
                        rotate::<S, M, E>(tile.keys[i], &s.cos, &s.sin, out);
                    }
                }
                if i % GROUP == GROUP - 1 || i == tile.n - 1 {
                    let first = i / GROUP * GROUP;
                    let columns = s.keys.as_mut_ptr().add(first);
                    S::transpose(s.rotated.as_ptr(), units, i + 1 - first, units, columns, TILE);
                }
            }
        }
    }

    /// Gathers the values of a tile, with zeros after them.
    #[inline(always)]
    unsafe fn load_values<S: Simd>(&mut self, tile: &Rows<E>, ahead: &Rows<E>) {
        let (dim, stride, s, n) = (self.q.head_dim, self.state.stride, &mut *self.scratch, tile.n);
        // SAFETY: the buffer holds `TILE / PER_UNIT` rows of `stride` units, and a value `dim` elements.
        unsafe {
            if M::PER_UNIT == 2 {
                for i in (0..n).step_by(2) {
                    let out = s.values.as_mut_ptr().add(i / 2 * stride);
                    // Pair operands come with bf16 elements only. An odd last key is paired with itself and then
                    // weighted with zero, as every column past the last key is.
                    let j = (i + 1).min(n - 1);
                    prefetch_row::<S, E>(ahead.values[i], dim);
                    prefetch_row::<S, E>(ahead.values[j], dim);
                    S::interleave(tile.values[i].cast::<bf16>(), tile.values[j].cast::<bf16>(), dim, out);
                }
            } else {
                for i in 0..n {
                    prefetch_row::<S, E>(ahead.values[i], dim);
                    let (value, out) = (tile.values[i], s.values.as_mut_ptr().add(i * stride).cast::<f32>());
                    let whole = dim - dim % S::LANES;
                    for d in (0..whole).step_by(S::LANES) {
                        S::store(out.add(d), E::load::<S>(value.add(d)));
                    }
                    for d in whole..dim {
                        *out.add(d) = (*value.add(d)).widen();
                    }
                }
            }
        }
        // Nothing left over from another tile may meet a weight of zero: it could be infinite.
        s.values[n.div_ceil(M::PER_UNIT) * stride..].fill(0);
    }

    /// Attends with rows `row..row + count` to the tile of `n` keys whose first rank is `start`.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&mut self, row: usize, count: usize, start: usize, n: usize) {
        // SAFETY: the columns are multiples of the register tile within TILE; the path's contract holds.
        unsafe {
            let Range { start: from, end: to } = self.seen_logits::<S>(row, count, start, n);
            if from == to {
                return;
            }
            for r in 0..count {
                self.softmax::<S>(row + r, r, from, to);
            }
            let vectors = self.q.head_dim.div_ceil(S::LANES);
            let mut v = 0;
            while v < vectors {
                let left = vectors - v;
                if S::COLS == 4 && left >= 4 {
                    with_rows!(count, R => self.weigh::<S, R, 4>(row, from, to, v));
                    v += 4;
                } else if left >= 2 {
                    with_rows!(count, R => self.weigh::<S, R, 2>(row, from, to, v));
                    v += 2;
                } else {
                    with_rows!(count, R => self.weigh::<S, R, 1>(row, from, to, v));
                    v += 1;
                }
            }
        }
    }

    /// Logits of rows `row..row + count` and the tile of `n` keys whose first rank is `start`, minus infinity where a row does
    /// not see a key; returns the columns they stand in, whole register tiles, none if no row sees any.
    #[inline(always)]
    pub(crate) unsafe fn seen_logits<S: Simd>(
        &mut self,
        row: usize,
        count: usize,
        start: usize,
        n: usize,
    ) -> Range<usize> {
        let width = S::COLS * S::LANES;
        // Both ends of what is seen move forward with the token.
        let (first, last) = (self.seen(row, start, n), self.seen(row + count - 1, start, n));
        let (from, to) = (first.start / width * width, last.end.next_multiple_of(width));
        if first.start.max(from) >= last.end {
            return 0..0;
        }
        // SAFETY: `from` and `to` are multiples of the register tile within TILE; the path's contract holds.
        unsafe {
            for column in (from..to).step_by(width) {
                with_rows!(count, R => if S::COLS == 4 {
                    self.logits::<S, R, 4>(row, column)
                } else {
                    self.logits::<S, R, 2>(row, column)
                });
            }
            for r in 0..count {
                let seen = self.seen(row + r, start, n);
                let logits = self.scratch.logits.as_mut_ptr().add(r * TILE);
                if let Some(cap) = self.cap {
                    cap_logits::<S>(logits.add(from), to - from, cap);
                }
                for column in (from..seen.start.max(from)).chain(seen.end.max(from)..to) {
                    *logits.add(column) = f32::NEG_INFINITY;
                }
            }
        }
        from..to
    }

    /// The logits of row `r` of the register tile, by column.
    #[inline(always)]
    pub(crate) fn logits_of(&self, r: usize) -> &[f32] {
        &self.scratch.logits[r * TILE..(r + 1) * TILE]
    }

    /// Columns that row `row` sees of the tile of `n` keys whose first rank is `start`.
    #[inline(always)]
    fn seen(&self, row: usize, start: usize, n: usize) -> Range<usize> {
        let ranks = &self.scratch.seen[row / self.group];
        ranks.start.clamp(start, start + n) - start..ranks.end.clamp(start, start + n) - start
    }

    /// Logits of R rows and the C vectors of keys from `column` on.
    #[inline(always)]
    unsafe fn logits<S: Simd, const R: usize, const C: usize>(&mut self, row: usize, column: usize) {
        let (units, s) = (self.q.head_dim / M::PER_UNIT, &mut *self.scratch);
        // SAFETY: the buffers hold these rows and columns.
        unsafe {
            let (a, b) = (s.queries.as_ptr().add(row * units), s.keys.as_ptr().add(column));
            let acc = tile::<S, M, R, C>([[S::splat(0.0); C]; R], a, units, b, TILE, units);
            for r in 0..R {
                for c in 0..C {
                    S::store(s.logits.as_mut_ptr().add(r * TILE + column + c * S::LANES), acc[r][c]);
                }
            }
        }
    }

    /// Turns logits `from..to` of row `r` of the register tile into weights, relative to the row's new maximum.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&mut self, row: usize, r: usize, from: usize, to: usize) {
        let s = &mut *self.scratch;
        let (old, sum) = (self.state.max[row], self.state.sum[row]);
        // SAFETY: row `r` of logits and weights has TILE columns.
        unsafe {
            let logits = s.logits.as_ptr().add(r * TILE);
            let weights = s.weights.as_mut_ptr().add(r * TILE / M::PER_UNIT);
            let mut largest = S::splat(old);
            for i in (from..to).step_by(S::LANES) {
                largest = S::max(S::load(logits.add(i)), largest);
            }
            let new = S::max_lane(largest);
            // A row that has seen nothing takes no part; any finite stand-in makes all its weights zero.
            let base = S::splat(if new == f32::NEG_INFINITY { 0.0 } else { new });
            let mut total = S::splat(0.0);
            for i in (from..to).step_by(S::LANES) {
                let weight = S::exp2(S::sub(S::load(logits.add(i)), base));
                total = S::add(total, weight);
                M::put::<S>(weights, i, weight);
            }
            let shrink = if new == old { 1.0 } else { S::max_lane(S::exp2(S::sub(S::splat(old), base))) };
            s.shrink[r] = shrink;
            self.state.max[row] = new;
            self.state.sum[row] = sum * shrink + S::sum(total);
        }
    }

    /// Adds the weighted values of columns `from..to` to C vectors of the outputs of R rows.
    #[inline(always)]
    unsafe fn weigh<S: Simd, const R: usize, const C: usize>(
        &mut self,
        row: usize,
        from: usize,
        to: usize,
        v: usize,
    ) {
        let (stride, s) = (self.state.stride, &mut *self.scratch);
        // SAFETY: outputs are padded to whole vectors, and so are the rows of values.
        unsafe {
            let out = self.state.out.as_mut_ptr().add(row * stride + v * S::LANES);
            let mut acc = [[S::splat(0.0); C]; R];
            for r in 0..R {
                for c in 0..C {
                    acc[r][c] = S::mul(S::load(out.add(r * stride + c * S::LANES)), S::splat(s.shrink[r]));
                }
            }
            let a = s.weights.as_ptr().add(from / M::PER_UNIT);
            let b = s.values.as_ptr().add(from / M::PER_UNIT * stride + v * S::LANES);
            let acc = tile::<S, M, R, C>(acc, a, TILE / M::PER_UNIT, b, stride, (to - from) / M::PER_UNIT);
            for r in 0..R {
                for c in 0..C {
                    S::store(out.add(r * stride + c * S::LANES), acc[r][c]);
                }
            }
        }
    }
}

/// Turns `n` logits `x`, whole vectors of them, into `cap · tanh(x / cap)`.
#[inline(always)]
pub(crate) unsafe fn cap_logits<S: Simd>(logits: *mut f32, n: usize, cap: f32) {
    // tanh(y) is 1 - 2 / (1 + e^2y), and at most 126 may be raised; beyond 100 nothing is left of the fraction.
    let steep = 2.0 * std::f32::consts::LOG2_E / cap;
    // SAFETY: the path's contract, and `n` logits are whole vectors.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let minus = S::mul(S::load(logits.add(i)), S::splat(-steep));
            // What is no number stays none: it is the second operand.
            let minus = S::max(S::splat(-100.0), minus);
            S::store(logits.add(i), S::exp2(S::sub(S::splat(0.0), minus)));
        }
        for i in 0..n {
            let raised = &mut *logits.add(i);
            *raised = cap - 2.0 * cap / (1.0 + *raised);
        }
    }
}

/// Asks for a row; a null pointer asks for nothing of use.
#[inline(always)]
pub(crate) unsafe fn prefetch_row<S: Simd, E>(row: *const E, head_dim: usize) {
    for line in (0..head_dim * size_of::<E>()).step_by(64) {
        // SAFETY: the path's contract.
        unsafe { S::prefetch_far(row.cast::<u8>().wrapping_add(line)) }
    }
}

/// Rotates `row: [coarse.len()]` by the sum of two angles, given as cosines and then sines, and writes its units to `out`.
#[inline(always)]
unsafe fn rotate_by_parts<S: Simd, M: Operand, E: Load>(
    row: *const E,
    coarse: &[f32],
    fine: &[f32],
    out: *mut u32,
) {
    let pairs = coarse.len() / 2;
    let whole = pairs - pairs % S::LANES;
    // SAFETY: a row has `2 · pairs` elements, and so has `out`.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let (ca, sa) = (S::load(coarse.as_ptr().add(i)), S::load(coarse.as_ptr().add(pairs + i)));
            let (cb, sb) = (S::load(fine.as_ptr().add(i)), S::load(fine.as_ptr().add(pairs + i)));
            let (c, s) = (S::sub(S::mul(ca, cb), S::mul(sa, sb)), S::mul_add(sa, cb, S::mul(ca, sb)));
            let (a, b) = (E::load::<S>(row.add(i)), E::load::<S>(row.add(pairs + i)));
            M::put::<S>(out, i, S::sub(S::mul(a, c), S::mul(b, s)));
            M::put::<S>(out, pairs + i, S::mul_add(b, c, S::mul(a, s)));
        }
        for i in whole..pairs {
            let (ca, sa, cb, sb) = (coarse[i], coarse[pairs + i], fine[i], fine[pairs + i]);
            let (c, s) = (ca * cb - sa * sb, sa * cb + ca * sb);
            let (a, b) = ((*row.add(i)).widen(), (*row.add(pairs + i)).widen());
            M::put_one(out, i, a * c - b * s);
            M::put_one(out, pairs + i, b * c + a * s);
        }
    }
}

/// Rotates `row: [2 · cos.len()]` and writes its units to `out`.
#[inline(always)]
pub(crate) unsafe fn rotate<S: Simd, M: Operand, E: Load>(
    row: *const E,
    cos: &[f32],
    sin: &[f32],
    out: *mut u32,
) {
    let pairs = cos.len();
    let whole = pairs - pairs % S::LANES;
    // SAFETY: a row has `2 · pairs` elements, and so has `out`.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let (a, b) = (E::load::<S>(row.add(i)), E::load::<S>(row.add(pairs + i)));
            let (c, s) = (S::load(cos.as_ptr().add(i)), S::load(sin.as_ptr().add(i)));
            let low = S::sub(S::mul(a, c), S::mul(b, s));
            M::put::<S>(out, i, low);
            M::put::<S>(out, pairs + i, S::mul_add(b, c, S::mul(a, s)));
        }
        for i in whole..pairs {
            let (a, b, c, s) = ((*row.add(i)).widen(), (*row.add(pairs + i)).widen(), cos[i], sin[i]);
            M::put_one(out, i, a * c - b * s);
            M::put_one(out, pairs + i, b * c + a * s);
        }
    }
}
