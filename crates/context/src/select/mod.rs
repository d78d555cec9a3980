//! Selectors: how the best keys of a long context are found.
//!
//! A method asks for the keys with the largest `q · k`; a selector answers, exactly or nearly, and may keep a structure
//! over the keys it has seen. One selector is one file.

mod boxes;
mod clusters;
mod exact;
mod halving;
mod leaves;
mod low_bit;
mod partition;
mod reuse;
mod table;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use boxes::Boxes;
pub(crate) use clusters::{ClusterSettings, Clusters};
pub(crate) use exact::Exact;
pub(crate) use halving::Halving;
pub(crate) use low_bit::{LowBit, LowBitSettings};
pub(crate) use reuse::Reuse;
pub(crate) use table::Table;

use crate::methods::{Appended, LayerCall, StepKind};
use reattention_kernels::{DeviceError, ListedRequest, Queries, TopK, TopKRequest};
use std::ops::Range;

/// A search for the best keys of a layer.
pub(crate) trait Selector: Send + Sync + std::fmt::Debug {
    /// Its name among the values of `selector`.
    fn name(&self) -> &'static str;

    /// Learns the keys `keys` of the layer that were not in the last such range. Called for every step, in the order of the
    /// tokens.
    ///
    /// # Errors
    /// When the backend's device fails. [`Selector::truncate`] then forgets the keys, as after any step that is aborted.
    fn extend(&mut self, _new: &Appended, _keys: Range<usize>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The best keys of `request` for each query and head of `q`: those of the step, or some of its tokens. Slots that found
    /// no key hold [`reattention_kernels::ListedRequest::NONE`].
    ///
    /// # Errors
    /// When the backend's device fails.
    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> Result<TopK, DeviceError>;

    /// Forgets the tokens from `n` on: what it finds from then on is what it would find if it had never seen them, but for
    /// [`Reuse`] away from a pinned point.
    fn truncate(&mut self, _n: usize) {}

    /// Keeps what [`Selector::truncate`] to `n`, its present end, needs, until [`Selector::unpin`] or another call.
    fn pin(&mut self, _n: usize) {}

    /// Ends [`Selector::pin`].
    fn unpin(&mut self) {}

    /// Memory of its structure for each key of a KV head, in bytes, for planning.
    fn bytes_per_key(&self, _head_dim: usize) -> f64 {
        0.0
    }
}

/// How far the selectors look that group keys by their place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    /// Up to as many keys a query of the context scores all, and no structure is built; queries of the question or the
    /// answer do up to twice as many.
    pub(crate) exact_below: usize,
    /// Groups a query of the context looks into.
    pub(crate) prefill_probes: usize,
    /// Groups a query of the question or the answer looks into.
    pub(crate) probes: usize,
}

impl Reach {
    /// Whether a step scores all of `keys` keys. Questions and answers have few queries and look into many groups, which
    /// pays only on longer contexts.
    pub(crate) fn is_exact(&self, kind: StepKind, keys: usize) -> bool {
        match kind {
            StepKind::Prefill => keys <= self.exact_below,
            StepKind::Question | StepKind::Decode | StepKind::Ephemeral => {
                keys <= self.exact_below.saturating_mul(2)
            }
        }
    }

    /// Groups a query of a step looks into.
    pub(crate) fn probes(&self, kind: StepKind) -> usize {
        match kind {
            StepKind::Prefill => self.prefill_probes,
            StepKind::Question | StepKind::Decode | StepKind::Ephemeral => self.probes,
        }
    }
}

/// What each layer keeps, made when the layer first has more than `exact_below` keys.
#[derive(Debug)]
struct Layers<T>(Vec<Option<T>>);

impl<T> Layers<T> {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// What the layer keeps, made now if it is due.
    fn due(&mut self, layer: usize, is_long: bool, make: impl FnOnce() -> T) -> Option<&mut T> {
        if self.0.len() <= layer {
            self.0.resize_with(layer + 1, || None);
        }
        if !is_long && self.0[layer].is_none() {
            return None;
        }
        Some(self.0[layer].get_or_insert_with(make))
    }

    /// The best keys by `near`, which searches what the layer keeps and says up to which token that goes, and by scoring
    /// all later keys; or all keys scored, where `reach` wants that.
    fn search(
        &self,
        reach: Reach,
        call: &LayerCall,
        q: &Queries,
        request: &TopKRequest,
        near: impl FnOnce(&T) -> Result<(TopK, usize), DeviceError>,
    ) -> Result<TopK, DeviceError> {
        match self.0.get(call.layer) {
            Some(Some(kept)) if !reach.is_exact(call.step.kind, request.keys.len()) => {
                let (found, end) = near(kept)?;
                with_rest(found, end, call, q, request)
            }
            _ => call.backend.top_k(q, &call.kv, request),
        }
    }

    /// Forgets what the layers keep of which `is_stale` says so; it is made anew when it is due.
    fn forget(&mut self, is_stale: impl Fn(&T) -> bool) {
        for layer in &mut self.0 {
            layer.take_if(|kept| is_stale(kept));
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }
}

/// The best `k` keys of each query and head among its `candidates`, scored as they are.
fn among(call: &LayerCall, q: &Queries, k: usize, candidates: &TopK) -> TopK {
    let own = |row: u32| {
        let own = &candidates.indices[row as usize * candidates.k..][..candidates.k];
        &own[..own.iter().position(|&i| i == ListedRequest::NONE).unwrap_or(own.len())]
    };
    let rows: Vec<u32> = (0..(q.q_len * q.n_heads) as u32).collect();
    call.backend.top_k_listed(q, &call.kv, &ListedRequest { k, lists: &rows, per_row: 1, keys: &own })
}

/// The result `found` of a search over the keys of `request` below `end`, with all later ones scored.
fn with_rest(
    found: TopK,
    end: usize,
    call: &LayerCall,
    q: &Queries,
    request: &TopKRequest,
) -> Result<TopK, DeviceError> {
    if end >= request.keys.end {
        return Ok(found);
    }
    let rest = TopKRequest { keys: end..request.keys.end, ..request.clone() };
    Ok(merge(&found, &call.backend.top_k(q, &call.kv, &rest)?))
}

/// The best of two searches over different keys, those of `b` all younger than those of `a`.
fn merge(a: &TopK, b: &TopK) -> TopK {
    let mut merged = a.clone();
    for row in 0..a.q_len * a.n_heads {
        let (mut i, mut j) = (row * a.k, row * b.k);
        let end = (row + 1) * b.k;
        for slot in row * a.k..(row + 1) * a.k {
            if j < end && (b.scores[j] > a.scores[i] || a.indices[i] == ListedRequest::NONE) {
                (merged.scores[slot], merged.indices[slot]) = (b.scores[j], b.indices[j]);
                j += 1;
            } else {
                (merged.scores[slot], merged.indices[slot]) = (a.scores[i], a.indices[i]);
                i += 1;
            }
        }
    }
    merged
}
