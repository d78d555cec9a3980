//! Pieces that several methods are made of.

use super::{LayerCall, View};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Reader};
use reattention_kernels::{Band, KeySet, Position, RopeTable, Segment};
use std::ops::Range;
use std::sync::Arc;

/// Tokens fed at once, where the result does not depend on it.
pub(super) const CHUNK: ParamSpec = ParamSpec {
    name: "chunk",
    default: "512, at most the window",
    range: "an integer of at least 1",
    doc: "tokens fed at once; the result does not depend on it",
};

/// A token's own index.
pub(super) const OWN: Position = Position::Index { offset: 0 };

/// The value of [`CHUNK`].
pub(super) fn chunk(read: &Reader, shape: &ModelShape) -> Result<usize, MethodError> {
    let chunk = read.count("chunk", shape.window.min(512))?;
    at_least_one(read, &[("chunk", chunk)])?;
    Ok(chunk)
}

/// Refuses zeros.
pub(super) fn at_least_one(read: &Reader, values: &[(&'static str, usize)]) -> Result<(), MethodError> {
    match values.iter().find(|(_, value)| *value == 0) {
        Some((name, value)) => Err(read.bad(name, value)),
        None => Ok(()),
    }
}

/// The error of `n` tokens some of which would stand `largest` positions apart where the model knows `served`.
pub(super) fn too_far(
    spec: &MethodSpec,
    n: usize,
    largest: usize,
    served: usize,
    advice: impl std::fmt::Display,
) -> MethodError {
    MethodError::Contradiction {
        method: spec.name,
        reason: format!(
            "{n} tokens would stand up to {largest} positions apart, and the model knows {served} positions; {advice}"
        ),
    }
}

/// Consecutive keys, all rotated with one table.
pub(super) fn segment(
    keys: Range<usize>,
    band: Band,
    key_position: Position,
    query_position: Position,
    rope: &Arc<RopeTable>,
) -> Segment {
    Segment {
        keys: KeySet::Range(keys),
        band,
        key_position,
        query_position,
        key_rope: Arc::clone(rope),
        query_rope: Arc::clone(rope),
    }
}

/// `max(1, ln(index + 1) / ln(base))` for each of the step's queries, the first of which has index `first`; `None` where
/// that changes nothing. Attention over many keys is then as sharp as over `base` of them.
pub(super) fn log_scales(q_len: usize, base: usize, first: usize) -> Option<Vec<f32>> {
    let factor = |index: usize| (((index + 1) as f64).ln() / (base as f64).ln()).max(1.0) as f32;
    (first + q_len > base).then(|| (first..first + q_len).map(factor).collect())
}

/// Bytes of the queries of a step of `q_len` tokens, scaled by [`log_scales`].
pub(super) fn log_scaled_bytes(shape: &ModelShape, q_len: usize) -> usize {
    4usize.saturating_mul(shape.n_heads * shape.head_dim).saturating_mul(q_len)
}

/// The first `global` tokens (attention sinks) and the last `local` ones; the middle is never seen again.
///
/// The published codes keep as many tokens in a cache. Seen from one query this is two segments: the window at true
/// distances, and the sinks wherever the method puts them. Written so, the result does not depend on how the prompt is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct SinksAndWindow {
    /// First tokens that stay visible.
    pub(super) global: usize,
    /// Last tokens visible, the query itself included.
    pub(super) local: usize,
    /// Tokens fed at once.
    pub(super) chunk: usize,
}

impl SinksAndWindow {
    /// The parameters `local` and `chunk`, with `global` sinks unless set.
    pub(super) fn new(read: &Reader, shape: &ModelShape, global: usize) -> Result<Self, MethodError> {
        let global = read.count("global", global)?;
        let local = read.count("local", shape.window.min(4096).saturating_sub(global).max(1))?;
        at_least_one(read, &[("local", local)])?;
        if global.saturating_add(local) > shape.window {
            return Err(read.contradiction(format!(
                "global={global} and local={local} together exceed the model's window of {} positions; lower local",
                shape.window
            )));
        }
        Ok(Self { global, local, chunk: chunk(read, shape)? })
    }

    /// The two segments. Sinks stand at `sink`, and queries at `from` towards them.
    ///
    /// # Errors
    /// When there are no frequencies for so many positions.
    pub(super) fn view(
        &self,
        call: &mut LayerCall,
        sink: Position,
        from: Position,
    ) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let oldest = (start + 1).saturating_sub(self.local);
        // Only distances matter inside the window; counting from its start keeps the positions small.
        let slot = Position::Index { offset: -(oldest as i64) };
        let rope = call.ropes.for_positions((self.global + self.local).max(end - oldest))?;
        let sinks =
            segment(0..self.global.min(end), Band::between(self.local, usize::MAX), sink, from, &rope);
        let window = segment(oldest..end, Band::between(0, self.local), slot, slot, &rope);
        Ok(View::new(vec![vec![sinks, window]]))
    }

    /// The middle that no query sees once `len` tokens were read.
    pub(super) fn release(&self, len: usize) -> Option<Range<usize>> {
        let oldest = (len + 1).saturating_sub(self.local);
        (oldest > self.global).then_some(self.global..oldest)
    }

    /// Tokens in memory out of `n`.
    pub(super) fn kept(&self, n: usize) -> usize {
        // Released by whole pages, so up to a page at either end of the dropped middle stays.
        n.min(self.global + self.local + self.chunk + 2 * reattention_kernels::PAGE)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use reattention_kernels::Queries;

    /// What the last of `n` queries is told of the distances of keys 0, 1, ... by a list of segments. Each key must be seen
    /// once.
    pub(in crate::methods) fn distances(n: usize, segments: &[Segment]) -> Vec<i64> {
        (0..n).map(|key| distance(n - 1, key, segments)).collect()
    }

    /// What the query of token index `query` is told of the distance of a key.
    pub(in crate::methods) fn distance(query: usize, key: usize, segments: &[Segment]) -> i64 {
        let seen: Vec<_> =
            segments.iter().filter(|s| s.keys.contains(key) && s.band.sees(query, key)).collect();
        assert_eq!(seen.len(), 1, "query {query} sees key {key} in {} segments", seen.len());
        seen[0].query_position.at(query, usize::MAX) - seen[0].key_position.at(key, usize::MAX)
    }

    /// The segments that `method` gives a step of `tokens`.
    pub(in crate::methods) fn segments_of(
        method: &mut dyn super::super::Method,
        tokens: Range<usize>,
        kind: super::super::StepKind,
    ) -> Result<Vec<Segment>, MethodError> {
        view_of(method, tokens, kind).map(|mut view| view.segments.remove(0))
    }

    /// The view that `method` gives a step of `tokens` with queries of ones, on [`crate::tests::tiny_shape`].
    pub(in crate::methods) fn view_of(
        method: &mut dyn super::super::Method,
        tokens: Range<usize>,
        kind: super::super::StepKind,
    ) -> Result<View, MethodError> {
        let shape = crate::tests::tiny_shape();
        let store = crate::Store::new(&shape, crate::KvDtype::F32);
        let mut ropes = crate::rope::Ropes::new(shape.rope.clone(), shape.head_dim);
        let data = vec![1.0; tokens.len() * shape.n_heads * shape.head_dim];
        let q = Queries {
            data: &data,
            n_heads: shape.n_heads,
            q_len: tokens.len(),
            head_dim: shape.head_dim,
            first: tokens.start,
        };
        let step = super::super::Step { tokens, kind };
        method.begin(&step, &mut ropes);
        let backend = &reattention_kernels::Reference;
        method.view(&mut LayerCall {
            layer: 0,
            step: &step,
            q,
            kv: store.view(0),
            ropes: &mut ropes,
            rule: shape.logit_rule(),
            backend,
        })
    }

    #[test]
    fn queries_beyond_the_base_are_scaled_by_the_logarithm() {
        assert_eq!(log_scales(3, 8, 5), None);
        // Indices 6, 7 and 8 of base 8: ln 9 / ln 8 for the last one alone.
        let scales = log_scales(3, 8, 6).unwrap();
        assert_eq!(scales[..2], [1.0; 2]);
        assert!((scales[2] - 1.056_641_7).abs() < 1e-6, "{scales:?}");
    }
}
