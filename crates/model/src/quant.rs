//! Quantised weight matrices of the types that the backend has no kernels for: Q4_1, Q5_1, Q2_K and Q3_K, multiplied by
//! candle's kernels or through dense panels. All others are [`reattention_kernels::BlockType`]s, read in place.
//!
//! candle's faster path keeps a second, repacked copy of the weights and is not taken, so that the memory held is that of
//! the file. Its products run on a pool of its own, which `CANDLE_NUM_THREADS` sizes, not on the backend's; the panels
//! run on the backend's.

use candle_core::CpuStorage;
use candle_core::quantized::{GgmlDType, QuantizedType};
use rayon::prelude::*;
use reattention_kernels::bench::Product;
use reattention_kernels::{Backend, BlockType, Buffer, Matrix, MatrixData, bf16};
use std::borrow::Cow;

/// A quantised matrix `[rows, cols]`, row-major; each row is a whole number of blocks.
pub struct QuantMatrix {
    rows: usize,
    cols: usize,
    blocks: Box<dyn QuantizedType>,
}

/// Weight rows unpacked at a time.
const PANEL_ROWS: usize = 512;

impl std::fmt::Debug for QuantMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuantMatrix<{:?}>[{}, {}]", self.dtype(), self.rows, self.cols)
    }
}

impl QuantMatrix {
    /// A matrix from the bytes of its blocks; `None` when they are not exactly `rows * cols` elements in whole blocks
    /// per row.
    pub(crate) fn from_bytes(dtype: GgmlDType, rows: usize, cols: usize, bytes: &[u8]) -> Option<Self> {
        let row_bytes = row_bytes(dtype, cols)?;
        (rows.checked_mul(row_bytes) == Some(bytes.len()) && rows > 0 && cols > 0).then(|| Self {
            rows,
            cols,
            blocks: dtype.from_data(Cow::Borrowed(bytes)),
        })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.blocks.storage_size_in_bytes()
    }

    pub(crate) fn dtype(&self) -> GgmlDType {
        self.blocks.dtype()
    }

    pub(crate) fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "row length");
        out.copy_from_slice(&self.unpack(row, 1));
    }

    pub(crate) fn forward(
        &self,
        backend: &dyn Backend,
        x: &[f32],
        rows: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        if rows >= self.panel_from() {
            return self.forward_by_panels(backend, x, rows, bias, y);
        }
        // The lengths are checked by the caller, so candle has nothing to refuse.
        self.blocks.matmul_t((rows, self.cols, self.rows), x, y).expect("lengths of a quantised product");
        if let Some(bias) = bias {
            y.chunks_exact_mut(self.rows).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
    }

    /// From this many input rows on, unpacking weights into dense panels costs less than block products: measured,
    /// blocks of 256 multiply several times faster than those of 32.
    fn panel_from(&self) -> usize {
        if self.blocks.block_size() >= 256 { 32 } else { 6 }
    }

    fn forward_by_panels(
        &self,
        backend: &dyn Backend,
        x: &[f32],
        rows: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let mut out = vec![0.0; rows * PANEL_ROWS.min(self.rows)];
        backend.install(&mut || {
            for first in (0..self.rows).step_by(PANEL_ROWS) {
                let n = PANEL_ROWS.min(self.rows - first);
                let panel = self.panel(first, n);
                let out = &mut out[..rows * n];
                backend.linear(x, rows, &panel, bias.map(|b| &b[first..first + n]), out);
                for (y, out) in y.chunks_exact_mut(self.rows).zip(out.chunks_exact(n)) {
                    y[first..first + n].copy_from_slice(out);
                }
            }
        });
    }

    /// Rows `first..first + n` in bf16.
    fn panel(&self, first: usize, n: usize) -> Matrix {
        let mut data = Buffer::<bf16>::zeroed(n * self.cols);
        data.par_chunks_exact_mut(self.cols).enumerate().for_each(|(i, row)| {
            let values = self.unpack(first + i, 1);
            row.iter_mut().zip(&values).for_each(|(b, &f)| *b = round(f));
        });
        Matrix::new(n, self.cols, MatrixData::Bf16(data)).expect("a panel has n * cols elements")
    }

    /// Rows `first..first + n` in f32.
    fn unpack(&self, first: usize, n: usize) -> Vec<f32> {
        let ids: Vec<u32> = (first..first + n).map(|r| r as u32).collect();
        match self.blocks.embedding(&ids, self.rows, self.cols) {
            Ok(CpuStorage::F32(values)) => values,
            _ => panic!("row {first} + {n} of {self:?}"),
        }
    }
}

/// The nearest bf16, ties to even, without the branches of `bf16::from_f32` that keep a loop from being vectorised. Blocks
/// hold no NaN but by damage, and one stays a NaN unless its mantissa is nearly full.
fn round(f: f32) -> bf16 {
    let bits = f.to_bits();
    bf16::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
}

