//! What a layer brings along whatever the method: a sliding window, no rotation, attention sinks.

use super::Context;
use crate::methods::View;
use crate::rope::Ropes;
use crate::settings::MethodError;
use crate::{LayerAttention, ModelShape};
use reattention_kernels::{Band, KeySet, Position, Segment};
use std::ops::Range;
use std::sync::Arc;

/// The rotation tables of a session's layers.
#[derive(Debug)]
pub(super) struct LayerRopes {
    /// Those of layers that see everything.
    pub(super) full: Ropes,
    /// Those of layers with a sliding window. A method may change what it rotates with, but not these.
    sliding: Ropes,
    /// Those of layers without rotation.
    still: Ropes,
}

impl LayerRopes {
    pub(super) fn new(full: Ropes, shape: &ModelShape) -> Self {
        let still = Ropes::still(full.config().clone(), shape.head_dim);
        let sliding = shape.sliding_rope.as_ref().unwrap_or(full.config());
        let sliding = Ropes::new(sliding.clone(), shape.head_dim);
        Self { full, sliding, still }
    }

    /// The tables of a layer.
    pub(super) fn of(&mut self, layer: LayerAttention) -> &mut Ropes {
        match layer {
            LayerAttention { rotates: false, .. } => &mut self.still,
            LayerAttention { window: Some(_), .. } => &mut self.sliding,
            LayerAttention { window: None, .. } => &mut self.full,
        }
    }

    pub(super) fn each(&mut self) -> impl Iterator<Item = &mut Ropes> {
        [&mut self.full, &mut self.sliding, &mut self.still].into_iter()
    }
}

/// The last `window` tokens of each query of a step, at their true distances. They follow from the step alone, so they do not
/// depend on how a prompt is cut.
pub(super) fn sliding_view(
    tokens: Range<usize>,
    window: usize,
    ropes: &mut Ropes,
) -> Result<View, MethodError> {
    let Range { start, end } = tokens;
    let oldest = (start + 1).saturating_sub(window);
    // Only distances matter; counting from the oldest key keeps positions small.
    let own = Position::Index { offset: -(oldest as i64) };
    let rope = ropes.for_distances(ropes.reading(end), end - oldest)?;
    Ok(View::new(vec![vec![Segment {
        keys: KeySet::Range(oldest..end),
        band: Band::between(0, window),
        key_position: own,
        query_position: own,
        key_rope: Arc::clone(&rope),
        query_rope: rope,
    }]]))
}

/// Lets the `sinks: [n_heads]` of a layer take part in the softmax of each query and head (gpt-oss): a key without a value,
/// whose logit is the head's sink. `out: [q_len, n_heads, head_dim]` shrinks by what it takes, and `lse: [q_len, n_heads]`
/// counts it in.
pub(super) fn add_sinks(sinks: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let head_dim = out.len() / lse.len().max(1);
    let rows = out.chunks_exact_mut(head_dim).zip(lse).zip(sinks.iter().cycle());
    for ((out, lse), &sink) in rows {
        let kept = 1.0 / (1.0 + (sink - *lse).exp());
        out.iter_mut().for_each(|x| *x *= kept);
        let (low, high) = if *lse < sink { (*lse, sink) } else { (sink, *lse) };
        *lse = if high == f32::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() };
    }
}

impl Context {
    /// Gives back what no later step needs once `needed` tokens were read and nobody rolls back below them: what the method
    /// no longer looks at in layers that see everything, and what has left the window of those that slide.
    pub(super) fn release(&mut self, needed: usize) {
        let by_method = self.method.release(needed);
        let beyond = |window: usize| 0..(needed + 1).saturating_sub(window);
        if self.store.is_on_device() {
            // A device gives back pages of all layers at once.
            let widest = self.shape.widest_window().map(beyond);
            let range = match (by_method, widest, self.shape.full_layers()) {
                (None, _, 1..) | (_, None, 0) => None,
                (Some(method), None, _) => Some(method),
                (_, Some(window), 0) => Some(window),
                (Some(method), Some(window), _) => Some(method.start..method.end.min(window.end)),
            };
            if let Some(range) = range.filter(|r| !r.is_empty()) {
                self.store.release(range, needed);
            }
            return;
        }
        for layer in 0..self.shape.n_layers {
            let range = match self.shape.layers[layer].window {
                Some(window) => Some(beyond(window)),
                None => by_method.clone(),
            };
            if let Some(range) = range {
                self.store.release_in(layer, range, needed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_takes_its_share_of_the_softmax() {
        // Two keys of logits 1 and 2 with values 10 and 20, and a sink of logit 3; the second head's sink takes nothing.
        let (a, b, c) = (1f32.exp(), 2f32.exp(), 3f32.exp());
        let plain = (10.0 * a + 20.0 * b) / (a + b);
        let mut out = [plain, plain];
        let mut lse = [(a + b).ln(); 2];
        add_sinks(&[3.0, f32::NEG_INFINITY], &mut out, &mut lse);
        assert!((out[0] - (10.0 * a + 20.0 * b) / (a + b + c)).abs() < 1e-5, "{out:?}");
        assert!((lse[0] - (a + b + c).ln()).abs() < 1e-6, "{lse:?}");
        assert_eq!((out[1], lse[1]), (plain, (a + b).ln()));
        let (mut nothing, mut empty) = ([0.0], [f32::NEG_INFINITY]);
        add_sinks(&[0.5], &mut nothing, &mut empty);
        assert_eq!((nothing, empty), ([0.0], [0.5]));
    }
}
