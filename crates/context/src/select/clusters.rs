//! `clusters`: keys are grouped by content as they come, and a query looks only into the groups that promise most.
//!
//! Each KV head of each layer has a tree of two levels: *leaves* of at most 128 near keys, and *branches* of at most 128 near
//! leaves. Keys are grouped by their difference to the mean key, which shifts all scores of a query alike; the centres of
//! real keys would drown in it. Keys younger than the tree are all scored.
//!
//! - A query of the context is scored against all branches, the leaves of its best branches, and the keys of its best leaves:
//!   `n / 16,384` centres at the top and a constant below. A group promises `q · c + spread_weight · |q| · s`: the score of
//!   its centre, and room for its members to be better, `s` being the spread of the members.
//! - A query of the question or the answer, of which there are few, is scored against the centres of all leaves, which lie
//!   one after another, with the distance of the farthest member for `s`; then against the signs of the keys of the best
//!   leaves ([`SignGroup`](reattention_kernels::SignGroup)), a run of memory each; then against the keys that these name.
//!
//! Inverted lists of content clusters over cached keys are the idea of RetrievalAttention's baselines (arXiv 2409.10516),
//! ClusterKV (arXiv 2412.03213) and Squeezed Attention (arXiv 2411.09688); here the tree grows with the context.

use super::tree::Tree;
use super::{Layers, Reach, Selector, among};
use crate::methods::{Appended, LayerCall, StepKind};
use reattention_kernels::{Arena, Backend, DeviceError, KvView, ListedRequest, Queries, TopK, TopKRequest};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keys that join the trees at once, at least and at most: every batch reads most centres once, and until then its keys are
/// all scored.
const BATCH: usize = 1024;
const LARGEST_BATCH: usize = 16_384;

/// What a person may set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterSettings {
    /// How far it looks; a group is a leaf.
    pub(crate) reach: Reach,
    /// Room for members to be better than their centre.
    pub(crate) spread_weight: f32,
    /// Keys of each query and head that are scored for an answer, of those in its groups.
    pub(crate) candidates: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clusters {
    settings: ClusterSettings,
    layers: Layers<Forest>,
    /// Memory of all leaves.
    arena: Arc<Mutex<Arena>>,
}

impl Clusters {
    pub(crate) fn new(settings: ClusterSettings) -> Self {
        Self { settings, layers: Layers::new(), arena: Arc::default() }
    }
}

impl Selector for Clusters {
    fn name(&self) -> &'static str {
        "clusters"
    }

    fn extend(&mut self, new: &Appended, keys: Range<usize>) -> Result<(), DeviceError> {
        let is_long = keys.len() > self.settings.reach.exact_below;
        let forest = self.layers.due(new.layer, is_long, || Forest::new(&new.kv, keys.clone(), &self.arena));
        let Some(forest) = forest else { return Ok(()) };
        forest.grow_back(&new.kv, new.backend)?;
        // Questions and answers are often rolled back: their keys wait, as long as they are few.
        let least = if new.step.kind == StepKind::Prefill { BATCH } else { LARGEST_BATCH / 4 };
        while keys.end.saturating_sub(forest.keys.end) >= least {
            let end = keys.end - (keys.end - forest.keys.end) % BATCH;
            let end = end.min(forest.keys.end + LARGEST_BATCH);
            forest.insert(&new.kv, new.backend, Batch { end, known: keys.end })?;
        }
        Ok(())
    }

    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> Result<TopK, DeviceError> {
        self.layers.search(self.settings.reach, call, q, request, |forest| {
            Ok((forest.top_k(call, q, request, &self.settings)?, forest.keys.end))
        })
    }

    fn truncate(&mut self, n: usize) {
        self.layers.forget(|forest| forest.sample.end > n);
        self.layers.each().for_each(|forest| forest.truncate(n));
    }

    fn bytes_per_key(&self, head_dim: usize) -> f64 {
        Tree::bytes_per_key(head_dim)
    }
}

/// The trees of one layer, one a KV head.
///
/// Centres, radii and who stands beside whom depend on every key that ever came, so a key cannot be taken out again. A
/// roll-back that reaches into the trees grows them anew, from the same batches as before: what is selected never depends
/// on tokens that were read and forgotten.
#[derive(Debug)]
struct Forest {
    /// Tokens in the trees.
    keys: Range<usize>,
    /// Tokens there were when it was made, which give the mean key.
    sample: Range<usize>,
    /// What the trees were grown from, in order; after a roll-back, what they are to be grown from.
    batches: Vec<Batch>,
    /// Empty from a roll-back until the next keys come.
    trees: Vec<Tree>,
    arena: Arc<Mutex<Arena>>,
}

/// Keys that joined the trees at once: those up to token `end`, when the tokens up to `known` were there.
#[derive(Clone, Copy, Debug)]
struct Batch {
    end: usize,
    known: usize,
}

impl Forest {
    fn new(kv: &KvView, keys: Range<usize>, arena: &Arc<Mutex<Arena>>) -> Self {
        let none = keys.start..keys.start;
        let mut forest = Self {
            keys: none,
            sample: keys,
            batches: Vec::new(),
            trees: Vec::new(),
            arena: Arc::clone(arena),
        };
        forest.plant(kv);
        forest
    }

