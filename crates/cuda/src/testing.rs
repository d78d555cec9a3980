//! Kernels one by one, for the tests of this crate. No part of the library: nothing here is promised to stay.

macro_rules! open {
    ($($module:ident)*) => { $(pub mod $module { pub use crate::$module::*; })* };
}

open!(attend boxes elementwise families key_mass paged rope segments select top_k);
