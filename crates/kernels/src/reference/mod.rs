//! The plain backend: f32 with sums in f64, one loop a formula, nothing clever. Fast backends are tested against it.

use crate::low_bit::LowBitQuery;
use crate::signs::from_code;
use crate::{
    Backend, DeviceError, KvView, ListedRequest, LogitRule, LowBitKeys, Matrix, Queries, Segment,
    SignRequest, TopK, TopKRequest, TopKRule,
};

/// Plain f32 arithmetic on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".into()
    }

    fn threads(&self) -> usize {
        1
    }

    fn install(&self, f: &mut (dyn FnMut() + Send)) {
        f();
    }

    fn each(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(work);
    }

    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        let (outputs, inputs) = (w.rows(), w.cols());
        assert_eq!(
            (x.len(), y.len()),
            (rows * inputs, rows * outputs),
            "linear: {rows} rows, {outputs} x {inputs}"
        );
        let mut weights = vec![0.0; inputs];
        for o in 0..outputs {
            w.copy_row(o, &mut weights);
            for r in 0..rows {
                y[r * outputs + o] =
                    dot(&x[r * inputs..(r + 1) * inputs], &weights) + bias.map_or(0.0, |b| b[o]);
            }
        }
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
            let mean = dot(x, x) / x.len() as f32;
            let factor = 1.0 / (mean + eps).sqrt();
            for i in 0..x.len() {
                y[i] = x[i] * factor * weight[i];
            }
        }
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + (-*g).exp()) * u;
        }
    }

    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> Result<TopK, DeviceError> {
        Ok(self.top_k(q, kv, request))
    }

    fn top_k_listed(&self, q: &Queries, kv: &KvView, request: &ListedRequest) -> TopK {
        request.check(q);
        let group = q.n_heads / kv.n_kv_heads;
        let mut found = TopK::unfilled(q.q_len, q.n_heads, request.k);
        let mut key = vec![0.0; kv.head_dim];
        for row in 0..q.q_len * q.n_heads {
            let (token, head) = (row / q.n_heads, row % q.n_heads);
            let mut scores: Vec<(f32, u32)> = Vec::new();
            for &list in &request.lists[row * request.per_row..(row + 1) * request.per_row] {
                if list == ListedRequest::NONE {
                    continue;
                }
                for &t in (request.keys)(list) {
                    kv.copy_key(head / group, t as usize, &mut key);
                    scores.push((dot(q.row(token, head), &key), t));
                }
            }
            scores.retain(|s| !s.0.is_nan());
            scores.sort_by(best_first);
            for (slot, &(score, t)) in scores.iter().take(request.k).enumerate() {
                found.indices[row * request.k + slot] = t;
                found.scores[row * request.k + slot] = score;
            }
        }
        found
    }

    fn top_k_signs(&self, q: &Queries, request: &SignRequest) -> TopK {
        request.check(q);
        let mut found = TopK::unfilled(q.q_len, q.n_heads, request.k);
        for row in 0..q.q_len * q.n_heads {
            let (query, factor) = SignRequest::query(q.row(row / q.n_heads, row % q.n_heads));
            let of = row * request.per_row..(row + 1) * request.per_row;
            // Scores, where they come from, and the tokens.
            let mut scores: Vec<((f32, u32), u32)> = Vec::new();
            for (i, (&list, &centre)) in
                request.lists[of.clone()].iter().zip(&request.centres[of]).enumerate()
            {
                if list == ListedRequest::NONE {
                    continue;
                }
                let group = (request.group)(list);
                group.check(query.words.len() / 8);
                for (slot, &token) in group.keys.iter().enumerate() {
                    let mut product = -query.excess;
                    for (field, &word) in query.words.iter().enumerate() {
                        let signs = group.codes[field / 8 * group.slots + slot] >> (field % 8);
                        for byte in 0..4 {
                            let one = (signs >> (8 * byte) & 1) as i32;
                            product += one * i32::from((word >> (8 * byte)) as u8 as i8);
                        }
                    }
                    let sizes = group.codes[query.words.len() / 8 * group.slots + slot / 4];
                    let size = from_code((sizes >> (slot % 4 * 8)) as u8) * factor;
                    let score = f64::from(product as f32) * f64::from(size) + f64::from(centre);
                    scores.push(((score as f32, (i << 16 | slot) as u32), token));
                }
            }
            scores.retain(|s| !s.0.0.is_nan());
            scores.sort_by(|a, b| best_first(&a.0, &b.0));
            for (slot, &((score, _), token)) in scores.iter().take(request.k).enumerate() {
                found.indices[row * request.k + slot] = token;
                found.scores[row * request.k + slot] = score;
            }
        }
        found
    }

    fn top_k_low_bit(&self, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK {
        keys.check(q);
        let (group, fields) = (q.n_heads / keys.n_kv_heads(), 8 / keys.bits());
        let mut found = TopK::unfilled(q.q_len, q.n_heads, k.min(keys.len()));
        for row in 0..q.q_len * q.n_heads {
            let (token, head) = (row / q.n_heads, row % q.n_heads);
            let query = LowBitQuery::of(keys.bits(), q.row(token, head));
            let mut scores: Vec<(f32, u32)> = Vec::with_capacity(keys.len());
            for t in 0..keys.len() {
                let (codes, scales) = keys.tile(head / group, t - t % LowBitKeys::TILE);
                let mut product = -query.excess;
                for (i, &word) in query.words.iter().enumerate() {
                    let code = codes[i / fields * LowBitKeys::TILE + t % LowBitKeys::TILE];
                    let mask = (1 << keys.bits()) - 1;
                    for byte in 0..4 {
                        let of_key = code >> (8 * byte + i % fields * keys.bits()) & mask;
                        product += of_key as i32 * i32::from((word >> (8 * byte)) as u8 as i8);
                    }
                }
                scores.push((product as f32 * scales[t % LowBitKeys::TILE].to_f32(), t as u32));
            }
            scores.retain(|s| !s.0.is_nan());
            scores.sort_by(best_first);
            for (slot, &(score, t)) in scores.iter().take(found.k).enumerate() {
                found.indices[row * found.k + slot] = t;
                found.scores[row * found.k + slot] = score * query.scale;
            }
        }
        found
    }

    fn attend(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) -> Result<(), DeviceError> {
        self.attend(q, kv, views, rule, out, lse);
        Ok(())
    }
}

