//! `clusters`: keys are grouped by content as they come, and a query looks only into the groups that promise most.
//!
//! Each KV head of each layer has a tree of two levels: *leaves* of at most [`LEAF`] near keys, and *branches* of at most
//! [`BRANCH`] near leaves. A query is scored against all branches, the leaves of its best branches, and the keys of its
//! best leaves; keys younger than the tree are all scored. So a search costs `n / (LEAF · BRANCH)` at its top and a constant
//! below. A group promises `q · c + spread_weight · |q| · s`: the score of its centre, and room for its members to be better.
//! Keys are grouped by their difference to the mean key, which shifts all scores of a query alike; the centres of real
//! keys would drown in it.
//!
//! Inverted lists of content clusters over cached keys are the idea of RetrievalAttention's baselines (arXiv 2409.10516),
//! ClusterKV (arXiv 2412.03213) and Squeezed Attention (arXiv 2411.09688); here the tree grows with the context.

use super::partition::{Points, partition};
use super::table::Table;
use super::{Layers, Reach, Selector};
use crate::methods::{Appended, LayerCall, StepKind};
use reattention_kernels::{Backend, Element, KvView, ListedRequest, Queries, TopK, TopKRequest, bf16};
use std::ops::Range;

/// Most keys of a leaf, and most leaves of a branch.
const LEAF: usize = 64;
const BRANCH: usize = 128;

/// Branches a query looks into at least; it is one for every two leaves.
const BRANCHES: usize = 8;

/// Keys that join the tree at once, at least and at most: every batch reads most centres once, and until then its keys are
/// all scored.
const BATCH: usize = 1024;
const LARGEST_BATCH: usize = 16_384;

/// Elements of a centre after its vector: the spread, and two parts of minus half its squared length, which turn the
/// product with a key into a comparison of distances. Two parts, since bf16 has eight bits.
const EXTRA: usize = 4;

/// What a person may set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterSettings {
    /// How far it looks: a group is a leaf.
    pub(crate) reach: Reach,
    /// Room for members to be better than their centre.
    pub(crate) spread_weight: f32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clusters {
    settings: ClusterSettings,
    layers: Layers<Forest>,
}

impl Clusters {
    pub(crate) fn new(settings: ClusterSettings) -> Self {
        Self { settings, layers: Layers::new() }
    }
}

impl Selector for Clusters {
    fn name(&self) -> &'static str {
        "clusters"
    }

    fn extend(&mut self, new: &Appended, keys: Range<usize>) {
        let is_long = keys.len() > self.settings.reach.exact_below;
        let forest = self.layers.due(new.layer, is_long, || Forest::new(&new.kv, keys.clone()));
        let Some(forest) = forest else { return };
        // Questions and answers are often rolled back: their keys wait, as long as they are few.
        let least = if new.step.kind == StepKind::Prefill { BATCH } else { LARGEST_BATCH / 4 };
        while keys.end.saturating_sub(forest.keys.end) >= least {
            let end = keys.end - (keys.end - forest.keys.end) % BATCH;
            let batch = forest.keys.end..end.min(forest.keys.end + LARGEST_BATCH);
            forest.insert(&new.kv, new.backend, batch);
        }
    }

    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> TopK {
        self.layers.search(self.settings.reach, call, q, request, |forest| {
            (forest.top_k(call, q, request, &self.settings), forest.keys.end)
        })
    }

    fn truncate(&mut self, n: usize) {
        self.layers.each().filter(|f| f.keys.end > n).for_each(|f| f.truncate(n));
    }

    fn bytes_per_key(&self, head_dim: usize) -> f64 {
        // A leaf is cut at LEAF + 1 keys, so it holds some two thirds of LEAF; beside it stand its centre and its branch.
        let leaf = LEAF * size_of::<u32>() + (head_dim + EXTRA) * size_of::<bf16>() + 2 * size_of::<u32>();
        leaf as f64 / (LEAF as f64 * 2.0 / 3.0)
    }
}

