//! What is asked of, and what comes out of, the search for the best keys.

use std::ops::Range;

/// Which KV head's keys a query head is scored against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadPairing {
    /// Head `h` with KV head `h / group`, as attention pairs them. Always right.
    Grouped,
    /// Head `h` with KV head `h mod n_kv_heads`: the published ReAttention code's decode steps (a defect).
    Interleaved,
}

impl HeadPairing {
    /// The KV head of query head `head`.
    pub fn kv_head(self, head: usize, n_heads: usize, n_kv_heads: usize) -> usize {
        match self {
            Self::Grouped => head / (n_heads / n_kv_heads),
            Self::Interleaved => head % n_kv_heads,
        }
    }
}

/// How candidates are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopKRule {
    /// The `k` largest scores.
    Exact,
    /// The largest score of each tile of `tile` keys (counted from the start of the range), and of these the `k`
    /// largest; a slot no tile fills names the first key of the range. The published ReAttention kernel with `tile` 128.
    BestPerTile {
        /// Keys in a tile.
        tile: usize,
    },
}

/// A search for the best keys.
#[derive(Clone, Debug)]
pub struct TopKRequest {
    /// Token indices searched.
    pub keys: Range<usize>,
    /// Keys wanted for each query and head.
    pub k: usize,
    /// Pairing of query heads with KV heads.
    pub pairing: HeadPairing,
    /// How candidates are taken.
    pub rule: TopKRule,
}

/// The best keys of every query and head.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK {
    /// Queries.
    pub q_len: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Keys per query and head: what was asked for, or the number of keys searched if that is smaller.
    pub k: usize,
    /// Token indices, `[q_len, n_heads, k]`, best first, ties in ascending order.
    pub indices: Vec<u32>,
    /// Their scores, same shape. A slot that [`TopKRule::BestPerTile`] left unfilled has `f32::MIN`.
    pub scores: Vec<f32>,
}

impl TopK {
    /// No key found yet: [`crate::ListedRequest::NONE`] everywhere.
    pub(crate) fn unfilled(q_len: usize, n_heads: usize, k: usize) -> Self {
        let slots = q_len * n_heads * k;
        Self { q_len, n_heads, k, indices: vec![u32::MAX; slots], scores: vec![f32::NEG_INFINITY; slots] }
    }

    /// Token indices of one query and head, `[k]`.
    pub fn row(&self, token: usize, head: usize) -> &[u32] {
        let start = (token * self.n_heads + head) * self.k;
        &self.indices[start..start + self.k]
    }
}
