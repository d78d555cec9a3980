//! What one layer of `infllm` remembers: how much attention the tokens at hand got, and the representatives of blocks.

use super::super::Archived;
use crate::select::Table;
use reattention_kernels::{
    Backend, DeviceError, HeadPairing, KvView, Pages, Queries, TopKRequest, TopKRule, bf16,
};
use std::ops::Range;
use std::sync::Arc;

/// How the tokens of a context are cut; all of it follows from their number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    /// First tokens that stay visible.
    pub(super) global: usize,
    /// Tokens of the window.
    pub(super) local: usize,
    /// Tokens of a block.
    pub(super) block: usize,
    /// Tokens that stand for a block.
    pub(super) representatives: usize,
}

impl Cuts {
    /// Blocks once `n` tokens are in the store: no block takes a token of the last `local`.
    pub(super) fn blocks(&self, n: usize) -> usize {
        n.saturating_sub(self.global + self.local) / self.block
    }

    /// The tokens of block `b`.
    pub(super) fn tokens_of(&self, b: usize) -> Range<usize> {
        let start = self.global + b * self.block;
        start..start + self.block
    }

    /// First tokens that have left the window once `n` tokens are in the store.
    pub(super) fn first_tokens(&self, n: usize) -> usize {
        self.global.min(n.saturating_sub(self.local))
    }

    /// Tokens that belong neither to the first ones nor to a block once `n` tokens are in the store.
    pub(super) fn waiting(&self, n: usize) -> Range<usize> {
        self.first_tokens(n) + self.blocks(n) * self.block..n
    }
}

/// The attention the window's keys got in one step, not counted yet: until the next step it can be taken back.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// The tokens of the step.
    pub(super) tokens: Range<usize>,
    /// The token of the first key.
    pub(super) oldest: usize,
    /// For every query head a number for each key, consecutive tokens.
    pub(super) mass: Arc<[Vec<f32>]>,
}

/// One layer's memory.
#[derive(Debug, Default)]
pub(super) struct LayerMemory {
    known: Snapshot,
    representatives: Option<Representatives>,
    /// Blocks in the order of their last use.
    hot: Vec<usize>,
}

/// All of it but the representatives of blocks that stay whatever follows.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// Tokens whose queries' attention has been counted.
    counted: usize,
    /// For every query head the attention each token from the first one behind the blocks on has got.
    score: Vec<Vec<f32>>,
    pending: Option<Pending>,
}

/// Mean keys `[blocks, n_heads · head_dim]`, in the type keys are stored in.
#[derive(Debug)]
enum Representatives {
    F32(Table<f32>),
    Bf16(Table<bf16>),
}

impl LayerMemory {
    /// Counts what the last step's queries attended to and puts away the blocks that are complete with `n` tokens, whose keys
    /// `kv` holds.
    pub(super) fn settle(&mut self, cuts: &Cuts, n: usize, kv: &KvView, n_heads: usize) -> Vec<Archived> {
        let known = &mut self.known;
        let table = self.representatives.get_or_insert_with(|| Representatives::new(kv, n_heads));
        known.score.resize_with(n_heads, Vec::new);
        let first = cuts.global + table.len() * cuts.block;
        let pending = known.pending.take();
        for (head, score) in known.score.iter_mut().enumerate() {
            score.resize(score.len().max(n.saturating_sub(first)), 0.0);
            if let Some(Pending { oldest, mass, .. }) = &pending {
                let from = first.saturating_sub(*oldest);
                let scores = score.iter_mut().skip(oldest.saturating_sub(first));
                scores.zip(mass[head].iter().skip(from)).for_each(|(s, m)| *s += m);
            }
        }
        known.counted = n;
        let mut archived = Vec::new();
        for block in table.len()..cuts.blocks(n) {
            let tokens = cuts.tokens_of(block);
            let best =
                |score: &Vec<f32>| most_watched(&score[..cuts.block], cuts.representatives, tokens.start);
            let representatives: Vec<Vec<u32>> = known.score.iter().map(best).collect();
            table.push(kv, &representatives);
            known.score.iter_mut().for_each(|score| drop(score.drain(..cuts.block)));
            archived.push(Archived { tokens, representatives });
        }
        archived
    }

    /// Takes note of what a step's queries attended to.
    pub(super) fn watched(&mut self, pending: Pending) {
        self.known.pending = Some(pending);
    }

