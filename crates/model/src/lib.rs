//! Models of `reattention`: configuration, weights, tokenizer and chat template of the supported families.
//!
//! A model is opened as a [`Checkpoint`], which reads and checks headers only; its [`WeightPlan`] tells the memory it
//! will take before [`Checkpoint::load`] takes it. Whatever a file holds, reading it ends in a value or a
//! [`ModelError`] that names the culprit.
#![deny(missing_docs)]

mod checkpoint;
mod config;
mod decoder;
mod error;
mod family;
mod files;
mod fingerprint;
#[doc(hidden)]
pub mod fuzzing;
mod hub;
mod linear;
mod mlp;
mod on_device;
mod quant;
pub mod synth;
mod template;
mod tokenizer;
mod weights;

pub use checkpoint::{Bundle, Checkpoint, load};
pub use config::{Config, Experts};
pub use decoder::{Logits, Model, Observer, Scratch, loss_bytes};
pub use error::ModelError;
pub use family::{
    Biases, ExpertForm, ExpertNames, ExpertRules, Family, Form, Packing, QkNorm, Scales, Sliding, TensorNames,
};
pub use linear::Linear;
pub use on_device::device_scratch_bytes;
pub use quant::candle_product;
pub use template::{ChatTemplate, Message};
pub use tokenizer::{DecodeStream, Encoded, Part, Place, Tokenizer};
pub use weights::{GatedMlp, LayerWeights, Mlp, SafeTensors, Source, SparseMlp, WeightPlan, Weights};
