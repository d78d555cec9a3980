//! The tree of one KV head: keys in leaves, leaves in branches, growing with the context.

use super::leaves::{LEAF, Leaves};
use super::partition::{Points, partition};
use super::table::Table;
use reattention_kernels::{
    Arena, Backend, DeviceError, Element, HeadPairing, KvView, ListedRequest, LowBitKeys, Queries,
    SignRequest, TopK, TopKRequest, TopKRule, bf16,
};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Most leaves of a branch.
const BRANCH: usize = 128;

/// Branches a query looks into at least; it is one for every two leaves.
const BRANCHES: usize = 8;

/// The same for a query of the question or the answer, and leaves up to which it is scored against all of them instead:
/// what is read one after another takes a sixteenth of the time that is taken by what is looked up.
const ANSWER_BRANCHES: usize = 64;
const READ_ON: usize = 16 * ANSWER_BRANCHES * BRANCH;

/// Elements of a centre after its vector, by their place; the table's rows are a multiple of eight long.
const EXTRA: usize = 8;
/// The root mean square of the elements of its members' differences to it.
const SPREAD: usize = 0;
/// Two parts of minus half its squared length, which turn the product with a key into a comparison of distances. Two,
/// since bf16 has eight bits.
const BIAS: Range<usize> = 1..3;
/// The same as the spread, of the farthest member alone (leaves only).
const RADIUS: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Tree {
    /// The KV head.
    head: usize,
    /// What is taken off each key before it is grouped, `[head_dim]`.
    mean: Vec<f32>,
    leaf_centres: Table,
    /// What a leaf promises, in 8 bits an element: its centre, and `EXTRA` times the distance of its farthest member, so that
    /// no element of a query is much larger than the others.
    promises: LowBitKeys,
    leaves: Leaves,
    /// The branch of every leaf.
    branch_of: Vec<u32>,
    branch_centres: Table,
    /// The leaves of every branch.
    branches: Vec<Vec<u32>>,
    /// Leaves of every branch when its centre was last put right.
    settled: Vec<usize>,
}

impl Tree {
    /// A tree without keys for the keys of `head`, of which some of `sample` give the mean; its memory comes from `arena`.
    pub(super) fn new(kv: &KvView, head: usize, sample: Range<usize>, arena: &Arc<Mutex<Arena>>) -> Self {
        let dim = kv.head_dim;
        let (mut mean, mut key) = (vec![0.0; dim], vec![0.0; dim]);
        let tokens = sample.clone().step_by((sample.len() / 1024).max(1));
        let n = tokens.len() as f32;
        for token in tokens {
            kv.copy_key(head, token, &mut key);
            mean.iter_mut().zip(&key).for_each(|(m, k)| *m += k / n);
        }
        Self {
            head,
            mean,
            leaf_centres: Table::new(dim + EXTRA),
            promises: LowBitKeys::new(8, 1, dim + EXTRA),
            leaves: Leaves::new(dim, Arc::clone(arena)),
            branch_of: Vec::new(),
            branch_centres: Table::new(dim + EXTRA),
            branches: Vec::new(),
            settled: Vec::new(),
        }
    }

    /// Bytes that a key takes in a tree.
    pub(super) fn bytes_per_key(head_dim: usize) -> f64 {
        let centre = (head_dim + EXTRA) * size_of::<bf16>() + LowBitKeys::bytes_per_key(8, head_dim + EXTRA);
        let leaf = centre + 2 * size_of::<u32>();
        // A leaf is cut at LEAF + 1 keys, so it holds some two thirds of LEAF; beside it stand its centre and its branch.
        Leaves::bytes_per_key(head_dim) + leaf as f64 / (LEAF as f64 * 2.0 / 3.0)
    }

    /// The tokens of a leaf, ascending.
    pub(super) fn tokens(&self, leaf: u32) -> &[u32] {
        self.leaves.tokens(leaf)
    }

