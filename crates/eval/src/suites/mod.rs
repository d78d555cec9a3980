//! Suites: one file each, or a folder where a suite has parts.

pub mod babilong;
pub mod data;
pub mod essays;
pub mod generate;
pub mod haystack;
pub mod infinite;
pub mod infinitebench;
pub mod leval;
pub mod longbench;
pub mod longbench_v2;
pub mod multi_needle;
pub mod needle;
pub mod needlebench;
pub mod perplexity;
pub mod ruler;
pub mod ruler_data;
pub mod selection;
