//! The arithmetic of `reattention` on an NVIDIA GPU.
//!
//! Nothing of CUDA is needed to build: driver, NVRTC and cuBLASLt are loaded when a device is asked for. Kernels are CUDA C++
//! text in `kernels/`, one family a file, compiled for the device that is found and kept on disk.
//!
//! [`Cuda`] is a [`Backend`](reattention_kernels::Backend) for callers that keep their numbers on the host, and a
//! [`Device`](reattention_kernels::Device) for a model that works wholly on the GPU.
//!
//! No safe function of this crate takes an address: single kernels are not part of it, and memory is known by the [`driver::Block`]
//! that owns it.
//!
//! ```compile_fail,E0603
//! use reattention_cuda::elementwise;
//! ```
#![deny(missing_docs)]
#![cfg_attr(
    not(feature = "testing"),
    allow(dead_code, unreachable_pub, reason = "tests alone see all kernels")
)]

mod attend;
mod backend;
pub mod bench;
mod boxes;
mod cache;
mod device;
pub mod driver;
mod elementwise;
mod families;
mod key_mass;
pub mod nvidia;
mod paged;
mod rope;
mod segments;
mod select;
mod shared;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
mod top_k;

pub use driver::CudaError;
pub use shared::Offload;

use driver::Driver;
use nvidia::Nvidia;
use reattention_kernels::Cpu;
use shared::Shared;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A GPU, and the CPU beside it for what lies on the host.
#[derive(Debug)]
pub struct Cuda {
    shared: Arc<Shared>,
    host: Cpu,
}

impl Cuda {
    /// The GPU of number `index`.
    ///
    /// # Errors
    /// When driver, NVRTC or cuBLASLt are missing, there is no such GPU, or it is too old.
    pub fn open(index: usize, host: Cpu, offload: Offload) -> Result<Self, CudaError> {
        Ok(Self::on(Arc::new(Nvidia::open(index)?), host, offload))
    }

    /// On any driver: tests have one that needs no GPU.
    pub fn on(driver: Arc<dyn Driver>, host: Cpu, offload: Offload) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::new(Shared::new(driver, offload, id)), host }
    }
}
