//! Modules, their kernels, and launches.

use crate::driver::FIXED_SHARED;
use crate::nvrtc::{Code, Defines};
use crate::state::{Answer, Context, call_in_context, give, new_handle};
use cuda_emulator::compile_whole;
use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute as FunctionAttribute, CUmodule, CUresult, CUstream,
};
use reattention_cuda::driver::{Arg, Driver, Function, Launch, Module};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// Shared memory that a kernel may use unasked, in bytes.
const UNASKED: u32 = 48 << 10;

/// What is loaded.
#[derive(Default)]
pub(crate) struct Loaded {
    modules: BTreeMap<usize, (&'static Module, Defines)>,
    functions: BTreeMap<usize, Kernel>,
}

struct Kernel {
    module: usize,
    function: Function,
    /// A letter for each parameter, as [`cuda_emulator::Emulator::function_of_whole`] has them.
    parameters: &'static str,
    /// Dynamic shared memory that it may use, in bytes.
    shared: u32,
}

impl Loaded {
    /// How many modules were not unloaded.
    pub(crate) fn left(&self) -> usize {
        self.modules.len()
    }

    fn kernel(&mut self, function: CUfunction) -> Answer<&mut Kernel> {
        self.functions.get_mut(&(function as usize)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }
}

/// Whether code for this architecture runs on the device: machine code within a major version, that with `a` on its own device
/// alone; PTX on all later ones.
fn check_architecture(context: &Context, code: &Code) -> Answer {
    let (major, minor) = context.settings.capability;
    let no_binary = CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU;
    if let Some(made_for) = code.architecture.strip_prefix("compute_") {
        if code.version > context.settings.driver {
            return Err(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        }
        let made_for: u32 = made_for.trim_end_matches('a').parse().map_err(|_| no_binary)?;
        return if made_for <= 10 * major + minor { Ok(()) } else { Err(no_binary) };
    }
    let made_for = code.architecture.strip_prefix("sm_").ok_or(no_binary)?;
    let number: u32 = made_for.trim_end_matches('a').parse().map_err(|_| no_binary)?;
    let runs = if made_for.ends_with('a') {
        number == 10 * major + minor
    } else {
        number / 10 == major && number % 10 <= minor
    };
    runs.then_some(()).ok_or(no_binary)
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> CUresult {
    call_in_context(|context| {
        if image.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        let code = unsafe { Code::load(image.cast()) }.ok_or(CUresult::CUDA_ERROR_INVALID_IMAGE)?;
        check_architecture(context, &code)?;
        let text = code.module();
        compile_whole(text.0, text.1).map_err(|error| {
            eprintln!("stand-in: {error}");
            CUresult::CUDA_ERROR_INVALID_IMAGE
        })?;
        let handle = new_handle();
        context.loaded.modules.insert(handle, text);
        // SAFETY: the caller's promise.
        unsafe { give(module, handle as CUmodule) }
    })
}

/// Driver API: its kernels go with it.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleUnload(module: CUmodule) -> CUresult {
    call_in_context(|context| {
        let module = module as usize;
        context.drain_all()?;
        let gone = context.loaded.modules.remove(&module);
        context.loaded.functions.retain(|_, kernel| kernel.module != module);
        gone.map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut CUfunction,
    module: CUmodule,
    name: *const c_char,
) -> CUresult {
    call_in_context(|context| {
        let module = module as usize;
        let text = context.loaded.modules.get(&module).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        if name.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller gives a string that ends with a zero.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let found = context.emulator.function_of_whole(text.0, text.1, &name);
        let found = found.map_err(|_| CUresult::CUDA_ERROR_INVALID_IMAGE)?;
        let (kernel, parameters) = found.ok_or(CUresult::CUDA_ERROR_NOT_FOUND)?;
        let handle = new_handle();
        let kernel = Kernel { module, function: kernel, parameters, shared: UNASKED - FIXED_SHARED };
        context.loaded.functions.insert(handle, kernel);
        // SAFETY: the caller's promise.
        unsafe { give(function, handle as CUfunction) }
    })
}

/// Driver API, for shared memory.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: FunctionAttribute,
    function: CUfunction,
) -> CUresult {
    call_in_context(|context| {
        let kernel = context.loaded.kernel(function)?;
        let found = match attribute {
            FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES => FIXED_SHARED,
            FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES => kernel.shared,
            _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        };
        // SAFETY: the caller's promise.
        unsafe { give(value, found as c_int) }
    })
}

/// Driver API, for dynamic shared memory: with the static one it is at most what a block may have.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncSetAttribute(
    function: CUfunction,
    attribute: FunctionAttribute,
    value: c_int,
) -> CUresult {
    call_in_context(|context| {
        let most = context.emulator.facts().shared_per_block as u32 - FIXED_SHARED;
        let kernel = context.loaded.kernel(function)?;
        match (attribute, u32::try_from(value)) {
            (FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, Ok(value))
                if value <= most =>
            {
                kernel.shared = value;
                Ok(())
            }
            _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        }
    })
}

/// Driver API, for blocks in one dimension. Arguments are copied, and the kernel runs when somebody waits for it.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: CUfunction,
    x: c_uint,
    y: c_uint,
    z: c_uint,
    threads_x: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    shared: c_uint,
    stream: CUstream,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    call_in_context(|context| {
        context.check_stream(stream as usize)?;
        if context.settings.fails > 0 {
            context.settings.fails -= 1;
            if context.settings.fails == 0 {
                context.failed = Some(CUresult::CUDA_ERROR_LAUNCH_FAILED);
                return Err(CUresult::CUDA_ERROR_LAUNCH_FAILED);
            }
        }
        let kernel = context.loaded.kernel(function)?;
        let threads = u64::from(threads_x) * u64::from(threads_y) * u64::from(threads_z);
        let grid_fits = x > 0 && y > 0 && z > 0 && x <= i32::MAX as u32 && y <= 65_535 && z <= 65_535;
        let block_fits = (1..=1024).contains(&threads) && threads_z <= 64;
        let none_given = !kernel.parameters.is_empty() && parameters.is_null();
        if !grid_fits || !block_fits || shared > kernel.shared || none_given || !extra.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if (threads_y, threads_z) != (1, 1) {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        let args: Vec<Arg> = (kernel.parameters.chars().enumerate())
            // SAFETY: the caller gives a place for each parameter, with as many bytes as it takes.
            .map(|(i, letter)| unsafe {
                let place = *parameters.add(i);
                match letter {
                    'p' => Arg::Pointer(place.cast::<u64>().read_unaligned()),
                    'i' => Arg::Int(place.cast::<i32>().read_unaligned()),
                    'l' => Arg::Long(place.cast::<i64>().read_unaligned()),
                    _ => Arg::Float(place.cast::<f32>().read_unaligned()),
                }
            })
            .collect();
        let (function, launch) = (kernel.function, Launch { grid: [x, y, z], threads: threads_x, shared });
        context.push_run(stream as usize, move |emulator| {
            // SAFETY: the caller of the driver answers for what the kernel does; the emulator watches it.
            unsafe { emulator.launch(function, launch, &args) }.map_err(|error| error.to_string())
        })
    })
}
