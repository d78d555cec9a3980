//! One piece of attention with few rows, as decoding has it: what matters is to read keys and values once, steadily.
//!
//! No tile is built in memory. The queries are turned back by the position of a tile's first key, so keys need only the
//! first rows of the table of angles, which stay in cache; rotated keys are transposed in registers as they are
//! multiplied, and values are read where they lie. The next tile is asked for a little at a time all along.

use super::attend::visible;
use super::attend_piece::{Piece, cap_logits, prefetch_row, rotate};
use super::simd::{Kernel, Load, Operand, Simd, Single, opaque};
use crate::{PAGE, Segment};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Most rows that take this way.
const MAX_ROWS: usize = 8;

/// Keys of a tile, a multiple of twice every path's lanes. They stand at most as many positions apart.
const TILE: usize = 64;

/// Units from one row of queries to the next: a constant, so that one pointer reaches them all.
const QUERY_STRIDE: usize = 256;

/// Rows the kernel is compiled for: the least of these that is not below `rows`. State and outputs have as many.
pub(crate) fn padded(rows: usize) -> usize {
    [1, 2, 4, 7, 8].into_iter().find(|&n| n >= rows).unwrap_or(rows)
}

/// Whether `rows` rows of `head_dim` elements can take this way on a path with `lanes` lanes.
pub(crate) fn suits(rows: usize, head_dim: usize, per_unit: usize, lanes: usize) -> bool {
    let units = head_dim / per_unit;
    rows <= MAX_ROWS && head_dim.is_multiple_of(2 * lanes) && units.is_multiple_of(4) && units <= QUERY_STRIDE
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Queries where they stand towards the segment, `[rows, head_dim]`, scaled.
    queries: Vec<f32>,
    /// The same turned back to the tile, `[rows, QUERY_STRIDE]` units.
    turned: Vec<u32>,
    /// Rotated keys, `[2 · LANES, units]`.
    keys: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Ranks of the run each row sees.
    seen: Vec<Range<usize>>,
}

/// Where the keys of a tile lie, their values, and the cosines and sines of their steps from the first. After the last
/// key come copies of it.
struct Tile<E> {
    /// Rank of the first key.
    start: usize,
    n: usize,
    /// Position of the first key.
    base: i64,
    keys: [*const E; TILE],
    values: [*const E; TILE],
    angles: [*const f32; TILE],
}

impl<E> Tile<E> {
    fn new() -> Self {
        let nowhere = [std::ptr::null(); TILE];
        Self { start: 0, n: 0, base: 0, keys: nowhere, values: nowhere, angles: [std::ptr::null(); TILE] }
    }
}

/// Logits and weights of a tile, and what the rows have seen so far.
struct Rows {
    logits: [[f32; TILE]; MAX_ROWS],
    weights: [[u32; TILE]; MAX_ROWS],
    shrink: [f32; 16],
    max: [f32; 16],
    /// Sums of weights, lane by lane.
    sums: [[f32; 16]; MAX_ROWS],
    /// Time spent on finding and rotating keys, where somebody measures.
    gather: Duration,
}

/// A piece whose rows [`suits`] accepts.
pub(crate) struct FewRows<'a, M, E: bytemuck::Pod>(pub(crate) Piece<'a, M, E>);

impl<M: Operand, E: Load> Kernel for FewRows<'_, M, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let rows = self.0.tokens.len() * self.0.group;
        // SAFETY: `suits` bounds the rows; the contract of the kernel.
        unsafe {
            match padded(rows) {
                1 => self.rows::<S, 1>(),
                2 => self.rows::<S, 2>(),
                4 => self.rows::<S, 4>(),
                7 => self.rows::<S, 7>(),
                _ => self.rows::<S, 8>(),
            }
        }
    }
}

