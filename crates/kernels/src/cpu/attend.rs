//! Softmax attention over segments: keys are gathered, rotated and multiplied tile by tile, with a running softmax.
//!
//! Work is cut into pieces by KV head, block of query tokens and (when those are few) ranges of keys, never by thread.
//! A piece keeps the unnormalised output, the maximum and the sum of each of its rows; pieces of the same rows are
//! merged by log-sum-exp in a fixed order. Logits are kept in base two: `scale · log2(e)` is folded into the queries.

use super::Path;
use super::attend_few::{FewRows, suits};
use super::attend_piece::{Piece, Scratch, State};
use super::keys::{Store, Typed, typed};
use super::pool::{Pool, Shared};
use super::simd::{Load, Operand, Pair, Single};
use crate::profile::AttendClock;
use crate::{Band, KeySet, KvView, LogitRule, Queries, Segment};
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Query rows of a block: enough to pay for gathering and rotating a tile of keys, few enough to stay in cache.
pub(super) const ROW_BLOCK: usize = 256;

/// Pieces of work to aim for when rows alone give fewer, and keys a piece should at least have.
const PIECES: usize = 16;
const MIN_KEYS: usize = 256;

/// Multiply-adds below which waking another thread costs more than it saves.
pub(super) const SMALL: usize = 1 << 17;

/// See [`crate::Backend::attend`].
pub(crate) fn attend(
    pool: &Pool,
    path: Path,
    clock: Option<&AttendClock>,
    q: &Queries,
    kv: &KvView,
    views: &[Vec<Segment>],
    rule: LogitRule,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    let rows = q.q_len * q.n_heads;
    assert_eq!(
        (q.data.len(), out.len(), lse.as_ref().map_or(rows, |l| l.len())),
        (rows * q.head_dim, rows * q.head_dim, rows),
        "attend: elements of queries, outputs and log-sum-exps for {} tokens, {} heads of {}",
        q.q_len,
        q.n_heads,
        q.head_dim
    );
    check(q, kv, views);
    let cap = rule.softcap.map(|cap| cap * LOG2_E);
    let call = Call { pool, path, clock, q, kv, views, scale: rule.scale * LOG2_E, cap };
    match typed(kv, q.head_dim, q.n_heads) {
        Typed::F32(store) => call.run::<Single, f32>(store, out, lse),
        Typed::Bf16(store) if path.has_pair_dot() => call.run::<Pair, _>(store, out, lse),
        Typed::Bf16(store) => call.run::<Single, _>(store, out, lse),
    }
}

/// Checks that views and queries fit together.
pub(super) fn check(q: &Queries, kv: &KvView, views: &[Vec<Segment>]) {
    assert!(
        views.len() == 1 || views.len() == kv.n_kv_heads,
        "attention: {} views for {} KV heads",
        views.len(),
        kv.n_kv_heads
    );
    let pairs = q.head_dim / 2;
    for rope in views.iter().flatten().flat_map(|s| [&s.key_rope, &s.query_rope]) {
        assert_eq!(rope.inv_freq().len(), pairs, "attention: frequencies for heads of {}", q.head_dim);
    }
}

/// The ranks of a segment's keys that a block of queries can see.
#[derive(Clone, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) segment: &'a Segment,
    pub(crate) ranks: Range<usize>,
}

/// The ranks of `keys` that the query of token index `query` sees: neighbours, since keys ascend.
pub(crate) fn visible(keys: &KeySet, band: Band, query: usize) -> Range<usize> {
    let Range { start: first, end } = band.tokens(query);
    let rank = |token: usize| match keys {
        KeySet::Range(r) => token.clamp(r.start, r.end.max(r.start)) - r.start,
        KeySet::Gathered(g) => g.partition_point(|&t| (t as usize) < token),
    };
    let (first, end) = (rank(first), rank(end));
    first..end.max(first)
}

struct Call<'a> {
    pool: &'a Pool,
    path: Path,
    clock: Option<&'a AttendClock>,
    q: &'a Queries<'a>,
    kv: &'a KvView<'a>,
    views: &'a [Vec<Segment>],
    scale: f32,
    cap: Option<f32>,
}

