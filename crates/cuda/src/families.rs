//! All kernels: what the compile check goes through.

use crate::driver::Module;
use crate::elementwise;

/// Kernels of one file, with the sets of macros that the host asks for them with.
#[derive(Clone, Debug)]
pub struct Family {
    /// The text.
    pub module: Module,
    /// Sets of macros: all of them, or those that stand for all where there are many.
    pub variants: Vec<Vec<(&'static str, i64)>>,
}

/// Head dimensions of real models, and one of small ones.
pub const HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// Every family.
pub fn families() -> Vec<Family> {
    vec![Family { module: elementwise::MODULE, variants: elementwise::variants(&[32, 80, 128]) }]
}
