//! The exact search for the best keys: scores and running lists in one pass, no matrix of scores.
//!
//! A tile of keys (`COLS · LANES` of them) is transposed once and scored against every query row that pairs with its
//! KV head, so a key is read once however many query heads share it. A register tile of scores is compared with each
//! row's worst kept score; only a tile that beats it leaves the registers, which after the first few tiles is rare.
//!
//! Work is cut by KV head, rows and ranges of keys, never by thread; lists of ranges are merged in ascending order
//! under the rule that a later key must be strictly better, so ties go to the lower token index everywhere.

use super::Path;
use super::best::Best;
use super::keys::{Store, Typed, transpose_rows, typed};
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Load, Operand, Pair, Simd, Single, next_rows, opaque, tile, with_rows};
use crate::{HeadPairing, KvView, PAGE, Queries, TopK, TopKRequest, TopKRule};
use std::ops::Range;

/// Query rows scored against a transposed tile: enough to pay for the transposition, few enough to stay in cache.
const ROW_BLOCK: usize = 512;

/// Pieces of work to aim for when rows alone give fewer, and keys a piece should at least have.
const PIECES: usize = 16;
const MIN_KEYS: usize = 2048;

/// Keys a piece should at least have for each one wanted: its list has to fill up before it keeps anything out.
const KEYS_PER_WANTED: usize = 128;

/// Query rows up to which keys are transposed block by block, straight before they are used.
const FEW_ROWS: usize = 8;

/// Keys asked for ahead of their use when the search waits for memory.
const AHEAD: usize = 64;

/// Multiply-adds below which waking another thread costs more than it saves.
const SMALL: usize = 1 << 18;

/// See [`crate::Backend::top_k`].
pub(crate) fn top_k(pool: &Pool, path: Path, q: &Queries, kv: &KvView, request: &TopKRequest) -> TopK {
    assert_eq!(
        q.data.len(),
        q.q_len * q.n_heads * q.head_dim,
        "top_k: {} tokens, {} heads",
        q.q_len,
        q.n_heads
    );
    let keys = request.keys.clone();
    assert!(keys.is_empty() || keys.end <= kv.len, "top_k: keys {keys:?} of {}", kv.len);
    match typed(kv, q.head_dim, q.n_heads) {
        Typed::F32(store) => search::<Single, f32>(pool, path, q, kv, request, store),
        Typed::Bf16(store) if path.has_pair_dot() => search::<Pair, _>(pool, path, q, kv, request, store),
        Typed::Bf16(store) => search::<Single, _>(pool, path, q, kv, request, store),
    }
}

