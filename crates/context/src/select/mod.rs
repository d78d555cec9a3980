//! Selectors: how the best keys of a long context are found.
//!
//! A method asks for the keys with the largest `q · k`; a selector answers, exactly or nearly, and may keep a structure
//! over the keys it has seen. One selector is one file.

mod clusters;
mod exact;
mod partition;
mod table;

pub(crate) use clusters::{ClusterSettings, Clusters};
pub(crate) use exact::Exact;

use crate::methods::{Appended, LayerCall};
use reattention_kernels::{Queries, TopK, TopKRequest};
use std::ops::Range;

/// A search for the best keys of a layer.
pub(crate) trait Selector: Send + Sync + std::fmt::Debug {
    /// Its name among the values of `selector`.
    fn name(&self) -> &'static str;

    /// Learns the keys `keys` of the layer that were not in the last such range. Called for every step, in the order of the
    /// tokens.
    fn extend(&mut self, _new: &Appended, _keys: Range<usize>) {}

    /// The best keys of `request` for each query and head of `q`: those of the step, or some of its tokens. Slots that found
    /// no key hold [`reattention_kernels::ListedRequest::NONE`].
    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> TopK;

    /// Forgets the tokens from `n` on.
    fn truncate(&mut self, _n: usize) {}
}