/// The trees of one layer, one a KV head. Leaves and branches are numbered through all of them.
#[derive(Debug)]
struct Forest {
    /// Tokens in the trees.
    keys: Range<usize>,
    /// What is taken off each key before it is grouped, `[n_kv_heads, head_dim]`.
    means: Vec<f32>,
    /// The centre of every leaf and its tokens, ascending.
    leaf_centres: Table,
    leaves: Leaves,
    /// The branch of every leaf.
    branch_of: Vec<u32>,
    /// The centre of every branch and its leaves.
    branch_centres: Table,
    branches: Vec<Vec<u32>>,
    /// Leaves of every branch when its centre was last put right.
    settled: Vec<usize>,
    /// The branches of each KV head.
    trees: Vec<Vec<u32>>,
}

impl Forest {
    fn new(kv: &KvView, keys: Range<usize>) -> Self {
        let (dim, heads) = (kv.head_dim, kv.n_kv_heads);
        let mut means = vec![0.0; heads * dim];
        let mut key = vec![0.0; dim];
        let step = (keys.len() / 1024).max(1);
        let sampled = keys.clone().step_by(step).len() as f32;
        for (head, mean) in means.chunks_exact_mut(dim).enumerate() {
            for token in keys.clone().step_by(step) {
                kv.copy_key(head, token, &mut key);
                mean.iter_mut().zip(&key).for_each(|(m, k)| *m += k / sampled);
            }
        }
        Self {
            keys: keys.start..keys.start,
            means,
            leaf_centres: Table::new(dim + EXTRA),
            leaves: Leaves::default(),
            branch_of: Vec::new(),
            branch_centres: Table::new(dim + EXTRA),
            branches: Vec::new(),
            settled: Vec::new(),
            trees: vec![Vec::new(); heads],
        }
    }

    fn top_k(
        &self,
        call: &LayerCall,
        q: &Queries,
        request: &TopKRequest,
        settings: &ClusterSettings,
    ) -> TopK {
        let probes = settings.reach.probes(call.step.kind);
        let mut data = Vec::with_capacity(q.q_len * q.n_heads * (q.head_dim + EXTRA));
        for row in q.data.chunks_exact(q.head_dim) {
            data.extend_from_slice(row);
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            data.extend_from_slice(&[settings.spread_weight * length, 0.0, 0.0, 0.0]);
        }
        let rows = Queries { data: &data, head_dim: q.head_dim + EXTRA, ..*q };
        let group = q.n_heads / call.kv.n_kv_heads;
        let trees: Vec<u32> = (0..q.q_len * q.n_heads).map(|i| (i % q.n_heads / group) as u32).collect();
        let n_branches = probes.div_ceil(2).max(BRANCHES).min(self.branches.len());
        let n_leaves = probes.min(self.branch_of.len());
        let leaves = self.best_leaves(call.backend, &rows, &trees, n_branches, n_leaves);
        call.backend.top_k_listed(
            q,
            &call.kv,
            &ListedRequest {
                k: request.k,
                lists: &leaves.indices,
                per_row: leaves.k,
                keys: &|leaf| self.leaves.tokens(leaf),
            },
        )
    }

    /// The `n_leaves` best leaves of the `n_branches` best branches for each row, looking into the tree of each.
    fn best_leaves(
        &self,
        backend: &dyn Backend,
        rows: &Queries,
        trees: &[u32],
        n_branches: usize,
        n_leaves: usize,
    ) -> TopK {
        let branches = backend.top_k_listed(
            rows,
            &self.branch_centres.view(),
            &ListedRequest {
                k: n_branches,
                lists: trees,
                per_row: 1,
                keys: &|tree| &self.trees[tree as usize],
            },
        );
        backend.top_k_listed(
            rows,
            &self.leaf_centres.view(),
            &ListedRequest {
                k: n_leaves,
                lists: &branches.indices,
                per_row: n_branches,
                keys: &|branch| &self.branches[branch as usize],
            },
        )
    }

