//! What the backend needs of a GPU: memory, launches and dense products.
//!
//! [`crate::nvidia::Nvidia`] is the real one. The tests have another, which compiles the same kernel text for the CPU and runs
//! it thread by thread.

use std::fmt::Debug;
use std::sync::Arc;

/// An address in the memory of the device, or in host memory that the device reads in place.
pub type Address = u64;

/// What went wrong on a device, or on the way to one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library is not there.
    #[error("{library} is not there: {advice}")]
    Library {
        /// What was looked for.
        library: &'static str,
        /// What would help.
        advice: &'static str,
    },
    /// There is no such device.
    #[error("there is no CUDA device {index}: {count} found, numbered from 0")]
    NoDevice {
        /// The one asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The device cannot run the kernels.
    #[error("{name} has compute capability {}.{}, the kernels need 8.0 or later", .capability.0, .capability.1)]
    TooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// Memory does not suffice.
    #[error(
        "{what} of {wanted} bytes: {free} bytes are free; a shorter text, `--kv-offload` or a smaller model would fit"
    )]
    OutOfMemory {
        /// What was to be taken: device memory, pinned host memory.
        what: &'static str,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes free.
        free: usize,
    },
    /// A kernel does not compile.
    #[error("kernels `{module}` do not compile for {architecture}:\n{log}")]
    Compile {
        /// The family.
        module: &'static str,
        /// The architecture.
        architecture: String,
        /// What the compiler printed.
        log: String,
    },
    /// The shape is one the kernels are not made for.
    #[error("the CUDA kernels do not serve {what}; use --device cpu")]
    Unsupported {
        /// What is not served.
        what: String,
    },
    /// Memory was given to a device that is not its own.
    #[error(
        "{what} of another device, or of none, was given to {device}; a tensor works on the device that made it"
    )]
    Foreign {
        /// What it was taken for.
        what: &'static str,
        /// The device.
        device: String,
    },
    /// A call failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// What the driver says.
        reason: String,
    },
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Device memory, in bytes.
    pub memory: usize,
    /// Shared memory that a block may ask for, in bytes.
    pub shared_per_block: usize,
}

/// A family of kernels: one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, that of the file.
    pub name: &'static str,
    /// Its text, without what all families share ([`COMMON`]).
    pub text: &'static str,
}

/// What all families of kernels share; it stands before the text of each.
pub const COMMON: &str = include_str!("../kernels/common.cuh");

/// A kernel that is ready to run, as its driver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u64);

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

/// An argument of a kernel, of the very type that its parameter has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer.
    Pointer(Address),
    /// `int`.
    Int(i32),
    /// `long long`.
    Long(i64),
    /// `float`.
    Float(f32),
}

/// Element types of matrices and cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Single precision.
    F32,
}

impl Dtype {
    /// The macro `ELEMENT` of kernels for it.
    pub fn element(self) -> i64 {
        match self {
            Self::Bf16 => 0,
            Self::F16 => 1,
            Self::F32 => 2,
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// `y = x · wᵀ`, row-major: `x: [rows, inputs]`, `w: [outputs, inputs]`, `y: [rows, outputs]` in f32.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Columns of `x` and `w`.
    pub inputs: usize,
    /// Rows of `w`.
    pub outputs: usize,
    /// Type of `x` and `w`; sums are in f32.
    pub dtype: Dtype,
    /// The input.
    pub x: Address,
    /// The weights.
    pub w: Address,
    /// The output.
    pub y: Address,
}

/// Host memory that the device reads in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Where the host sees it.
    pub host: *mut u8,
    /// Where the device sees it.
    pub device: Address,
}

/// One device and the order in which it works: calls take effect one after another, also between threads.
///
/// # Safety
/// Blocks and whatever stands on them go by what a driver says: memory that [`Driver::alloc`] and [`Driver::alloc_pinned`] give is
/// taken, as long as was asked for and nobody else's until it is given back, and the other functions touch what they are told to
/// and nothing else.
pub unsafe trait Driver: Send + Sync + Debug {
    /// What the device is.
    fn facts(&self) -> &Facts;

    /// Device memory that is free now, in bytes.
    ///
    /// # Errors
    /// When the driver does not tell.
    fn free_memory(&self) -> Result<usize, CudaError>;

    /// Takes device memory, on a boundary of 256 bytes; its content is anything. `bytes` is not zero.
    ///
    /// # Errors
    /// When there is not enough.
    fn alloc(&self, bytes: usize) -> Result<Address, CudaError>;

    /// Gives device memory back once everything before has run.
    ///
    /// # Safety
    /// `at` comes from [`Driver::alloc`] of this device and is not used by later calls.
    unsafe fn free(&self, at: Address);

    /// Takes host memory that the device reads and writes in place, on a boundary of 256 bytes.
    ///
    /// # Errors
    /// When there is not enough.
    fn alloc_pinned(&self, bytes: usize) -> Result<Pinned, CudaError>;

    /// Gives pinned memory back once everything before has run.
    ///
    /// # Safety
    /// As for [`Driver::free`].
    unsafe fn free_pinned(&self, at: Pinned);

    /// Copies from the host; `data` may change when the call returns.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// `data.len()` bytes at `to` are taken.
    unsafe fn upload(&self, data: &[u8], to: Address) -> Result<(), CudaError>;

