//! The attention each key gets: the logits of attention once more, turned into weights by log-sum-exps that are known and
//! added up over the queries.
//!
//! Work is cut by KV head and range of keys. A piece goes through all queries of its KV head in order, so no sum is shared
//! between threads and none depends on their number.

use super::Path;
use super::attend::{ROW_BLOCK, Run, SMALL, check, visible};
use super::attend_piece::{Piece, Scratch, State, TILE};
use super::keys::{Store, Typed, typed};
use super::pool::{Pool, Shared};
use super::simd::{Kernel, Load, Operand, Pair, Simd, Single, next_rows};
use crate::{KvView, LogitRule, Queries, Segment};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Keys of a piece: enough to pay for turning the queries towards them once more.
const PIECE_KEYS: usize = 4 * TILE;

/// See [`crate::Backend::key_mass`].
pub(crate) fn key_mass(
    pool: &Pool,
    path: Path,
    q: &Queries,
    kv: &KvView,
    views: &[Vec<Segment>],
    rule: LogitRule,
    lse: &[f32],
) -> Vec<Vec<f32>> {
    let rows = q.q_len * q.n_heads;
    assert_eq!(
        (q.data.len(), lse.len()),
        (rows * q.head_dim, rows),
        "key_mass: elements of queries and log-sum-exps for {} tokens, {} heads of {}",
        q.q_len,
        q.n_heads,
        q.head_dim
    );
    check(q, kv, views);
    let cap = rule.softcap.map(|cap| cap * LOG2_E);
    let call = Call { pool, path, q, kv, views, scale: rule.scale * LOG2_E, cap, lse };
    match typed(kv, q.head_dim, q.n_heads) {
        Typed::F32(store) => call.run::<Single, f32>(store),
        Typed::Bf16(store) if path.has_pair_dot() => call.run::<Pair, _>(store),
        Typed::Bf16(store) => call.run::<Single, _>(store),
    }
}

struct Call<'a> {
    pool: &'a Pool,
    path: Path,
    q: &'a Queries<'a>,
    kv: &'a KvView<'a>,
    views: &'a [Vec<Segment>],
    scale: f32,
    cap: Option<f32>,
    lse: &'a [f32],
}

impl Call<'_> {
    fn run<M: Operand, E: Load>(&self, store: Store<E>) -> Vec<Vec<f32>> {
        let Self { q, kv, views, .. } = *self;
        let group = q.n_heads / kv.n_kv_heads;
        let view = |kv_head: usize| &views[if views.len() == 1 { 0 } else { kv_head }];
        let keys = |kv_head: usize| view(kv_head).iter().map(|s| s.keys.len()).sum::<usize>();
        let mut mass: Vec<Vec<f32>> = (0..q.n_heads).map(|head| vec![0.0; keys(head / group)]).collect();
        let pieces: Vec<(usize, Range<usize>)> = (0..kv.n_kv_heads)
            .flat_map(|kv_head| {
                let keys = keys(kv_head);
                (0..keys).step_by(PIECE_KEYS).map(move |from| (kv_head, from..(from + PIECE_KEYS).min(keys)))
            })
            .collect();
        let products = pieces.iter().map(|p| p.1.len()).sum::<usize>() * group * q.q_len * q.head_dim;
        let parts: Vec<Shared<f32>> = mass.iter_mut().map(|of_head| Shared::new(of_head)).collect();
        self.pool.each(pieces.len(), products < SMALL, Buffers::default, |buffers, i| {
            // Later keys are seen by more queries: started first, they do not leave a thread alone at the end.
            let (kv_head, keys) = &pieces[pieces.len() - 1 - i];
            self.piece::<M, E>(store, *kv_head, view(*kv_head), keys, buffers);
            for (g, sums) in buffers.mass.chunks_exact(keys.len() + TILE).enumerate() {
                // SAFETY: each head and range of keys belongs to one piece.
                let out = unsafe { parts[kv_head * group + g].part(keys.start, keys.len()) };
                out.copy_from_slice(&sums[..keys.len()]);
            }
        });
        mass
    }

    /// Leaves in `buffers.mass: [group, keys.len() + TILE]` what keys `keys` of the segments laid end to end got.
    fn piece<M: Operand, E: Load>(
        &self,
        store: Store<E>,
        kv_head: usize,
        segments: &[Segment],
        keys: &Range<usize>,
        buffers: &mut Buffers,
    ) {
        let q = self.q;
        let group = q.n_heads / self.kv.n_kv_heads;
        let block = (ROW_BLOCK / group).max(1);
        buffers.mass.clear();
        buffers.mass.resize(group * (keys.len() + TILE), 0.0);
        for first in (0..q.q_len).step_by(block) {
            let tokens = first..(first + block).min(q.q_len);
            let (runs, offsets) = runs(segments, keys, q.first, &tokens);
            let piece = Piece::<M, E> {
                q,
                store,
                scale: self.scale,
                cap: self.cap,
                group,
                kv_head,
                tokens,
                runs: &runs,
                state: &mut buffers.state,
                scratch: &mut buffers.scratch,
                clock: None,
                operand: M::default(),
            };
            let work = KeyMass { piece, offsets: &offsets, lse: self.lse, mass: &mut buffers.mass };
            // SAFETY: the backend only holds available paths.
            unsafe { self.path.call(work) }
        }
    }
}

