//! The search for the best keys among listed ones: every query and head looks into a few lists.
//!
//! The rows of a block are sorted by the lists they look into, so that a list is fetched and transposed once for all of
//! its rows. Work is cut by KV head and rows, never by thread. Scores are summed exactly as the search over all keys
//! sums them, and ties go to the lower token index, so looking into lists that hold every key gives its result.

use super::Path;
use super::best::Best;
use super::keys::{Store, Typed, transpose_rows, typed};
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Load, Operand, Pair, Simd, Single, next_rows, tile, with_rows};
use crate::{KvView, ListedRequest, Queries, TopK};
use std::ops::Range;

/// Most rows that share what they fetch, and pieces of work to aim for when rows are fewer.
const ROW_BLOCK: usize = 512;
const PIECES: usize = 4;

/// Multiply-adds below which waking another thread costs more than it saves, and lists up to which their keys are counted;
/// more are taken to hold 32 each.
const SMALL: usize = 1 << 15;
const COUNTED: usize = 64;

/// See [`crate::Backend::top_k_listed`].
pub(crate) fn top_k_listed(
    pool: &Pool,
    path: Path,
    q: &Queries,
    kv: &KvView,
    request: &ListedRequest,
) -> TopK {
    request.check(q);
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
    request: &ListedRequest,
    store: Store<E>,
) -> TopK {
    let k = request.k;
    let mut found = TopK::unfilled(q.q_len, q.n_heads, k);
    if k == 0 || request.lists.is_empty() {
        return found;
    }
    let group = q.n_heads / kv.n_kv_heads;
    let rows = q.q_len * group;
    let blocks = rows.div_ceil(ROW_BLOCK).max(PIECES.div_ceil(kv.n_kv_heads).min(rows));
    let block = rows.div_ceil(blocks);
    let blocks = rows.div_ceil(block);
    let (indices, scores) = (Shared::new(&mut found.indices), Shared::new(&mut found.scores));
    let length = |list: &u32| if *list == ListedRequest::NONE { 0 } else { (request.keys)(*list).len() };
    let keys = match request.lists.len() {
        ..=COUNTED => request.lists.iter().map(length).sum(),
        many => many * 32,
    };
    let is_small = keys * q.head_dim < SMALL;
    pool.each(kv.n_kv_heads * blocks, is_small, Scratch::default, |scratch, piece| {
        let (kv_head, block_start) = (piece % kv.n_kv_heads, piece / kv.n_kv_heads * block);
        let rows = block_start..(block_start + block).min(rows);
        let mut best = Best::new(rows.len(), k, f32::NEG_INFINITY);
        let scan = Scan::<M, E> {
            q,
            store,
            request,
            rows: rows.clone(),
            group,
            kv_head,
            best: &mut best,
            scratch,
            operand: M::default(),
        };
        // SAFETY: the backend only holds available paths.
        unsafe { path.call(scan) }
        for (i, row) in rows.enumerate() {
            let at = query(q, row, group, kv_head) * k;
            // SAFETY: each query and head belongs to one piece.
            let (indices, scores) = unsafe { (indices.part(at, k), scores.part(at, k)) };
            best.finish(i, indices, scores);
        }
    });
    found
}

/// Index in `[q_len, n_heads]` of row `row` of a KV head: heads outermost, since tokens of one head look into the same
/// lists more often than heads do.
fn query(q: &Queries, row: usize, group: usize, kv_head: usize) -> usize {
    row % q.q_len * q.n_heads + kv_head * group + row / q.q_len
}

