//! Pinned memory: the same bytes at an address of the host and at one of the device.

/// Where it starts, for the host and for the device. They differ where the system can do that, so that whoever takes one for the
/// other is found out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Twice {
    pub(crate) host: *mut u8,
    pub(crate) device: *mut u8,
}

// SAFETY: plain addresses; who uses the memory answers for it.
unsafe impl Send for Twice {}

#[cfg(target_os = "linux")]
impl Twice {
    /// On the boundary of a page; `len` is not zero.
    pub(crate) fn map(len: usize) -> Option<Self> {
        let map = |file| {
            let (reach, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            // SAFETY: the system chooses the address of a mapping that is new.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), len, reach, how, file, 0) };
            (at != libc::MAP_FAILED).then_some(at.cast::<u8>())
        };
        // SAFETY: the file has no name and is closed here; mappings keep its memory.
        unsafe {
            let file = libc::memfd_create(c"pinned".as_ptr(), libc::MFD_CLOEXEC);
            if file < 0 {
                return None;
            }
            let long_enough = libc::ftruncate(file, len as libc::off_t) == 0;
            let host = if long_enough { map(file) } else { None };
            let device = host.and_then(|_| map(file));
            libc::close(file);
            match (host, device) {
                (Some(host), Some(device)) => Some(Self { host, device }),
                (Some(host), None) => {
                    libc::munmap(host.cast(), len);
                    None
                }
                _ => None,
            }
        }
    }

    /// # Safety
    /// It comes from [`Self::map`] with this length and is not used any more.
    pub(crate) unsafe fn unmap(self, len: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            libc::munmap(self.host.cast(), len);
            libc::munmap(self.device.cast(), len);
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Twice {
    /// On a boundary of 256 bytes; `len` is not zero.
    pub(crate) fn map(len: usize) -> Option<Self> {
        let layout = std::alloc::Layout::from_size_align(len, 256).ok()?;
        // SAFETY: the layout is not empty.
        let at = unsafe { std::alloc::alloc(layout) };
        (!at.is_null()).then_some(Self { host: at, device: at })
    }

    /// # Safety
    /// It comes from [`Self::map`] with this length and is not used any more.
    pub(crate) unsafe fn unmap(self, len: usize) {
        if let Ok(layout) = std::alloc::Layout::from_size_align(len, 256) {
            // SAFETY: promised by the caller.
            unsafe { std::alloc::dealloc(self.host, layout) };
        }
    }
}