impl Reference {
    /// [`Backend::top_k`], which cannot fail here.
    pub fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> TopK {
        let keys = request.keys.clone();
        let k = match request.rule {
            TopKRule::Exact => request.k.min(keys.len()),
            TopKRule::BestPerTile { .. } => request.k,
        };
        let mut found =
            TopK { q_len: q.q_len, n_heads: q.n_heads, k, indices: Vec::new(), scores: Vec::new() };
        let mut key = vec![0.0; kv.head_dim];
        for token in 0..q.q_len {
            for head in 0..q.n_heads {
                let kv_head = request.pairing.kv_head(head, q.n_heads, kv.n_kv_heads);
                let mut scores: Vec<(f32, u32)> = Vec::with_capacity(keys.len());
                for t in keys.clone() {
                    kv.copy_key(kv_head, t, &mut key);
                    scores.push((dot(q.row(token, head), &key), t as u32));
                }
                if let TopKRule::BestPerTile { tile } = request.rule {
                    let best =
                        |tile: &[(f32, u32)]| *tile.iter().min_by(|a, b| best_first(a, b)).expect("a tile");
                    scores = scores.chunks(tile).map(best).collect();
                    scores.resize(scores.len().max(k), (f32::MIN, keys.start as u32));
                }
                scores.sort_by(best_first);
                found.indices.extend(scores[..k].iter().map(|s| s.1));
                found.scores.extend(scores[..k].iter().map(|s| s.0));
            }
        }
        found
    }