impl Call<'_> {
    fn run<M: Operand, E: Load>(&self, store: Store<E>, out: &mut [f32], lse: Option<&mut [f32]>) {
        let Self { q, kv, views, .. } = *self;
        let (dim, group) = (q.head_dim, q.n_heads / kv.n_kv_heads);
        if q.q_len == 0 || q.n_heads == 0 {
            return;
        }
        let block = (ROW_BLOCK / group).max(1).min(q.q_len);
        let blocks = q.q_len.div_ceil(block);
        let tokens = |b: usize| b * block..((b + 1) * block).min(q.q_len);
        // What each block sees of each view, and the keys that adds up to.
        let runs: Vec<(Vec<Run>, usize)> = (0..views.len() * blocks)
            .map(|i| {
                let runs = runs(&views[i / blocks], q.first, tokens(i % blocks));
                let keys = runs.iter().map(|r| r.ranks.len()).sum();
                (runs, keys)
            })
            .collect();
        let most = runs.iter().map(|r| r.1).max().unwrap_or(0);
        let ranges = PIECES.div_ceil(kv.n_kv_heads * blocks).min(most.div_ceil(MIN_KEYS)).max(1);

        let (out, lse) = (Shared::new(out), lse.map(Shared::new));
        let finish = |kv_head: usize, b: usize, state: &State| {
            for row in 0..tokens(b).len() * group {
                let at = (b * block + row / group) * q.n_heads + kv_head * group + row % group;
                // SAFETY: each query and head belongs to one block and one KV head.
                state.finish(row, unsafe { out.part(at * dim, dim) });
                if let Some(lse) = lse {
                    let (max, sum) = (state.max[row], state.sum[row]);
                    // SAFETY: as above.
                    let slot = unsafe { lse.part(at, 1) };
                    slot[0] =
                        if sum > 0.0 || sum.is_nan() { max * LN_2 + sum.ln() } else { f32::NEG_INFINITY };
                }
            }
        };
        let mut partial: Vec<Option<State>> = Vec::new();
        if ranges > 1 {
            partial.resize_with(kv.n_kv_heads * blocks * ranges, || None);
        }
        let slots = Shared::new(&mut partial);
        let is_small = q.q_len * q.n_heads * most * dim < SMALL;
        // Later blocks see more keys: started first, they do not leave a thread alone at the end.
        let pieces = kv.n_kv_heads * blocks * ranges;
        self.pool.each(pieces, is_small, Scratch::default, |scratch, i| {
            let piece = pieces - 1 - i;
            let (range, kv_head, b) =
                (piece % ranges, piece / ranges % kv.n_kv_heads, piece / ranges / kv.n_kv_heads);
            let (runs, keys) = &runs[if views.len() == 1 { b } else { kv_head * blocks + b }];
            let share = keys.div_ceil(ranges);
            let runs = cut(runs, range * share..(range + 1) * share);
            let mut state = std::mem::take(&mut scratch.state);
            let rows = tokens(b).len() * group;
            state.reset(rows, dim);
            let (scale, cap, tokens) = (self.scale, self.cap, tokens(b));
            let piece_work = Piece::<M, E> {
                q,
                store,
                scale,
                cap,
                group,
                kv_head,
                tokens,
                runs: &runs,
                state: &mut state,
                scratch,
                clock: self.clock,
                operand: M::default(),
            };
            // SAFETY: the backend only holds available paths.
            unsafe {
                if suits(rows, dim, M::PER_UNIT, self.path.lanes()) {
                    self.path.call(FewRows(piece_work))
                } else {
                    self.path.call(piece_work)
                }
            }
            if ranges == 1 {
                finish(kv_head, b, &state);
                scratch.state = state;
            } else {
                // SAFETY: each piece has a slot of its own.
                unsafe { slots.part(piece, 1)[0] = Some(state) }
            }
        });
        for (i, parts) in partial.chunks_mut(ranges.max(1)).enumerate() {
            let mut parts = parts.iter_mut().filter_map(Option::take);
            let Some(mut merged) = parts.next() else { continue };
            parts.for_each(|part| merged.merge(&part));
            finish(i % kv.n_kv_heads, i / kv.n_kv_heads, &merged);
        }
    }
}

/// The keys of `segments` that queries `tokens` of a step starting at `first` can see.
fn runs(segments: &[Segment], first: usize, tokens: Range<usize>) -> Vec<Run<'_>> {
    let mut runs = Vec::with_capacity(segments.len());
    for segment in segments {
        // Both ends move forward with the query, so the first and the last query bound what the block sees.
        let first_query = visible(&segment.keys, segment.band, first + tokens.start);
        let last_query = visible(&segment.keys, segment.band, first + tokens.end - 1);
        if first_query.start < last_query.end {
            runs.push(Run { segment, ranks: first_query.start..last_query.end });
        }
    }
    runs
}

/// The part `range` of the runs laid end to end.
fn cut<'a>(runs: &[Run<'a>], range: Range<usize>) -> Vec<Run<'a>> {
    let mut before = 0;
    let mut out = Vec::new();
    for run in runs {
        let (from, to) = (range.start.max(before), range.end.min(before + run.ranks.len()));
        if from < to {
            let ranks = run.ranks.start + from - before..run.ranks.start + to - before;
            out.push(Run { segment: run.segment, ranks });
        }
        before += run.ranks.len();
    }
    out
}
