//! `boxes`: small blocks of neighbouring keys, each known by the box around them, and a query looks only into the blocks
//! whose boxes promise most.
//!
//! A box holds the largest and the smallest value of every element over its keys. No key in it can score more than
//! `Σ max(q, 0) · largest + min(q, 0) · smallest`, which is one dot product of `[max(q, 0), min(q, 0)]` with
//! `[largest, smallest]`: boxes are rows of a table that the kernels search like keys. There are two levels: all large
//! boxes of [`LARGE`] keys are searched, then the small ones of [`SMALL`] keys in the best large ones, then the keys in
//! the best small ones; keys younger than the last large box are all scored. So a search still reads `2n / LARGE` vectors
//! at its top, and a constant number below.
//!
//! The bound is that of Quest (arXiv 2406.10774), whose pages are one level of 16 keys.

use super::{Layers, Reach, Selector};
use crate::methods::{Appended, LayerCall};
use reattention_kernels::{DeviceError, KvView, ListedRequest, Queries, TopK, TopKRequest};
use std::ops::Range;

use super::table::Table;

/// Keys in a small and in a large box.
const SMALL: usize = 8;
const LARGE: usize = 128;

/// See the module.
#[derive(Debug)]
pub(crate) struct Boxes {
    reach: Reach,
    layers: Layers<Levels>,
    /// 0, 1, 2, ...: slices of it are the lists of consecutive boxes and tokens.
    numbers: Vec<u32>,
}

/// The boxes of one layer.
#[derive(Debug)]
struct Levels {
    /// Where the first box begins.
    start: usize,
    small: Table,
    large: Table,
}

impl Boxes {
    pub(crate) fn new(reach: Reach) -> Self {
        Self { reach, layers: Layers::new(), numbers: Vec::new() }
    }
}

impl Selector for Boxes {
    fn name(&self) -> &'static str {
        "boxes"
    }

    fn extend(&mut self, new: &Appended, keys: Range<usize>) -> Result<(), DeviceError> {
        let is_long = keys.len() > self.reach.exact_below;
        let (heads, dim) = (new.kv.n_kv_heads, 2 * new.kv.head_dim);
        let make = || Levels {
            start: keys.start,
            small: Table::per_head(heads, dim),
            large: Table::per_head(heads, dim),
        };
        let Some(levels) = self.layers.due(new.layer, is_long, make) else { return Ok(()) };
        while levels.end() + LARGE <= keys.end {
            levels.add(&new.kv);
        }
        let known = self.numbers.len() as u32;
        self.numbers.extend(known..keys.end as u32);
        Ok(())
    }

    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> Result<TopK, DeviceError> {
        let probes = self.reach.probes(call.step.kind);
        self.layers.search(self.reach, call, q, request, |levels| {
            Ok((levels.top_k(call, q, request, probes, &self.numbers)?, levels.end()))
        })
    }

    fn truncate(&mut self, n: usize) {
        for levels in self.layers.each() {
            levels.truncate(n);
        }
    }

    fn bytes_per_key(&self, head_dim: usize) -> f64 {
        // Two bounds of two bytes for each element of a box.
        (4 * head_dim) as f64 * (1.0 / SMALL as f64 + 1.0 / LARGE as f64)
    }
}

impl Levels {
    /// The first token in no box.
    fn end(&self) -> usize {
        self.start + self.large.len() * LARGE
    }

    /// Puts the next [`LARGE`] keys into boxes.
    fn add(&mut self, kv: &KvView) {
        let first = self.end();
        let dim = kv.head_dim;
        let large = self.large.push();
        let small: Vec<u32> = (0..LARGE / SMALL).map(|_| self.small.push()).collect();
        let mut key = vec![0.0; dim];
        for head in 0..kv.n_kv_heads {
            let mut around_all = Bounds::new(dim);
            for (i, &small) in small.iter().enumerate() {
                let mut around = Bounds::new(dim);
                for token in first + i * SMALL..first + (i + 1) * SMALL {
                    kv.copy_key(head, token, &mut key);
                    around.take_in(&key, &key);
                }
                around_all.take_in(&around.largest, &around.smallest);
                self.small.set_of(head, small, around.row());
            }
            self.large.set_of(head, large, around_all.row());
        }
    }

    fn top_k(
        &self,
        call: &LayerCall,
        q: &Queries,
        request: &TopKRequest,
        probes: usize,
        numbers: &[u32],
    ) -> Result<TopK, DeviceError> {
        let mut data = Vec::with_capacity(2 * q.data.len());
        for row in q.data.chunks_exact(q.head_dim) {
            data.extend(row.iter().map(|x| x.max(0.0)));
            data.extend(row.iter().map(|x| x.min(0.0)));
        }
        let rows = Queries { data: &data, head_dim: 2 * q.head_dim, ..*q };
        let all = TopKRequest { keys: 0..self.large.len(), k: probes.div_ceil(2), ..request.clone() };
        let large = call.backend.top_k(&rows, &self.large.view(), &all)?;
        let within = LARGE / SMALL;
        let small = call.backend.top_k_listed(
            &rows,
            &self.small.view(),
            &ListedRequest {
                k: probes.min(large.k * within),
                lists: &large.indices,
                per_row: large.k,
                keys: &|large| &numbers[large as usize * within..][..within],
            },
        );
        let found = call.backend.top_k_listed(
            q,
            &call.kv,
            &ListedRequest {
                k: request.k,
                lists: &small.indices,
                per_row: small.k,
                keys: &|small| &numbers[self.start + small as usize * SMALL..][..SMALL],
            },
        );
        Ok(found)
    }

    fn truncate(&mut self, n: usize) {
        let kept = n.saturating_sub(self.start) / LARGE;
        self.large.truncate(kept);
        self.small.truncate(kept * (LARGE / SMALL));
    }
}

/// The box around some keys.
struct Bounds {
    largest: Vec<f32>,
    smallest: Vec<f32>,
}

impl Bounds {
    fn new(dim: usize) -> Self {
        Self { largest: vec![f32::NEG_INFINITY; dim], smallest: vec![f32::INFINITY; dim] }
    }

    fn take_in(&mut self, largest: &[f32], smallest: &[f32]) {
        self.largest.iter_mut().zip(largest).for_each(|(a, &b)| *a = a.max(b));
        self.smallest.iter_mut().zip(smallest).for_each(|(a, &b)| *a = a.min(b));
    }

    fn row(&self) -> impl Iterator<Item = f32> + '_ {
        self.largest.iter().chain(&self.smallest).copied()
    }
}
