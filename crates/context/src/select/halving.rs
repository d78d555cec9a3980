//! `halving`: a query walks down from long chunks of neighbouring keys to short ones, halving those it keeps and judging
//! each half by one key that stands for it.
//!
//! The keys are cut into chunks of [`LONGEST`]. A chunk is judged by its representative, the key in its middle. A query
//! keeps the best `probes` chunks, halves them, keeps the best `probes` halves, and so on down to chunks of [`SHORTEST`]
//! keys, all of which it scores; keys younger than the last long chunk are all scored. Nothing is stored but a copy of
//! the long chunks' representatives, side by side. A search reads `n / LONGEST` keys at its top, and a constant number
//! below.
//!
//! This is the stage loop of InfiniteHiP (arXiv 2502.08910, section 3) and HiP (arXiv 2406.09827), which cut, keep the best
//! chunks and cut again. Simplified: InfiniteHiP descends within a chunk to find a representative for every block of
//! queries (HiP takes a fixed key, as here), cuts by factors of its own at each of three stages, lets blocks of queries
//! decide together where here every query and head decides alone, and attends to the chunks kept where here their keys
//! are candidates for votes.

use super::table::Table;
use super::{Layers, Reach, Selector};
use crate::methods::{Appended, LayerCall};
use reattention_kernels::{DeviceError, KvView, ListedRequest, Queries, TopK, TopKRequest};
use std::ops::Range;

/// Keys in the chunks a query begins with, and in those whose keys it scores. Powers of two.
const LONGEST: usize = 256;
const SHORTEST: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Halving {
    reach: Reach,
    layers: Layers<Chunks>,
    stages: Stages,
}

/// The long chunks of one layer.
#[derive(Debug)]
struct Chunks {
    /// Where the first chunk begins.
    start: usize,
    representatives: Table,
}

/// Token numbers, counted from the start of the chunks and the same in all layers, as lists.
#[derive(Debug)]
struct Stages {
    /// Where the first chunk begins.
    start: usize,
    /// Long chunks listed.
    chunks: usize,
    /// The representatives of the chunks of each length, longest (half of [`LONGEST`]) first.
    representatives: Vec<Vec<u32>>,
    tokens: Vec<u32>,
}

impl Halving {
    pub(crate) fn new(reach: Reach) -> Self {
        let stages = (LONGEST / SHORTEST).ilog2() as usize;
        let stages =
            Stages { start: 0, chunks: 0, representatives: vec![Vec::new(); stages], tokens: Vec::new() };
        Self { reach, layers: Layers::new(), stages }
    }
}

impl Selector for Halving {
    fn name(&self) -> &'static str {
        "halving"
    }

    fn extend(&mut self, new: &Appended, keys: Range<usize>) -> Result<(), DeviceError> {
        let is_long = keys.len() > self.reach.exact_below;
        let (heads, dim) = (new.kv.n_kv_heads, new.kv.head_dim);
        let make = || Chunks { start: keys.start, representatives: Table::per_head(heads, dim) };
        let Some(chunks) = self.layers.due(new.layer, is_long, make) else { return Ok(()) };
        while chunks.end() + LONGEST <= keys.end {
            chunks.add(&new.kv);
        }
        self.stages.list(chunks);
        Ok(())
    }

    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> Result<TopK, DeviceError> {
        let probes = self.reach.probes(call.step.kind);
        self.layers.search(self.reach, call, q, request, |chunks| {
            Ok((chunks.top_k(call, q, request, probes, &self.stages)?, chunks.end()))
        })
    }

    fn truncate(&mut self, n: usize) {
        for chunks in self.layers.each() {
            chunks.representatives.truncate(n.saturating_sub(chunks.start) / LONGEST);
        }
    }
}

impl Chunks {
    /// The first token in no chunk.
    fn end(&self) -> usize {
        self.start + self.representatives.len() * LONGEST
    }

    fn add(&mut self, kv: &KvView) {
        let middle = self.end() + LONGEST / 2;
        let chunk = self.representatives.push();
        let mut key = vec![0.0; kv.head_dim];
        for head in 0..kv.n_kv_heads {
            kv.copy_key(head, middle, &mut key);
            self.representatives.set_of(head, chunk, key.iter().copied());
        }
    }

    fn top_k(
        &self,
        call: &LayerCall,
        q: &Queries,
        request: &TopKRequest,
        probes: usize,
        stages: &Stages,
    ) -> Result<TopK, DeviceError> {
        let all = TopKRequest { keys: 0..self.representatives.len(), k: probes, ..request.clone() };
        let mut kept = call.backend.top_k(q, &self.representatives.view(), &all)?;
        let mut length = LONGEST;
        for halves in &stages.representatives {
            length /= 2;
            let stage = ListedRequest {
                k: probes.min(2 * kept.k),
                lists: &kept.indices,
                per_row: kept.k,
                keys: &|chunk| &halves[2 * chunk as usize..][..2],
            };
            kept = call.backend.top_k_listed(q, &call.kv, &stage);
            // From the token of a representative to the number of its chunk.
            for index in kept.indices.iter_mut().filter(|i| **i != ListedRequest::NONE) {
                *index = ((*index as usize - self.start) / length) as u32;
            }
        }
        let found = call.backend.top_k_listed(
            q,
            &call.kv,
            &ListedRequest {
                k: request.k,
                lists: &kept.indices,
                per_row: kept.k,
                keys: &|chunk| &stages.tokens[chunk as usize * SHORTEST..][..SHORTEST],
            },
        );
        Ok(found)
    }
}

impl Stages {
    /// Lists what the chunks of a layer need.
    fn list(&mut self, layer: &Chunks) {
        if layer.start != self.start {
            self.representatives.iter_mut().for_each(Vec::clear);
            self.tokens.clear();
            (self.start, self.chunks) = (layer.start, 0);
        }
        let have = self.start + self.chunks * LONGEST;
        self.chunks = self.chunks.max(layer.representatives.len());
        let new = have..self.start + self.chunks * LONGEST;
        let mut length = LONGEST;
        for representatives in &mut self.representatives {
            length /= 2;
            representatives.extend(new.clone().step_by(length).map(|first| (first + length / 2) as u32));
        }
        self.tokens.extend(new.map(|token| token as u32));
    }
}
