//! What a backend, its tensors and its stores of keys and values have in common.

use crate::driver::{Block, CudaError, Driver, Dtype};
use crate::rope::Ropes;
use reattention_kernels::{DeviceError, DeviceType};
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

impl From<DeviceType> for Dtype {
    fn from(dtype: DeviceType) -> Self {
        match dtype {
            DeviceType::Bf16 => Self::Bf16,
            DeviceType::F16 => Self::F16,
            DeviceType::F32 => Self::F32,
        }
    }
}
