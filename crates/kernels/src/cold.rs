//! Cached keys and values on disk: read-only maps of an unlinked temporary file, which the system reads back when they are
//! looked at.
//!
//! What goes there is written, not stored through a map, so that a full disk is an error and not a signal.

use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Extents start and end at multiples of this, which is a multiple of every system's page. It is also what Linux maps around
/// a page that is looked at, so what is to leave memory is rounded to it.
const AROUND: usize = 1 << 16;

/// The disk did not take what was to go there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot write {bytes} bytes of keys and values to the temporary file in {} (it holds {held}): {reason}; free space there, set TMPDIR to another folder, or keep them in memory",
    folder.display()
)]
pub struct ColdError {
    /// Where the file lies.
    pub folder: PathBuf,
    /// What was to be written, in bytes.
    pub bytes: usize,
    /// What the file holds already, in bytes.
    pub held: u64,
    /// What the system said.
    pub reason: String,
}

/// A temporary file without a name: it goes when the last of its extents does, whatever happens to the process.
#[derive(Debug)]
pub struct ColdFile {
    folder: PathBuf,
    file: Option<File>,
    len: u64,
    /// Extents that nobody holds any more, as start and length.
    free: Arc<Mutex<Vec<(u64, usize)>>>,
}

impl Default for ColdFile {
    fn default() -> Self {
        Self { folder: std::env::temp_dir(), file: None, len: 0, free: Arc::default() }
    }
}

impl ColdFile {
    /// Bytes of disk it takes.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// What comes into memory around a byte that is looked at, at most, in bytes.
    pub const AROUND: usize = AROUND;

    /// Bytes of disk that an extent of `bytes` bytes takes.
    pub fn extent_bytes(bytes: usize) -> usize {
        bytes.next_multiple_of(AROUND)
    }

    /// Writes `parts` one after the other, and maps them.
    ///
    /// # Errors
    /// When the file cannot be made, written or mapped.
    pub fn write(&mut self, parts: &[&[u8]]) -> Result<Arc<Extent>, ColdError> {
        let (bytes, held) = (parts.iter().map(|p| p.len()).sum(), self.len);
        self.try_write(parts, bytes).map_err(|error| {
            let reason = error.to_string();
            ColdError { folder: self.folder.clone(), bytes, held, reason }
        })
    }

    fn try_write(&mut self, parts: &[&[u8]], bytes: usize) -> io::Result<Arc<Extent>> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.folder)?),
        };
        let len = Self::extent_bytes(bytes);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let reused = free.iter().position(|e| e.1 == len).map(|i| free.swap_remove(i).0);
        drop(free);
        let start = match reused {
            Some(start) => start,
            None => {
                let (start, end) = (self.len, self.len + len as u64);
                file.set_len(end)?;
                self.len = end;
                start
            }
        };
        // Only of what the file has; should writing fail, the place is free again.
        let place = Place { start, len, free: Arc::clone(&self.free) };
        file.seek(SeekFrom::Start(start))?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        // SAFETY: nobody else can open the file, which has no name; it never shrinks, no two places overlap (a new one begins
        // where the file ended), and an extent that is mapped is not written again, since its place is only free once the map
        // is gone.
        let map = unsafe { MmapOptions::new().offset(start).len(bytes).map(&*file)? };
        Ok(Arc::new(Extent { map, _place: place }))
    }
}

/// Bytes that were written to a [`ColdFile`], readable like memory.
#[derive(Debug)]
pub struct Extent {
    /// Dropped before its place is free.
    map: Mmap,
    _place: Place,
}

#[derive(Debug)]
struct Place {
    start: u64,
    len: usize,
    free: Arc<Mutex<Vec<(u64, usize)>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push((self.start, self.len));
    }
}

impl Extent {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets `len` bytes from `start` on leave memory, and what the system has read around them.
    pub(crate) fn forget(&self, start: usize, len: usize) {
        // What is read around a byte is aligned in memory, not in the file.
        let base = self.map.as_ptr() as usize;
        let from = ((base + start) / AROUND * AROUND).saturating_sub(base);
        let to = ((base + start + len).next_multiple_of(AROUND) - base).min(self.map.len());
        #[cfg(unix)]
        if from < to {
            // SAFETY: the map is read-only and shared, so its pages are the file's and come back unchanged when looked at.
            let told = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from)
            };
            // Advice that is not taken costs memory, nothing else.
            drop(told);
        }
        #[cfg(not(unix))]
        let _ = (from, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffer;

    #[test]
    fn buffers_on_disk_read_what_was_written_before_and_after_they_are_forgotten() {
        let mut file = ColdFile::default();
        let numbers: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
        let extent =
            file.write(&[bytemuck::cast_slice(&numbers), bytemuck::cast_slice(&numbers[..16])]).unwrap();
        let first = Buffer::<f32>::cold(&extent, 0, numbers.len());
        let second = Buffer::<f32>::cold(&extent, 400_000, 16);
        assert!(first.is_cold() && !Buffer::from_slice(&first).is_cold());
        for _ in 0..2 {
            assert!(first[..] == numbers[..] && second[..] == numbers[..16]);
            first.forget(10_000..90_000);
        }
        assert_eq!(file.bytes(), ColdFile::extent_bytes(400_064) as u64);
    }

    #[test]
    fn the_place_of_what_is_gone_is_used_again() {
        let mut file = ColdFile::default();
        let data = vec![7u8; 100_000];
        let first = file.write(&[&data]).unwrap();
        let second = file.write(&[&data]).unwrap();
        let bytes = file.bytes();
        drop(first);
        let third = file.write(&[&vec![9u8; 100_000]]).unwrap();
        assert_eq!(file.bytes(), bytes);
        assert!(second.bytes().iter().all(|b| *b == 7) && third.bytes().iter().all(|b| *b == 9));
    }

    /// A file that cannot be made longer, as under a quota, leaves nothing behind that a later extent could lie in.
    #[test]
    fn an_extent_that_could_not_be_made_is_no_place_for_another() {
        let full = |byte: u8, n: usize| vec![byte; n];
        let mut file = ColdFile::default();
        let first = file.write(&[&full(1, 70_000)]).unwrap();
        let held = file.bytes();
        let named = tempfile::NamedTempFile::new().unwrap();
        let good = file.file.replace(File::open(named.path()).unwrap());
        let error = file.write(&[&full(2, 70_000)]).unwrap_err();
        assert_eq!((error.bytes, error.held, file.bytes()), (70_000, held, held));
        file.file = good;
        let more: Vec<_> = (3..8).map(|byte| file.write(&[&full(byte, 70_000)]).unwrap()).collect();
        assert!(first.bytes() == full(1, 70_000));
        for (extent, byte) in more.iter().zip(3..) {
            assert!(extent.bytes() == full(byte, 70_000), "extent {byte} was written over");
        }
        assert_eq!(file.bytes(), 6 * ColdFile::extent_bytes(70_000) as u64);
    }

    #[test]
    fn a_folder_that_does_not_exist_is_named() {
        let mut file = ColdFile { folder: "/nowhere/at/all".into(), ..ColdFile::default() };
        let error = file.write(&[&[1, 2, 3]]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all") && error.contains("TMPDIR"), "{error}");
    }
}
