//! Evaluation of long-context methods: suites, scorers, and the texts they need.
#![deny(missing_docs)]

pub mod text;
