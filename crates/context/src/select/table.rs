//! A growing table of vectors in pages that never move, readable by the kernels as if it were the keys of KV heads.

use reattention_kernels::{Buffer, Element, KvView, PAGE, bf16};

/// Vectors `[heads, len, dim]`, with one head unless it is said.
#[derive(Debug)]
pub(crate) struct Table<T: Element = bf16> {
    heads: usize,
    dim: usize,
    len: usize,
    pages: Vec<Option<Buffer<T>>>,
}

impl<T: Element> Table<T> {
    /// An empty table of vectors of `dim` (even).
    pub(crate) fn new(dim: usize) -> Self {
        Self::per_head(1, dim)
    }

    /// An empty table with a vector of `dim` (even) for each of `heads` heads in every row.
    pub(super) fn per_head(heads: usize, dim: usize) -> Self {
        Self { heads, dim, len: 0, pages: Vec::new() }
    }

    /// Rows.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets the rows from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// Adds a row (of zeros, unless rows were forgotten) and returns its number.
    pub(crate) fn push(&mut self) -> u32 {
        if self.len == self.pages.len() * PAGE {
            self.pages.push(Some(Buffer::zeroed(self.heads * PAGE * self.dim)));
        }
        self.len += 1;
        (self.len - 1) as u32
    }

    /// The vector `i`, `[dim]`.
    pub(super) fn row(&self, i: u32) -> &[T] {
        let (page, row) = (i as usize / PAGE, i as usize % PAGE);
        self.pages[page].as_ref().map_or(&[], |p| &p[row * self.dim..(row + 1) * self.dim])
    }

    /// Overwrites the vector `i`.
    pub(crate) fn set(&mut self, i: u32, values: impl Iterator<Item = f32>) {
        self.set_of(0, i, values);
    }

    /// Overwrites one element of the vector `i`.
    pub(super) fn set_element(&mut self, i: u32, element: usize, value: f32) {
        let (page, row) = (i as usize / PAGE, i as usize % PAGE);
        if let Some(page) = &mut self.pages[page] {
            page[row * self.dim + element] = T::from_f32(value);
        }
    }

    /// Overwrites the vector `i` of `head`.
    pub(super) fn set_of(&mut self, head: usize, i: u32, values: impl Iterator<Item = f32>) {
        let (page, row) = (i as usize / PAGE, head * PAGE + i as usize % PAGE);
        if let Some(page) = &mut self.pages[page] {
            let row = &mut page[row * self.dim..(row + 1) * self.dim];
            row.iter_mut().zip(values).for_each(|(r, x)| *r = T::from_f32(x));
        }
    }

    /// The table as the keys of KV heads; token index is row number.
    pub(crate) fn view(&self) -> KvView<'_> {
        let pages = T::pages(&self.pages, &self.pages);
        KvView { pages, len: self.len, n_kv_heads: self.heads, head_dim: self.dim }
    }
}