    /// Copies to the host and waits for it, and with it for everything before.
    ///
    /// # Errors
    /// When the device fails, also in an earlier call.
    ///
    /// # Safety
    /// `data.len()` bytes at `from` are taken.
    unsafe fn download(&self, from: Address, data: &mut [u8]) -> Result<(), CudaError>;

    /// Writes zeros.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// `bytes` bytes at `at` are taken.
    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), CudaError>;

    /// Copies within the device.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// `bytes` bytes at both addresses are taken and do not overlap.
    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError>;

    /// The kernel `name` of `module`, compiled with each of `defines` as a macro. Compiled once; later calls are cheap.
    ///
    /// # Errors
    /// When it does not compile.
    fn function(
        &self,
        module: &Module,
        defines: &[(&'static str, i64)],
        name: &'static str,
    ) -> Result<Function, CudaError>;

    /// Starts a kernel.
    ///
    /// # Errors
    /// When the geometry is impossible, or the device fails.
    ///
    /// # Safety
    /// The function comes from this driver, the arguments have the number and types of the kernel's parameters, and what the
    /// kernel reads and writes is taken.
    unsafe fn launch(&self, function: Function, launch: Launch, args: &[Arg]) -> Result<(), CudaError>;

    /// Multiplies.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// The matrices are taken and have the shapes announced.
    unsafe fn multiply(&self, product: &Product) -> Result<(), CudaError>;

    /// Waits until everything before has run.
    ///
    /// # Errors
    /// When some of it failed.
    fn wait(&self) -> Result<(), CudaError>;

    /// Seconds that `work` takes on the device, from the start of its first call to the end of its last.
    ///
    /// # Errors
    /// Those of `work`, or when the device fails.
    fn time(&self, work: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError>;
}

/// Device memory that gives itself back.
#[derive(Debug)]
pub struct Block {
    driver: Arc<dyn Driver>,
    at: Address,
    bytes: usize,
}

impl Block {
    /// Memory with any content; of zero bytes too.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self, CudaError> {
        let at = if bytes == 0 { 0 } else { driver.alloc(bytes)? };
        Ok(Self { driver: Arc::clone(driver), at, bytes })
    }

    /// Memory that holds `data`.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn of<T: bytemuck::Pod>(driver: &Arc<dyn Driver>, data: &[T]) -> Result<Self, CudaError> {
        let block = Self::new(driver, size_of_val(data))?;
        block.write(0, data)?;
        Ok(block)
    }

    /// Memory of zeros.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn zeroed(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self, CudaError> {
        let block = Self::new(driver, bytes)?;
        if bytes > 0 {
            // SAFETY: the block is that long.
            unsafe { driver.clear(block.at, bytes)? };
        }
        Ok(block)
    }

    /// Where it starts.
    pub fn at(&self) -> Address {
        self.at
    }

    /// Its length, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// As an argument of a kernel.
    pub fn arg(&self) -> Arg {
        Arg::Pointer(self.at)
    }

    /// All of it, as functions that start kernels take it.
    pub fn span(&self) -> Span<'_> {
        Span { block: self, from: 0 }
    }

    /// Whether it is memory of this device.
    pub fn is_of(&self, driver: &Arc<dyn Driver>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.driver), Arc::as_ptr(driver))
    }

    fn check(&self, from: usize, bytes: usize) {
        let end = from.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "{bytes} bytes at {from} of {}", self.bytes);
    }

    /// Overwrites what starts at byte `from`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If the data reach beyond the end.
    pub fn write<T: bytemuck::Pod>(&self, from: usize, data: &[T]) -> Result<(), CudaError> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        self.check(from, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies within the block.
        unsafe { self.driver.upload(bytes, self.at + from as u64) }
    }

    /// Reads `len` elements from byte `from` on, after everything that was started before.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If they reach beyond the end.
    pub fn read<T: bytemuck::Pod>(&self, from: usize, len: usize) -> Result<Vec<T>, CudaError> {
        let mut data = vec![T::zeroed(); len];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut data);
        self.check(from, bytes.len());
        if !bytes.is_empty() {
            // SAFETY: the range lies within the block.
            unsafe { self.driver.download(self.at + from as u64, bytes)? };
        }
        Ok(data)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the block took the memory and is its only owner.
            unsafe { self.driver.free(self.at) };
        }
    }
}

/// A block from some byte on: an address that knows how much lies behind it, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    block: &'a Block,
    from: usize,
}

impl Span<'_> {
    /// What is left of it `bytes` bytes further on; nothing, beyond the end.
    #[must_use]
    pub fn skip(self, bytes: usize) -> Self {
        Self { from: self.from.saturating_add(bytes).min(self.block.bytes), ..self }
    }

    /// As an argument of a kernel on `driver` that reads or writes `count` elements of `size` bytes.
    ///
    /// # Errors
    /// When it is memory of another device.
    ///
    /// # Panics
    /// If it holds fewer.
    pub(crate) fn arg(self, driver: &Arc<dyn Driver>, count: usize, size: usize) -> Result<Arg, CudaError> {
        if !self.block.is_of(driver) {
            return Err(CudaError::Foreign { what: "memory", device: driver.facts().name.clone() });
        }
        let left = self.block.bytes - self.from;
        assert!(
            count.checked_mul(size).is_some_and(|bytes| bytes <= left),
            "{count} elements of {size} bytes in {left} bytes"
        );
        Ok(Arg::Pointer(self.block.at + self.from as u64))
    }
}