fn search<M: Operand, E: Load>(
    pool: &Pool,
    path: Path,
    q: &Queries,
    kv: &KvView,
    request: &TopKRequest,
    store: Store<E>,
) -> TopK {
    let keys = request.keys.clone();
    let (k, unfilled) = match request.rule {
        TopKRule::Exact => (request.k.min(keys.len()), (f32::NEG_INFINITY, u32::MAX)),
        TopKRule::BestPerTile { .. } => (request.k, (f32::MIN, keys.start as u32)),
    };
    let slots = q.q_len * q.n_heads * k;
    let mut found = TopK {
        q_len: q.q_len,
        n_heads: q.n_heads,
        k,
        indices: vec![unfilled.1; slots],
        scores: vec![unfilled.0; slots],
    };
    if slots == 0 || keys.is_empty() {
        return found;
    }

    let group = q.n_heads / kv.n_kv_heads;
    let rows = q.q_len * group;
    let blocks = rows.div_ceil(ROW_BLOCK);
    let ranges = match request.rule {
        TopKRule::Exact => PIECES
            .div_ceil(kv.n_kv_heads * blocks)
            .min(keys.len().div_ceil(MIN_KEYS.max(KEYS_PER_WANTED * k)))
            .max(1),
        // Tiles are counted from the start of the whole range.
        TopKRule::BestPerTile { .. } => 1,
    };
    let range_len = keys.len().div_ceil(ranges);
    let plan = Plan { q, request, kv_heads: kv.n_kv_heads, group };
    let lists_of = |piece: usize| {
        let (block, kv_head) = (piece / ranges % blocks, piece / ranges / blocks);
        (block * ROW_BLOCK..((block + 1) * ROW_BLOCK).min(rows), kv_head)
    };
    let mut lists: Vec<Option<Best>> = (0..kv.n_kv_heads * blocks * ranges).map(|_| None).collect();
    let is_small = rows * kv.n_kv_heads * keys.len() * q.head_dim < SMALL;
    let slots = Shared::new(&mut lists);
    pool.each(kv.n_kv_heads * blocks * ranges, is_small, Scratch::default, |scratch, piece| {
        let (rows, kv_head) = lists_of(piece);
        let start = keys.start + piece % ranges * range_len;
        let keys = start.min(keys.end)..(start + range_len).min(keys.end);
        let mut lists = Best::new(rows.len(), k, unfilled.0);
        let scan = Scan::<M, E> {
            plan: &plan,
            store,
            rows,
            kv_head,
            keys,
            lists: &mut lists,
            scratch,
            operand: M::default(),
        };
        // SAFETY: the backend only holds available paths; each piece has a slot of its own.
        unsafe {
            path.call(scan);
            slots.part(piece, 1)[0] = Some(lists);
        }
    });

    for first in (0..lists.len()).step_by(ranges) {
        let (rows, kv_head) = lists_of(first);
        let Some(mut merged) = lists[first].take() else { continue };
        for other in lists[first + 1..first + ranges].iter().flatten() {
            merged.merge(other);
        }
        for (i, row) in rows.enumerate() {
            let out = plan.query(row, kv_head) * k;
            merged.finish(i, &mut found.indices[out..out + k], &mut found.scores[out..out + k]);
            if request.rule == TopKRule::Exact {
                fill_up(&mut found.indices[out..out + k], keys.start as u32);
            }
        }
    }
    found
}

/// What all pieces of one search share.
struct Plan<'a> {
    q: &'a Queries<'a>,
    request: &'a TopKRequest,
    kv_heads: usize,
    group: usize,
}

impl Plan<'_> {
    /// Index in `[q_len, n_heads]` of row `row` of a KV head: tokens outermost, then the heads that pair with it.
    fn query(&self, row: usize, kv_head: usize) -> usize {
        let (token, member) = (row / self.group, row % self.group);
        let head = match self.request.pairing {
            HeadPairing::Grouped => kv_head * self.group + member,
            HeadPairing::Interleaved => kv_head + member * self.kv_heads,
        };
        token * self.q.n_heads + head
    }
}

/// Names the lowest keys not yet listed in slots that no comparable score filled (scores of NaN or minus infinity).
fn fill_up(indices: &mut [u32], start: u32) {
    let mut next = start;
    for slot in 0..indices.len() {
        if indices[slot] == u32::MAX {
            while indices[..slot].contains(&next) {
                next += 1;
            }
            indices[slot] = next;
        }
    }
}

/// Buffers of one thread, kept from piece to piece.
#[derive(Default)]
struct Scratch {
    queries: Vec<u32>,
    /// Few queries by unit, `[units, FEW_ROWS]`.
    few: Vec<u32>,
    keys: Vec<u32>,
    widened: Vec<u32>,
    worst: Vec<f32>,
}

/// One piece: some rows of one KV head against one range of keys.
struct Scan<'a, M, E: bytemuck::Pod> {
    plan: &'a Plan<'a>,
    store: Store<'a, E>,
    rows: Range<usize>,
    kv_head: usize,
    keys: Range<usize>,
    lists: &'a mut Best,
    scratch: &'a mut Scratch,
    #[allow(dead_code, reason = "names the operand type")]
    operand: M,
}

