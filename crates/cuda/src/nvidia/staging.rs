//! Copies from the host whose source may change at once.
//!
//! What the driver does with memory that is not pinned depends on its version and the machine: it may wait for all work, and
//! memory that happens to be pinned is read later. Through pinned memory of our own no copy waits for the device unless it
//! outruns the link, and none reads the caller's memory after the call.

use super::queue::{Event, Queue};
use crate::driver::{Address, CudaError, Pinned};
use std::sync::Arc;

/// Bytes of each half: large enough to keep the link busy, small beside a model.
const HALF: usize = 4 << 20;

/// Pinned memory in two halves: one is filled while the other is on its way.
#[derive(Debug)]
pub(super) struct Staging {
    queue: Arc<Queue>,
    memory: Pinned,
    /// Stand after the last copy from each half.
    left: [Event; 2],
    /// The half in use, and how much of it is.
    half: usize,
    used: usize,
}

// SAFETY: the memory belongs to this alone, and pinned memory may be used from every thread.
unsafe impl Send for Staging {}

impl Staging {
    pub(super) fn new(queue: &Arc<Queue>) -> Result<Self, CudaError> {
        queue.bind()?;
        let left = [Event::new()?, Event::new()?];
        let memory = queue.alloc_pinned(2 * HALF)?;
        Ok(Self { queue: Arc::clone(queue), memory, left, half: 0, used: 0 })
    }

    /// # Safety
    /// `data.len()` bytes at `to` are taken.
    pub(super) unsafe fn upload(&mut self, data: &[u8], to: Address) -> Result<(), CudaError> {
        for (i, part) in data.chunks(HALF).enumerate() {
            if part.len() > HALF - self.used {
                self.turn()?;
            }
            let at = self.half * HALF + self.used;
            // SAFETY: `at + part.len()` lies within the half, and copies out of this half have ended before it was taken into
            // use again. The caller promises the target.
            unsafe {
                let host = self.memory.host.add(at);
                host.copy_from_nonoverlapping(part.as_ptr(), part.len());
                self.queue.copy(host as Address, to + (i * HALF) as u64, part.len())?;
            }
            // The next copy starts on a boundary of its own, which copies are faster from.
            self.used = (self.used + part.len()).next_multiple_of(256);
        }
        Ok(())
    }

    /// Takes the other half into use, once what lies in it has been copied.
    fn turn(&mut self) -> Result<(), CudaError> {
        self.left[self.half].record(&self.queue)?;
        self.half = 1 - self.half;
        self.left[self.half].wait()?;
        self.used = 0;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: the memory comes from this queue, and nobody else knows it.
        unsafe { self.queue.free_pinned(self.memory) };
    }
}
