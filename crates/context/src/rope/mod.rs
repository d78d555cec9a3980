//! RoPE frequency sources: plain, linear, NTK, dynamic NTK, YaRN and Llama-3 scaling.
//!
//! A source answers one question, whatever the attention method: with which frequencies, and which factor on cosine and
//! sine, is a context of `n` tokens rotated? Formulas as Hugging Face transformers' `modeling_rope_utils.py` has them.

mod ropes;
mod scaling;

pub use ropes::Ropes;
pub use scaling::{RopeConfig, RopeError, RopeScaling};
