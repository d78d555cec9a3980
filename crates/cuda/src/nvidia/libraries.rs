//! The three libraries: whether they are there, whether they are new enough, and what their answers mean.
//!
//! `cudarc` looks every function up when it is first called and panics if its library or the function is not there. So each
//! library is checked once, with all functions that are called of it, before any is called.

use crate::driver::CudaError;
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CStr;
use std::sync::OnceLock;

/// Calls a function of the driver and names it in the error.
macro_rules! driver_call {
    ($name:ident($($argument:expr),* $(,)?)) => {
        $crate::nvidia::libraries::check(stringify!($name), cudarc::driver::sys::$name($($argument),*))
    };
}
pub(super) use driver_call;

/// Functions of the driver that are called; `driver_call!` is the only way.
const DRIVER: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetDefaultMemPool",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemPoolGetAttribute",
    "cuMemPoolSetAttribute",
    "cuMemPoolTrimTo",
    "cuMemcpyAsync",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
];

/// Functions of NVRTC that are called, all in `compiler.rs`.
const NVRTC: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

/// Functions of cuBLASLt that are called, all in `products.rs`.
const CUBLASLT: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// The driver is there, has every function that is called, and has been started.
pub(super) fn driver() -> Result<(), CudaError> {
    static STATE: OnceLock<Result<(), CudaError>> = OnceLock::new();
    STATE
        .get_or_init(|| {
            // SAFETY: opening a library runs its initialisers, and NVIDIA's have no conditions.
            if !unsafe { sys::is_culib_present() } {
                return Err(CudaError::Library {
                    library: "the CUDA driver (libcuda.so.1)",
                    advice: "install NVIDIA's driver and see that `nvidia-smi` runs; containers are started with `--gpus all`",
                });
            }
            // SAFETY: the library is there. The functions are looked up and not called.
            if !DRIVER.iter().all(|name| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok()) {
                return Err(TOO_OLD);
            }
            // SAFETY: `cuInit` takes no flags; `version` lives through the call.
            unsafe {
                driver_call!(cuInit(0))?;
                let mut version = 0;
                driver_call!(cuDriverGetVersion(&mut version))?;
                if version < 12_000 { Err(TOO_OLD) } else { Ok(()) }
            }
        })
        .clone()
}

const TOO_OLD: CudaError = CudaError::Library {
    library: "a driver for CUDA 12.0 or later",
    advice: "the one found is older; install NVIDIA's driver 525 or later",
};

/// NVRTC is there and has every function that is called.
pub(super) fn nvrtc() -> Result<(), CudaError> {
    use cudarc::nvrtc::sys;
    static STATE: OnceLock<Result<(), CudaError>> = OnceLock::new();
    STATE
        .get_or_init(|| {
            // SAFETY: as for the driver.
            if !unsafe { sys::is_culib_present() } {
                return Err(CudaError::Library {
                    library: "NVRTC (libnvrtc.so.13)",
                    advice: "`pip install nvidia-cuda-nvrtc` or install the CUDA toolkit, and name the folder with \
                             libnvrtc.so.13 in LD_LIBRARY_PATH",
                });
            }
            // SAFETY: as for the driver.
            let there = |name: &&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
            let missing = CudaError::Library {
                library: "NVRTC of CUDA 12.0 or later",
                advice: "the one found is older; `pip install nvidia-cuda-nvrtc`, and name its folder in LD_LIBRARY_PATH",
            };
            if NVRTC.iter().all(there) { Ok(()) } else { Err(missing) }
        })
        .clone()
}

/// cuBLASLt is there and has every function that is called.
pub(super) fn cublaslt() -> Result<(), CudaError> {
    use cudarc::cublaslt::sys;
    static STATE: OnceLock<Result<(), CudaError>> = OnceLock::new();
    STATE
        .get_or_init(|| {
            // SAFETY: as for the driver.
            if !unsafe { sys::is_culib_present() } {
                return Err(CudaError::Library {
                    library: "cuBLASLt (libcublasLt.so.13)",
                    advice: "`pip install nvidia-cublas` or install the CUDA toolkit, and name the folder with \
                             libcublasLt.so.13 in LD_LIBRARY_PATH",
                });
            }
            // SAFETY: as for the driver.
            let there = |name: &&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
            let missing = CudaError::Library {
                library: "cuBLASLt of CUDA 12.0 or later",
                advice: "the one found is older; `pip install nvidia-cublas`, and name its folder in LD_LIBRARY_PATH",
            };
            if CUBLASLT.iter().all(there) { Ok(()) } else { Err(missing) }
        })
        .clone()
}

/// What the driver answered, in its words.
pub(super) fn check(call: &'static str, status: CUresult) -> Result<(), CudaError> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver is there, since it has answered; it gives a string that lives as long as it, or null.
    let text = unsafe {
        match sys::cuGetErrorString(status, &mut text) {
            CUresult::CUDA_SUCCESS if !text.is_null() => CStr::from_ptr(text).to_string_lossy(),
            _ => "the driver says no more".into(),
        }
    };
    Err(CudaError::Call { call, reason: format!("{status:?}: {text}") })
}

/// Milliseconds between two events.
///
/// CUDA 13 renames this function in its headers alone. Drivers have had this name from the start, so it is taken by hand and
/// drivers for CUDA 12 do.
///
/// # Safety
/// Both events were recorded on one stream and have passed.
pub(super) unsafe fn elapsed(start: sys::CUevent, end: sys::CUevent) -> Result<f32, CudaError> {
    type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;
    let mut milliseconds = 0.0;
    // SAFETY: the name was looked up before and has this type in all versions of cuda.h.
    let status = unsafe {
        let function = sys::culib()
            .get::<Elapsed>(b"cuEventElapsedTime")
            .map_err(|e| CudaError::Call { call: "cuEventElapsedTime", reason: e.to_string() })?;
        function(&mut milliseconds, start, end)
    };
    check("cuEventElapsedTime", status).map(|()| milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that follow `prefix` in a text.
    fn names(text: &'static str, prefix: &str) -> Vec<&'static str> {
        let name = |at: usize| text[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
        text.match_indices(prefix).filter_map(|(at, _)| name(at + prefix.len())).collect()
    }

    #[test]
    fn every_function_that_is_called_is_looked_up_before() {
        let texts = [
            include_str!("mod.rs"),
            include_str!("queue.rs"),
            include_str!("staging.rs"),
            include_str!("compiler.rs"),
            include_str!("products.rs"),
        ];
        let called = |prefix| texts.iter().flat_map(|text| names(text, prefix)).collect::<Vec<_>>();
        let driver = called("driver_call!(");
        // Types of NVRTC are named like its functions; those of cuBLASLt end in _t.
        let mut nvrtc = called("nvrtc::nvrtc");
        nvrtc.retain(|name| !["Program", "Result"].contains(name));
        let mut cublaslt = called("lt::cublasLt");
        cublaslt.retain(|name| !name.ends_with("_t") && !name.is_empty());
        assert!(
            driver.len() > 30 && nvrtc.len() > 10 && cublaslt.len() > 10,
            "{driver:?}, {nvrtc:?}, {cublaslt:?}"
        );
        for name in driver {
            assert!(DRIVER.contains(&name), "{name}");
        }
        for (library, names, list) in [("nvrtc", nvrtc, NVRTC), ("cublasLt", cublaslt, CUBLASLT)] {
            for name in names {
                assert!(list.contains(&format!("{library}{name}").as_str()), "{library}{name}");
            }
        }
    }
}
