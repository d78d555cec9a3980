//! `infllm`: a local window and retrieved blocks of far tokens (NeurIPS 2024, arXiv 2402.04617).
//!
//! (a) A query sees the last `local` tokens, the first `global` ones, the `top_k` memory blocks whose representatives answer the
//! mean query of its execution block best, and the tokens that have left the window but do not fill a block yet.
//! (b) Inside the window distances are true; everything else stands at distance `local - 1`, keys at position 0.
//! (c) All keys are kept raw. What leaves the window is cut into blocks of `block` tokens; for each query head the mean of
//! the `repr` keys that got the most attention while they were local stands for the block.
//! (d) In execution blocks of `exc_block` tokens, the last token of the prompt alone.
//!
//! The published code masks the tokens that wait for a block against the wrong length, so in prefill queries that still have
//! them in their window see them a second time, at the far distance. Here they see them once; `reference` restores that.

mod memory;
mod spec;
#[cfg(test)]
mod tests;

pub(super) use spec::SPEC;

use super::{LayerCall, Method, Selection, Step, View, chunks, question_apart};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, Settings};
use memory::{Cuts, LayerMemory, Pending};
use reattention_kernels::{Band, ColdFile, DeviceError, KeySet, PAGE, Position, RopeTable, Segment};
use std::ops::Range;
use std::sync::Arc;

/// InfLLM, configured.
#[derive(Debug)]
pub struct InfLlm {
    n_heads: usize,
    head_dim: usize,
    cuts: Cuts,
    top_k: usize,
    exc_block: usize,
    chunk: usize,
    reference: bool,
    /// Blocks lie on disk, all but the last ones used.
    cold: bool,
    hot: usize,
    layers: Vec<LayerMemory>,
    /// The pinned length and what every layer knew then.
    pinned: Option<(usize, Vec<memory::Snapshot>)>,
}

impl InfLlm {
    /// From settings; see `reattn methods` for every parameter.
    ///
    /// # Errors
    /// When a value is out of range, values contradict each other, or the model is too small for them.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        let local = read.count("local", (shape.window / 2).clamp(1, 4096))?;
        let block = read.count("block", (local / 32).max(1))?;
        let exc_block = read.count("exc_block", (local / 8).max(1))?;
        let cuts = Cuts {
            global: read.count("global", local / 32)?,
            local,
            block,
            representatives: read.count("repr", block.min(4))?,
        };
        let top_k = read.count("top_k", 16)?;
        let method = Self {
            n_heads: shape.n_heads,
            head_dim: shape.head_dim,
            cuts,
            top_k,
            exc_block,
            chunk: read.count("chunk", exc_block)?,
            reference: read.value("reference", false)?,
            cold: read.choice("cold", &[("memory", false), ("disk", true)])?,
            hot: read.count("hot", 2 * top_k)?,
            layers: (0..shape.n_layers).map(|_| LayerMemory::default()).collect(),
            pinned: None,
        };
        let ranges = [
            ("local", local, 1, usize::MAX),
            ("block", block, 1, usize::MAX),
            ("repr", cuts.representatives, 1, block),
            ("exc_block", exc_block, 1, local),
            ("chunk", method.chunk, 1, usize::MAX),
            ("hot", method.hot, top_k, usize::MAX),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(read.bad(name, value));
            }
        }
        if local > shape.window {
            return Err(read.contradiction(format!(
                "local={local} exceeds the model's window of {} positions; lower local",
                shape.window
            )));
        }
        Ok(method)
    }

    /// The blocks out of `n` that answer the mean query of the call best, ascending.
    fn choose(&self, call: &LayerCall, rope: &RopeTable, n: usize) -> Result<Vec<usize>, DeviceError> {
        if n <= self.top_k || self.top_k == 0 {
            return Ok((0..n.min(self.top_k)).collect());
        }
        let (q, width) = (call.q, self.n_heads * self.head_dim);
        let mut mean = vec![0.0; width];
        for token in q.data.chunks_exact(width) {
            mean.iter_mut().zip(token).for_each(|(m, x)| *m += x / q.q_len as f32);
        }
        // Turning is linear, so the mean of the turned queries is the turned mean.
        mean.chunks_exact_mut(self.head_dim).for_each(|head| rope.rotate(self.cuts.local as i64 - 1, head));
        self.layers[call.layer].best_blocks(call.backend, &mean, self.top_k)
    }

    /// Keys outside the window: first tokens, chosen blocks, and those on their way into a block, ascending.
    fn far(&self, step: &Range<usize>, blocks: &[usize]) -> Arc<[u32]> {
        let waiting = self.cuts.waiting(step.start);
        let far = waiting.start..(step.end.saturating_sub(self.cuts.local)).max(waiting.start);
        let first = 0..self.cuts.first_tokens(step.start);
        let blocks = blocks.iter().map(|&b| self.cuts.tokens_of(b));
        let ranges = std::iter::once(first).chain(blocks).chain([far]);
        ranges.flatten().map(|t| t as u32).collect()
    }
}

