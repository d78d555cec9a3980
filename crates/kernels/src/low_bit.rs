//! Copies of keys in few bits, to be searched instead of the keys themselves.

use crate::{Buffer, KvView, PAGE, Queries, bf16};
use std::ops::Range;

/// Keys in a tile: they lie side by side, four elements of each at a time.
pub(crate) const TILE: usize = 64;

/// Keys of one layer in 8, 4 or 2 bits an element, each with a scale of its own.
///
/// An element `x` of a key with scale `s` has the code nearest to `x / s + (2^bits - 1) / 2`; the scale is the smallest
/// bf16 that keeps all codes of the key in range. Keys of tokens are taken in whole tiles of [`LowBitKeys::TILE`].
#[derive(Debug)]
pub struct LowBitKeys {
    bits: usize,
    n_kv_heads: usize,
    head_dim: usize,
    len: usize,
    pages: Vec<Page>,
}

/// [`PAGE`] keys of every KV head.
#[derive(Debug)]
struct Page {
    /// `[n_kv_heads, PAGE / TILE, words, TILE]`. A word holds the codes of `32 / bits` elements of one key: those of four
    /// neighbouring elements in the lowest bits of its four bytes, the next four above them, and so on.
    codes: Buffer<u32>,
    /// `[n_kv_heads, PAGE]`.
    scales: Buffer<bf16>,
}

impl LowBitKeys {
    /// Keys taken at once.
    pub const TILE: usize = TILE;

    /// No keys, in `bits` bits an element.
    ///
    /// # Panics
    /// If `bits` is none of 8, 4 and 2.
    pub fn new(bits: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        assert!(matches!(bits, 2 | 4 | 8), "keys in {bits} bits: 8, 4 or 2 are known");
        Self { bits, n_kv_heads, head_dim, len: 0, pages: Vec::new() }
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none are held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes a key of one KV head takes in `bits` bits an element.
    pub fn bytes_per_key(bits: usize, head_dim: usize) -> usize {
        4 * words(bits, head_dim) + size_of::<bf16>()
    }

    /// Adds the keys of the tokens `new`, whole tiles of them.
    ///
    /// # Panics
    /// If `new` is no whole number of tiles, or `kv` has another shape.
    pub fn add(&mut self, kv: &KvView, new: Range<usize>) {
        assert!(new.len().is_multiple_of(TILE), "{} keys are no whole tiles of {TILE}", new.len());
        assert_eq!((kv.n_kv_heads, kv.head_dim), (self.n_kv_heads, self.head_dim), "another shape of keys");
        let mut key = vec![0.0; self.head_dim];
        for token in new {
            let i = self.push();
            for head in 0..self.n_kv_heads {
                kv.copy_key(head, token, &mut key);
                self.set(head, i, &key);
            }
        }
    }

    /// Adds a key that no search finds until it is set, and returns its number.
    pub fn push(&mut self) -> usize {
        if self.len == self.pages.len() * PAGE {
            let mut page = Page {
                codes: Buffer::zeroed(self.n_kv_heads * PAGE * self.words()),
                scales: Buffer::zeroed(self.n_kv_heads * PAGE),
            };
            page.scales.fill(bf16::NAN);
            self.pages.push(page);
        }
        self.len += 1;
        self.len - 1
    }

    /// Overwrites key `i` of KV head `head` with `key`, `[head_dim]`.
    ///
    /// # Panics
    /// If there is no such key, or it has another length.
    pub fn set(&mut self, head: usize, i: usize, key: &[f32]) {
        assert!(i < self.len && head < self.n_kv_heads, "key {i} of {}, KV head {head}", self.len);
        assert_eq!(key.len(), self.head_dim, "elements of a key");
        let (words, middle, slot) = (self.words(), self.middle(), i % PAGE);
        let largest = key.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = at_least(largest / middle);
        let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let page = &mut self.pages[i / PAGE];
        page.scales[head * PAGE + slot] = bf16::from_f32(scale);
        let tile = &mut page.codes[(head * PAGE + slot / TILE * TILE) * words..][..TILE * words];
        for (i, elements) in key.chunks(32 / self.bits).enumerate() {
            let mut word = 0u32;
            for (j, x) in elements.iter().enumerate() {
                // What is no number becomes code 0.
                let code = (x * factor + middle).round_ties_even().clamp(0.0, 2.0 * middle) as u32;
                word |= code << (8 * (j % 4) + j / 4 * self.bits);
            }
            tile[i * TILE + slot % TILE] = word;
        }
    }

    /// Forgets the keys from `len` on, and those of a tile that would remain in part.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len / TILE * TILE);
        self.pages.truncate(self.len.div_ceil(PAGE));
        if let Some(page) = self.pages.last_mut() {
            let used = self.len - (self.len - 1) / PAGE * PAGE;
            page.scales.chunks_exact_mut(PAGE).for_each(|of_head| of_head[used..].fill(bf16::NAN));
        }
    }

