//! One device's context, the stream that all work goes through, and the memory taken in its order.

use super::libraries::{driver_call, elapsed};
use crate::driver::{Address, CudaError, Pinned};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUmemPool_attribute as PoolAttribute};
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

/// The primary context of a device with a stream of its own.
///
/// All methods bind the context to the calling thread first, and leave it bound.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// The device's default pool, which [`Queue::alloc`] takes from; without pools memory is taken at once.
    pool: Option<sys::CUmemoryPool>,
}

// SAFETY: contexts and streams may be used from every thread that binds the context, also at the same time.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// Of device `index`, which must be there. The driver has been checked.
    pub(super) fn open(index: i32) -> Result<Self, CudaError> {
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: results are written to variables that live through the calls.
        unsafe {
            driver_call!(cuDeviceGet(&mut device, index))?;
            driver_call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        }
        // From here on, Drop gives back what was taken.
        let mut queue = Self { device, context, stream: null_mut(), pool: None };
        queue.bind()?;
        // Not ordered with the null stream, on which other users of the process may work.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: as above; the context is bound.
        unsafe { driver_call!(cuStreamCreate(&mut queue.stream, flags))? };
        if queue.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0 {
            let (mut pool, mut keep) = (null_mut(), u64::MAX);
            // SAFETY: as above; this attribute is a u64. Memory given back stays with the pool until the process ends or
            // memory runs short, so that taking it again costs nothing.
            unsafe {
                driver_call!(cuDeviceGetDefaultMemPool(&mut pool, device))?;
                let threshold = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                driver_call!(cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()))?;
            }
            queue.pool = Some(pool);
        }
        Ok(queue)
    }

    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until drop.
        unsafe { driver_call!(cuCtxSetCurrent(self.context)) }
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    pub(super) fn name(&self) -> Result<String, CudaError> {
        let mut name = [0u8; 256];
        // SAFETY: the driver writes at most that many bytes, the zero at the end included.
        unsafe { driver_call!(cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, self.device))? };
        Ok(CStr::from_bytes_until_nul(&name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default())
    }

    pub(super) fn attribute(&self, attribute: Attribute) -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: the result is written to a variable.
        unsafe { driver_call!(cuDeviceGetAttribute(&mut value, attribute, self.device))? };
        Ok(value)
    }

    pub(super) fn total_memory(&self) -> Result<usize, CudaError> {
        let mut bytes = 0;
        // SAFETY: the result is written to a variable.
        unsafe { driver_call!(cuDeviceTotalMem_v2(&mut bytes, self.device))? };
        Ok(bytes)
    }

    /// What the device has left, and what the pool holds for later.
    pub(super) fn free_memory(&self) -> Result<usize, CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: results are written to variables.
        unsafe { driver_call!(cuMemGetInfo_v2(&mut free, &mut total))? };
        let Some(pool) = self.pool else { return Ok(free) };
        let amount = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: both attributes asked for are a u64.
            unsafe { driver_call!(cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()))? };
            Ok(bytes)
        };
        let reserved = amount(PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = amount(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(free + reserved.saturating_sub(used) as usize)
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<Address, CudaError> {
        self.bind()?;
        let mut at = 0;
        // SAFETY: results are written to variables; stream and pool live.
        let taken = unsafe {
            match self.pool {
                None => driver_call!(cuMemAlloc_v2(&mut at, bytes)),
                Some(pool) => driver_call!(cuMemAllocAsync(&mut at, bytes, self.stream)).or_else(|error| {
                    // What the pool keeps may lie in pieces: give all of it back and try once more.
                    if !is_out_of_memory(&error) {
                        return Err(error);
                    }
                    driver_call!(cuStreamSynchronize(self.stream))?;
                    driver_call!(cuMemPoolTrimTo(pool, 0))?;
                    driver_call!(cuMemAllocAsync(&mut at, bytes, self.stream))
                }),
            }
        };
        match taken {
            Ok(()) => {
                debug_assert_eq!(at % 256, 0, "the driver aligns to 256 bytes");
                Ok(at)
            }
            Err(error) if is_out_of_memory(&error) => Err(CudaError::OutOfMemory {
                what: "device memory",
                wanted: bytes,
                free: self.free_memory()?,
            }),
            Err(error) => Err(error),
        }
    }

    /// # Safety
    /// `at` comes from [`Queue::alloc`] and is used by nothing later.
    pub(super) unsafe fn free(&self, at: Address) {
        // SAFETY: promised by the caller. Memory that no pool knows is free at once, so what uses it must have run.
        let freed = self.bind().and_then(|()| unsafe {
            match self.pool {
                Some(_) => driver_call!(cuMemFreeAsync(at, self.stream)),
                None => self.wait().and_then(|()| driver_call!(cuMemFree_v2(at))),
            }
        });
        if let Err(error) = freed {
            tracing::warn!("device memory could not be given back: {error}");
        }
    }

    pub(super) fn alloc_pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.bind()?;
        let (mut host, mut device) = (null_mut::<c_void>(), 0);
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: results are written to variables.
        let taken = unsafe { driver_call!(cuMemHostAlloc(&mut host, bytes, flags)) };
        taken.map_err(|error| match available_host_memory() {
            Some(free) if is_out_of_memory(&error) => {
                CudaError::OutOfMemory { what: "pinned host memory", wanted: bytes, free }
            }
            _ => error,
        })?;
        // SAFETY: the memory was just taken with a mapping for the device; it is given back if its address is not known.
        unsafe {
            if let Err(error) = driver_call!(cuMemHostGetDevicePointer_v2(&mut device, host, 0)) {
                driver_call!(cuMemFreeHost(host))?;
                return Err(error);
            }
        }
        Ok(Pinned { host: host.cast(), device })
    }

    /// # Safety
    /// `at` comes from [`Queue::alloc_pinned`] and is used by nothing later.
    pub(super) unsafe fn free_pinned(&self, at: Pinned) {
        // SAFETY: promised by the caller; after the wait the device does not use it either.
        let freed = self.wait().and_then(|()| unsafe { driver_call!(cuMemFreeHost(at.host.cast())) });
        if let Err(error) = freed {
            tracing::warn!("pinned host memory could not be given back: {error}");
        }
    }

    /// Copies between any two places, of the host or the device; the driver tells them apart by their addresses.
    ///
    /// # Safety
    /// Both are taken, do not overlap, and host memory that is not pinned stays until [`Queue::wait`] has come back.
    pub(super) unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: promised by the caller.
        unsafe { driver_call!(cuMemcpyAsync(to, from, bytes, self.stream)) }
    }

    /// Waits until all that was started has run.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives until drop.
        unsafe { driver_call!(cuStreamSynchronize(self.stream)) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: both were taken by `open` and nothing else holds them. A device that failed refuses; there is nothing
        // to do about it.
        unsafe {
            if !self.stream.is_null() {
                let _ = self.wait();
                let _ = driver_call!(cuStreamDestroy_v2(self.stream));
            }
            let _ = driver_call!(cuDevicePrimaryCtxRelease_v2(self.device));
        }
    }
}

