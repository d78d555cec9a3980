//! Dense weight matrices in the type they were stored in.

use crate::Buffer;
use half::{bf16, f16};

/// The elements of a [`Matrix`].
#[derive(Debug)]
pub enum MatrixData {
    /// IEEE single precision.
    F32(Buffer<f32>),
    /// IEEE half precision.
    F16(Buffer<f16>),
    /// bfloat16.
    Bf16(Buffer<bf16>),
    /// GGML's Q8_0: blocks of 34 bytes, a little-endian half-precision scale and 32 signed bytes. Rows are whole blocks.
    Q8_0(Buffer<u8>),
}

/// Elements of a Q8_0 block.
pub(crate) const Q8_0_LEN: usize = 32;

/// Bytes of a Q8_0 block.
pub(crate) const Q8_0_BYTES: usize = 34;

/// The scale of a Q8_0 block.
#[inline(always)]
pub(crate) fn q8_0_scale(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

/// A weight matrix `[rows, cols]`, row-major: `rows` outputs, `cols` inputs.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: MatrixData,
}

/// The data do not have the announced shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixError {
    /// Rows announced.
    pub rows: usize,
    /// Columns announced.
    pub cols: usize,
    /// Elements given.
    pub len: usize,
}

impl std::fmt::Display for MatrixError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let needed = self.rows.saturating_mul(self.cols);
        write!(
            f,
            "a matrix of {} x {} needs {needed} elements in whole blocks, got {}",
            self.rows, self.cols, self.len
        )
    }
}

impl std::error::Error for MatrixError {}

impl Matrix {
    /// A matrix from its elements.
    ///
    /// # Errors
    /// When there are not exactly `rows * cols` elements, or, for blocks, `cols` is no multiple of 32.
    pub fn new(rows: usize, cols: usize, data: MatrixData) -> Result<Self, MatrixError> {
        let len = match &data {
            MatrixData::F32(d) => d.len(),
            MatrixData::F16(d) => d.len(),
            MatrixData::Bf16(d) => d.len(),
            MatrixData::Q8_0(d) if d.len() % Q8_0_BYTES == 0 => d.len() / Q8_0_BYTES * Q8_0_LEN,
            MatrixData::Q8_0(_) => usize::MAX,
        };
        let whole = !matches!(data, MatrixData::Q8_0(_)) || cols.is_multiple_of(Q8_0_LEN);
        if rows.checked_mul(cols) != Some(len) || !whole {
            return Err(MatrixError { rows, cols, len });
        }
        Ok(Self { rows, cols, data })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements, row-major.
    pub fn data(&self) -> &MatrixData {
        &self.data
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.data {
            MatrixData::F32(d) => size_of_val(&d[..]),
            MatrixData::F16(d) => size_of_val(&d[..]),
            MatrixData::Bf16(d) => size_of_val(&d[..]),
            MatrixData::Q8_0(d) => d.len(),
        }
    }

    /// Writes row `row` to `out: [cols]` in f32.
    ///
    /// # Panics
    /// If `row` is out of range or `out` is not `cols` long.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "row length");
        let range = row * self.cols..(row + 1) * self.cols;
        match &self.data {
            MatrixData::F32(d) => out.copy_from_slice(&d[range]),
            MatrixData::F16(d) => out.iter_mut().zip(&d[range]).for_each(|(o, x)| *o = x.to_f32()),
            MatrixData::Bf16(d) => out.iter_mut().zip(&d[range]).for_each(|(o, x)| *o = x.to_f32()),
            MatrixData::Q8_0(d) => {
                let row_bytes = self.cols / Q8_0_LEN * Q8_0_BYTES;
                let blocks = d[row * row_bytes..(row + 1) * row_bytes].chunks_exact(Q8_0_BYTES);
                for (block, out) in blocks.zip(out.chunks_exact_mut(Q8_0_LEN)) {
                    let scale = q8_0_scale(block);
                    out.iter_mut().zip(&block[2..]).for_each(|(o, &b)| *o = scale * f32::from(b as i8));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_wrong_element_count() {
        let error = Matrix::new(2, 3, MatrixData::F32(Buffer::zeroed(5))).unwrap_err();
        assert_eq!(error.to_string(), "a matrix of 2 x 3 needs 6 elements in whole blocks, got 5");
        assert!(Matrix::new(usize::MAX, 2, MatrixData::F32(Buffer::zeroed(0))).is_err());
    }
}