    pub(crate) fn bits(&self) -> usize {
        self.bits
    }

    pub(crate) fn n_kv_heads(&self) -> usize {
        self.n_kv_heads
    }

    /// The code of zero, if there were one: codes lie evenly around it.
    pub(crate) fn middle(&self) -> f32 {
        ((1 << self.bits) - 1) as f32 / 2.0
    }

    /// Words of a key.
    pub(crate) fn words(&self) -> usize {
        words(self.bits, self.head_dim)
    }

    /// Codes `[words, TILE]` and scales `[TILE]` of the tile that begins with key `first`; those of no key are no numbers.
    pub(crate) fn tile(&self, head: usize, first: usize) -> (&[u32], &[bf16]) {
        assert!(first.is_multiple_of(TILE) && first < self.len, "tile at {first} of {}", self.len);
        let (page, at) = (&self.pages[first / PAGE], head * PAGE + first % PAGE);
        (&page.codes[at * self.words()..][..TILE * self.words()], &page.scales[at..][..TILE])
    }

    /// Panics unless the queries fit the keys.
    pub(crate) fn check(&self, q: &Queries) {
        assert!(
            q.head_dim == self.head_dim
                && q.n_heads.is_multiple_of(self.n_kv_heads)
                && q.data.len() == q.q_len * q.n_heads * q.head_dim,
            "top_k_low_bit: {} elements of {} heads of {} over {} KV heads of {}",
            q.data.len(),
            q.n_heads,
            q.head_dim,
            self.n_kv_heads,
            self.head_dim
        );
    }
}

/// A query in 8 bits: words of codes that fit those of keys.
pub(crate) struct LowBitQuery {
    /// For every word of a key and each of its `8 / bits` fields, four codes (signed bytes).
    pub(crate) words: Vec<u32>,
    /// What the middle of the keys' codes adds to every product of codes, rounded down.
    pub(crate) excess: i32,
    /// What a code of one stands for.
    pub(crate) scale: f32,
}

impl LowBitQuery {
    /// The query for keys in `bits` bits an element.
    pub(crate) fn of(bits: usize, query: &[f32]) -> Self {
        let scale = Self::scale_of(query);
        let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut words = vec![0u32; words(bits, query.len()) * (8 / bits)];
        let mut sum = 0;
        for (i, x) in query.iter().enumerate() {
            let code = (x * factor).round_ties_even().clamp(-127.0, 127.0) as i32;
            sum += code;
            words[i / 4] |= u32::from(code as u8) << (8 * (i % 4));
        }
        Self { words, excess: (sum * ((1 << bits) - 1)) >> 1, scale }
    }

    /// What a code of one stands for in this query. One that no scale fits becomes zero.
    pub(crate) fn scale_of(query: &[f32]) -> f32 {
        let largest = query.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        if largest.is_finite() { largest / 127.0 } else { 0.0 }
    }
}

/// Words of a key.
pub(crate) fn words(bits: usize, head_dim: usize) -> usize {
    head_dim.div_ceil(32 / bits)
}

/// The smallest bf16 not below `x`, which is not negative; zero for what is not finite.
fn at_least(x: f32) -> f32 {
    let rounded = bf16::from_f32(x);
    let up = if rounded.to_f32() < x { bf16::from_bits(rounded.to_bits() + 1) } else { rounded };
    if up.is_finite() { up.to_f32() } else { 0.0 }
}