impl<M: Operand, E: Load> FewRows<'_, M, E> {
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize>(&mut self) {
        let dim = self.0.q.head_dim;
        let s = &mut self.0.scratch.few;
        s.queries.resize(R * dim, 0.0);
        s.turned.resize(R * QUERY_STRIDE, 0);
        s.keys.resize(2 * S::LANES * dim / M::PER_UNIT, 0);
        s.cos.resize(dim / 2, 0.0);
        s.sin.resize(dim / 2, 0.0);
        let mut rows = Rows {
            logits: [[0.0; TILE]; MAX_ROWS],
            weights: [[0; TILE]; MAX_ROWS],
            shrink: [0.0; 16],
            max: [f32::NEG_INFINITY; 16],
            sums: [[0.0; 16]; MAX_ROWS],
            gather: Duration::ZERO,
        };
        // Where nobody measures, no clock is read.
        let clock = self.0.clock;
        let now = || clock.map(|_| Instant::now());
        let start = now();
        let (mut a, mut b) = (Tile::new(), Tile::new());
        let (mut tile, mut ahead) = (&mut a, &mut b);
        for run in self.0.runs {
            let segment = run.segment;
            // SAFETY: the buffers were sized above; the path's contract holds.
            unsafe {
                self.load_queries::<S>(segment);
                self.locate(segment, run.ranks.start, run.ranks.end, tile);
                while tile.n > 0 {
                    let before = now();
                    self.locate(segment, tile.start + tile.n, run.ranks.end, ahead);
                    rows.gather += before.map_or(Duration::ZERO, |t| t.elapsed());
                    self.attend::<S, R>(dim, segment, tile, ahead, &mut rows);
                    std::mem::swap(&mut tile, &mut ahead);
                }
            }
        }
        for r in 0..self.0.state.max.len() {
            self.0.state.max[r] = rows.max[r];
            // SAFETY: the path's contract.
            self.0.state.sum[r] = unsafe { S::sum(S::load(rows.sums[r].as_ptr())) };
        }
        if let (Some(clock), Some(start)) = (clock, start) {
            clock.add(rows.gather, start.elapsed());
        }
    }

    /// Rotates the queries to where they stand towards `segment`, scales them, and notes what they see.
    #[inline(always)]
    unsafe fn load_queries<S: Simd>(&mut self, segment: &Segment) {
        let Piece { q, group, kv_head, ref tokens, scale, .. } = self.0;
        let s = &mut self.0.scratch.few;
        s.seen.clear();
        for (i, token) in tokens.clone().enumerate() {
            let position = segment.query_position.at(q.first + token, token);
            segment.query_rope.cos_sin(position, &mut s.cos, &mut s.sin);
            s.cos.iter_mut().chain(&mut s.sin).for_each(|x| *x *= scale);
            for g in 0..group {
                let row = q.row(token, kv_head * group + g);
                let out = s.queries[(i * group + g) * q.head_dim..][..q.head_dim].as_mut_ptr();
                // SAFETY: both rows hold `head_dim` elements.
                unsafe { rotate::<S, Single, f32>(row.as_ptr(), &s.cos, &s.sin, out.cast()) }
                s.seen.push(visible(&segment.keys, segment.band, q.first + token));
            }
        }
        // Rows that only fill up see nothing.
        s.seen.resize(MAX_ROWS, 0..0);
    }

    /// Finds the keys of `segment` from rank `start` on, as far as one tile goes.
    #[inline(always)]
    fn locate(&self, segment: &Segment, start: usize, end: usize, tile: &mut Tile<E>) {
        let (store, kv_head) = (self.0.store, self.0.kv_head);
        let angles = segment.key_rope.near(TILE);
        let mut before = usize::MAX;
        (tile.start, tile.n) = (start, 0);
        for i in 0..TILE.min(end - start) {
            let token = segment.keys.token(start + i);
            let position = segment.key_position.at(token, start + i);
            if i == 0 {
                tile.base = position;
            }
            let step = position.wrapping_sub(tile.base) as usize;
            if step >= TILE {
                break;
            }
            tile.angles[i] = angles[step * store.head_dim..].as_ptr();
            // Most keys follow the one before them, in the same page.
            if i > 0 && token == before + 1 && !token.is_multiple_of(PAGE) {
                tile.keys[i] = tile.keys[i - 1].wrapping_add(store.head_dim);
                tile.values[i] = tile.values[i - 1].wrapping_add(store.head_dim);
            } else {
                tile.keys[i] = store.row(store.keys, kv_head, token);
                tile.values[i] = store.row(store.values, kv_head, token);
            }
            before = token;
            tile.n = i + 1;
        }
        if tile.n > 0 {
            let last = tile.n - 1;
            let (key, value, angles) = (tile.keys[last], tile.values[last], tile.angles[last]);
            tile.keys[tile.n..].fill(key);
            tile.values[tile.n..].fill(value);
            tile.angles[tile.n..].fill(angles);
        }
    }

    /// Attends to the keys of `tile`, and asks for those of `ahead`.
    #[inline(always)]
    unsafe fn attend<S: Simd, const R: usize>(
        &mut self,
        dim: usize,
        segment: &Segment,
        tile: &Tile<E>,
        ahead: &Tile<E>,
        rows: &mut Rows,
    ) {
        let s = &mut self.0.scratch.few;
        let width = 2 * S::LANES;
        let columns = tile.n.next_multiple_of(width);
        // SAFETY: tiles name TILE rows of `dim` elements and as many angles; the buffers hold what is written.
        unsafe {
            segment.key_rope.cos_sin(tile.base, &mut s.cos, &mut s.sin);
            s.sin.iter_mut().for_each(|x| *x = -*x);
            for r in 0..R {
                let (row, out) =
                    (s.queries.as_ptr().add(r * dim), s.turned.as_mut_ptr().add(r * QUERY_STRIDE));
                rotate::<S, M, f32>(row, &s.cos, &s.sin, out);
            }
            for first in (0..columns).step_by(width) {
                let before = self.0.clock.map(|_| Instant::now());
                let s = &mut self.0.scratch.few;
                for i in 0..width {
                    prefetch_row::<S, E>(ahead.keys[first + i], dim);
                    let angles = tile.angles[first + i];
                    let cos = std::slice::from_raw_parts(angles, dim / 2);
                    let sin = std::slice::from_raw_parts(angles.add(dim / 2), dim / 2);
                    let out = s.keys.as_mut_ptr().add(i * dim / M::PER_UNIT);
                    rotate::<S, M, E>(tile.keys[first + i], cos, sin, out);
                }
                rows.gather += before.map_or(Duration::ZERO, |t| t.elapsed());
                // Fewer registers hold the sums of fewer keys.
                if S::COLS == 4 {
                    self.logits::<S, R, 2>(dim, 0, first, rows);
                } else {
                    self.logits::<S, R, 1>(dim, 0, first, rows);
                    self.logits::<S, R, 1>(dim, S::LANES, first, rows);
                }
            }
            self.softmax::<S, R>(tile, columns, rows);
            let mut d = 0;
            while d < dim {
                if S::COLS == 4 && R <= 4 && d + 4 * S::LANES <= dim {
                    self.weigh::<S, R, 4>(tile, ahead, columns, d, rows);
                    d += 4 * S::LANES;
                } else {
                    self.weigh::<S, R, 2>(tile, ahead, columns, d, rows);
                    d += 2 * S::LANES;
                }
            }
        }
    }

    /// Logits of all rows and C vectors of rotated keys from `from` on, the columns from `first + from` on.
    #[inline(always)]
    unsafe fn logits<S: Simd, const R: usize, const C: usize>(
        &mut self,
        dim: usize,
        from: usize,
        first: usize,
        rows: &mut Rows,
    ) {
        let units = dim / M::PER_UNIT;
        let s = &self.0.scratch.few;
        // SAFETY: `units` is a multiple of four, and the buffers hold that many of each row.
        unsafe {
            let (keys, queries) = (s.keys.as_ptr().add(from * units), s.turned.as_ptr());
            let mut acc = [[S::splat(0.0); C]; R];
            for u in (0..units).step_by(4) {
                let mut columns = [[S::splat(0.0); 4]; C];
                for c in 0..C {
                    columns[c] = S::four_columns(opaque(keys.wrapping_add(c * S::LANES * units + u)), units);
                }
                for i in 0..4 {
                    for r in 0..R {
                        let x = S::splat(f32::from_bits(*queries.add(r * QUERY_STRIDE + u + i)));
                        for c in 0..C {
                            acc[r][c] = M::mac::<S>(acc[r][c], x, columns[c][i]);
                        }
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    S::store(rows.logits[r].as_mut_ptr().add(first + from + c * S::LANES), acc[r][c]);
                }
            }
        }
    }

    /// Turns the logits of the first `columns` columns into weights, relative to each row's new maximum.
    #[inline(always)]
    unsafe fn softmax<S: Simd, const R: usize>(&self, tile: &Tile<E>, columns: usize, rows: &mut Rows) {
        let Rows { logits, weights, shrink, max, sums, .. } = rows;
        let mut base = [0.0f32; 16];
        // SAFETY: rows of logits and weights have TILE columns; the path's contract holds.
        unsafe {
            for r in 0..R {
                let seen = &self.0.scratch.few.seen[r];
                let rank = |rank: usize| rank.clamp(tile.start, tile.start + tile.n) - tile.start;
                let (from, to) = (rank(seen.start), rank(seen.end));
                if let Some(cap) = self.0.cap {
                    cap_logits::<S>(logits[r].as_mut_ptr(), columns, cap);
                }
                logits[r][..from].fill(f32::NEG_INFINITY);
                logits[r][to.max(from)..columns].fill(f32::NEG_INFINITY);
                let mut largest = S::splat(max[r]);
                for i in (0..columns).step_by(S::LANES) {
                    largest = S::max(S::load(logits[r].as_ptr().add(i)), largest);
                }
                let new = S::max_lane(largest);
                // A row that has seen nothing takes no part; any finite stand-in makes all its weights zero.
                base[r] = if new == f32::NEG_INFINITY { 0.0 } else { new };
                (shrink[r], max[r]) = (max[r] - base[r], new);
            }
            for r in (0..R).step_by(S::LANES) {
                S::store(shrink.as_mut_ptr().add(r), S::exp2(S::load(shrink.as_ptr().add(r))));
            }
            for r in 0..R {
                let (base, mut total) = (S::splat(base[r]), S::splat(0.0));
                for i in (0..columns).step_by(S::LANES) {
                    let weight = S::exp2(S::sub(S::load(logits[r].as_ptr().add(i)), base));
                    total = S::add(total, weight);
                    M::put::<S>(weights[r].as_mut_ptr(), i, weight);
                }
                let sum = sums[r].as_mut_ptr();
                S::store(sum, S::mul_add(S::load(sum), S::splat(shrink[r]), total));
            }
        }
    }

    /// Adds the weighted values of a tile to C vectors, an even number, of the outputs from dimension `d` on.
    #[inline(always)]
    unsafe fn weigh<S: Simd, const R: usize, const C: usize>(
        &mut self,
        tile: &Tile<E>,
        ahead: &Tile<E>,
        columns: usize,
        d: usize,
        rows: &Rows,
    ) {
        let stride = self.0.state.stride;
        // SAFETY: outputs are padded to whole vectors; `d` and what follows lie within the values.
        unsafe {
            let out = self.0.state.out.as_mut_ptr().add(d);
            let mut acc = [[S::splat(0.0); C]; R];
            for r in 0..R {
                for c in 0..C {
                    let so_far = S::load(out.add(r * stride + c * S::LANES));
                    acc[r][c] = S::mul(so_far, S::splat(rows.shrink[r]));
                }
            }
            for u in 0..columns.min(TILE) / M::PER_UNIT {
                for i in 0..M::PER_UNIT {
                    prefetch_row::<S, E>(ahead.values[u * M::PER_UNIT + i].wrapping_add(d), C * S::LANES);
                }
                let values = tile.values.as_ptr().add(u * M::PER_UNIT);
                let mut columns = [S::splat(0.0); C];
                for c in (0..C).step_by(2) {
                    [columns[c], columns[c + 1]] = M::values::<S, E>(values, d + c * S::LANES);
                }
                for r in 0..R {
                    let x = S::splat(f32::from_bits(rows.weights[r][u]));
                    for c in 0..C {
                        acc[r][c] = M::mac::<S>(acc[r][c], x, columns[c]);
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    S::store(out.add(r * stride + c * S::LANES), acc[r][c]);
                }
            }
        }
    }
}
