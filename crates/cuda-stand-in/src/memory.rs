//! Device memory, its pool, pinned memory, and copies between them.

use crate::state::{Answer, Context, Settings, call, call_in_context, give, new_handle};
use crate::streams::Work;
use cudarc::driver::sys::{
    CUdevice, CUdeviceptr, CUmemPool_attribute as PoolAttribute, CUmemoryPool, CUresult, CUstream,
};
use reattention_cuda::driver::{Address, CudaError, Driver, Pinned};
use std::collections::BTreeMap;
use std::ffi::c_void;

/// Reservations of the pool are multiples of this, in bytes.
const RESERVED: usize = 2 << 20;

/// What is taken.
pub(crate) struct Memory {
    blocks: BTreeMap<Address, Block>,
    /// By the host's address: bytes, and both addresses.
    pinned: BTreeMap<Address, (usize, Pinned)>,
    total: usize,
    /// Bytes taken beside the pool.
    direct: usize,
    pub(crate) pool: Pool,
}

// SAFETY: the addresses of pinned memory are handed out and compared; who uses the memory answers for it.
unsafe impl Send for Memory {}

#[derive(Clone, Copy)]
struct Block {
    bytes: usize,
    pooled: bool,
    /// Given back, in the order of a stream that has not come there yet.
    going: bool,
}

/// The device's default pool: what is given back is kept in pieces.
pub(crate) struct Pool {
    handle: usize,
    threshold: u64,
    reserved: usize,
    used: usize,
    /// Pieces of reservations that are not in use. They are never joined, so that memory may lie in pieces too small.
    pieces: Vec<usize>,
}

/// Where a range of memory lies.
enum Place {
    /// Memory of the device, or pinned memory, by the device's address.
    Device {
        at: Address,
        pinned: bool,
    },
    Host,
}

impl Memory {
    pub(crate) fn new(settings: &Settings) -> Self {
        let pool = Pool { handle: new_handle(), threshold: 0, reserved: 0, used: 0, pieces: Vec::new() };
        Self { blocks: BTreeMap::new(), pinned: BTreeMap::new(), total: settings.memory, direct: 0, pool }
    }

    /// Blocks of the device and of pinned memory that were not given back.
    pub(crate) fn left(&self) -> (usize, usize) {
        (self.blocks.len(), self.pinned.len())
    }

    /// A stream has come to where this was given back.
    pub(crate) fn freed(&mut self, at: Address) {
        self.blocks.remove(&at);
    }

    /// What the pool holds beyond its threshold goes back to the system when somebody waits.
    pub(crate) fn pool_after_wait(&mut self) {
        let threshold = usize::try_from(self.pool.threshold).unwrap_or(usize::MAX);
        self.pool.trim(threshold);
    }

    fn free_bytes(&self) -> usize {
        self.total - self.pool.reserved - self.direct
    }

    /// A range that a call names: within one block, or of the host.
    fn place(&self, at: Address, bytes: usize) -> Answer<Place> {
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        if at < 4096 {
            return Err(invalid);
        }
        let within = |start: Address, len: usize| {
            let from = (at - start) as usize;
            (from < len).then(|| if from + bytes <= len { Ok(()) } else { Err(invalid) })
        };
        if let Some((&start, block)) = self.blocks.range(..=at).next_back()
            && let Some(fits) = within(start, block.bytes)
        {
            return if block.going {
                Err(invalid)
            } else {
                fits.map(|()| Place::Device { at, pinned: false })
            };
        }
        for (&host, &(len, pinned)) in &self.pinned {
            for start in [host, pinned.device] {
                if at >= start
                    && let Some(fits) = within(start, len)
                {
                    return fits.map(|()| Place::Device { at: pinned.device + (at - start), pinned: true });
                }
            }
        }
        Ok(Place::Host)
    }

    /// Whether the device may use the range at this address.
    pub(crate) fn is_taken(&self, at: Address, bytes: usize) -> bool {
        matches!(self.place(at, bytes), Ok(Place::Device { at: there, .. }) if there == at)
    }

    fn check_pool(&mut self, pool: CUmemoryPool) -> Answer<&mut Pool> {
        let pool = pool as usize;
        (pool == self.pool.handle).then_some(&mut self.pool).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }
}

