//! All kernels: what the compile check goes through.

use crate::driver::Module;
use crate::{attend, boxes, elementwise, key_mass, select, top_k};

/// Kernels of one file, with the sets of macros that the host asks for them with.
#[derive(Clone, Debug)]
pub struct Family {
    /// The text.
    pub module: Module,
    /// Sets of macros: all of them, or those that stand for all where there are many.
    pub variants: Vec<Vec<(&'static str, i64)>>,
}

/// Head dimensions of real models, and one of small ones.
const HEAD_DIMS: [usize; 5] = [32, 64, 80, 128, 256];

/// Every family.
pub fn families() -> Vec<Family> {
    vec![
        Family { module: elementwise::MODULE, variants: elementwise::variants(&[32, 80, 128]) },
        Family { module: attend::MODULE, variants: attend::variants(&HEAD_DIMS) },
        Family { module: boxes::MODULE, variants: boxes::variants(&HEAD_DIMS) },
        Family { module: key_mass::MODULE, variants: key_mass::variants(&HEAD_DIMS) },
        Family { module: select::MODULE, variants: vec![select::DEFINES.to_vec()] },
        Family { module: top_k::MODULE, variants: top_k::variants(&HEAD_DIMS) },
    ]
}