/// A point in the work of a queue.
#[derive(Debug)]
pub(super) struct Event(sys::CUevent);

// SAFETY: events may be used from every thread that binds their context.
unsafe impl Send for Event {}

impl Event {
    /// One that notes its time. The context is bound.
    pub(super) fn new() -> Result<Self, CudaError> {
        let mut event = null_mut();
        // SAFETY: the result is written to a variable.
        unsafe { driver_call!(cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32))? };
        Ok(Self(event))
    }

    /// Stands after what was started so far.
    pub(super) fn record(&self, queue: &Queue) -> Result<(), CudaError> {
        queue.bind()?;
        // SAFETY: event and stream live and are of one context.
        unsafe { driver_call!(cuEventRecord(self.0, queue.stream)) }
    }

    /// Waits until the work before it has run; an event never recorded has passed.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives.
        unsafe { driver_call!(cuEventSynchronize(self.0)) }
    }

    /// Seconds from `start` to this; both have passed.
    pub(super) fn seconds_since(&self, start: &Event) -> Result<f64, CudaError> {
        // SAFETY: both live and were recorded on the stream of one queue.
        Ok(f64::from(unsafe { elapsed(start.0, self.0)? }) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nothing else holds it; the driver puts this off until it has passed.
        let _ = unsafe { driver_call!(cuEventDestroy_v2(self.0)) };
    }
}

fn is_out_of_memory(error: &CudaError) -> bool {
    matches!(error, CudaError::Call { reason, .. } if reason.starts_with("CUDA_ERROR_OUT_OF_MEMORY"))
}

/// What the system says it can still give, where it does.
fn available_host_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = info.lines().find_map(|l| {
        l.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
    })?;
    Some(kib * 1024)
}
