//! Suites: one file each.

pub mod needle;
pub mod perplexity;
