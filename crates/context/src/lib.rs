//! `reattention`: long-context methods for pretrained language models, without training.
#![deny(missing_docs)]

pub mod rope;
mod shape;

pub use shape::{ModelShape, SlidingWindow};
