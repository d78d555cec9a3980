//! Where bytes come from: a file on disk, or memory.

use super::{Element, Pieces};
use crate::ModelError;
use reattention_kernels::{Buffer, Matrix, MatrixData, bf16, f16};
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Random access to the bytes of one file.
///
/// Files are read at positions rather than mapped, so that the memory held is exactly what was asked for.
#[derive(Debug)]
pub struct Source {
    name: String,
    len: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Memory(Cow<'static, [u8]>),
}

impl Source {
    /// A file.
    ///
    /// # Errors
    /// As the operating system has them, or when a Git LFS pointer or a web page stands in the file's place.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
        }
        let source = Self { name: path.display().to_string(), len: metadata.len(), bytes: Bytes::File(file) };
        let mut head = vec![0; source.len.min(512) as usize];
        source.read_at(0, &mut head)?;
        match crate::files::stand_in(&head) {
            Some(what) => Err(io::Error::other(what)),
            None => Ok(source),
        }
    }

    /// Bytes in memory, for instance compiled into the program.
    pub fn memory(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        let bytes = bytes.into();
        Self { name: name.into(), len: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    /// Name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When they reach beyond the end, or the operating system fails.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &self.bytes {
            Bytes::File(file) => read_exact_at(file, out, offset),
            Bytes::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let end = start.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                out.copy_from_slice(bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// Reads the rows `pieces`, of `row_bytes` each, of a matrix that starts at `offset`, one after the other.
    pub(super) fn read_rows(
        &self,
        offset: u64,
        row_bytes: usize,
        pieces: &Pieces,
        out: &mut [u8],
    ) -> Result<(), ModelError> {
        let mut rest = out;
        for piece in pieces.ranges() {
            let (now, later) = rest.split_at_mut(piece.len() * row_bytes);
            let at = offset + (piece.start * row_bytes) as u64;
            self.read_at(at, now).map_err(ModelError::io(Path::new(&self.name)))?;
            rest = later;
        }
        Ok(())
    }

    /// The rows `pieces` of a dense matrix of `cols` columns, straight into aligned memory.
    pub(super) fn dense(
        &self,
        element: Element,
        offset: u64,
        cols: usize,
        pieces: &Pieces,
    ) -> Result<Arc<Matrix>, ModelError> {
        let data = match element {
            Element::F32 => MatrixData::F32(self.buffer::<f32>(offset, cols, pieces)?),
            Element::F16 => MatrixData::F16(self.buffer::<f16>(offset, cols, pieces)?),
            _ => MatrixData::Bf16(self.buffer::<bf16>(offset, cols, pieces)?),
        };
        let matrix = Matrix::new(pieces.rows(), cols, data);
        matrix.map(Arc::new).map_err(|e| ModelError::format(&self.name, "tensor", e.to_string()))
    }

    fn buffer<T: bytemuck::Pod>(
        &self,
        offset: u64,
        cols: usize,
        pieces: &Pieces,
    ) -> Result<Buffer<T>, ModelError> {
        let mut data = Buffer::<T>::zeroed(pieces.rows() * cols);
        self.read_rows(offset, cols * size_of::<T>(), pieces, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }
}

// Tensors are little-endian in both formats and are read without conversion.
#[cfg(target_endian = "big")]
compile_error!("big-endian machines are not supported");

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