    /// Adds the keys of the tokens `new`, which follow those it has.
    fn insert(&mut self, kv: &KvView, backend: &dyn Backend, new: Range<usize>) {
        let heads = self.trees.len();
        let mut data = Vec::with_capacity(new.len() * heads * (kv.head_dim + EXTRA));
        let mut key = vec![0.0; kv.head_dim];
        for token in new.clone() {
            for head in 0..heads {
                self.centred(kv, head, token, &mut key);
                data.extend_from_slice(&key);
                data.extend_from_slice(&[0.0, 1.0, 1.0, 0.0]);
            }
        }
        let rows = Queries {
            data: &data,
            n_heads: heads,
            q_len: new.len(),
            head_dim: key.len() + EXTRA,
            first: new.start,
        };
        let trees: Vec<u32> = (0..new.len() * heads).map(|i| (i % heads) as u32).collect();
        let nearest =
            if self.keys.is_empty() { None } else { Some(self.best_leaves(backend, &rows, &trees, 1, 1)) };
        for head in 0..heads {
            // Pairs of a leaf and a token that joins it, by leaf.
            let leaf_of =
                |i: usize| nearest.as_ref().map_or(ListedRequest::NONE, |n| n.indices[i * heads + head]);
            let mut joins: Vec<(u32, u32)> =
                new.clone().enumerate().map(|(i, token)| (leaf_of(i), token as u32)).collect();
            joins.sort_unstable();
            for joins in joins.chunk_by(|a, b| a.0 == b.0) {
                self.join(kv, head, joins[0].0, joins.iter().map(|j| j.1));
            }
        }
        self.keys.end = new.end;
    }

    /// Adds tokens to a leaf of a head, and cuts it up if it grows too large. The head's first leaf is made here.
    fn join(&mut self, kv: &KvView, head: usize, leaf: u32, tokens: impl Iterator<Item = u32>) {
        // Keys that are no numbers are near nothing; the first leaf of the head is as good as any.
        let first = self.trees[head].first().and_then(|&b| self.branches[b as usize].first()).copied();
        let (leaf, is_new) = match first {
            Some(first) => (if leaf == ListedRequest::NONE { first } else { leaf }, false),
            None => (self.new_leaf(), true),
        };
        let mut members = self.leaves.tokens(leaf).to_vec();
        members.extend(tokens);
        if members.len() <= LEAF && !is_new {
            self.leaves.set(leaf, members.into_iter());
            return;
        }
        let dim = kv.head_dim;
        let mut data = vec![0.0; members.len() * dim];
        for (&token, key) in members.iter().zip(data.chunks_exact_mut(dim)) {
            self.centred(kv, head, token as usize, key);
        }
        let points = Points { data: &data, dim };
        let mut groups = Vec::new();
        partition(points, (0..members.len() as u32).collect(), LEAF, &mut groups);
        let mut made = Vec::with_capacity(groups.len());
        for (i, group) in groups.iter().enumerate() {
            let leaf = if i == 0 { leaf } else { self.new_leaf() };
            let centre = points.mean(group);
            let spread = (points.scatter(group, &centre) / (group.len() * dim) as f32).sqrt();
            self.leaf_centres.set(leaf, row(&centre, spread));
            // More equal keys than a leaf holds tie, and ties go to the first.
            self.leaves.set(leaf, group.iter().map(|&i| members[i as usize]));
            made.push(leaf);
        }
        let branch = if is_new { self.new_branch(head) } else { self.branch_of[leaf as usize] };
        let joined = if is_new { &made[..] } else { &made[1..] };
        self.branches[branch as usize].extend(joined);
        // One more leaf moves the centre of many but little.
        let leaves = self.branches[branch as usize].len();
        if leaves > BRANCH || leaves >= self.settled[branch as usize] + leaves.div_ceil(8) {
            self.settle(head, branch);
        }
    }

