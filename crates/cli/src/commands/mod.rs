//! The commands, one file each.

pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod methods;
pub(crate) mod report;
pub(crate) mod score;
