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
        write!(f, "a matrix of {} x {} needs {} elements, got {}", self.rows, self.cols, self.rows * self.cols, self.len)
    }
}

impl std::error::Error for MatrixError {}

impl Matrix {
    /// A matrix from its elements.
    ///
    /// # Errors
    /// When there are not exactly `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, data: MatrixData) -> Result<Self, MatrixError> {
        let len = match &data {
            MatrixData::F32(d) => d.len(),
            MatrixData::F16(d) => d.len(),
            MatrixData::Bf16(d) => d.len(),
        };
        if rows.checked_mul(cols) != Some(len) {
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
        let element = match self.data {
            MatrixData::F32(_) => 4,
            MatrixData::F16(_) | MatrixData::Bf16(_) => 2,
        };
        self.rows * self.cols * element
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_wrong_element_count() {
        let error = Matrix::new(2, 3, MatrixData::F32(Buffer::zeroed(5))).unwrap_err();
        assert_eq!(error.to_string(), "a matrix of 2 x 3 needs 6 elements, got 5");
        assert!(Matrix::new(usize::MAX, 2, MatrixData::F32(Buffer::zeroed(0))).is_err());
    }
}
