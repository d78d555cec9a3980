//! What a method must know of a model.

use crate::rope::RopeConfig;
use reattention_kernels::LogitRule;
use std::sync::Arc;

/// The attention shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Architecture family, for per-family defaults and messages: `llama`, `mistral`, `qwen2`, `gemma3`.
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
    ///
    /// Dimensions `i` and `i + head_dim / 2` of a query or key are a pair. Where fewer dimensions than `head_dim` rotate, the
    /// first `dim / 2` pairs do and the others stand still; a loader brings published layouts (all rotated dimensions first)
    /// into this one by the order of the rows that make queries and keys, which changes no product.
    pub rope: RopeConfig,
    /// Rotary frequencies of layers with a sliding window, where they differ from `rope` (Gemma 3, OLMo 3).
    pub sliding_rope: Option<RopeConfig>,
    /// The chunks of dual chunk attention that the model was trained with, if it was.
    pub dual_chunk: Option<DualChunk>,
    /// How each layer attends, `[n_layers]`.
    pub layers: Arc<[LayerAttention]>,
    /// Factor on `q · k`, where it is not `head_dim^-0.5`: Gemma's `query_pre_attn_scalar^-0.5`, Granite's
    /// `attention_multiplier`.
    pub scale: Option<f32>,
    /// Scaled logits `x` become `cap · tanh(x / cap)` for this `cap` (Gemma 2's `attn_logit_softcapping`).
    pub softcap: Option<f32>,
}

/// The chunks of dual chunk attention (arXiv 2402.17463) that a model was trained with: `dual_chunk_attention_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualChunk {
    /// The largest distance (`chunk_size`).
    pub size: usize,
    /// Distances that are true across the border of two chunks (`local_size`).
    pub local: usize,
}

/// How one layer attends, whatever the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerAttention {
    /// The layer sees only the last so many tokens: key `j` is visible from query `i` when `i - window < j <= i`.
    pub window: Option<usize>,
    /// Queries and keys are rotated; layers without (SmolLM3) know no positions.
    pub rotates: bool,
}

impl LayerAttention {
    /// A layer that sees everything, at rotated positions.
    pub const FULL: Self = Self { window: None, rotates: true };

    /// A layer that sees the last `window` tokens, at rotated positions.
    pub const fn sliding(window: usize) -> Self {
        Self { window: Some(window), rotates: true }
    }
}

impl ModelShape {
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The same with other frequencies. The window stays: a source changes what positions mean, not how many a method uses.
    /// Layers with frequencies of their own keep them: they never leave their window.
    pub fn with_rope(self, rope: RopeConfig) -> Self {
        Self { rope, ..self }
    }

    /// What makes logits of `q · k`.
    pub fn logit_rule(&self) -> LogitRule {
        let scale = self.scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt());
        LogitRule { scale, softcap: self.softcap }
    }

    /// The widest sliding window of any layer, if one has any.
    pub fn widest_window(&self) -> Option<usize> {
        self.layers.iter().filter_map(|layer| layer.window).max()
    }

    /// Layers that see every token, under methods that do not restrict them.
    pub fn full_layers(&self) -> usize {
        self.layers.iter().filter(|layer| layer.window.is_none()).count()
    }
}
