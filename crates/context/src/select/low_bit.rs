//! `low_bit`: every key is scored, but by a copy of itself in few bits, and the best candidates are scored again as they are.
//!
//! The copies ([`LowBitKeys`]) have one scale a key. A query is rounded to 8 bits, its products with all copies are taken
//! in integers, and the best `candidates` keys of each query and head are ranked again by the true keys; keys that fill no
//! tile of copies yet are all scored. Time stays linear in the context: what falls is what a search reads, by 16 / `bits`,
//! and what a product costs. The copies come on top of the store: `(bits / 8 · head_dim + 2)` bytes a key where key and
//! value take `4 · head_dim` in bf16, that is 26, 13 and 7 % for 8, 4 and 2 bits at a head_dim of 64.
//!
//! Scoring by few bits and ranking again is common in vector search; for cached keys see for instance Loki
//! (arXiv 2406.02542) and KIVI (arXiv 2402.02750), which drop or round elements of keys.

use super::{Layers, Reach, Selector, among};
use crate::methods::{Appended, LayerCall};
use reattention_kernels::{DeviceError, ListedRequest, LowBitKeys, Queries, TopK, TopKRequest};
use std::ops::Range;

/// What a person may set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowBitSettings {
    /// Up to how many keys all are scored as they are, and no copies are made.
    pub(crate) reach: Reach,
    /// Bits of an element: 8, 4 or 2.
    pub(crate) bits: usize,
    /// Keys of each query and head that are scored again.
    pub(crate) candidates: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct LowBit {
    settings: LowBitSettings,
    layers: Layers<Copies>,
}

/// The copies of one layer.
#[derive(Debug)]
struct Copies {
    /// The token of the first.
    start: usize,
    keys: LowBitKeys,
}

impl LowBit {
    pub(crate) fn new(settings: LowBitSettings) -> Self {
        Self { settings, layers: Layers::new() }
    }
}

impl Selector for LowBit {
    fn name(&self) -> &'static str {
        "low_bit"
    }

    fn extend(&mut self, new: &Appended, keys: Range<usize>) -> Result<(), DeviceError> {
        let is_long = keys.len() > self.settings.reach.exact_below;
        let make = || Copies {
            start: keys.start,
            keys: LowBitKeys::new(self.settings.bits, new.kv.n_kv_heads, new.kv.head_dim),
        };
        if let Some(copies) = self.layers.due(new.layer, is_long, make) {
            let (first, left) = (copies.end(), keys.end.saturating_sub(copies.end()));
            copies.keys.add(&new.kv, first..first + left - left % LowBitKeys::TILE);
        }
        Ok(())
    }

    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> Result<TopK, DeviceError> {
        let LowBitSettings { reach, candidates, .. } = self.settings;
        self.layers.search(reach, call, q, request, |copies| {
            let mut best = call.backend.top_k_low_bit(q, &copies.keys, candidates);
            for index in best.indices.iter_mut().filter(|i| **i != ListedRequest::NONE) {
                *index += copies.start as u32;
            }
            Ok((among(call, q, request.k, &best), copies.end()))
        })
    }

    fn truncate(&mut self, n: usize) {
        for copies in self.layers.each() {
            copies.keys.truncate(n.saturating_sub(copies.start));
        }
    }
}

impl Copies {
    /// The first token without a copy.
    fn end(&self) -> usize {
        self.start + self.keys.len()
    }
}
