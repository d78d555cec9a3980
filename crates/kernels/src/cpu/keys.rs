//! How kernels reach cached rows: by element type, whatever the page.

use super::simd::{Load, Operand, Simd};
use crate::{Buffer, KvView, PAGE, Pages};
use half::bf16;

/// The pages of one layer with their element type known.
#[derive(Clone, Copy)]
pub(crate) struct Store<'a, E: bytemuck::Pod> {
    pub(crate) keys: &'a [Option<Buffer<E>>],
    pub(crate) values: &'a [Option<Buffer<E>>],
    pub(crate) head_dim: usize,
    len: usize,
    /// Elements of a page.
    page: usize,
}

/// The pages by element type.
pub(crate) enum Typed<'a> {
    F32(Store<'a, f32>),
    Bf16(Store<'a, bf16>),
}

/// Checks a view against the queries' head size and finds its element type.
pub(crate) fn typed<'a>(kv: &KvView<'a>, head_dim: usize, n_heads: usize) -> Typed<'a> {
    let (len, n_kv_heads) = (kv.len, kv.n_kv_heads);
    assert!(
        head_dim == kv.head_dim && head_dim > 0 && head_dim.is_multiple_of(2),
        "head_dim {head_dim} of {}",
        kv.head_dim
    );
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "{n_heads} heads over {n_kv_heads} KV heads"
    );
    match kv.pages {
        Pages::F32 { keys, values } => Typed::F32(Store::new(keys, values, head_dim, len, n_kv_heads)),
        Pages::Bf16 { keys, values } => Typed::Bf16(Store::new(keys, values, head_dim, len, n_kv_heads)),
    }
}

impl<'a, E: Load> Store<'a, E> {
    fn new(
        keys: &'a [Option<Buffer<E>>],
        values: &'a [Option<Buffer<E>>],
        head_dim: usize,
        len: usize,
        n_kv_heads: usize,
    ) -> Self {
        for (kind, pages) in [("key", keys), ("value", values)] {
            assert!(pages.len() * PAGE >= len, "{len} tokens in {} {kind} pages", pages.len());
        }
        Self { keys, values, head_dim, len, page: n_kv_heads * PAGE * head_dim }
    }

    /// Where the row of `token` and `head` starts; rows up to the end of the page follow it.
    ///
    /// # Panics
    /// If the token is out of range or its page has been released or is too small.
    #[inline(always)]
    pub(crate) fn row(&self, pages: &'a [Option<Buffer<E>>], head: usize, token: usize) -> *const E {
        assert!(token < self.len, "token {token} of {}", self.len);
        let Some(page) = &pages[token / PAGE] else { panic!("token {token} was released") };
        // Kernels take rows by pointer: this is what lets them. Looking at all pages once a call takes longer.
        assert!(page.len() >= self.page, "page of {} elements, {} expected", page.len(), self.page);
        page.as_ptr().wrapping_add((head * PAGE + token % PAGE) * self.head_dim)
    }
}

/// Transposes `rows` rows of keys, `stride` elements apart, into `dst: [units, dst_stride]`.
///
/// `scratch` holds at least `16 · head_dim` units for rows that must be widened first.
#[inline(always)]
pub(crate) unsafe fn transpose_rows<S: Simd, M: Operand, E: Load>(
    src: *const E,
    head_dim: usize,
    rows: usize,
    dst: *mut u32,
    dst_stride: usize,
    scratch: *mut u32,
) {
    let units = head_dim / M::PER_UNIT;
    // SAFETY: `rows` rows of `head_dim` elements are readable, and the destination holds their units.
    unsafe {
        if size_of::<E>() * M::PER_UNIT == 4 {
            S::transpose(src.cast(), units, rows, units, dst, dst_stride);
            return;
        }
        for first in (0..rows).step_by(16) {
            let n = (rows - first).min(16);
            let (from, wide) = (src.add(first * head_dim), scratch.cast::<f32>());
            let (len, whole) = (n * head_dim, n * head_dim / S::LANES * S::LANES);
            for i in (0..whole).step_by(S::LANES) {
                S::store(wide.add(i), E::load::<S>(from.add(i)));
            }
            for i in whole..len {
                *wide.add(i) = (*from.add(i)).widen();
            }
            S::transpose(scratch, units, n, units, dst.add(first), dst_stride);
        }
    }
}