/// Memory of one thread.
#[derive(Default)]
struct Buffers {
    scratch: Scratch,
    state: State,
    mass: Vec<f32>,
}

/// What queries `tokens` of a step starting at `first` see of keys `keys` of the segments laid end to end, and where in
/// `keys` each run starts.
fn runs<'a>(
    segments: &'a [Segment],
    keys: &Range<usize>,
    first: usize,
    tokens: &Range<usize>,
) -> (Vec<Run<'a>>, Vec<usize>) {
    let (mut runs, mut offsets, mut before) = (Vec::new(), Vec::new(), 0);
    for segment in segments {
        // Both ends move forward with the query, so the first and the last query bound what the block sees.
        let seen_from = visible(&segment.keys, segment.band, first + tokens.start).start;
        let seen_to = visible(&segment.keys, segment.band, first + tokens.end - 1).end;
        let from = seen_from.max(keys.start.saturating_sub(before));
        let to = seen_to.min(keys.end.saturating_sub(before));
        if from < to {
            runs.push(Run { segment, ranks: from..to });
            offsets.push(before + from - keys.start);
        }
        before += segment.keys.len();
    }
    (runs, offsets)
}

/// A block of queries and some runs of keys.
struct KeyMass<'a, M, E: bytemuck::Pod> {
    piece: Piece<'a, M, E>,
    offsets: &'a [usize],
    lse: &'a [f32],
    /// `[group, keys + TILE]`.
    mass: &'a mut [f32],
}

impl<M: Operand, E: Load> Kernel for KeyMass<'_, M, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let rows = self.piece.tokens.len() * self.piece.group;
        self.piece.make_room();
        for (run, &offset) in self.piece.runs.iter().zip(self.offsets) {
            let Run { segment, ranks } = run;
            // SAFETY: the buffers have their sizes; the path's contract holds.
            unsafe {
                self.piece.load_queries::<S>(segment);
                let mut tile = self.piece.locate(segment, ranks.start, TILE.min(ranks.len()));
                for start in ranks.clone().step_by(TILE) {
                    let n = tile.n;
                    let ahead = self.piece.locate(segment, start + n, TILE.min(ranks.end - start - n));
                    self.piece.load_keys::<S>(segment, start, &tile, &ahead);
                    let mut row = 0;
                    while row < rows {
                        let count = next_rows(rows - row);
                        let columns = self.piece.seen_logits::<S>(row, count, start, n);
                        for r in 0..count {
                            self.add::<S>(row + r, r, offset + start - ranks.start, columns.clone());
                        }
                        row += count;
                    }
                    tile = ahead;
                }
            }
        }
    }
}

impl<M: Operand, E: Load> KeyMass<'_, M, E> {
    /// Adds the weights of columns `columns` of row `row`, which is row `r` of the register tile; column 0 is key `first` of
    /// the piece.
    #[inline(always)]
    unsafe fn add<S: Simd>(&mut self, row: usize, r: usize, first: usize, columns: Range<usize>) {
        let Piece { q, group, kv_head, .. } = self.piece;
        let (token, g) = (self.piece.tokens.start + row / group, row % group);
        let lse = self.lse[token * q.n_heads + kv_head * group + g];
        // A query that sees no key has weights of zero: its logits are minus infinity, and so must not be subtracted.
        let base = if lse == f32::NEG_INFINITY { 0.0 } else { lse * LOG2_E };
        let stride = self.mass.len() / group;
        let sums = &mut self.mass[g * stride + first..][..columns.end];
        let logits = &self.piece.logits_of(r)[..columns.end];
        // SAFETY: columns are whole vectors within both slices; what lies past the last key got weights of zero.
        unsafe {
            for i in columns.step_by(S::LANES) {
                let weight = S::exp2(S::sub(S::load(logits.as_ptr().add(i)), S::splat(base)));
                let sum = sums.as_mut_ptr().add(i);
                S::store(sum, S::add(S::load(sum), weight));
            }
        }
    }
}
