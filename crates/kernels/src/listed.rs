//! What is asked of the search for the best keys among listed ones.

use crate::Queries;

/// A search in which every query and head looks into a few lists of keys instead of all keys.
///
/// Query head `h` is scored against KV head `h / group`, as in attention.
#[derive(Clone, Copy)]
pub struct ListedRequest<'a> {
    /// Keys wanted for each query and head.
    pub k: usize,
    /// Lists of each query and head, `[q_len, n_heads, per_row]`: numbers that `keys` knows, distinct within a row, or
    /// [`ListedRequest::NONE`].
    pub lists: &'a [u32],
    /// Lists of one query and head.
    pub per_row: usize,
    /// The keys (token indices, in any order) of a list. No key stands in two lists of one row.
    pub keys: &'a (dyn Fn(u32) -> &'a [u32] + Sync),
}

impl ListedRequest<'_> {
    /// In [`ListedRequest::lists`]: no list. In the indices found: no key.
    pub const NONE: u32 = u32::MAX;

    /// Panics if the lists do not fit the queries.
    pub(crate) fn check(&self, q: &Queries) {
        let rows = q.q_len * q.n_heads;
        assert_eq!(
            (q.data.len(), self.lists.len()),
            (rows * q.head_dim, rows * self.per_row),
            "top_k_listed: elements of queries and lists for {} tokens, {} heads",
            q.q_len,
            q.n_heads
        );
    }
}

impl std::fmt::Debug for ListedRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListedRequest")
            .field("k", &self.k)
            .field("per_row", &self.per_row)
            .field("lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}