/// The type of blocks the backend has kernels for.
pub(crate) fn block_type(dtype: GgmlDType) -> Option<BlockType> {
    Some(match dtype {
        GgmlDType::Q4_0 => BlockType::Q4_0,
        GgmlDType::Q5_0 => BlockType::Q5_0,
        GgmlDType::Q8_0 => BlockType::Q8_0,
        GgmlDType::Q4K => BlockType::Q4K,
        GgmlDType::Q5K => BlockType::Q5K,
        GgmlDType::Q6K => BlockType::Q6K,
        _ => return None,
    })
}

/// candle's product with weights in blocks, to measure the backend's beside: see [`reattention_kernels::bench::Peer`]. It
/// runs on as many threads as `CANDLE_NUM_THREADS` says, or on all.
///
/// # Panics
/// The product panics if `x` or `y` has not the announced size.
pub fn candle_product(kind: BlockType, [rows, inputs, outputs]: [usize; 3], blocks: &[u8]) -> Product {
    let dtype = match kind {
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q4K => GgmlDType::Q4K,
        BlockType::Q5K => GgmlDType::Q5K,
        BlockType::Q6K => GgmlDType::Q6K,
    };
    let blocks = dtype.from_data(Cow::Borrowed(blocks));
    Box::new(move |x, y| {
        blocks.matmul_t((rows, inputs, outputs), x, y).expect("lengths of a quantised product")
    })
}

/// Bytes of a row of `cols` elements; `None` when they are no whole number of blocks.
pub(crate) fn row_bytes(dtype: GgmlDType, cols: usize) -> Option<usize> {
    let block = dtype.block_size();
    cols.is_multiple_of(block).then(|| cols / block).and_then(|blocks| blocks.checked_mul(dtype.type_size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reattention_kernels::{Cpu, Reference};

    /// Even noise in -1..1.
    fn noise(len: usize) -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// Rows of noise in blocks, as candle quantises them.
    fn quantised(dtype: GgmlDType, rows: usize, cols: usize) -> Vec<u8> {
        let values =
            candle_core::Tensor::from_vec(noise(rows * cols), (rows, cols), &candle_core::Device::Cpu);
        let blocks = candle_core::quantized::QTensor::quantize(&values.unwrap(), dtype).unwrap();
        blocks.data().unwrap().into_owned()
    }

    #[test]
    fn the_backend_decodes_blocks_as_candle_does() {
        for dtype in [
            GgmlDType::Q4_0,
            GgmlDType::Q5_0,
            GgmlDType::Q8_0,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ] {
            let (rows, cols) = (3, 512);
            let bytes = quantised(dtype, rows, cols);
            let candle = QuantMatrix::from_bytes(dtype, rows, cols, &bytes).unwrap();
            let kind = block_type(dtype).unwrap();
            assert_eq!(kind.row_bytes(cols), row_bytes(dtype, cols), "{dtype:?}");
            let ours = Matrix::new(rows, cols, MatrixData::Blocks(kind, Buffer::from_slice(&bytes))).unwrap();
            let (mut want, mut got) = (vec![0.0; cols], vec![0.0; cols]);
            for row in 0..rows {
                candle.copy_row(row, &mut want);
                ours.copy_row(row, &mut got);
                for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                    assert!((g - w).abs() <= 1e-6, "{dtype:?}, row {row}: weight {i} is {g}, expected {w}");
                }
            }
        }
    }

    #[test]
    fn products_of_the_other_types_are_those_of_their_weights() {
        for dtype in [GgmlDType::Q4_1, GgmlDType::Q5_1, GgmlDType::Q2K, GgmlDType::Q3K] {
            assert_eq!(block_type(dtype), None);
            let (outputs, inputs) = (40, 512);
            let w =
                QuantMatrix::from_bytes(dtype, outputs, inputs, &quantised(dtype, outputs, inputs)).unwrap();
            let dense =
                Matrix::new(outputs, inputs, MatrixData::F32(Buffer::from_slice(&w.unpack(0, outputs))));
            let (dense, bias, cpu) = (dense.unwrap(), noise(outputs), Cpu::new(1).unwrap());
            for rows in [1, 3, 40] {
                let x = noise(rows * inputs);
                let (mut want, mut got) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
                Reference.linear(&x, rows, &dense, Some(&bias), &mut want);
                w.forward(&cpu, &x, rows, Some(&bias), &mut got);
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                // Outputs have a standard deviation of about 7; candle rounds the input to 8 bits, panels round to bf16.
                assert!(worst < 0.2, "{dtype:?}, {rows} rows: off by {worst}");
            }
        }
    }
}
