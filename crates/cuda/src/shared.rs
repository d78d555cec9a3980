//! What a backend, its tensors and its stores of keys and values have in common.

use crate::driver::{Block, CudaError, Driver, Dtype};
use crate::rope::Ropes;
use reattention_kernels::{DeviceError, DeviceType, Tensor};
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

/// Where keys and values lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// On the device.
    #[default]
    Off,
    /// Values in pinned host memory, keys on the device: keys are searched whole, of values only those attended to are read.
    Values,
    /// Values in pinned host memory, and, once the device is full, the oldest keys, too.
    Old,
}

impl std::str::FromStr for Offload {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "off" => Ok(Self::Off),
            "values" => Ok(Self::Values),
            "old" => Ok(Self::Old),
            _ => Err(format!("unknown offload `{s}`; known are off, values and old")),
        }
    }
}

/// One device, as everything on it knows it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) offload: Offload,
    pub(crate) id: u64,
    pub(crate) ropes: Ropes,
    products: Mutex<Option<Block>>,
}

impl Shared {
    pub(crate) fn new(driver: Arc<dyn Driver>, offload: Offload, id: u64) -> Self {
        let ropes = Ropes::new(&driver);
        Self { driver, offload, id, ropes, products: Mutex::default() }
    }

    /// Runs `work` with memory of at least `bytes` bytes that rounded inputs of a product go through.
    pub(crate) fn with_inputs<R>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Block) -> Result<R, CudaError>,
    ) -> Result<R, CudaError> {
        let mut held = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|block| block.bytes() < bytes) {
            *held = None;
            *held = Some(Block::new(&self.driver, bytes)?);
        }
        work(held.as_ref().expect("made above"))
    }

    /// The error as those see it that know no CUDA.
    pub(crate) fn error(&self, error: CudaError) -> DeviceError {
        DeviceError { device: self.driver.facts().name.clone(), reason: error.to_string() }
    }
}

/// The memory of a [`Tensor`]. Only [`Shared::tensor`] makes one, so that its length and its device are facts.
#[derive(Debug)]
struct Floats(Arc<Block>);

impl Shared {
    /// `len` floats of any value.
    pub(crate) fn tensor(&self, len: usize) -> Result<Tensor, CudaError> {
        let bytes = len.checked_mul(size_of::<f32>()).ok_or_else(|| CudaError::OutOfMemory {
            what: "device memory",
            wanted: usize::MAX,
            free: self.driver.free_memory().unwrap_or(0),
        })?;
        Ok(Tensor::new(len, Box::new(Floats(Arc::new(Block::new(&self.driver, bytes)?)))))
    }

    /// The memory of a tensor, if this device made it.
    pub(crate) fn floats<'t>(&self, tensor: &'t Tensor) -> Result<&'t Arc<Block>, CudaError> {
        let floats: &Floats = self.own(tensor.memory(), "a tensor")?;
        self.is_own(&floats.0, "a tensor")?;
        Ok(&floats.0)
    }

    /// What this kind of device keeps behind a handle, if it is one of its own.
    pub(crate) fn own<'t, T: 'static>(
        &self,
        memory: &'t dyn Any,
        what: &'static str,
    ) -> Result<&'t T, CudaError> {
        memory.downcast_ref().ok_or_else(|| self.foreign(what))
    }

    /// Refuses memory of another device.
    pub(crate) fn is_own(&self, block: &Block, what: &'static str) -> Result<(), CudaError> {
        if block.is_of(&self.driver) { Ok(()) } else { Err(self.foreign(what)) }
    }

    fn foreign(&self, what: &'static str) -> CudaError {
        CudaError::Foreign { what, device: self.driver.facts().name.clone() }
    }
}

impl From<DeviceType> for Dtype {
    fn from(dtype: DeviceType) -> Self {
        match dtype {
            DeviceType::Bf16 => Self::Bf16,
            DeviceType::F16 => Self::F16,
            DeviceType::F32 => Self::F32,
        }
    }
}
