//! Memory for many buffers of a long context, in huge pages where the system has them.
//!
//! What a search looks up lies scattered over all of it: with small pages, finding out where a page lies often takes longer
//! than reading from it.

use crate::Buffer;
use memmap2::MmapMut;
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory of a huge page, which starts at a multiple of it, and of a slab.
const HUGE: usize = 2 << 20;
const SLAB: usize = 4 * HUGE;

/// Buffers start at multiples of this.
const ALIGN: usize = 64;

/// Gives out buffers, one after another from slabs of 8 MiB. A slab goes back to the system with the last of its buffers.
#[derive(Debug, Default)]
pub struct Arena {
    slab: Option<Arc<Slab>>,
    /// Bytes of the slab that were given out.
    used: usize,
}

/// Zeroed memory that buffers share.
#[derive(Debug)]
pub struct Slab {
    start: NonNull<u8>,
    _map: MmapMut,
}

// SAFETY: the pointer leads into the map, which the slab owns; only buffers reach its memory, each a part of its own.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Arena {
    /// `len` zeros. What no slab can hold, or the system has no slab for, is allocated on its own.
    ///
    /// # Panics
    /// As [`Buffer::zeroed`] does.
    pub fn zeroed<T: bytemuck::Pod>(&mut self, len: usize) -> Buffer<T> {
        let bytes = Buffer::<T>::layout(len).size().next_multiple_of(ALIGN);
        if bytes > SLAB || bytes == 0 || align_of::<T>() > ALIGN {
            return Buffer::zeroed(len);
        }
        let slab = match &self.slab {
            Some(slab) if self.used + bytes <= SLAB => slab,
            _ => match Slab::new() {
                Some(slab) => {
                    self.used = 0;
                    self.slab.insert(Arc::new(slab))
                }
                None => return Buffer::zeroed(len),
            },
        };
        // SAFETY: within the slab, whose start is aligned, as `used` and `bytes` are multiples of `ALIGN`; every byte is given
        // out once, and was zeroed by the system.
        let buffer = unsafe { Buffer::in_slab(slab, slab.start.add(self.used), len) };
        self.used += bytes;
        buffer
    }
}

impl Slab {
    /// `None` where the system gives no memory that way.
    fn new() -> Option<Self> {
        // Of what is mapped beyond the slab nothing is ever touched.
        let mut map = MmapMut::map_anon(SLAB + HUGE).ok()?;
        #[cfg(target_os = "linux")]
        // Advice that is not taken costs time, nothing else.
        let _ = map.advise(memmap2::Advice::HugePage);
        let before = (map.as_ptr() as usize).next_multiple_of(HUGE) - map.as_ptr() as usize;
        let start = NonNull::from(&mut map[before..before + SLAB]).cast();
        Some(Self { start, _map: map })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_apart_and_outlive_the_arena() {
        let mut arena = Arena::default();
        let lens = [1, 1000, 600_000, 0, 1_200_000, 1_200_000, 3_000_000, 17];
        let mut buffers: Vec<Buffer<u32>> = lens.iter().map(|&len| arena.zeroed(len)).collect();
        drop(arena);
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.len() == lens[i] && buffer.iter().all(|&x| x == 0), "buffer {i}");
            assert!(buffer.is_empty() || (buffer.as_ptr() as usize).is_multiple_of(ALIGN));
            buffer.fill(i as u32);
        }
        let kept: Vec<_> = buffers.into_iter().enumerate().filter(|b| b.0 % 2 == 1).collect();
        assert!(kept.iter().all(|(i, buffer)| buffer.iter().all(|x| x == &(*i as u32))));
    }
}
