//! Models with random weights, to measure and test with: any shape, any format, from a seed.

mod text;

pub use text::{tokenizer_config_json, tokenizer_json};
