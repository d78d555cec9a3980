//! Memory aligned to cache lines, zeroed by the operating system when it is first touched, or read-only and on disk.

use crate::{Extent, Slab};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

const ALIGN: usize = 64;

/// A fixed-length array on a 64-byte boundary, so that no vector load crosses a cache line it need not cross.
pub struct Buffer<T: bytemuck::Pod> {
    ptr: NonNull<T>,
    len: usize,
    owner: Owner,
}

/// Whose the memory of a buffer is.
enum Owner {
    /// The buffer's own.
    Buffer,
    /// Shared with other buffers that lie elsewhere in it.
    Slab(#[allow(dead_code, reason = "held")] Arc<Slab>),
    /// On disk, and read-only.
    Extent(Arc<Extent>),
}

// SAFETY: a `Buffer` owns its memory exclusively, as `Vec` does, or shares what nobody writes; `Pod` types carry no shared
// state.
unsafe impl<T: bytemuck::Pod + Send> Send for Buffer<T> {}
// SAFETY: as above; `&Buffer` only gives out `&[T]`.
unsafe impl<T: bytemuck::Pod + Sync> Sync for Buffer<T> {}

impl<T: bytemuck::Pod> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// If `len` elements exceed `isize::MAX` bytes. Aborts, as `Vec` does, when memory is exhausted.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self { ptr: NonNull::dangling(), len, owner: Owner::Buffer };
        }
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        match NonNull::new(raw.cast::<T>()) {
            Some(ptr) => Self { ptr, len, owner: Owner::Buffer },
            None => handle_alloc_error(layout),
        }
    }

    /// A copy of `data`.
    pub fn from_slice(data: &[T]) -> Self {
        let mut buffer = Self::zeroed(data.len());
        buffer.copy_from_slice(data);
        buffer
    }

    /// The `len` elements from byte `start` of `extent` on, read-only.
    ///
    /// # Panics
    /// If the extent is shorter, or the elements do not lie on a 64-byte boundary.
    pub fn cold(extent: &Arc<Extent>, start: usize, len: usize) -> Self {
        let bytes = &extent.bytes()[start..][..Self::layout(len).size()];
        assert!(
            (bytes.as_ptr() as usize).is_multiple_of(ALIGN),
            "byte {start} of an extent lies on no boundary"
        );
        let ptr = NonNull::from(bytes).cast();
        Self { ptr, len, owner: Owner::Extent(Arc::clone(extent)) }
    }

    /// `len` zeros in memory of `slab` that starts at `start` and belongs to no other buffer.
    ///
    /// # Safety
    /// The memory is readable and writable as long as `slab` lives, zeroed, on a 64-byte boundary, and nobody else's.
    pub(crate) unsafe fn in_slab(slab: &Arc<Slab>, start: NonNull<u8>, len: usize) -> Self {
        Self { ptr: start.cast(), len, owner: Owner::Slab(Arc::clone(slab)) }
    }

    /// Whether it lies on disk and can only be read.
    pub fn is_cold(&self) -> bool {
        matches!(self.owner, Owner::Extent(_))
    }

    /// Lets elements of a buffer on disk leave memory until they are looked at again; elsewhere does nothing.
    ///
    /// # Panics
    /// If `elements` are not all within the buffer.
    pub fn forget(&self, elements: Range<usize>) {
        if let Owner::Extent(extent) = &self.owner {
            let part = bytemuck::cast_slice::<T, u8>(&self[elements]);
            extent.forget(part.as_ptr() as usize - extent.bytes().as_ptr() as usize, part.len());
        }
    }

    pub(crate) fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).expect("buffer length overflows");
        Layout::from_size_align(bytes, ALIGN.max(align_of::<T>())).expect("buffer length overflows")
    }
}

impl<T: bytemuck::Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 && matches!(self.owner, Owner::Buffer) {
            // SAFETY: `ptr` came from `alloc_zeroed` with this very layout.
            unsafe { dealloc(self.ptr.as_ptr().cast(), layout) }
        }
    }
}

impl<T: bytemuck::Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `ptr` is aligned and points to `len` initialised elements (zeroed, or in the slab or extent that is held, and
        // any bytes are a valid `Pod`).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: bytemuck::Pod> DerefMut for Buffer<T> {
    /// # Panics
    /// If the buffer lies on disk.
    fn deref_mut(&mut self) -> &mut [T] {
        assert!(!self.is_cold(), "a buffer on disk can only be read");
        // SAFETY: as in `deref`, and `&mut self` is exclusive, the memory being the buffer's own.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: bytemuck::Pod> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer<{}>[{}]", std::any::type_name::<T>(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_holds_what_is_written() {
        for len in [0, 1, 7, 1000] {
            let mut b = Buffer::<f32>::zeroed(len);
            assert!(b.iter().all(|&x| x == 0.0));
            assert!(len == 0 || (b.as_ptr() as usize).is_multiple_of(64));
            for (i, x) in b.iter_mut().enumerate() {
                *x = i as f32;
            }
            assert_eq!(Buffer::from_slice(&b)[..], b[..]);
        }
    }
}
