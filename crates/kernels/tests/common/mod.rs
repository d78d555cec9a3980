//! Random shapes and data for the kernel tests.
#![allow(dead_code, reason = "each test binary uses its own part")]

use reattention_kernels::cpu::Path;
use reattention_kernels::{Buffer, Cpu, Element, KeySet, KvView, PAGE, Pages, bf16};

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `low..=high`.
    pub(crate) fn int(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.int(0, from.len() - 1)]
    }

    /// In -1..1.
    pub(crate) fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Near a normal distribution.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.real()).sum::<f32>() / 1.414
    }

    /// A small integer: sums of products of these are exact, so ties are exact too.
    pub(crate) fn small(&mut self) -> f32 {
        (self.next() % 7) as f32 - 3.0
    }
}

/// Keys and values of one layer.
pub(crate) struct Store<E: Element> {
    pub(crate) keys: Vec<Option<Buffer<E>>>,
    pub(crate) values: Vec<Option<Buffer<E>>>,
    pub(crate) len: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl<E: Element> Store<E> {
    pub(crate) fn new(len: usize, n_kv_heads: usize, head_dim: usize, mut draw: impl FnMut() -> f32) -> Self {
        let mut pages = || {
            (0..len.div_ceil(PAGE))
                .map(|_| {
                    let mut page = Buffer::zeroed(n_kv_heads * PAGE * head_dim);
                    page.iter_mut().for_each(|x| *x = E::from_f32(draw()));
                    Some(page)
                })
                .collect::<Vec<_>>()
        };
        Self { keys: pages(), values: pages(), len, n_kv_heads, head_dim }
    }

    /// Makes an element of the keys (or values) of `tokens` be `x`, in every head.
    fn damage(&mut self, is_key: bool, tokens: std::ops::Range<usize>, x: f32) {
        let side = if is_key { &mut self.keys } else { &mut self.values };
        for token in tokens {
            let page = side[token / PAGE].as_mut().expect("every page is there");
            for head in 0..self.n_kv_heads {
                page[(head * PAGE + token % PAGE) * self.head_dim] = E::from_f32(x);
            }
        }
    }

    fn view<'a>(&'a self, pages: Pages<'a>) -> KvView<'a> {
        KvView { pages, len: self.len, n_kv_heads: self.n_kv_heads, head_dim: self.head_dim }
    }
}

/// A store of either element type.
pub(crate) enum AnyStore {
    F32(Store<f32>),
    Bf16(Store<bf16>),
}

impl AnyStore {
    pub(crate) fn new(
        half: bool,
        len: usize,
        n_kv_heads: usize,
        head_dim: usize,
        draw: impl FnMut() -> f32,
    ) -> Self {
        if half {
            Self::Bf16(Store::new(len, n_kv_heads, head_dim, draw))
        } else {
            Self::F32(Store::new(len, n_kv_heads, head_dim, draw))
        }
    }

    pub(crate) fn damage(&mut self, is_key: bool, tokens: std::ops::Range<usize>, x: f32) {
        match self {
            Self::F32(s) => s.damage(is_key, tokens, x),
            Self::Bf16(s) => s.damage(is_key, tokens, x),
        }
    }

    pub(crate) fn view(&self) -> KvView<'_> {
        match self {
            Self::F32(s) => s.view(Pages::F32 { keys: &s.keys, values: &s.values }),
            Self::Bf16(s) => s.view(Pages::Bf16 { keys: &s.keys, values: &s.values }),
        }
    }
}

/// A backend of every path of this machine, each with 1, 2 and 3 threads.
pub(crate) fn backends() -> Vec<[Cpu; 3]> {
    let of = |path, threads| Cpu::with_path(threads, path).expect("an available path");
    Path::available().into_iter().map(|path| [of(path, 1), of(path, 2), of(path, 3)]).collect()
}

/// Fails unless every pair differs by at most `tolerance` times one plus the expected size.
pub(crate) fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g == w || (g - w).abs() <= tolerance * (1.0 + w.abs());
        assert!(same, "{what}: element {i} is {g}, expected {w}");
    }
}

/// Any keys of the first `len` tokens: a range, or spans with gaps.
pub(crate) fn key_set(rng: &mut Rng, len: usize) -> KeySet {
    let start = rng.int(0, len);
    let end = rng.int(start, len);
    if rng.int(0, 1) == 0 {
        return KeySet::Range(start..end);
    }
    // Spans with gaps, as selection makes them.
    let (mut keys, mut token) = (Vec::new(), start);
    while token < end {
        let span = rng.int(1, 40);
        keys.extend((token..(token + span).min(end)).map(|t| t as u32));
        token += span + rng.int(1, 60);
    }
    KeySet::Gathered(keys.into())
}