    /// The `probes` leaves that promise each query most, looked for in the best branches alone.
    pub(super) fn near_leaves(
        &self,
        backend: &dyn Backend,
        q: &Queries,
        probes: usize,
        spread_weight: f32,
    ) -> Result<TopK, DeviceError> {
        let data = self.extended(q, |length| (SPREAD..SPREAD + 1, spread_weight * length));
        let branches = probes.div_ceil(2).max(BRANCHES);
        self.in_branches(backend, &self.wider(q, &data), branches, probes)
    }

    /// The `k` tokens that promise each query most among those of the `probes` leaves that promise most of all.
    pub(super) fn candidates(
        &self,
        backend: &dyn Backend,
        q: &Queries,
        (probes, k): (usize, usize),
        spread_weight: f32,
    ) -> Result<TopK, DeviceError> {
        let probes = probes.min(self.leaves.count());
        let (weights, mut leaves) = if self.leaves.count() <= READ_ON {
            let data = self.extended(q, |length| (0..EXTRA, spread_weight * length / EXTRA as f32));
            let rows = self.wider(q, &data);
            (column(&rows, q.head_dim, EXTRA as f32), backend.top_k_low_bit(&rows, &self.promises, probes))
        } else {
            let data = self.extended(q, |length| (RADIUS..RADIUS + 1, spread_weight * length));
            let (rows, branches) = (self.wider(q, &data), probes.div_ceil(2).max(ANSWER_BRANCHES));
            (column(&rows, q.head_dim + RADIUS, 1.0), self.in_branches(backend, &rows, branches, probes)?)
        };
        // What is left of a promise without the radius is the score of the centre.
        for (row, weight) in weights.into_iter().enumerate() {
            let found = row * leaves.k..(row + 1) * leaves.k;
            for (score, &leaf) in leaves.scores[found.clone()].iter_mut().zip(&leaves.indices[found]) {
                if leaf != ListedRequest::NONE {
                    *score -= weight * self.leaf_centres.row(leaf)[q.head_dim + RADIUS].to_f32();
                }
            }
        }
        let request = SignRequest {
            k,
            lists: &leaves.indices,
            centres: &leaves.scores,
            per_row: leaves.k,
            group: &|leaf| self.leaves.group(leaf),
        };
        Ok(backend.top_k_signs(q, &request))
    }

    /// Adds the keys of the tokens `new`, which follow those it has.
    pub(super) fn insert(
        &mut self,
        kv: &KvView,
        backend: &dyn Backend,
        new: Range<usize>,
    ) -> Result<(), DeviceError> {
        let (dim, width) = (kv.head_dim, kv.head_dim + EXTRA);
        let mut data = vec![0.0; new.len() * width];
        for (token, row) in new.clone().zip(data.chunks_exact_mut(width)) {
            self.centred(kv, token, &mut row[..dim]);
            row[dim..][BIAS].fill(1.0);
        }
        if self.leaves.count() == 0 {
            let leaf = self.new_leaf();
            self.new_branch(vec![leaf]);
            self.cut(kv, leaf, new.map(|token| token as u32).collect());
            return Ok(());
        }
        let rows = Queries { data: &data, n_heads: 1, q_len: new.len(), head_dim: width, first: new.start };
        let nearest = self.in_branches(backend, &rows, 1, 1)?;
        // Pairs of a leaf and a token that joins it, by leaf. Keys that are no numbers are near nothing: any leaf will do.
        let leaf_of = |leaf: u32| if leaf == ListedRequest::NONE { 0 } else { leaf };
        let mut joins: Vec<(u32, u32)> =
            nearest.indices.iter().enumerate().map(|(i, &leaf)| (leaf_of(leaf), i as u32)).collect();
        joins.sort_unstable();
        for joins in joins.chunk_by(|a, b| a.0 == b.0) {
            let keys = joins.iter().map(|&(_, i)| (new.start as u32 + i, &data[i as usize * width..][..dim]));
            self.join(kv, joins[0].0, keys);
        }
        Ok(())
    }

