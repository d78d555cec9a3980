//! Suites: one file each, or a folder where a suite has parts.

pub mod needle;
pub mod perplexity;
pub mod selection;
