//! Memory that plays the device's: poisoned, watched at both ends.

use crate::pinned::Twice;
use reattention_cuda::driver::{Address, CudaError};
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

const BOUNDARY: usize = 256;
/// Bytes before a block that nobody may write.
const BEFORE: usize = 256;
/// Bytes behind it.
const BEHIND: usize = 1024;
/// What they hold: large numbers as bfloat16 and float, none as half, no index.
const GUARD: u8 = 0xfd;
/// What fresh memory holds: no number in any type of float.
const POISON: u8 = 0xff;

/// What is taken.
#[derive(Debug)]
pub(crate) struct Memory {
    blocks: BTreeMap<Address, Taken>,
    device: Limit,
    pinned: Limit,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    bytes: usize,
    /// Of pinned memory, with what nobody may write before it.
    pinned: Option<Twice>,
}

#[derive(Debug)]
struct Limit {
    what: &'static str,
    bytes: usize,
    taken: usize,
}

impl Memory {
    pub(crate) fn new(device: usize, pinned: usize) -> Self {
        Self {
            blocks: BTreeMap::new(),
            device: Limit { what: "device memory", bytes: device, taken: 0 },
            pinned: Limit { what: "pinned host memory", bytes: pinned, taken: 0 },
        }
    }

    pub(crate) fn free_bytes(&self) -> usize {
        self.device.bytes - self.device.taken
    }

    pub(crate) fn alloc(&mut self, bytes: usize, pinned: bool) -> Result<Address, CudaError> {
        assert!(bytes > 0, "a block of no bytes is asked for");
        let limit = if pinned { &mut self.pinned } else { &mut self.device };
        let (charged, free) = (bytes.next_multiple_of(BOUNDARY), limit.bytes - limit.taken);
        let refused = CudaError::OutOfMemory { what: limit.what, wanted: bytes, free };
        if charged > free {
            return Err(refused);
        }
        let twice = if pinned { Twice::map(layout(bytes).size()) } else { None };
        // SAFETY: the layout is not empty, and all that is written lies within it.
        let start = unsafe {
            let start = match twice {
                Some(twice) => twice.device,
                None if pinned => return Err(refused),
                None => alloc(layout(bytes)),
            };
            if start.is_null() {
                return Err(refused);
            }
            start.write_bytes(GUARD, BEFORE);
            start.add(BEFORE).write_bytes(POISON, bytes);
            start.add(BEFORE + bytes).write_bytes(GUARD, BEHIND);
            start.add(BEFORE)
        };
        limit.taken += charged;
        self.blocks.insert(start as Address, Taken { bytes, pinned: twice });
        Ok(start as Address)
    }

    /// Where the host sees pinned memory that the device sees there.
    pub(crate) fn host(&self, device: Address) -> Option<*mut u8> {
        Some(self.blocks.get(&device)?.pinned?.host.wrapping_add(BEFORE))
    }

    /// # Safety
    /// The block is not used any more.
    pub(crate) unsafe fn free(&mut self, at: Address, pinned: bool) {
        let damage = self.damage();
        match self.blocks.remove(&at) {
            Some(taken) if taken.pinned.is_some() == pinned => {
                let limit = if pinned { &mut self.pinned } else { &mut self.device };
                limit.taken -= taken.bytes.next_multiple_of(BOUNDARY);
                // SAFETY: it is in no list any more.
                unsafe { taken.give_back(at) };
            }
            _ => complain(&format!("{at:#x} is given back, but no such block (pinned: {pinned}) is taken")),
        }
        if let Err(text) = damage {
            complain(&text);
        }
    }

    /// Panics unless the range lies within one block.
    pub(crate) fn check(&self, what: &str, at: Address, bytes: usize) {
        let found = self.blocks.range(..=at).next_back();
        if let Some((start, taken)) = found
            && at + bytes as u64 <= start + taken.bytes as u64
        {
            return;
        }
        panic!("{what} of {bytes} bytes at {at:#x}: {}", describe(found));
    }

    /// Whether a kernel may be given this pointer: it points into a block, to its end, or nowhere.
    pub(crate) fn is_pointer(&self, at: Address) -> bool {
        let found = self.blocks.range(..=at).next_back();
        at == 0 || found.is_some_and(|(start, taken)| at <= start + taken.bytes as u64)
    }

    /// Whether all zones around blocks are as they were; after telling, they are again.
    pub(crate) fn damage(&self) -> Result<(), String> {
        for (&at, taken) in &self.blocks {
            // SAFETY: the zones belong to the block, which is taken; nobody else may touch them.
            let zones = unsafe {
                let start = at as *mut u8;
                [
                    (0, std::slice::from_raw_parts_mut(start.sub(BEFORE), BEFORE)),
                    (BEFORE + taken.bytes, std::slice::from_raw_parts_mut(start.add(taken.bytes), BEHIND)),
                ]
            };
            for (from, zone) in zones {
                if let Some(first) = zone.iter().position(|&x| x != GUARD) {
                    zone.fill(GUARD);
                    let byte = (from + first) as i64 - BEFORE as i64;
                    return Err(format!(
                        "byte {byte} of a block of {} bytes at {at:#x} was written",
                        taken.bytes
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let left = self.blocks.len();
        if left > 0 && !std::thread::panicking() {
            eprintln!("cuda-emulator: {left} blocks were never given back");
        }
        for (&at, taken) in &self.blocks {
            // SAFETY: the device is gone.
            unsafe { taken.give_back(at) };
        }
    }
}

impl Taken {
    /// # Safety
    /// The block stands at `at` and is not used any more.
    unsafe fn give_back(&self, at: Address) {
        let layout = layout(self.bytes);
        // SAFETY: it was taken with this layout.
        unsafe {
            match self.pinned {
                Some(twice) => twice.unmap(layout.size()),
                None => dealloc((at as *mut u8).sub(BEFORE), layout),
            }
        }
    }
}

fn layout(bytes: usize) -> Layout {
    let Ok(layout) = Layout::from_size_align(BEFORE + bytes + BEHIND, BOUNDARY) else {
        panic!("a block of {bytes} bytes is asked for")
    };
    layout
}

fn describe(found: Option<(&Address, &Taken)>) -> String {
    match found {
        None => "nothing is taken before it".into(),
        Some((start, taken)) => {
            format!("the last block that starts before it has {} bytes at {start:#x}", taken.bytes)
        }
    }
}

/// Panics, unless that would hide an earlier panic.
pub(crate) fn complain(text: &str) {
    if std::thread::panicking() {
        eprintln!("cuda-emulator: {text}");
    } else {
        panic!("{text}");
    }
}