    /// Queries with `EXTRA` more elements, zero but for those that `extra` names and gives a value by the query's length.
    fn extended(&self, q: &Queries, extra: impl Fn(f32) -> (Range<usize>, f32)) -> Vec<f32> {
        let mut data = Vec::with_capacity(q.q_len * q.n_heads * (q.head_dim + EXTRA));
        for row in q.data.chunks_exact(q.head_dim) {
            data.extend_from_slice(row);
            let (at, value) = extra(row.iter().map(|x| x * x).sum::<f32>().sqrt());
            data.extend((0..EXTRA).map(|i| if at.contains(&i) { value } else { 0.0 }));
        }
        data
    }

    fn wider<'a>(&self, q: &Queries<'_>, data: &'a [f32]) -> Queries<'a> {
        Queries { data, n_heads: q.n_heads, q_len: q.q_len, head_dim: q.head_dim + EXTRA, first: q.first }
    }

    /// The best `probes` leaves for each row, of the `n_branches` best branches.
    fn in_branches(
        &self,
        backend: &dyn Backend,
        rows: &Queries,
        n_branches: usize,
        probes: usize,
    ) -> Result<TopK, DeviceError> {
        let branches = all_of(backend, rows, &self.branch_centres, n_branches.min(self.branches.len()))?;
        let request = ListedRequest {
            k: probes.min(self.leaves.count()),
            lists: &branches.indices,
            per_row: branches.k,
            keys: &|branch| &self.branches[branch as usize],
        };
        Ok(backend.top_k_listed(rows, &self.leaf_centres.view(), &request))
    }