/// Sorts pairs of a list and a row by list, keeping the order of rows.
fn sort(looks: &mut Vec<u64>, sorted: &mut Vec<u64>, counts: &mut Vec<u32>) {
    let list = |look: u64| (look >> 32) as usize;
    let Some(last) = looks.iter().map(|&look| list(look)).max() else { return };
    // Counting beats comparing unless most lists are looked into by nobody.
    if last > 16 * looks.len() {
        looks.sort_unstable();
        return;
    }
    counts.clear();
    counts.resize(last + 2, 0);
    looks.iter().for_each(|&look| counts[list(look) + 1] += 1);
    for i in 1..counts.len() {
        counts[i] += counts[i - 1];
    }
    sorted.clear();
    sorted.resize(looks.len(), 0);
    for &look in looks.iter() {
        sorted[counts[list(look)] as usize] = look;
        counts[list(look)] += 1;
    }
    std::mem::swap(looks, sorted);
}

/// Buffers of one thread, kept from piece to piece.
#[derive(Default)]
struct Scratch {
    queries: Vec<u32>,
    /// Pairs of a list and a row that looks into it, sorted.
    looks: Vec<u64>,
    sorted: Vec<u64>,
    counts: Vec<u32>,
    /// Fetched keys one after another, then transposed.
    fetched: Vec<u32>,
    keys: Vec<u32>,
    widened: Vec<u32>,
    /// The queries of one register tile.
    tile: Vec<u32>,
}

/// One piece: some rows of one KV head.
struct Scan<'a, 'k, M, E: bytemuck::Pod> {
    q: &'a Queries<'a>,
    store: Store<'a, E>,
    request: &'a ListedRequest<'k>,
    rows: Range<usize>,
    group: usize,
    kv_head: usize,
    best: &'a mut Best,
    scratch: &'a mut Scratch,
    #[allow(dead_code, reason = "names the operand type")]
    operand: M,
}

impl<M: Operand, E: Load> Kernel for Scan<'_, '_, M, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let (dim, width) = (self.store.head_dim, S::COLS * S::LANES);
        let (units, words) = (dim / M::PER_UNIT, dim * size_of::<E>() / 4);
        self.scratch.queries.resize(self.rows.len() * units, 0);
        self.scratch.fetched.resize(width * words, 0);
        self.scratch.keys.resize(units * width, 0);
        self.scratch.widened.resize(16 * dim, 0);
        self.scratch.tile.resize(super::simd::MAX_ROWS * units, 0);
        self.scratch.looks.clear();
        let per_row = self.request.per_row;
        for (i, row) in self.rows.clone().enumerate() {
            let at = query(self.q, row, self.group, self.kv_head);
            let data = &self.q.data[at * dim..(at + 1) * dim];
            // SAFETY: row `i` of the packed queries has `units` units.
            unsafe { M::pack_row::<S>(data, self.scratch.queries.as_mut_ptr().add(i * units)) }
            let lists = &self.request.lists[at * per_row..(at + 1) * per_row];
            let lists = lists.iter().filter(|&&list| list != ListedRequest::NONE);
            self.scratch.looks.extend(lists.map(|&list| u64::from(list) << 32 | i as u64));
        }
        let mut looks = std::mem::take(&mut self.scratch.looks);
        sort(&mut looks, &mut self.scratch.sorted, &mut self.scratch.counts);
        let list_of = |look: &u64| (look >> 32) as u32;
        // Lists are asked for two ahead: the time one takes is too short to fetch the next.
        let mut ahead = looks.chunk_by(|a, b| list_of(a) == list_of(b));
        for group in ahead.by_ref().take(2) {
            // SAFETY: as below.
            unsafe { self.prefetch::<S>((self.request.keys)(list_of(&group[0]))) }
        }
        for group in looks.chunk_by(|a, b| list_of(a) == list_of(b)) {
            // SAFETY: the path's contract; the buffers were sized above.
            unsafe {
                if let Some(group) = ahead.next() {
                    self.prefetch::<S>((self.request.keys)(list_of(&group[0])));
                }
                self.list::<S>((self.request.keys)(list_of(&group[0])), group);
            }
        }
        self.scratch.looks = looks;
    }
}