    /// The `k` blocks with the largest product of representative and `query: [n_heads · head_dim]`, ascending.
    pub(super) fn best_blocks(
        &self,
        backend: &dyn Backend,
        query: &[f32],
        k: usize,
    ) -> Result<Vec<usize>, DeviceError> {
        let Some(table) = &self.representatives else { return Ok(Vec::new()) };
        // All heads together are one: their products add up.
        let q = Queries { data: query, n_heads: 1, q_len: 1, head_dim: query.len(), first: 0 };
        let request =
            TopKRequest { k, keys: 0..table.len(), pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
        let best = backend.top_k(&q, &table.view(), &request)?;
        // Where scores are no numbers, slots stay empty.
        let found = best.indices.iter().map(|&b| b as usize).filter(|b| *b < table.len());
        let mut blocks: Vec<usize> = found.collect();
        blocks.sort_unstable();
        Ok(blocks)
    }

    /// Blocks that were put away.
    pub(super) fn blocks(&self) -> usize {
        self.representatives.as_ref().map_or(0, Representatives::len)
    }

    /// Takes note of blocks in use; returns those used longest ago, beyond `hot`.
    pub(super) fn used(&mut self, blocks: &[usize], hot: usize) -> Vec<usize> {
        self.hot.retain(|b| !blocks.contains(b));
        self.hot.extend(blocks);
        self.hot.drain(..self.hot.len().saturating_sub(hot)).collect()
    }

    /// What a return to now needs.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.known.clone()
    }

    /// Whether [`LayerMemory::truncate`] to `n` needs no snapshot.
    pub(super) fn returns_to(&self, n: usize) -> bool {
        n == 0 || n == self.known.counted || n >= self.known.end()
    }

    /// Forgets what came after the first `n` tokens: the last step at most, unless `then` is what was known with `n`.
    pub(super) fn truncate(&mut self, cuts: &Cuts, n: usize, then: Option<&Snapshot>) {
        match then {
            Some(then) => self.known = then.clone(),
            None if n == 0 => *self = Self::default(),
            None if n < self.known.end() => self.known.pending = None,
            None => {}
        }
        if let Some(table) = &mut self.representatives {
            table.truncate(cuts.blocks(self.known.counted));
        }
    }
}

impl Snapshot {
    /// Tokens whose queries' attention is known.
    fn end(&self) -> usize {
        self.pending.as_ref().map_or(self.counted, |p| p.tokens.end)
    }
}

impl Representatives {
    fn new(kv: &KvView, n_heads: usize) -> Self {
        let width = n_heads * kv.head_dim;
        match kv.pages {
            Pages::F32 { .. } => Self::F32(Table::new(width)),
            Pages::Bf16 { .. } => Self::Bf16(Table::new(width)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(table) => table.len(),
            Self::Bf16(table) => table.len(),
        }
    }

    fn view(&self) -> KvView<'_> {
        match self {
            Self::F32(table) => table.view(),
            Self::Bf16(table) => table.view(),
        }
    }

    fn truncate(&mut self, n: usize) {
        match self {
            Self::F32(table) => table.truncate(n),
            Self::Bf16(table) => table.truncate(n),
        }
    }

    /// Adds the mean of the keys of `tokens`, which are given for every query head.
    fn push(&mut self, kv: &KvView, tokens: &[Vec<u32>]) {
        let (dim, group) = (kv.head_dim, tokens.len() / kv.n_kv_heads);
        let (mut mean, mut key) = (vec![0.0; tokens.len() * dim], vec![0.0; dim]);
        for ((head, of_head), mean) in tokens.iter().enumerate().zip(mean.chunks_exact_mut(dim)) {
            for &token in of_head {
                kv.copy_key(head / group, token as usize, &mut key);
                mean.iter_mut().zip(&key).for_each(|(m, x)| *m += x / of_head.len() as f32);
            }
        }
        match self {
            Self::F32(table) => {
                let row = table.push();
                table.set(row, mean.into_iter());
            }
            Self::Bf16(table) => {
                let row = table.push();
                table.set(row, mean.into_iter());
            }
        }
    }
}

/// The `k` tokens with the largest scores, ascending; ties go to the lower token. `first` is the token of the first score.
fn most_watched(scores: &[f32], k: usize, first: usize) -> Vec<u32> {
    let mut tokens: Vec<usize> = (0..scores.len()).collect();
    tokens.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    tokens.truncate(k);
    tokens.sort_unstable();
    tokens.into_iter().map(|t| (first + t) as u32).collect()
}
