//! The driver itself, its one device, and the device's primary context.

use crate::NAME;
use crate::launch::Loaded;
use crate::memory::Memory;
use crate::state::{Answer, Context, State, call, give, make_current, new_handle, state};
use crate::streams::Streams;
use cuda_emulator::{Emulator, facts};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute as Attribute, CUresult};
use reattention_cuda::driver::Facts;
use std::ffi::{CStr, c_char, c_int};

/// Static shared memory of every kernel, in bytes. The emulator does not tell how much it is; some keeps callers from asking for
/// all that a block has.
pub(crate) const FIXED_SHARED: u32 = 1024;

fn facts_of(state: &State) -> Facts {
    let settings = &state.settings;
    Facts { name: NAME.into(), capability: settings.capability, memory: settings.memory, ..facts() }
}

fn check_device(state: &State, device: CUdevice) -> Answer {
    if (0..state.settings.devices).contains(&device) {
        Ok(())
    } else {
        Err(CUresult::CUDA_ERROR_INVALID_DEVICE)
    }
}

/// Driver API: flags must be 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuInit(flags: u32) -> CUresult {
    let mut state = state();
    if flags != 0 {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    if state.settings.devices == 0 {
        return CUresult::CUDA_ERROR_NO_DEVICE;
    }
    state.started = true;
    CUresult::CUDA_SUCCESS
}

/// Driver API: `1000 · major + 10 · minor`, also before the driver is started.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    // SAFETY: the caller's promise.
    match unsafe { give(version, state().settings.driver) } {
        Ok(()) => CUresult::CUDA_SUCCESS,
        Err(code) => code,
    }
}

/// Driver API: a code that is not known gives null.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: CUresult, text: *mut *const c_char) -> CUresult {
    let found: Option<&'static CStr> = match code {
        CUresult::CUDA_SUCCESS => Some(c"no error"),
        CUresult::CUDA_ERROR_INVALID_VALUE => Some(c"invalid argument"),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Some(c"out of memory"),
        CUresult::CUDA_ERROR_NOT_INITIALIZED => Some(c"initialization error"),
        CUresult::CUDA_ERROR_NO_DEVICE => Some(c"no CUDA-capable device is detected"),
        CUresult::CUDA_ERROR_INVALID_DEVICE => Some(c"invalid device ordinal"),
        CUresult::CUDA_ERROR_INVALID_IMAGE => Some(c"device kernel image is invalid"),
        CUresult::CUDA_ERROR_INVALID_CONTEXT => Some(c"invalid device context"),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            Some(c"no kernel image is available for execution on the device")
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            Some(c"the provided PTX was compiled with an unsupported toolchain.")
        }
        CUresult::CUDA_ERROR_INVALID_HANDLE => Some(c"invalid resource handle"),
        CUresult::CUDA_ERROR_NOT_FOUND => Some(c"named symbol not found"),
        CUresult::CUDA_ERROR_NOT_READY => Some(c"device not ready"),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS => Some(c"an illegal memory access was encountered"),
        CUresult::CUDA_ERROR_LAUNCH_FAILED => Some(c"unspecified launch failure"),
        CUresult::CUDA_ERROR_NOT_SUPPORTED => Some(c"operation not supported"),
        _ => None,
    };
    // SAFETY: the caller's promise.
    match unsafe { give(text, found.map_or(std::ptr::null(), CStr::as_ptr)) } {
        Ok(()) if found.is_some() => CUresult::CUDA_SUCCESS,
        _ => CUresult::CUDA_ERROR_INVALID_VALUE,
    }
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    // SAFETY: the caller's promise.
    call(|state| unsafe { give(count, state.settings.devices) })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> CUresult {
    call(|state| {
        check_device(state, ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { give(device, ordinal) }
    })
}

/// Driver API: as much of the name as there is room for, with a zero at the end.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice) -> CUresult {
    call(|state| {
        check_device(state, device)?;
        let len = usize::try_from(len).unwrap_or(0);
        if name.is_null() || len == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let n = NAME.len().min(len - 1);
        // SAFETY: the caller has room for `len` bytes, more than `n`.
        unsafe {
            name.copy_from_nonoverlapping(NAME.as_ptr().cast(), n);
            name.add(n).write(0);
        }
        Ok(())
    })
}

/// Driver API, for the attributes that are asked for.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: Attribute,
    device: CUdevice,
) -> CUresult {
    call(|state| {
        check_device(state, device)?;
        let facts = facts_of(state);
        let found = match attribute {
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => facts.capability.0 as i32,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => facts.capability.1 as i32,
            Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => facts.multiprocessors as i32,
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => facts.shared_per_block as i32,
            Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED => i32::from(state.settings.pools),
            _ => {
                eprintln!("stand-in: {attribute:?} of the device is not known here");
                return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
            }
        };
        // SAFETY: the caller's promise.
        unsafe { give(value, found) }
    })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) -> CUresult {
    call(|state| {
        check_device(state, device)?;
        // SAFETY: the caller's promise.
        unsafe { give(bytes, state.settings.memory) }
    })
}

/// Driver API: makes the context, or counts one more that holds it.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) -> CUresult {
    call(|state| {
        check_device(state, device)?;
        if state.context.is_none() {
            let emulator = Emulator::new(facts_of(state)).map_err(|error| {
                eprintln!("stand-in: {error}");
                CUresult::CUDA_ERROR_UNKNOWN
            })?;
            let settings = state.settings.clone();
            state.context = Some(Context {
                handle: new_handle(),
                held: 0,
                failed: None,
                streams: Streams::new(),
                memory: Memory::new(&settings),
                loaded: Loaded::default(),
                emulator: emulator.with_pinned_memory(settings.pinned),
                settings,
            });
        }
        let Some(there) = &mut state.context else { return Err(CUresult::CUDA_ERROR_UNKNOWN) };
        there.held += 1;
        // SAFETY: the caller's promise.
        unsafe { give(context, there.handle as CUcontext) }
    })
}

/// Driver API: the last to give it back destroys it, with all that is in it.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) -> CUresult {
    call(|state| {
        check_device(state, device)?;
        let context = state.context.as_mut().ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        context.held -= 1;
        if context.held == 0
            && let Some(mut context) = state.context.take()
        {
            if context.failed.is_none() {
                context.drain_all()?;
            }
            tell_what_is_left(&context);
        }
        Ok(())
    })
}

fn tell_what_is_left(context: &Context) {
    if context.failed.is_some() {
        return;
    }
    let ((streams, events), modules) = (context.streams.left(), context.loaded.left());
    let (blocks, pinned) = context.memory.left();
    if streams + events + modules + blocks + pinned > 0 {
        eprintln!(
            "stand-in: left behind: {streams} streams, {events} events, {modules} modules, {blocks} blocks of device memory, \
             {pinned} of pinned memory"
        );
    }
}

/// Driver API: null takes the context from the thread.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSetCurrent(context: CUcontext) -> CUresult {
    call(|state| {
        let handle = context as usize;
        if handle != 0 && state.context.as_ref().is_none_or(|c| c.handle != handle) {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        make_current(handle);
        Ok(())
    })
}