    fn plant(&mut self, kv: &KvView) {
        let tree = |head| Tree::new(kv, head, self.sample.clone(), &self.arena);
        self.trees = (0..kv.n_kv_heads).map(tree).collect();
    }

    /// Adds the keys of a batch, which follow those it has.
    fn insert(&mut self, kv: &KvView, backend: &dyn Backend, batch: Batch) -> Result<(), DeviceError> {
        let new = self.keys.end..batch.end;
        let failed = Mutex::new(Ok(()));
        let trees: Vec<Mutex<&mut Tree>> = self.trees.iter_mut().map(Mutex::new).collect();
        backend.each(trees.len(), &|head| {
            if let Err(error) = locked(&trees[head]).insert(kv, backend, new.clone()) {
                *locked(&failed) = Err(error);
            }
        });
        // Also where one failed: what the others took in is forgotten with the step.
        self.keys.end = new.end;
        self.batches.push(batch);
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows the trees as they were at the point that a roll-back went to, if one went into them.
    fn grow_back(&mut self, kv: &KvView, backend: &dyn Backend) -> Result<(), DeviceError> {
        if self.trees.is_empty() {
            self.plant(kv);
            let batches = std::mem::take(&mut self.batches);
            if let Err(error) = batches.iter().try_for_each(|&batch| self.insert(kv, backend, batch)) {
                // The next step begins anew, with the same batches.
                (self.keys.end, self.batches) = (self.keys.start, batches);
                self.trees.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    fn top_k(
        &self,
        call: &LayerCall,
        q: &Queries,
        request: &TopKRequest,
        settings: &ClusterSettings,
    ) -> Result<TopK, DeviceError> {
        let (probes, backend) = (settings.reach.probes(call.step.kind), call.backend);
        if call.step.kind == StepKind::Prefill {
            // Chunks have many queries that share what they look into.
            let leaves = self
                .of_each(call, q, |tree, q| tree.near_leaves(backend, q, probes, settings.spread_weight))?;
            let heads = self.trees.len() as u32;
            let list = |(i, &leaf): (usize, &u32)| match leaf {
                ListedRequest::NONE => leaf,
                leaf => leaf * heads + (i / leaves.k % q.n_heads * self.trees.len() / q.n_heads) as u32,
            };
            let lists: Vec<u32> = leaves.indices.iter().enumerate().map(list).collect();
            let keys = |list: u32| self.trees[(list % heads) as usize].tokens(list / heads);
            let listed = ListedRequest { k: request.k, lists: &lists, per_row: leaves.k, keys: &keys };
            return Ok(backend.top_k_listed(q, &call.kv, &listed));
        }
        let wanted = (probes, settings.candidates.max(request.k));
        let found =
            self.of_each(call, q, |tree, q| tree.candidates(backend, q, wanted, settings.spread_weight))?;
        Ok(among(call, q, request.k, &found))
    }

    /// What `search` finds in each tree for the queries of its KV head, put together.
    fn of_each(
        &self,
        call: &LayerCall,
        q: &Queries,
        search: impl Fn(&Tree, &Queries) -> Result<TopK, DeviceError> + Sync,
    ) -> Result<TopK, DeviceError> {
        let group = q.n_heads / self.trees.len();
        let found: Vec<Mutex<Option<Result<TopK, DeviceError>>>> =
            self.trees.iter().map(|_| Mutex::default()).collect();
        call.backend.each(self.trees.len(), &|head| {
            let width = group * q.head_dim;
            let own =
                q.data.chunks_exact(q.n_heads * q.head_dim).map(|token| &token[head * width..][..width]);
            let data: Vec<f32> = own.flatten().copied().collect();
            let own = Queries { data: &data, n_heads: group, ..*q };
            *locked(&found[head]) = Some(search(&self.trees[head], &own));
        });
        let found: Vec<TopK> = found.iter().filter_map(|one| locked(one).take()).collect::<Result<_, _>>()?;
        // Trees with few leaves find less.
        let k = found.iter().map(|one| one.k).max().unwrap_or(0);
        let slots = q.q_len * q.n_heads * k;
        let (indices, scores) = (vec![ListedRequest::NONE; slots], vec![f32::NEG_INFINITY; slots]);
        let mut all = TopK { q_len: q.q_len, n_heads: q.n_heads, k, indices, scores };
        for (head, one) in found.iter().enumerate() {
            for row in 0..q.q_len * group {
                let to = (row / group * q.n_heads + head * group + row % group) * k;
                let from = row * one.k..(row + 1) * one.k;
                all.indices[to..to + one.k].copy_from_slice(&one.indices[from.clone()]);
                all.scores[to..to + one.k].copy_from_slice(&one.scores[from]);
            }
        }
        Ok(all)
    }

    /// Forgets what it learned when there were more than the tokens up to `n`; before it is searched again, the next keys come.
    fn truncate(&mut self, n: usize) {
        let kept = self.batches.partition_point(|batch| batch.known <= n);
        if kept < self.batches.len() {
            self.batches.truncate(kept);
            self.trees.clear();
            self.keys.end = self.keys.start;
        }
    }
}

/// What a lock guards; nothing that holds one is left half done by a panic and used again.
fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