impl Pool {
    fn take(&mut self, bytes: usize, free: usize) -> bool {
        let fitting = (0..self.pieces.len()).filter(|&i| self.pieces[i] >= bytes);
        let piece = match fitting.min_by_key(|&i| self.pieces[i]) {
            Some(i) => self.pieces.swap_remove(i),
            None => {
                let new = bytes.next_multiple_of(RESERVED);
                if new > free {
                    return false;
                }
                self.reserved += new;
                new
            }
        };
        if piece > bytes {
            self.pieces.push(piece - bytes);
        }
        self.used += bytes;
        true
    }

    fn trim(&mut self, keep: usize) {
        while self.reserved > keep {
            let Some(piece) = self.pieces.pop() else { return };
            self.reserved -= piece;
        }
    }
}

/// What a block counts for.
fn charge(bytes: usize) -> Answer<usize> {
    bytes.checked_next_multiple_of(256).filter(|&b| b > 0).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

fn alloc(context: &mut Context, bytes: usize, pooled: bool) -> Answer<Address> {
    let charged = charge(bytes)?;
    let out = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    let free = context.memory.free_bytes();
    if charged > context.memory.total || !pooled && charged > free {
        return Err(out);
    }
    if pooled && !context.memory.pool.take(charged, free) {
        return Err(out);
    }
    let mut taken = context.emulator.alloc(bytes);
    if matches!(taken, Err(CudaError::OutOfMemory { .. })) {
        // What was given back in the order of a stream is used again in the same order.
        context.drain_all()?;
        taken = context.emulator.alloc(bytes);
    }
    let at = taken.map_err(|_| out)?;
    if !pooled {
        context.memory.direct += charged;
    }
    context.memory.blocks.insert(at, Block { bytes, pooled, going: false });
    Ok(at)
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(at: *mut CUdeviceptr, bytes: usize) -> CUresult {
    call_in_context(|context| {
        let taken = alloc(context, bytes, false)?;
        // SAFETY: the caller's promise.
        unsafe { give(at, taken) }
    })
}

/// Driver API: taken from the device's default pool.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(at: *mut CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult {
    call_in_context(|context| {
        if !context.settings.pools {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        context.check_stream(stream as usize)?;
        let taken = alloc(context, bytes, true)?;
        // SAFETY: the caller's promise.
        unsafe { give(at, taken) }
    })
}

/// Driver API: at once, also memory of a pool.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFree_v2(at: CUdeviceptr) -> CUresult {
    call_in_context(|context| {
        let block = context.memory.blocks.get(&at).copied().filter(|block| !block.going);
        let block = block.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        context.memory.freed(at);
        let charged = charge(block.bytes)?;
        if block.pooled {
            context.memory.pool.used -= charged;
            context.memory.pool.pieces.push(charged);
        } else {
            context.memory.direct -= charged;
        }
        // SAFETY: the caller has given it back; work that still names it is refused by the emulator.
        unsafe { context.emulator.free(at) };
        Ok(())
    })
}

/// Driver API: in the order of the stream, memory of a pool only.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeAsync(at: CUdeviceptr, stream: CUstream) -> CUresult {
    call_in_context(|context| {
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        context.check_stream(stream as usize)?;
        let block = context.memory.blocks.get_mut(&at).filter(|block| block.pooled && !block.going);
        let block = block.ok_or(invalid)?;
        block.going = true;
        let charged = charge(block.bytes)?;
        context.memory.pool.used -= charged;
        context.memory.pool.pieces.push(charged);
        context.push(stream as usize, Work::Free(at))
    })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    call_in_context(|context| {
        // SAFETY: the caller's promise.
        unsafe {
            give(free, context.memory.free_bytes())?;
            give(total, context.memory.total)
        }
    })
}

/// Driver API: flags are PORTABLE (1), DEVICEMAP (2) and WRITECOMBINED (4).
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(host: *mut *mut c_void, bytes: usize, flags: u32) -> CUresult {
    call_in_context(|context| {
        if bytes == 0 || flags > 7 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let taken = context.emulator.alloc_pinned(bytes);
        let taken = taken.map_err(|_| CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        context.memory.pinned.insert(taken.host as Address, (bytes, taken));
        // SAFETY: the caller's promise.
        unsafe { give(host, taken.host.cast()) }
    })
}

/// Driver API: at once.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(host: *mut c_void) -> CUresult {
    call_in_context(|context| {
        let taken = context.memory.pinned.remove(&(host as Address));
        let (_, taken) = taken.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: the caller has given it back; work that still names it is refused by the emulator.
        unsafe { context.emulator.free_pinned(taken) };
        Ok(())
    })
}

