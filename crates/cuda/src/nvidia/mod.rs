//! NVIDIA GPUs through the driver, NVRTC and cuBLASLt, all three found at run time.
//!
//! Libraries are looked for under the names that `cudarc` tries, in the places where the system's loader looks
//! (`LD_LIBRARY_PATH`, the loader's cache): `libcuda.so`, then `libcuda.so.1`; for the other two see [`compile`] and
//! `products.rs`. A machine without one of them gets [`CudaError::Library`] with what to install.

mod compiler;
mod libraries;
mod products;
mod queue;
mod staging;

pub use compiler::{check_compiler, compile};

use crate::driver::{Address, Arg, CudaError, Driver, Facts, Function, Launch, Module, Pinned, Product};
use compiler::Compiler;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute};
use libraries::driver_call;
use products::Products;
use queue::{Event, Queue};
use staging::Staging;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The oldest compute capability with the instructions that kernels use: copies to shared memory in the background, and tensor
/// cores for bfloat16.
const OLDEST: (u32, u32) = (8, 0);

/// Shared memory that a kernel may ask for without being allowed to, in bytes.
const SHARED_UNASKED: usize = 48 << 10;

/// One NVIDIA GPU.
///
/// It works in the device's primary context, which each call binds to the calling thread, and on one stream. Memory is taken
/// in the stream's order from the device's default pool, which is told to keep what is given back.
#[derive(Debug)]
pub struct Nvidia {
    facts: Facts,
    compiler: Compiler,
    kernels: Mutex<Kernels>,
    products: Mutex<Products>,
    staging: Mutex<Staging>,
    /// Dropped last: the others give back what they took through it.
    queue: Arc<Queue>,
}