impl<M: Operand, E: Load> Kernel for Scan<'_, M, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let dim = self.store.head_dim;
        let units = dim / M::PER_UNIT;
        let q = self.plan.q.data;
        self.scratch.queries.resize(self.rows.len() * units, 0);
        self.scratch.keys.resize(units * S::COLS * S::LANES, 0);
        self.scratch.widened.resize(16 * dim, 0);
        for (i, row) in self.rows.clone().enumerate() {
            let start = self.plan.query(row, self.kv_head) * dim;
            // SAFETY: row `i` of the packed queries has `units` units.
            unsafe {
                M::pack_row::<S>(&q[start..start + dim], self.scratch.queries.as_mut_ptr().add(i * units))
            }
        }
        match self.plan.request.rule {
            // SAFETY: the path's contract, here and below.
            TopKRule::Exact => unsafe { self.exact::<S>() },
            TopKRule::BestPerTile { tile } => {
                let (all, end) = (self.keys.clone(), self.keys.end);
                let n = self.rows.len();
                for start in all.step_by(tile.max(1)) {
                    let mut best = Best::new(n, 1, f32::NEG_INFINITY);
                    self.keys = start..(start + tile.max(1)).min(end);
                    std::mem::swap(self.lists, &mut best);
                    // SAFETY: as above.
                    unsafe { self.exact::<S>() };
                    std::mem::swap(self.lists, &mut best);
                    for row in 0..n {
                        if let Some((score, token)) = best.first(row) {
                            self.lists.insert(row, score, token);
                        }
                    }
                }
            }
        }
    }
}

