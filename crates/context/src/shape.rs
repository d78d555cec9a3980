//! What a method must know of a model.

use crate::rope::RopeConfig;

/// The attention shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Architecture family, for per-family defaults and messages: `llama`, `mistral`, `qwen2`, `qwen3`, `internlm2`.
    pub family: String,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// KV heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Length of one head's vector; even.
    pub head_dim: usize,
    /// Positions the model was trained on: `max_position_embeddings`, under CLEX times `max_factor`.
    pub window: usize,
    /// Rotary frequencies: those of the model's own configuration, unless [`ModelShape::with_rope`] replaced them.
    pub rope: RopeConfig,
    /// Sliding-window attention, for models trained with it.
    pub sliding_window: Option<SlidingWindow>,
}

/// Layers that see only the last `size` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Key `j` is visible from query `i` when `i - size < j <= i`.
    pub size: usize,
    /// The first layer with a sliding window; the ones below attend to everything.
    pub first_layer: usize,
}

impl ModelShape {
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The same with other frequencies. The window stays: a source changes what positions mean, not how many a method uses.
    pub fn with_rope(self, rope: RopeConfig) -> Self {
        Self { rope, ..self }
    }

    /// The sliding window of `layer`, if it has one.
    pub fn window_of_layer(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|w| layer >= w.first_layer).map(|w| w.size)
    }
}
