//! candle's product with weights in blocks of few bits, to measure the backend's beside. Nothing else multiplies with it: it
//! runs on threads of its own.

use candle_core::quantized::GgmlDType;
use reattention_kernels::BlockType;
use reattention_kernels::bench::Product;
use std::borrow::Cow;

/// candle's product with weights in blocks: see [`reattention_kernels::bench::Peer`]. It runs on as many threads as
/// `CANDLE_NUM_THREADS` says, or on all. `None` for types that candle does not know.
///
/// # Panics
/// The product panics if `x` or `y` has not the announced size.
pub fn candle_product(
    kind: BlockType,
    [rows, inputs, outputs]: [usize; 3],
    blocks: &[u8],
) -> Option<Product> {
    let blocks = candle_type(kind)?.from_data(Cow::Borrowed(blocks));
    Some(Box::new(move |x, y| {
        blocks.matmul_t((rows, inputs, outputs), x, y).expect("lengths of a quantised product")
    }))
}

/// candle's name of a type of blocks.
pub(crate) fn candle_type(kind: BlockType) -> Option<GgmlDType> {
    Some(match kind {
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2K => GgmlDType::Q2K,
        BlockType::Q3K => GgmlDType::Q3K,
        BlockType::Q4K => GgmlDType::Q4K,
        BlockType::Q5K => GgmlDType::Q5K,
        BlockType::Q6K => GgmlDType::Q6K,
        BlockType::Iq4Nl | BlockType::Iq4Xs | BlockType::Mxfp4 | BlockType::Nvfp4 => return None,
        BlockType::Tq1_0 | BlockType::Tq2_0 | BlockType::Q1_0 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::CpuStorage;
    use reattention_kernels::{Buffer, Matrix, MatrixData};

    /// Blocks that candle quantised, and random ones: both decode to the same bits here and there.
    #[test]
    fn the_backend_decodes_blocks_as_candle_does() {
        let (rows, cols) = (3, 512);
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let mut compared = 0;
        for kind in BlockType::ALL {
            let Some(dtype) = candle_type(kind) else { continue };
            assert_eq!((kind.len(), kind.bytes()), (dtype.block_size(), dtype.type_size()), "{dtype:?}");
            let values: Vec<f32> = (0..rows * cols).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect();
            let values = candle_core::Tensor::from_vec(values, (rows, cols), &candle_core::Device::Cpu);
            let quantised = candle_core::quantized::QTensor::quantize(&values.unwrap(), dtype).unwrap();
            // Without the largest exponents in half-precision numbers.
            let random = (0..kind.row_bytes(cols).unwrap() * rows).map(|_| next() as u8 & 0xbb).collect();
            for bytes in [quantised.data().unwrap().into_owned(), random] {
                let theirs = dtype.from_data(Cow::Borrowed(&bytes[..]));
                let ours = MatrixData::Blocks(kind, Buffer::from_slice(&bytes));
                let ours = Matrix::new(rows, cols, ours).unwrap();
                let ids: Vec<u32> = (0..rows as u32).collect();
                let Ok(CpuStorage::F32(want)) = theirs.embedding(&ids, rows, cols) else {
                    panic!("{dtype:?}")
                };
                let mut got = vec![0.0; cols];
                for (row, want) in want.chunks_exact(cols).enumerate() {
                    ours.copy_row(row, &mut got);
                    assert!(got == want, "{dtype:?}, row {row}: {got:?}, expected {want:?}");
                }
            }
            compared += 1;
        }
        assert_eq!(compared, 10);
    }
}
