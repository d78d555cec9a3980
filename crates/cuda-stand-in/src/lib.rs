//! A library that stands in for NVIDIA's driver, NVRTC and cuBLASLt, so that the code that calls them runs without a GPU.
//!
//! It exports the functions that `reattention-cuda` calls, under the names and with the status codes of NVIDIA's documentation, on
//! top of the emulator. Wrong calls are made to show:
//!
//! * handles are checked, and so are the context of the calling thread and every range of memory;
//! * work on a stream waits until somebody waits for it: what a copy reads from pinned memory is what lies there then;
//! * a failed kernel is reported by the next call that waits and by every call after it;
//! * what is left when the context goes is told on standard error, in lines that start with `stand-in:`.
//!
//! What the device is comes from variables of the environment ([`variables`]).
#![deny(missing_docs)]

mod cublaslt;
mod driver;
mod launch;
mod memory;
mod nvrtc;
mod state;
mod streams;

use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// Variables of the environment that say what the device is; they are read once.
pub mod variables {
    /// Devices: 1, or 0.
    pub const DEVICES: &str = "STAND_IN_DEVICES";
    /// Compute capability: `9.0`.
    pub const CAPABILITY: &str = "STAND_IN_CAPABILITY";
    /// The version of CUDA that the driver serves: `13000`.
    pub const DRIVER: &str = "STAND_IN_DRIVER";
    /// Device memory in bytes: 8 GiB.
    pub const MEMORY: &str = "STAND_IN_MEMORY";
    /// Pinned host memory in bytes: 8 GiB.
    pub const PINNED: &str = "STAND_IN_PINNED";
    /// Whether there are memory pools: 1, or 0.
    pub const POOLS: &str = "STAND_IN_POOLS";
    /// The launch that fails, counted from 1, and with it all that follows: 0, for none.
    pub const FAILS: &str = "STAND_IN_FAILS";
    /// Whether NVRTC compiles: 1, or 0 for an internal error.
    pub const COMPILER: &str = "STAND_IN_COMPILER";
}

/// The name of the device.
pub const NAME: &str = "stand-in";

/// Puts the library into `folder` under the names that programs look for; `LD_LIBRARY_PATH` names the folder to them.
///
/// # Errors
/// Where libraries are not found that way (elsewhere than on Linux), or cargo has not built this one beside the executable.
pub fn install(folder: &Path) -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Err(Error::new(ErrorKind::Unsupported, "LD_LIBRARY_PATH is Linux's"));
    }
    let library = std::env::current_exe()?.with_file_name("libcuda_stand_in.so");
    if !library.exists() {
        return Err(Error::new(ErrorKind::NotFound, format!("{} is not there", library.display())));
    }
    // Links, since the loader takes files that are the same for one library: all three share one device.
    #[cfg(unix)]
    for name in ["libcuda.so", "libnvrtc.so", "libcublasLt.so"] {
        std::os::unix::fs::symlink(&library, folder.join(name))?;
    }
    Ok(())
}