impl Method for InfLlm {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("local", self.cuts.local.to_string()),
            ("global", self.cuts.global.to_string()),
            ("block", self.cuts.block.to_string()),
            ("top_k", self.top_k.to_string()),
            ("repr", self.cuts.representatives.to_string()),
            ("exc_block", self.exc_block.to_string()),
            ("chunk", self.chunk.to_string()),
            ("cold", if self.cold { "disk" } else { "memory" }.to_string()),
            ("hot", self.hot.to_string()),
            ("reference", self.reference.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        let apart = question.filter(|q| !self.reference || *q == tokens.end);
        question_apart(tokens, apart, self.chunk, 0)
            .into_iter()
            .flat_map(|step| chunks(step.tokens, self.exc_block, step.kind))
            .collect()
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let (cuts, n_blocks) = (self.cuts, self.cuts.blocks(start));
        let archived = self.layers[call.layer].settle(&cuts, start, &call.kv, self.n_heads);
        let oldest = (start + 1).saturating_sub(cuts.local);
        let rope = call.ropes.for_positions(cuts.local.max(end - oldest))?;
        let blocks = self.choose(call, &rope, n_blocks)?;
        let far = self.far(&call.step.tokens, &blocks);
        // Only distances matter inside the window; counting from its start keeps the positions small.
        let slot = Position::Index { offset: -(oldest as i64) };
        let segment = |keys, band, key_position, query_position| Segment {
            keys,
            band,
            key_position,
            query_position,
            key_rope: Arc::clone(&rope),
            query_rope: Arc::clone(&rope),
        };
        let near = segment(KeySet::Range(oldest..end), Band::between(0, cuts.local), slot, slot);
        let outside = if self.reference { Band::CAUSAL } else { Band::between(cuts.local, usize::MAX) };
        let farthest = Position::Constant(cuts.local as i64 - 1);
        let far = segment(KeySet::Gathered(far), outside, Position::Constant(0), farthest);
        let mut view = View::new(vec![vec![near, far]]);
        view.watched = 0..1;
        view.archived = archived;
        if self.cold {
            let left = self.layers[call.layer].used(&blocks, self.hot);
            view.cooled = left.into_iter().map(|b| cuts.tokens_of(b)).collect();
        }
        if n_blocks > 0 {
            let tokens = blocks.iter().flat_map(|&b| cuts.tokens_of(b)).map(|t| t as u32).collect();
            view.selections = vec![Selection { tokens, ..Selection::default() }];
        }
        Ok(view)
    }

    fn watch(&mut self, call: &mut LayerCall, mass: Vec<Vec<f32>>) {
        let tokens = call.step.tokens.clone();
        let oldest = (tokens.start + 1).saturating_sub(self.cuts.local);
        self.layers[call.layer].watched(Pending { tokens, oldest, mass: mass.into() });
    }

    fn cold(&self, _len: usize) -> Range<usize> {
        // A block whose representatives are not chosen yet is about to be read.
        let blocks = self.layers.iter().map(LayerMemory::blocks).min().unwrap_or(0);
        let end = if self.cold { self.cuts.global + blocks * self.cuts.block } else { 0 };
        self.cuts.global.min(end)..end
    }

    fn on_disk(&self, n: usize) -> usize {
        let pages = self.cuts.global.div_ceil(PAGE)..self.cuts.waiting(n).start / PAGE;
        if self.cold { pages.len() * PAGE } else { 0 }
    }

    fn kept(&self, n: usize) -> usize {
        if !self.cold {
            return n;
        }
        // A block lies at worst across the ends of what the system reads around it, for each head: counted as tokens of
        // the smaller type.
        let around = (ColdFile::AROUND / (2 * self.head_dim)).min(PAGE);
        let read_back = self.hot.max(self.top_k).min(self.cuts.blocks(n)) * (self.cuts.block + 2 * around);
        let late = self.largest_step() + self.cuts.block + PAGE;
        n.min(n - self.on_disk(n.saturating_sub(late)) + read_back)
    }

    fn truncate(&mut self, n: usize) {
        let snapshots = self.pinned.as_ref().filter(|(at, _)| *at == n).map(|(_, layers)| layers.as_slice());
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.truncate(&self.cuts, n, snapshots.map(|s| &s[i]));
        }
        if self.pinned.as_ref().is_some_and(|(at, _)| *at > n) {
            self.pinned = None;
        }
    }

    fn returns_to(&self, n: usize) -> bool {
        self.pinned.as_ref().is_some_and(|(at, _)| *at == n) || self.layers.iter().all(|l| l.returns_to(n))
    }

    fn pin(&mut self, n: usize) {
        self.pinned = Some((n, self.layers.iter().map(LayerMemory::snapshot).collect()));
    }

    fn unpin(&mut self) {
        self.pinned = None;
    }

    fn largest_step(&self) -> usize {
        self.exc_block.min(self.chunk)
    }

    fn extra_bytes(&self, n: usize) -> usize {
        let representatives = self.cuts.blocks(n).saturating_mul(self.head_dim);
        // The scores of the tokens at hand and what the last step adds to them, and both once more while pinned.
        let at_hand = self.cuts.local + self.cuts.block + 2 * self.largest_step();
        let scores = 4 * at_hand.min(n.saturating_add(self.exc_block));
        (4 * self.layers.len() * self.n_heads).saturating_mul(representatives.saturating_add(scores))
    }

    fn step_bytes(&self, q_len: usize) -> usize {
        4 * self.n_heads * (self.head_dim + 2 * (self.cuts.local + q_len))
    }

    fn splits(&self) -> bool {
        !self.reference
    }
}
