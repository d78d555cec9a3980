//! Cached keys and values and raw queries, as kernels see them.

use crate::driver::{Address, Block, CudaError, Driver, Dtype};
use bytemuck::{Pod, Zeroable};
use reattention_kernels::{Buffer, KvView, PAGE, Pages, Queries};
use std::ops::Range;
use std::sync::Arc;

/// An entry of a layer's page table; `PageEntry` of the kernels.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct PageEntry {
    /// `[n_kv_heads, PAGE, head_dim]`.
    pub keys: Address,
    /// Alike.
    pub values: Address,
}

/// What kernels see of the cached keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Cached {
    /// The page table, [`PageEntry`] after [`PageEntry`]; token `t` lies in page `t / PAGE`, row `t % PAGE`.
    pub pages: Address,
    /// Tokens held.
    pub len: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Length of one head's key or value.
    pub head_dim: usize,
    /// Type of the elements.
    pub dtype: Dtype,
}

/// Raw queries (before RoPE) on the device.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// `[q_len, n_heads, head_dim]` in f32.
    pub data: Address,
    /// Query heads.
    pub n_heads: usize,
    /// Tokens.
    pub q_len: usize,
    /// Length of one head's vector.
    pub head_dim: usize,
    /// Token index of the first; the others follow it one by one.
    pub first: usize,
}

/// A copy of a layer's cached keys and values that the host keeps.
#[derive(Debug)]
pub struct Copied {
    table: Block,
    #[allow(dead_code, reason = "the table points into them")]
    pages: Vec<Block>,
    cached: Cached,
}

impl Copied {
    /// Copies every page that is there, in the type it has.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(driver: &Arc<dyn Driver>, kv: &KvView) -> Result<Self, CudaError> {
        Self::within(driver, kv, std::slice::from_ref(&(0..kv.len)))
    }

    /// Copies the pages that hold tokens of `extents`.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn within(
        driver: &Arc<dyn Driver>,
        kv: &KvView,
        extents: &[Range<usize>],
    ) -> Result<Self, CudaError> {
        let (entries, pages, dtype) = match kv.pages {
            Pages::F32 { keys, values } => {
                let (entries, pages) = copy(driver, keys, values, extents)?;
                (entries, pages, Dtype::F32)
            }
            Pages::Bf16 { keys, values } => {
                let (entries, pages) = copy(driver, keys, values, extents)?;
                (entries, pages, Dtype::Bf16)
            }
        };
        let table = Block::of(driver, &entries)?;
        let KvView { len, n_kv_heads, head_dim, .. } = *kv;
        let cached = Cached { pages: table.at(), len, n_kv_heads, head_dim, dtype };
        Ok(Self { table, pages, cached })
    }

    /// What kernels see of it.
    pub fn cached(&self) -> Cached {
        debug_assert_eq!(self.cached.pages, self.table.at());
        self.cached
    }
}

fn copy<T: bytemuck::Pod>(
    driver: &Arc<dyn Driver>,
    keys: &[Option<Buffer<T>>],
    values: &[Option<Buffer<T>>],
    extents: &[Range<usize>],
) -> Result<(Vec<PageEntry>, Vec<Block>), CudaError> {
    let (mut entries, mut blocks) = (Vec::new(), Vec::new());
    for (number, (keys, values)) in keys.iter().zip(values).enumerate() {
        let tokens = number * PAGE..(number + 1) * PAGE;
        let is_wanted = extents.iter().any(|e| e.start < tokens.end && tokens.start < e.end);
        let mut copy = |page: &Option<Buffer<T>>| match page {
            Some(page) if is_wanted => {
                blocks.push(Block::of(driver, page)?);
                Ok(blocks[blocks.len() - 1].at())
            }
            _ => Ok(0),
        };
        entries.push(PageEntry { keys: copy(keys)?, values: copy(values)? });
    }
    Ok((entries, blocks))
}

/// Queries copied from the host; the block holds them.
///
/// # Errors
/// When the device has not enough memory.
pub fn copy_queries(driver: &Arc<dyn Driver>, q: &Queries) -> Result<(Block, Rows), CudaError> {
    let block = Block::of(driver, q.data)?;
    let Queries { n_heads, q_len, head_dim, first, .. } = *q;
    let rows = Rows { data: block.at(), n_heads, q_len, head_dim, first };
    Ok((block, rows))
}
