//! The arithmetic of `reattention` on an NVIDIA GPU.
//!
//! Nothing of CUDA is needed to build: driver, NVRTC and cuBLASLt are loaded when a device is asked for. Kernels are CUDA C++
//! text in `kernels/`, one family a file, compiled for the device that is found and kept on disk.
#![deny(missing_docs)]

pub mod attend;
pub mod driver;
pub mod key_mass;
pub mod elementwise;
pub mod families;
pub mod nvidia;
pub mod paged;
pub mod rope;
pub mod segments;
pub mod select;
pub mod top_k;
