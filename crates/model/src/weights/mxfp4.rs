//! Experts in MXFP4 as Hugging Face files hold them: 4-bit numbers in blocks of 32, each with a power of two, in two tensors
//! of bytes. The format is the OCP Microscaling specification's; that the lower half of a byte comes first is transformers'
//! (integrations/mxfp4.py).

use super::{Pieces, Slot, TensorStore};
use crate::ModelError;
use reattention_kernels::{Buffer, Matrix, MatrixData, bf16};
use std::sync::Arc;

/// Numbers that share a scale.
const BLOCK: usize = 32;

/// Twice the values of the 16 codes: sign, two bits of exponent, one of mantissa.
const DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Whether both tensors are there with the shapes that the slot's `[.., rows, cols]` implies.
pub(super) fn check(store: &dyn TensorStore, slot: &Slot) -> Result<(), ModelError> {
    if !slot.cols.is_multiple_of(BLOCK) {
        let reason = format!("`{}` has rows of {}, no whole number of blocks", slot.name, slot.cols);
        return Err(ModelError::format(store.name(), "MXFP4", reason));
    }
    let outer = &slot.shape[..slot.shape.len() - 1];
    let blocks = [outer, &[slot.cols / BLOCK, BLOCK / 2]].concat();
    let scales = [outer, &[slot.cols / BLOCK]].concat();
    for (end, expected) in [("_blocks", blocks), ("_scales", scales)] {
        let tensor = format!("{}{end}", slot.name);
        let file = || store.name().to_string();
        match store.find_bytes(&tensor) {
            Some(found) if found == expected => {}
            Some(found) => return Err(ModelError::TensorShape { file: file(), tensor, expected, found }),
            None => {
                let help = "; a tensor of bytes is expected".into();
                return Err(ModelError::TensorMissing { file: file(), tensor, help });
            }
        }
    }
    Ok(())
}

/// Name of the type that the rows are held in, bytes they take, and bytes to read them.
pub(super) fn name_bytes_scratch(pieces: &Pieces, cols: usize) -> (String, u64, u64) {
    let stored = (cols / 2 + cols / BLOCK) * pieces.span().len();
    ("bf16".into(), 2 * (pieces.rows() * cols) as u64, stored as u64)
}

/// The rows `pieces` of a slot that was checked. Every value is a bfloat16.
pub(super) fn matrix(
    store: &dyn TensorStore,
    slot: &Slot,
    pieces: &Pieces,
) -> Result<Arc<Matrix>, ModelError> {
    let span = pieces.span();
    let (per_row, cols) = (slot.cols / BLOCK, slot.cols);
    let blocks = store.bytes(&format!("{}_blocks", slot.name), cols / 2, span.clone())?;
    let scales = store.bytes(&format!("{}_scales", slot.name), per_row, span.clone())?;
    let mut data = Buffer::<bf16>::zeroed(pieces.rows() * cols);
    let rows = pieces.ranges().iter().cloned().flatten();
    for (out, row) in data.chunks_exact_mut(cols).zip(rows) {
        let first = (row - span.start) * per_row;
        let blocks = blocks[first * (BLOCK / 2)..].chunks_exact(BLOCK / 2);
        for ((out, block), &scale) in out.chunks_exact_mut(BLOCK).zip(blocks).zip(&scales[first..]) {
            decode(block, scale, out);
        }
    }
    let matrix = Matrix::new(pieces.rows(), cols, MatrixData::Bf16(data));
    matrix.map(Arc::new).map_err(|e| ModelError::format(store.name(), "MXFP4", e.to_string()))
}

fn decode(block: &[u8], scale: u8, out: &mut [bf16]) {
    // The doubled values take one power of two back. A scale of 255 stands for no number.
    let scale = if scale == 255 { f32::NAN } else { 2f64.powi(i32::from(scale) - 128) as f32 };
    for (pair, byte) in out.chunks_exact_mut(2).zip(block) {
        for (out, code) in pair.iter_mut().zip([byte & 15, byte >> 4]) {
            *out = bf16::from_f32(DOUBLED[usize::from(code)] * scale);
        }
    }
}