    /// Adds tokens, with their keys less the mean key, to a leaf, and cuts it up if it grows too large.
    fn join<'a>(&mut self, kv: &KvView, leaf: u32, keys: impl Iterator<Item = (u32, &'a [f32])> + Clone) {
        let (dim, held) = (kv.head_dim, self.leaves.tokens(leaf).len());
        let n = held + keys.clone().count();
        let mut difference = vec![0.0; dim];
        if n <= LEAF {
            self.leaves.reserve(leaf, n);
            let mut radius = self.leaf_centres.row(leaf)[dim + RADIUS].to_f32();
            for (token, key) in keys {
                self.difference(leaf, key, &mut difference);
                self.leaves.add(leaf, token, &difference);
                radius = radius.max(size(&difference));
            }
            self.set_radius(leaf, radius);
            return;
        }
        let mut members = self.leaves.tokens(leaf).to_vec();
        // More equal keys than a leaf holds tie, and ties go to the first, which it has already.
        if held == LEAF && self.leaf_centres.row(leaf)[dim + RADIUS].to_f32() == 0.0 {
            self.centred(kv, members[0] as usize, &mut difference);
            members.extend(keys.filter(|(_, key)| **key != difference[..]).map(|(token, _)| token));
            if members.len() == held {
                return;
            }
        } else {
            members.extend(keys.map(|(token, _)| token));
        }
        self.cut(kv, leaf, members);
    }

    /// Makes a leaf and new ones beside it hold `members`.
    fn cut(&mut self, kv: &KvView, leaf: u32, members: Vec<u32>) {
        let dim = kv.head_dim;
        let mut data = vec![0.0; members.len() * dim];
        for (&token, key) in members.iter().zip(data.chunks_exact_mut(dim)) {
            self.centred(kv, token as usize, key);
        }
        let points = Points { data: &data, dim };
        let mut groups = Vec::new();
        partition(points, (0..members.len() as u32).collect(), LEAF, &mut groups);
        let branch = self.branch_of[leaf as usize];
        let mut difference = vec![0.0; dim];
        for (i, group) in groups.iter().enumerate() {
            let leaf = if i == 0 { leaf } else { self.new_leaf() };
            if i > 0 {
                self.branches[branch as usize].push(leaf);
            }
            let centre = points.mean(group);
            let spread = (points.scatter(group, &centre) / (group.len() * dim) as f32).sqrt();
            self.leaf_centres.set(leaf, row(&centre, spread));
            self.leaves.clear(leaf, group.len().min(LEAF));
            let mut radius = 0.0f32;
            for &i in &group[..group.len().min(LEAF)] {
                self.difference(leaf, points.at(i), &mut difference);
                self.leaves.add(leaf, members[i as usize], &difference);
                radius = radius.max(size(&difference));
            }
            // Only equal keys are not cut.
            let radius = if group.len() > LEAF { 0.0 } else { radius };
            self.set_radius(leaf, radius);
        }
        // One more leaf moves the centre of many but little.
        let leaves = self.branches[branch as usize].len();
        if leaves > BRANCH || leaves >= self.settled[branch as usize] + leaves.div_ceil(8) {
            self.settle(branch);
        }
    }

    /// Cuts a branch up if it has too many leaves, and puts its centre right.
    fn settle(&mut self, branch: u32) {
        let leaves = std::mem::take(&mut self.branches[branch as usize]);
        let dim = self.mean.len();
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
            let members: Vec<u32> = group.iter().map(|&i| leaves[i as usize]).collect();
            let branch = if i == 0 { branch } else { self.new_branch(Vec::new()) };
            let centre = points.mean(group);
            let of_leaf = |&l: &u32| self.leaf_centres.row(l)[dim + SPREAD].to_f32().powi(2);
            let within: f32 = members.iter().map(of_leaf).sum();
            let spread = (points.scatter(group, &centre) / (group.len() * dim) as f32
                + within / group.len() as f32)
                .sqrt();
            self.branch_centres.set(branch, row(&centre, spread));
            self.settled[branch as usize] = members.len();
            members.iter().for_each(|&l| self.branch_of[l as usize] = branch);
            self.branches[branch as usize] = members;
        }
    }

    /// Says how far the farthest member of a leaf is from its centre, which stands already.
    fn set_radius(&mut self, leaf: u32, radius: f32) {
        let dim = self.mean.len();
        self.leaf_centres.set_element(leaf, dim + RADIUS, radius);
        let centre = self.leaf_centres.row(leaf)[..dim].iter().map(|&x| Element::to_f32(x));
        let promise: Vec<f32> = centre.chain([radius; EXTRA]).collect();
        self.promises.set(0, leaf as usize, &promise);
    }

    fn new_leaf(&mut self) -> u32 {
        self.promises.push();
        self.leaves.push();
        self.branch_of.push(0);
        self.leaf_centres.push()
    }

    fn new_branch(&mut self, leaves: Vec<u32>) -> u32 {
        self.branches.push(leaves);
        self.settled.push(0);
        self.branch_centres.push()
    }

    /// The key of `token` less the mean key.
    fn centred(&self, kv: &KvView, token: usize, out: &mut [f32]) {
        kv.copy_key(self.head, token, out);
        out.iter_mut().zip(&self.mean).for_each(|(x, m)| *x -= m);
    }

    /// What a centred key has more than the centre of a leaf.
    fn difference(&self, leaf: u32, key: &[f32], out: &mut [f32]) {
        let centre = self.leaf_centres.row(leaf);
        out.iter_mut().zip(key).zip(centre).for_each(|((d, k), c)| *d = k - Element::to_f32(*c));
    }
}

/// The best `k` rows of a table for each query.
fn all_of(backend: &dyn Backend, rows: &Queries, table: &Table, k: usize) -> Result<TopK, DeviceError> {
    let keys = 0..table.len();
    let request = TopKRequest { keys, k, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
    backend.top_k(rows, &table.view(), &request)
}

/// Element `at` of each of the extended queries `rows`, `times` as large.
fn column(rows: &Queries, at: usize, times: f32) -> Vec<f32> {
    rows.data.chunks_exact(rows.head_dim).map(|query| query[at] * times).collect()
}

/// A centre as its table holds it.
fn row(centre: &[f32], spread: f32) -> impl Iterator<Item = f32> + '_ {
    let bias = -centre.iter().map(|x| x * x).sum::<f32>() / 2.0;
    let high = bf16::from_f32(bias).to_f32();
    let extra = [spread, high, bias - high, 0.0, 0.0, 0.0, 0.0, 0.0];
    centre.iter().copied().chain(extra)
}

/// The root mean square of the elements.
fn size(vector: &[f32]) -> f32 {
    (vector.iter().map(|x| x * x).sum::<f32>() / vector.len() as f32).sqrt()
}