impl Nvidia {
    /// How many devices there are.
    ///
    /// # Errors
    /// When there is no driver, or it does not start.
    pub fn count() -> Result<usize, CudaError> {
        let mut count = 0;
        match libraries::driver() {
            // SAFETY: the driver has been started; the result is written to a variable.
            Ok(()) => unsafe { driver_call!(cuDeviceGetCount(&mut count))? },
            // A driver without any device says so when it is started.
            Err(CudaError::Call { reason, .. }) if reason.starts_with("CUDA_ERROR_NO_DEVICE") => {}
            Err(error) => return Err(error),
        }
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Opens device `index`, numbered from 0 (`CUDA_VISIBLE_DEVICES` has its say).
    ///
    /// # Errors
    /// When a library or the device is not there, is too old, or fails.
    pub fn open(index: usize) -> Result<Self, CudaError> {
        let count = Self::count()?;
        let ordinal = i32::try_from(index).ok().filter(|_| index < count);
        let ordinal = ordinal.ok_or(CudaError::NoDevice { index, count })?;
        libraries::nvrtc()?;
        libraries::cublaslt()?;
        let queue = Arc::new(Queue::open(ordinal)?);
        let facts = facts(&queue)?;
        if facts.capability < OLDEST {
            return Err(CudaError::TooOld { name: facts.name, capability: facts.capability });
        }
        let compiler = Compiler::new(facts.capability)?;
        let products = Mutex::new(Products::new(&queue)?);
        let staging = Mutex::new(Staging::new(&queue)?);
        let kernels = Mutex::new(Kernels {
            queue: Arc::clone(&queue),
            modules: HashMap::new(),
            functions: HashMap::new(),
        });
        Ok(Self { facts, compiler, kernels, products, staging, queue })
    }

    /// Loads code for the device.
    fn load(&self, module: &Module, defines: &[(&'static str, i64)]) -> Result<sys::CUmodule, CudaError> {
        let code = self.compiler.code(module, defines)?;
        let mut loaded = null_mut();
        // SAFETY: the code is what NVRTC gave, whole, and PTX ends with a zero; it is copied.
        unsafe { driver_call!(cuModuleLoadData(&mut loaded, code.as_ptr().cast())) }.map_err(|error| {
            let (CudaError::Call { call, reason }, Ok(driver)) = (&error, driver_version()) else { return error };
            let nvrtc = self.compiler.version();
            let advice = if nvrtc > driver {
                format!(
                    " (NVRTC is of CUDA {}.{}, the driver of {}.{}: a newer driver or an older NVRTC would do)",
                    nvrtc.0, nvrtc.1, driver.0, driver.1
                )
            } else {
                String::new()
            };
            CudaError::Call { call, reason: format!("{reason}{advice}") }
        })?;
        Ok(loaded)
    }
}

fn facts(queue: &Queue) -> Result<Facts, CudaError> {
    let number = |attribute| Ok(u32::try_from(queue.attribute(attribute)?).unwrap_or(0));
    Ok(Facts {
        name: queue.name()?,
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        memory: queue.total_memory()?,
        shared_per_block: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
    })
}

/// The version of CUDA that the driver serves.
fn driver_version() -> Result<(i32, i32), CudaError> {
    let mut version = 0;
    // SAFETY: the driver is there; the result is written to a variable.
    unsafe { driver_call!(cuDriverGetVersion(&mut version))? };
    Ok((version / 1000, version % 1000 / 10))
}

/// A text with its macros. Texts are told apart by where they stand in the program, which they never leave.
type Variant = (&'static str, usize, usize, Vec<(&'static str, i64)>);

/// What has been loaded.
#[derive(Debug)]
struct Kernels {
    queue: Arc<Queue>,
    modules: HashMap<Variant, sys::CUmodule>,
    functions: HashMap<(Variant, &'static str), Function>,
}

// SAFETY: modules may be used from every thread that binds their context.
unsafe impl Send for Kernels {}

impl Drop for Kernels {
    fn drop(&mut self) {
        let _ = self.queue.wait();
        for module in self.modules.values() {
            // SAFETY: nothing runs, and functions are launched through the driver alone, which is going.
            let _ = unsafe { driver_call!(cuModuleUnload(*module)) };
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half done that matters here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: memory is NVIDIA's driver's own, taken and given back in the order of one stream, and every call goes to it as it is.
unsafe impl Driver for Nvidia {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_memory(&self) -> Result<usize, CudaError> {
        self.queue.free_memory()
    }

    fn alloc(&self, bytes: usize) -> Result<Address, CudaError> {
        self.queue.alloc(bytes)
    }

    unsafe fn free(&self, at: Address) {
        // SAFETY: promised by the caller.
        unsafe { self.queue.free(at) }
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.queue.alloc_pinned(bytes)
    }

    unsafe fn free_pinned(&self, at: Pinned) {
        // SAFETY: promised by the caller.
        unsafe { self.queue.free_pinned(at) }
    }

    unsafe fn upload(&self, data: &[u8], to: Address) -> Result<(), CudaError> {
        // SAFETY: promised by the caller.
        unsafe { lock(&self.staging).upload(data, to) }
    }

    unsafe fn download(&self, from: Address, data: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: promised by the caller; `data` is borrowed until the copy has ended, also when it fails.
        let copied = unsafe { self.queue.copy(from, data.as_mut_ptr() as Address, data.len()) };
        self.queue.wait().and(copied)
    }

    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), CudaError> {
        self.queue.bind()?;
        // SAFETY: promised by the caller.
        unsafe { driver_call!(cuMemsetD8Async(at, 0, bytes, self.queue.stream())) }
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: promised by the caller; there is no memory in it that is not taken from this driver.
        unsafe { self.queue.copy(from, to, bytes) }
    }

    fn function(
        &self,
        module: &Module,
        defines: &[(&'static str, i64)],
        name: &'static str,
    ) -> Result<Function, CudaError> {
        let text = module.text;
        let variant: Variant = (module.name, text.as_ptr() as usize, text.len(), defines.to_vec());
        // Held while compiling, so that nothing is compiled twice.
        let mut kernels = lock(&self.kernels);
        let key = (variant, name);
        if let Some(function) = kernels.functions.get(&key) {
            return Ok(*function);
        }
        self.queue.bind()?;
        let loaded = match kernels.modules.get(&key.0) {
            Some(loaded) => *loaded,
            None => {
                let loaded = self.load(module, defines)?;
                kernels.modules.insert(key.0.clone(), loaded);
                loaded
            }
        };
        let c_name = CString::new(name)
            .map_err(|_| CudaError::Unsupported { what: format!("a kernel named {name:?}") })?;
        let (mut function, mut fixed) = (null_mut(), 0);
        // SAFETY: the module is loaded; results are written to variables.
        unsafe {
            driver_call!(cuModuleGetFunction(&mut function, loaded, c_name.as_ptr()))?;
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            driver_call!(cuFuncGetAttribute(&mut fixed, attribute, function))?;
            // What the device has to give beside the arrays of fixed size: each launch says how much of it it takes.
            let most = self.facts.shared_per_block.saturating_sub(usize::try_from(fixed).unwrap_or(0));
            if most > SHARED_UNASKED {
                let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                driver_call!(cuFuncSetAttribute(function, attribute, most as i32))?;
            }
        }
        let function = Function(function as u64);
        kernels.functions.insert(key, function);
        Ok(function)
    }

    unsafe fn launch(&self, function: Function, launch: Launch, args: &[Arg]) -> Result<(), CudaError> {
        self.queue.bind()?;
        let mut values: Vec<[u8; 8]> = args.iter().map(bytes).collect();
        let mut places: Vec<*mut c_void> = values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
        let Launch { grid: [x, y, z], threads, shared } = launch;
        // SAFETY: the caller promises function and arguments; each place holds as many bytes as its parameter takes, and they
        // are copied before the call comes back.
        unsafe {
            driver_call!(cuLaunchKernel(
                function.0 as sys::CUfunction,
                x,
                y,
                z,
                threads,
                1,
                1,
                shared,
                self.queue.stream(),
                places.as_mut_ptr(),
                null_mut(),
            ))
        }
        .map_err(|error| match error {
            CudaError::Call { call, reason } => {
                CudaError::Call { call, reason: format!("{reason}, with {launch:?}") }
            }
            error => error,
        })
    }

    unsafe fn multiply(&self, product: &Product) -> Result<(), CudaError> {
        let Product { rows, inputs, outputs, y, .. } = *product;
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        if inputs == 0 {
            // SAFETY: promised by the caller.
            return unsafe { self.clear(y, 4 * rows * outputs) };
        }
        // SAFETY: promised by the caller.
        unsafe { lock(&self.products).multiply(product) }
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.queue.wait()
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        self.queue.bind()?;
        let (start, end) = (Event::new()?, Event::new()?);
        start.record(&self.queue)?;
        work()?;
        end.record(&self.queue)?;
        end.wait()?;
        end.seconds_since(&start)
    }
}

/// The bytes of an argument, from the first on.
fn bytes(arg: &Arg) -> [u8; 8] {
    let mut bytes = [0; 8];
    match *arg {
        Arg::Pointer(p) => bytes = p.to_ne_bytes(),
        Arg::Long(l) => bytes = l.to_ne_bytes(),
        Arg::Int(i) => bytes[..4].copy_from_slice(&i.to_ne_bytes()),
        Arg::Float(f) => bytes[..4].copy_from_slice(&f.to_ne_bytes()),
    }
    bytes
}
