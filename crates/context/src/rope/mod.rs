//! RoPE frequency sources: plain, linear, NTK, dynamic NTK, YaRN, Llama-3 scaling and CLEX.
//!
//! A source answers one question, whatever the attention method: with which frequencies, and which factor on cosine and
//! sine, is a context of `n` tokens rotated? Formulas as Hugging Face transformers' `modeling_rope_utils.py` has them.

mod clex;
mod ropes;
mod scaling;
mod spec;

pub use clex::{Activation, Clex, ClexSettings, LogScale};
pub use ropes::Ropes;
pub use scaling::{RopeConfig, RopeError, RopeScaling};
pub use spec::{RopeSpec, specs};
