//! Golden cases of published implementations: reading them, running them, comparing.
#![deny(missing_docs)]

mod blocks;
mod case;
mod compare;
mod methods;
mod moves;
mod probe;
pub mod real;
mod run;
pub mod scorers;

pub use case::Case;
pub use run::{Outcome, run};
