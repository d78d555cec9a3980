//! A growing table of bf16 vectors in pages that never move, readable by the kernels as if it were one KV head's keys.

use reattention_kernels::{Buffer, KvView, PAGE, Pages, bf16};

/// Vectors `[len, dim]`.
#[derive(Debug)]
pub(super) struct Table {
    dim: usize,
    len: usize,
    pages: Vec<Option<Buffer<bf16>>>,
}

impl Table {
    /// An empty table of vectors of `dim` (even).
    pub(super) fn new(dim: usize) -> Self {
        Self { dim, len: 0, pages: Vec::new() }
    }

    /// Adds a vector of zeros and returns its number.
    pub(super) fn push(&mut self) -> u32 {
        if self.len == self.pages.len() * PAGE {
            self.pages.push(Some(Buffer::zeroed(PAGE * self.dim)));
        }
        self.len += 1;
        (self.len - 1) as u32
    }

    /// The vector `i`, `[dim]`.
    pub(super) fn row(&self, i: u32) -> &[bf16] {
        let (page, row) = (i as usize / PAGE, i as usize % PAGE);
        self.pages[page].as_ref().map_or(&[], |p| &p[row * self.dim..(row + 1) * self.dim])
    }

    /// Overwrites the vector `i`.
    pub(super) fn set(&mut self, i: u32, values: impl Iterator<Item = f32>) {
        let (page, row) = (i as usize / PAGE, i as usize % PAGE);
        if let Some(page) = &mut self.pages[page] {
            let row = &mut page[row * self.dim..(row + 1) * self.dim];
            row.iter_mut().zip(values).for_each(|(r, x)| *r = bf16::from_f32(x));
        }
    }

    /// The table as the keys of one KV head; token index is row number.
    pub(super) fn view(&self) -> KvView<'_> {
        let pages = Pages::Bf16 { keys: &self.pages, values: &self.pages };
        KvView { pages, len: self.len, n_kv_heads: 1, head_dim: self.dim }
    }
}