/// Driver API: flags must be 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    device: *mut CUdeviceptr,
    host: *mut c_void,
    flags: u32,
) -> CUresult {
    call_in_context(|context| {
        let found = context.memory.pinned.get(&(host as Address)).filter(|_| flags == 0);
        let (_, found) = found.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: the caller's promise.
        unsafe { give(device, found.device) }
    })
}

/// Driver API: needs no context on the thread, but here there is a pool only while there is a context.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut CUmemoryPool, device: CUdevice) -> CUresult {
    call(|state| {
        if !state.settings.pools {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        if device != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
        }
        let context = state.context.as_ref().ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        // SAFETY: the caller's promise.
        unsafe { give(pool, context.memory.pool.handle as CUmemoryPool) }
    })
}

/// Driver API, for the attributes that are a `cuuint64_t`.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolGetAttribute(
    pool: CUmemoryPool,
    attribute: PoolAttribute,
    value: *mut c_void,
) -> CUresult {
    call_in_context(|context| {
        let pool = context.memory.check_pool(pool)?;
        let found = match attribute {
            PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD => pool.threshold,
            PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT => pool.reserved as u64,
            PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT => pool.used as u64,
            _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        };
        // SAFETY: the caller's promise.
        unsafe { give(value.cast(), found) }
    })
}

/// Driver API, for the threshold.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolSetAttribute(
    pool: CUmemoryPool,
    attribute: PoolAttribute,
    value: *mut c_void,
) -> CUresult {
    call_in_context(|context| {
        let pool = context.memory.check_pool(pool)?;
        if attribute != PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD || value.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise: this attribute is a u64.
        pool.threshold = unsafe { value.cast::<u64>().read() };
        Ok(())
    })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolTrimTo(pool: CUmemoryPool, keep: usize) -> CUresult {
    call_in_context(|context| {
        // What is on its way back is not back yet.
        if !context.memory.blocks.values().any(|block| block.going) {
            context.memory.check_pool(pool)?.trim(keep);
        }
        context.memory.check_pool(pool).map(drop)
    })
}

/// Driver API. Copies to and from plain memory of the host are done when the call comes back, which the driver may do as well
/// as not; all others wait. Copies between plain memory and plain memory, which the driver does, are refused: nobody here
/// means them.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyAsync(
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    call_in_context(|context| {
        let stream = stream as usize;
        context.check_stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let places = (context.memory.place(from, bytes)?, context.memory.place(to, bytes)?);
        let at_once = |error: CudaError| format!("copying: {error}");
        match places {
            (Place::Device { at: from, .. }, Place::Device { at: to, .. }) => {
                context.push_run(stream, move |emulator| {
                    // SAFETY: the caller promises memory that stays until the copy; the emulator checks it.
                    unsafe { emulator.copy(from, to, bytes) }.map_err(at_once)
                })
            }
            (Place::Host, Place::Device { at: to, .. }) => {
                context.push_run(stream, move |emulator| {
                    // SAFETY: the caller promises readable memory; the stream is drained before the call comes back.
                    let data = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
                    // SAFETY: as above.
                    unsafe { emulator.upload(data, to) }.map_err(at_once)
                })?;
                context.drain(stream, None)
            }
            (Place::Device { at: from, .. }, Place::Host) => {
                context.push_run(stream, move |emulator| {
                    // SAFETY: the caller promises writable memory; the stream is drained before the call comes back.
                    let data = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
                    // SAFETY: as above.
                    unsafe { emulator.download(from, data) }.map_err(at_once)
                })?;
                context.drain(stream, None)
            }
            (Place::Host, Place::Host) => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        }
    })
}

/// Driver API.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8Async(at: CUdeviceptr, value: u8, bytes: usize, stream: CUstream) -> CUresult {
    call_in_context(|context| {
        let stream = stream as usize;
        context.check_stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let Place::Device { at, pinned: false } = context.memory.place(at, bytes)? else {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        };
        context.push_run(stream, move |emulator| {
            // SAFETY: the range was taken when the call came; the emulator checks that it still is.
            unsafe {
                emulator.clear(at, bytes).map_err(|error| format!("setting memory: {error}"))?;
                (at as *mut u8).write_bytes(value, bytes);
            }
            Ok(())
        })
    })
}