impl<M: Operand, E: Load> Scan<'_, M, E> {
    #[inline(always)]
    unsafe fn exact<S: Simd>(&mut self) {
        let width = S::COLS * S::LANES;
        let (dim, units) = (self.store.head_dim, self.store.head_dim / M::PER_UNIT);
        self.scratch.worst.clear();
        self.scratch.worst.extend((0..self.rows.len()).map(|row| self.lists.worst(row)));
        // Whole blocks of units that need no widening.
        let is_few =
            self.rows.len() <= FEW_ROWS && units.is_multiple_of(4) && size_of::<E>() * M::PER_UNIT == 4;
        if is_few {
            // One pointer reaches every row of a unit.
            let n = self.rows.len();
            let queries = &self.scratch.queries;
            let by_unit =
                |i: usize| if i % FEW_ROWS < n { queries[i % FEW_ROWS * units + i / FEW_ROWS] } else { 0 };
            self.scratch.few = (0..units * FEW_ROWS).map(by_unit).collect();
        }
        let mut token = self.keys.start;
        while token < self.keys.end {
            // A tile ends where a multiple of its width does, so no tile crosses a page.
            let n = (width - token % PAGE % width).min(self.keys.end - token);
            // SAFETY: `n` rows from `token` on lie in one page; the buffers were sized for `units` and `width`.
            unsafe {
                let keys = self.store.row(self.store.keys, self.kv_head, token);
                if is_few && n == width {
                    self.few_rows::<S>(keys, token, units);
                    token += n;
                    continue;
                }
                let (packed, widened) = (self.scratch.keys.as_mut_ptr(), self.scratch.widened.as_mut_ptr());
                transpose_rows::<S, M, E>(keys, dim, n, packed, width, widened);
                let mut row = 0;
                while row < self.rows.len() {
                    let rows = next_rows(self.rows.len() - row);
                    with_rows!(rows, R => if S::COLS == 4 {
                        self.tile::<S, R, 4>(row, units, token, n)
                    } else {
                        self.tile::<S, R, 2>(row, units, token, n)
                    });
                    row += rows;
                }
            }
            token += n;
        }
    }

    /// Scores all rows, which are few, against a full tile of keys.
    #[inline(always)]
    unsafe fn few_rows<S: Simd>(&mut self, keys: *const E, token: usize, units: usize) {
        let ahead = (token + AHEAD).min(self.keys.end - 1);
        let ahead = self.store.row(self.store.keys, self.kv_head, ahead).cast::<u32>();
        let keys = keys.cast::<u32>();
        // SAFETY: the tile holds `COLS · LANES` rows of `units` units.
        unsafe {
            // Fewer rows leave registers for more columns.
            match self.rows.len() {
                1 => self.few::<S, 1, 2>(keys, ahead, token, units),
                2 => self.few::<S, 2, 2>(keys, ahead, token, units),
                3 => self.few::<S, 3, 2>(keys, ahead, token, units),
                4 => self.few::<S, 4, 2>(keys, ahead, token, units),
                5 => self.few::<S, 5, 2>(keys, ahead, token, units),
                6 => self.few::<S, 6, 2>(keys, ahead, token, units),
                7 => self.few::<S, 7, 2>(keys, ahead, token, units),
                _ => self.few::<S, 8, 2>(keys, ahead, token, units),
            }
        }
    }

    /// Scores R rows against a full tile, C vectors of keys at a time, and asks for the keys at `ahead` meanwhile.
    ///
    /// Keys are transposed four units at a time, in registers: short enough for the processor to do some of it while it
    /// multiplies, and to ask for memory at a steady pace.
    #[inline(always)]
    unsafe fn few<S: Simd, const R: usize, const C: usize>(
        &mut self,
        keys: *const u32,
        ahead: *const u32,
        token: usize,
        units: usize,
    ) {
        let queries = self.scratch.few.as_ptr();
        for first in (0..S::COLS * S::LANES).step_by(C * S::LANES) {
            // SAFETY: `units` is a multiple of four; queries are `[units, FEW_ROWS]`, the tile `COLS · LANES`.
            unsafe {
                let mut acc = [[S::splat(0.0); C]; R];
                // Keys that are read in order here are asked for in order there.
                let mut line = ahead.wrapping_add(first * units);
                for from in (0..units).step_by(4) {
                    let mut columns = [[S::splat(0.0); 4]; C];
                    for c in 0..C {
                        columns[c] = S::four_columns(
                            opaque(keys.wrapping_add((first + c * S::LANES) * units + from)),
                            units,
                        );
                    }
                    for u in 0..4 {
                        for i in 0..C * S::LANES / 16 {
                            S::prefetch(line.wrapping_add(16 * i));
                        }
                        line = line.wrapping_add(C * S::LANES);
                        for r in 0..R {
                            let x = S::splat(f32::from_bits(*queries.add((from + u) * FEW_ROWS + r)));
                            for c in 0..C {
                                acc[r][c] = M::mac::<S>(acc[r][c], x, columns[c][u]);
                            }
                        }
                    }
                }
                self.keep::<S, R, C>(&acc, 0, token + first, C * S::LANES);
            }
        }
    }

    /// Scores rows `row..row + R` against the tile of `n` keys from `token` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const C: usize>(
        &mut self,
        row: usize,
        units: usize,
        token: usize,
        n: usize,
    ) {
        // SAFETY: the packed queries hold R rows from `row` on, and the packed keys `units` rows of C vectors.
        unsafe {
            let a = self.scratch.queries.as_ptr().add(row * units);
            let zero = [[S::splat(0.0); C]; R];
            let acc = tile::<S, M, R, C>(zero, a, units, self.scratch.keys.as_ptr(), C * S::LANES, units);
            self.keep::<S, R, C>(&acc, row, token, n);
        }
    }

    /// Takes in what beats the worst kept score of rows `row..row + R`, of the scores of `n` keys from `token` on.
    #[inline(always)]
    unsafe fn keep<S: Simd, const R: usize, const C: usize>(
        &mut self,
        acc: &[[S::V; C]; R],
        row: usize,
        token: usize,
        n: usize,
    ) {
        // SAFETY: the rows exist; everything else is in registers.
        unsafe {
            for r in 0..R {
                let worst = S::splat(*self.scratch.worst.as_ptr().add(row + r));
                let mut best = worst;
                for c in 0..C {
                    // The second operand wins where the first is no number, so a NaN hides nothing.
                    best = S::max(acc[r][c], best);
                }
                if S::gt(best, worst) == 0 {
                    continue;
                }
                let mut scores = [0.0f32; 64];
                let mut better = 0u64;
                for c in 0..C {
                    S::store(scores.as_mut_ptr().add(c * S::LANES), acc[r][c]);
                    better |= u64::from(S::gt(acc[r][c], worst)) << (c * S::LANES);
                }
                // Columns past the last key hold leftovers.
                better &= u64::MAX >> (64 - n);
                take(self.lists, &mut self.scratch.worst[row + r], row + r, &scores, better, token);
            }
        }
    }
}

/// Takes the scores marked in `better` into the list of `row`.
#[cold]
#[inline(never)]
pub(super) fn take(
    lists: &mut Best,
    worst: &mut f32,
    row: usize,
    scores: &[f32; 64],
    mut better: u64,
    token: usize,
) {
    while better != 0 {
        let i = better.trailing_zeros() as usize;
        lists.insert(row, scores[i], (token + i) as u32);
        better &= better - 1;
    }
    *worst = lists.worst(row);
}
