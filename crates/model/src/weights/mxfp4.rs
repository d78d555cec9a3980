//! Experts in MXFP4 as Hugging Face files hold them: 4-bit numbers in blocks of 32, each with a power of two, in two tensors
//! of bytes. The format is the OCP Microscaling specification's; that the lower half of a byte comes first is transformers'
//! (integrations/mxfp4.py).

use super::{Pieces, Slot, TensorStore};
use crate::ModelError;
use reattention_kernels::{BlockType, Buffer, Matrix, MatrixData};
use std::sync::Arc;

/// Numbers that share a scale.
const BLOCK: usize = 32;

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
    let held = cols / BLOCK * BlockType::Mxfp4.bytes() * pieces.rows();
    let stored = (cols / 2 + cols / BLOCK) * pieces.span().len();
    (BlockType::Mxfp4.name().into(), held as u64, stored as u64)
}

/// The rows `pieces` of a slot that was checked, in blocks as GGUF files have them.
pub(super) fn matrix(
    store: &dyn TensorStore,
    slot: &Slot,
    pieces: &Pieces,
) -> Result<Arc<Matrix>, ModelError> {
    let span = pieces.span();
    let (per_row, cols, bytes) = (slot.cols / BLOCK, slot.cols, BlockType::Mxfp4.bytes());
    let blocks = store.bytes(&format!("{}_blocks", slot.name), cols / 2, span.clone())?;
    let scales = store.bytes(&format!("{}_scales", slot.name), per_row, span.clone())?;
    let mut data = Buffer::<u8>::zeroed(pieces.rows() * per_row * bytes);
    let rows = pieces.ranges().iter().cloned().flatten();
    for (out, row) in data.chunks_exact_mut((per_row * bytes).max(1)).zip(rows) {
        let first = (row - span.start) * per_row;
        let blocks = blocks[first * (BLOCK / 2)..].chunks_exact(BLOCK / 2);
        for ((out, block), &scale) in out.chunks_exact_mut(bytes).zip(blocks).zip(&scales[first..]) {
            repack(block, scale, out);
        }
    }
    let matrix = Matrix::new(pieces.rows(), cols, MatrixData::Blocks(BlockType::Mxfp4, data));
    matrix.map(Arc::new).map_err(|e| ModelError::format(store.name(), "MXFP4", e.to_string()))
}

/// Here the two codes of a byte are neighbours, lower half first; there they are 16 apart, after the power of two.
fn repack(block: &[u8], scale: u8, out: &mut [u8]) {
    let code = |i: usize| (block[i / 2] >> (4 * (i % 2))) & 15;
    out[0] = scale;
    for (i, out) in out[1..].iter_mut().enumerate() {
        *out = code(i) | (code(i + BLOCK / 2) << 4);
    }
}
