//! `exact`: every key is scored.

use super::Selector;
use crate::methods::LayerCall;
use reattention_kernels::{DeviceError, Queries, TopK, TopKRequest};

/// Scores every key for every query: what the paper does.
#[derive(Debug)]
pub(crate) struct Exact;

impl Selector for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> Result<TopK, DeviceError> {
        call.backend.top_k(q, &call.kv, request)
    }
}
