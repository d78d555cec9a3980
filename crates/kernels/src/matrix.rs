//! Dense weight matrices in the type they were stored in.

use crate::{BlockType, Buffer};
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
    /// Blocks of few bits. Rows are whole blocks.
    Blocks(BlockType, Buffer<u8>),
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
    /// When there are not exactly `rows * cols` elements, or `cols` is no whole number of blocks.
    pub fn new(rows: usize, cols: usize, data: MatrixData) -> Result<Self, MatrixError> {
        let (len, block) = match &data {
            MatrixData::F32(d) => (d.len(), 1),
            MatrixData::F16(d) => (d.len(), 1),
            MatrixData::Bf16(d) => (d.len(), 1),
            MatrixData::Blocks(kind, d) if d.len() % kind.bytes() == 0 => {
                (d.len() / kind.bytes() * kind.len(), kind.len())
            }
            MatrixData::Blocks(kind, _) => (usize::MAX, kind.len()),
        };
        if rows.checked_mul(cols) != Some(len) || !cols.is_multiple_of(block) {
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
            MatrixData::Blocks(_, d) => d.len(),
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
            MatrixData::Blocks(kind, d) => {
                let row_bytes = self.cols / kind.len() * kind.bytes();
                let blocks = d[row * row_bytes..(row + 1) * row_bytes].chunks_exact(kind.bytes());
                blocks.zip(out.chunks_exact_mut(kind.len())).for_each(|(block, out)| kind.decode(block, out));
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