    /// [`Backend::attend`], which cannot fail here.
    pub fn attend(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: impl Into<LogitRule>,
        out: &mut [f32],
        mut lse: Option<&mut [f32]>,
    ) {
        let rule = rule.into();
        let (dim, group) = (q.head_dim, q.n_heads / kv.n_kv_heads);
        let mut value = vec![0.0; dim];
        for head in 0..q.n_heads {
            let kv_head = head / group;
            for token in 0..q.q_len {
                let index = q.first + token;
                // Logits of all visible keys of all segments; one softmax over them is the log-sum-exp merge.
                let mut logits: Vec<(f32, usize)> = Vec::new();
                for segment in &views[if views.len() == 1 { 0 } else { kv_head }] {
                    let mut query = q.row(token, head).to_vec();
                    segment.query_rope.rotate(segment.query_position.at(index, token), &mut query);
                    for rank in 0..segment.keys.len() {
                        let t = segment.keys.token(rank);
                        if segment.band.sees(index, t) {
                            let mut key = vec![0.0; dim];
                            kv.copy_key(kv_head, t, &mut key);
                            segment.key_rope.rotate(segment.key_position.at(t, rank), &mut key);
                            logits.push((rule.logit(dot(&query, &key)), t));
                        }
                    }
                }
                let max = logits.iter().fold(f32::NEG_INFINITY, |m, l| m.max(l.0));
                let sum: f32 = logits.iter().map(|l| (l.0 - max).exp()).sum();
                let row = &mut out[(token * q.n_heads + head) * dim..][..dim];
                row.fill(0.0);
                for &(logit, t) in &logits {
                    kv.copy_value(kv_head, t, &mut value);
                    let weight = (logit - max).exp() / sum;
                    for i in 0..dim {
                        row[i] += weight * value[i];
                    }
                }
                if let Some(lse) = lse.as_deref_mut() {
                    lse[token * q.n_heads + head] =
                        if logits.is_empty() { f32::NEG_INFINITY } else { max + sum.ln() };
                }
            }
        }
    }

    /// [`Backend::key_mass`], which cannot fail here.
    pub fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: impl Into<LogitRule>,
        lse: &[f32],
    ) -> Vec<Vec<f32>> {
        key_mass(q, kv, views, rule.into(), lse)
    }
}

/// Adds up attention probabilities by query head and key; see [`Backend::key_mass`].
pub(crate) fn key_mass(
    q: &Queries,
    kv: &KvView,
    views: &[Vec<Segment>],
    rule: LogitRule,
    lse: &[f32],
) -> Vec<Vec<f32>> {
    let (dim, group) = (q.head_dim, q.n_heads / kv.n_kv_heads);
    let mut mass = vec![Vec::new(); q.n_heads];
    let mut key = vec![0.0; dim];
    for kv_head in 0..kv.n_kv_heads {
        let heads = kv_head * group..(kv_head + 1) * group;
        for segment in &views[if views.len() == 1 { 0 } else { kv_head }] {
            let mut queries = Vec::with_capacity(q.q_len * group * dim);
            for token in 0..q.q_len {
                for head in heads.clone() {
                    let from = queries.len();
                    queries.extend_from_slice(q.row(token, head));
                    let position = segment.query_position.at(q.first + token, token);
                    segment.query_rope.rotate(position, &mut queries[from..]);
                }
            }
            for rank in 0..segment.keys.len() {
                let t = segment.keys.token(rank);
                kv.copy_key(kv_head, t, &mut key);
                segment.key_rope.rotate(segment.key_position.at(t, rank), &mut key);
                mass[heads.clone()].iter_mut().for_each(|of_head| of_head.push(0.0));
                for (row, query) in queries.chunks_exact(dim).enumerate() {
                    let (token, head) = (row / group, kv_head * group + row % group);
                    if segment.band.sees(q.first + token, t) {
                        let weight = (rule.logit(dot(query, &key)) - lse[token * q.n_heads + head]).exp();
                        *mass[head].last_mut().expect("a number was pushed for this key") += weight;
                    }
                }
            }
        }
    }
    mass
}

/// Summed in f64: the oracle's own rounding must not decide near-ties between keys.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32
}

/// Larger scores first, ties by ascending token index; scores that are no numbers last.
fn best_first(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    // Adding zero makes the two zeros equal.
    let rank = |score: f32| if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 };
    rank(b.0).total_cmp(&rank(a.0)).then(a.1.cmp(&b.1))
}
