//! Cached keys and values and raw queries, as kernels see them.

use crate::driver::{Address, Arg, Block, CudaError, Driver, Dtype};
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
pub struct Cached<'a> {
    /// The page table, [`PageEntry`] after [`PageEntry`]; token `t` lies in page `t / PAGE`, row `t % PAGE`.
    pages: Address,
    driver: &'a Arc<dyn Driver>,
    pub(crate) shape: CachedShape,
}

/// What a layer's cached keys and values have for a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedShape {
    /// Tokens held.
    pub len: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Length of one head's key or value.
    pub head_dim: usize,
    /// Type of the elements.
    pub dtype: Dtype,
}

impl<'a> Cached<'a> {
    /// Pages of `driver` behind the table at `pages`.
    ///
    /// # Safety
    /// For as long as this is used, the table has an entry for every page up to `shape.len`, and each names pages
    /// `[n_kv_heads, PAGE, head_dim]` of `shape.dtype` on this device, or none (zero).
    pub unsafe fn new(driver: &'a Arc<dyn Driver>, pages: Address, shape: CachedShape) -> Self {
        Self { pages, driver, shape }
    }

    /// The page table as an argument of a kernel on `driver`.
    ///
    /// # Errors
    /// When it is another device.
    pub(crate) fn arg(&self, driver: &Arc<dyn Driver>) -> Result<Arg, CudaError> {
        if !std::ptr::addr_eq(Arc::as_ptr(self.driver), Arc::as_ptr(driver)) {
            return Err(CudaError::Foreign { what: "a cache", device: driver.facts().name.clone() });
        }
        Ok(Arg::Pointer(self.pages))
    }
}

impl std::ops::Deref for Cached<'_> {
    type Target = CachedShape;
    fn deref(&self) -> &CachedShape {
        &self.shape
    }
}

/// Raw queries (before RoPE) on the device.
#[derive(Clone, Debug)]
pub struct Rows {
    /// `[q_len, n_heads, head_dim]` in f32.
    pub data: Arc<Block>,
    /// Query heads.
    pub n_heads: usize,
    /// Tokens.
    pub q_len: usize,
    /// Length of one head's vector.
    pub head_dim: usize,
    /// Token index of the first; the others follow it one by one.
    pub first: usize,
}

impl Rows {
    /// The queries as an argument of a kernel on `driver`.
    ///
    /// # Errors
    /// When they lie on another device.
    ///
    /// # Panics
    /// If they are fewer than announced.
    pub(crate) fn arg(&self, driver: &Arc<dyn Driver>) -> Result<Arg, CudaError> {
        let count = self.q_len.saturating_mul(self.n_heads).saturating_mul(self.head_dim);
        self.data.span().arg(driver, count, size_of::<f32>())
    }
}

/// A copy of a layer's cached keys and values that the host keeps.
#[derive(Debug)]
pub struct Copied {
    driver: Arc<dyn Driver>,
    table: Block,
    #[allow(dead_code, reason = "the table points into them")]
    pages: Vec<Block>,
    shape: CachedShape,
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
        let shape = CachedShape { len, n_kv_heads, head_dim, dtype };
        Ok(Self { driver: Arc::clone(driver), table, pages, shape })
    }

    /// What kernels see of it.
    pub fn cached(&self) -> Cached<'_> {
        // SAFETY: the table was made for pages of this shape, and both are held for as long as they are lent.
        unsafe { Cached::new(&self.driver, self.table.at(), self.shape) }
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

/// Queries copied from the host.
///
/// # Errors
/// When the device has not enough memory.
pub fn copy_queries(driver: &Arc<dyn Driver>, q: &Queries) -> Result<Rows, CudaError> {
    let Queries { n_heads, q_len, head_dim, first, .. } = *q;
    Ok(Rows { data: Arc::new(Block::of(driver, q.data)?), n_heads, q_len, head_dim, first })
}