impl<M: Operand, E: Load> Scan<'_, '_, M, E> {
    /// Scores `rows` against the keys of one list.
    #[inline(always)]
    unsafe fn list<S: Simd>(&mut self, keys: &[u32], rows: &[u64]) {
        let (dim, width) = (self.store.head_dim, S::COLS * S::LANES);
        let (units, words) = (dim / M::PER_UNIT, dim * size_of::<E>() / 4);
        for keys in keys.chunks(width) {
            // SAFETY: every row is read where the store says it lies, and the buffers hold a tile of `width` keys.
            unsafe {
                for (i, &key) in keys.iter().enumerate() {
                    let row = self.store.row(self.store.keys, self.kv_head, key as usize).cast::<f32>();
                    copy::<S>(row, words, self.scratch.fetched.as_mut_ptr().add(i * words).cast());
                }
                let fetched = self.scratch.fetched.as_ptr().cast();
                let (packed, widened) = (self.scratch.keys.as_mut_ptr(), self.scratch.widened.as_mut_ptr());
                transpose_rows::<S, M, E>(fetched, dim, keys.len(), packed, width, widened);
            }
            let mut row = 0;
            while row < rows.len() {
                let count = next_rows(rows.len() - row);
                let looks = &rows[row..row + count];
                // SAFETY: rows below the number of packed queries; a tile of queries holds them.
                unsafe {
                    for (i, look) in looks.iter().enumerate() {
                        let from = self.scratch.queries.as_ptr().add(*look as u32 as usize * units);
                        copy::<S>(from.cast(), units, self.scratch.tile.as_mut_ptr().add(i * units).cast());
                    }
                    with_rows!(count, R => if S::COLS == 4 {
                        self.tile::<S, R, 4>(looks, units, keys)
                    } else {
                        self.tile::<S, R, 2>(looks, units, keys)
                    });
                }
                row += count;
            }
        }
    }

    /// Asks for the keys of a list that will be scored later.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, keys: &[u32]) {
        let words = self.store.head_dim * size_of::<E>() / 4;
        for &key in keys {
            let row = self.store.row(self.store.keys, self.kv_head, key as usize).cast::<u32>();
            let mut line = 0;
            while line < words {
                // SAFETY: prefetches need not be readable.
                unsafe { S::prefetch_far(row.wrapping_add(line)) }
                line += 16;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const C: usize>(
        &mut self,
        looks: &[u64],
        units: usize,
        keys: &[u32],
    ) {
        let all = u64::MAX >> (64 - keys.len());
        // SAFETY: the tiles of queries and keys were filled by the caller.
        unsafe {
            let zero = [[S::splat(0.0); C]; R];
            let (a, b) = (self.scratch.tile.as_ptr(), self.scratch.keys.as_ptr());
            let acc = tile::<S, M, R, C>(zero, a, units, b, C * S::LANES, units);
            for r in 0..R {
                let row = looks[r] as u32 as usize;
                let worst = S::splat(self.best.worst(row));
                let mut worse = 0u64;
                for c in 0..C {
                    worse |= u64::from(S::gt(worst, acc[r][c])) << (c * S::LANES);
                }
                let mut better = !worse & all;
                if better == 0 {
                    continue;
                }
                let mut scores = [0.0f32; 64];
                for c in 0..C {
                    S::store(scores.as_mut_ptr().add(c * S::LANES), acc[r][c]);
                }
                while better != 0 {
                    let i = better.trailing_zeros() as usize;
                    self.best.insert(row, scores[i], keys[i]);
                    better &= better - 1;
                }
            }
        }
    }
}

/// Copies `words` words.
#[inline(always)]
unsafe fn copy<S: Simd>(from: *const f32, words: usize, to: *mut f32) {
    let mut i = 0;
    // SAFETY: `words` words are readable and writable.
    unsafe {
        while i + S::LANES <= words {
            S::store(to.add(i), S::load(from.add(i)));
            i += S::LANES;
        }
        while i < words {
            to.add(i).write_unaligned(from.add(i).read_unaligned());
            i += 1;
        }
    }
}
