//! Evaluation of long-context methods: suites, the texts they need, and figures.
//!
//! One suite is one file in [`suites`]. A suite takes a loaded [`Engine`](reattention_engine::Engine) and a list of
//! [`Arm`]s (method, settings, rope), and gives rows that serialise to JSON. [`scorers`] need no model: they score predictions
//! as the published benchmarks do.
#![deny(missing_docs)]

mod arm;
pub mod figures;
mod jsonl;
pub mod report;
pub mod run;
pub mod scorers;
pub mod suites;
pub mod text;

pub use arm::{Arm, EvalError};