    /// Cuts a branch up if it has too many leaves, and puts its centre right.
    fn settle(&mut self, head: usize, branch: u32) {
        let leaves = std::mem::take(&mut self.branches[branch as usize]);
        let dim = self.leaf_centres.row(0).len() - EXTRA;
        let data: Vec<f32> = leaves
            .iter()
            .flat_map(|&l| self.leaf_centres.row(l)[..dim].iter().map(|&x| Element::to_f32(x)))
            .collect();
        let points = Points { data: &data, dim };
        let mut groups = Vec::new();
        let all = (0..leaves.len() as u32).collect();
        if leaves.len() > BRANCH {
            partition(points, all, BRANCH, &mut groups);
        } else {
            groups.push(all);
        }
        for (i, group) in groups.iter().enumerate() {
            let branch = if i == 0 { branch } else { self.new_branch(head) };
            let centre = points.mean(group);
            let within: f32 =
                group.iter().map(|&i| self.leaf_centres.row(leaves[i as usize])[dim].to_f32().powi(2)).sum();
            let spread = (points.scatter(group, &centre) / (group.len() * dim) as f32
                + within / group.len() as f32)
                .sqrt();
            self.branch_centres.set(branch, row(&centre, spread));
            self.settled[branch as usize] = group.len();
            self.branches[branch as usize] = group.iter().map(|&i| leaves[i as usize]).collect();
            group.iter().for_each(|&i| self.branch_of[leaves[i as usize] as usize] = branch);
        }
    }

    fn new_leaf(&mut self) -> u32 {
        self.leaves.push();
        self.branch_of.push(0);
        self.leaf_centres.push()
    }

    fn new_branch(&mut self, head: usize) -> u32 {
        self.branches.push(Vec::new());
        self.settled.push(0);
        let branch = self.branch_centres.push();
        self.trees[head].push(branch);
        branch
    }

    /// The key of `token` less the mean key.
    fn centred(&self, kv: &KvView, head: usize, token: usize, out: &mut [f32]) {
        kv.copy_key(head, token, out);
        let means = &self.means[head * out.len()..];
        out.iter_mut().zip(means).for_each(|(x, m)| *x -= m);
    }

    fn truncate(&mut self, n: usize) {
        self.leaves.truncate(n);
        self.keys.end = self.keys.end.min(n).max(self.keys.start);
    }
}

/// The tokens of all leaves, [`LEAF`] at most in each, in pages that never move.
#[derive(Debug, Default)]
struct Leaves {
    lengths: Vec<u8>,
    pages: Vec<Box<[u32]>>,
}

impl Leaves {
    /// Leaves of a page.
    const PAGE: usize = 1024;

    fn tokens(&self, leaf: u32) -> &[u32] {
        let (page, slot) = (leaf as usize / Self::PAGE, leaf as usize % Self::PAGE);
        &self.pages[page][slot * LEAF..][..usize::from(self.lengths[leaf as usize])]
    }

    /// Adds an empty leaf.
    fn push(&mut self) {
        if self.lengths.len() == self.pages.len() * Self::PAGE {
            self.pages.push(vec![0; Self::PAGE * LEAF].into());
        }
        self.lengths.push(0);
    }

    /// Gives a leaf new tokens, the first [`LEAF`] of those given.
    fn set(&mut self, leaf: u32, tokens: impl Iterator<Item = u32>) {
        let (page, slot) = (leaf as usize / Self::PAGE, leaf as usize % Self::PAGE);
        let slots = &mut self.pages[page][slot * LEAF..][..LEAF];
        let mut length = 0;
        for (to, token) in slots.iter_mut().zip(tokens) {
            *to = token;
            length += 1;
        }
        self.lengths[leaf as usize] = length;
    }

    /// Takes the tokens from `n` on out of every leaf.
    fn truncate(&mut self, n: usize) {
        for leaf in 0..self.lengths.len() {
            let left = self.tokens(leaf as u32).partition_point(|&t| (t as usize) < n);
            self.lengths[leaf] = left as u8;
        }
    }
}

/// A centre as its table holds it.
fn row(centre: &[f32], spread: f32) -> impl Iterator<Item = f32> + '_ {
    let bias = -centre.iter().map(|x| x * x).sum::<f32>() / 2.0;
    let high = bf16::from_f32(bias).to_f32();
    centre.iter().copied().chain([spread, high, bias - high, 0.0])
}
