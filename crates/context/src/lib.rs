//! Long-context methods for pretrained language models, without training.
//!
//! Every method here is ordinary attention over a few segments of cached keys, each with its own positions, plus rules
//! on what is kept and how the prompt is fed (see [`methods`]). Keys are cached *before* RoPE ([`Store`]) and rotated
//! when they are read, so a method may place any token anywhere.
//!
//! A model's layer makes raw queries, keys and values and calls [`Context::attend`]; the context appends to its store,
//! asks its [`methods::Method`] which tokens to look at and where they stand, and lets a
//! [`Backend`](reattention_kernels::Backend) do the arithmetic.
#![deny(missing_docs)]

mod context;
pub mod methods;
#[cfg(test)]
mod model_tests;
pub mod rope;
mod select;
mod settings;
mod shape;
mod slots;
mod source;
mod store;

pub use context::{Context, LayerTrace};
pub use settings::{MethodError, MethodSpec, ParamSpec, Settings};
pub use shape::{DualChunk, LayerAttention, ModelShape};
pub use source::{Origin, SourceMap};
pub use store::{KvDtype, Store, TruncateError};

#[cfg(test)]
mod tests {
    use crate::ModelShape;
    use crate::rope::{RopeConfig, RopeScaling};

    /// A small shape for tests.
    pub(crate) fn tiny_shape() -> ModelShape {
        ModelShape {
            family: "llama".into(),
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 8,
            window: 512,
            rope: RopeConfig { theta: 10_000.0, dim: 8, window: 512, scaling: RopeScaling::None },
            sliding_rope: None,
            dual_chunk: None,
            layers: [crate::LayerAttention::FULL; 2].into(),
            scale: None,
            softcap: None,
        }
    }
}
