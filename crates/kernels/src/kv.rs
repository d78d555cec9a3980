//! How kernels see cached keys and values: pages of raw rows, in f32 or bf16.

use crate::Buffer;
use half::bf16;

/// Tokens in one page of the store. A page is never moved, so the store grows without copying.
pub const PAGE: usize = 1024;

/// An element type keys and values are stored in.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The value in f32.
    fn to_f32(self) -> f32;
    /// The nearest value of this type.
    fn from_f32(x: f32) -> Self;
    /// Pages of this type.
    fn pages<'a>(keys: &'a [Option<Buffer<Self>>], values: &'a [Option<Buffer<Self>>]) -> Pages<'a>;
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn pages<'a>(keys: &'a [Option<Buffer<Self>>], values: &'a [Option<Buffer<Self>>]) -> Pages<'a> {
        Pages::F32 { keys, values }
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        // Exact, and unlike the library's a loop of it is vectorised: only signalling NaNs stay what they are.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn pages<'a>(keys: &'a [Option<Buffer<Self>>], values: &'a [Option<Buffer<Self>>]) -> Pages<'a> {
        Pages::Bf16 { keys, values }
    }
}

/// The pages of one layer. A page is `[n_kv_heads, PAGE, head_dim]`, or `None` once a method has released it.
#[derive(Clone, Copy, Debug)]
pub enum Pages<'a> {
    /// Keys and values in f32.
    F32 {
        /// Raw keys.
        keys: &'a [Option<Buffer<f32>>],
        /// Values.
        values: &'a [Option<Buffer<f32>>],
    },
    /// Keys and values in bf16.
    Bf16 {
        /// Raw keys.
        keys: &'a [Option<Buffer<bf16>>],
        /// Values.
        values: &'a [Option<Buffer<bf16>>],
    },
}

/// The cached keys and values of one layer, by token index. Keys are raw: not rotated.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// The pages; token `t` lies in page `t / PAGE`, row `t % PAGE`.
    pub pages: Pages<'a>,
    /// Tokens held, released ones included.
    pub len: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Length of one head's key or value.
    pub head_dim: usize,
}

impl<'a> KvView<'a> {
    /// Copies the key of `token` and KV head `head` into `out: [head_dim]`.
    ///
    /// # Panics
    /// If the token is out of range or its page has been released.
    pub fn copy_key(&self, head: usize, token: usize, out: &mut [f32]) {
        match self.pages {
            Pages::F32 { keys, .. } => self.copy(keys, head, token, out),
            Pages::Bf16 { keys, .. } => self.copy(keys, head, token, out),
        }
    }

    /// Copies the value of `token` and KV head `head` into `out: [head_dim]`.
    ///
    /// # Panics
    /// If the token is out of range or its page has been released.
    pub fn copy_value(&self, head: usize, token: usize, out: &mut [f32]) {
        match self.pages {
            Pages::F32 { values, .. } => self.copy(values, head, token, out),
            Pages::Bf16 { values, .. } => self.copy(values, head, token, out),
        }
    }

    /// `count` consecutive rows of `pages` starting at `token`, `[count, head_dim]`.
    ///
    /// # Panics
    /// If the rows are not all held, or cross a page.
    pub fn rows<T: Element>(
        &self,
        pages: &'a [Option<Buffer<T>>],
        head: usize,
        token: usize,
        count: usize,
    ) -> &'a [T] {
        let (page, row) = (token / PAGE, token % PAGE);
        assert!(
            token + count <= self.len && row + count <= PAGE,
            "rows {token}+{count} of {} cross a page",
            self.len
        );
        let data = pages[page].as_ref().unwrap_or_else(|| panic!("token {token} was released"));
        let start = (head * PAGE + row) * self.head_dim;
        &data[start..start + count * self.head_dim]
    }

    fn copy<T: Element>(&self, pages: &'a [Option<Buffer<T>>], head: usize, token: usize, out: &mut [f32]) {
        let row = self.rows(pages, head, token, 1);
        out.iter_mut().zip(row).for_each(|(o, x)| *o = x.to_f32());
    }
}
