//! Reuse of a search while the query barely turns.
//!
//! An answer token searches anew only if its query has turned away from that of the last search: if the cosine of the
//! layer's queries, all heads taken as one vector, falls below a threshold. Until then the keys of the last search are
//! scored again, with all keys that have joined since, and nothing else. The idea is the selection cache of TokenSelect
//! (arXiv 2411.02886, section 4.3); there the last selection is attended to as it is.
//!
//! Of each layer only the last search is kept, and that of a pinned point. A roll-back to another point searches anew, where a
//! context that was never read further may have gone on with an older search.

use super::{Selector, among, with_rest};
use crate::methods::{Appended, LayerCall, StepKind};
use reattention_kernels::{DeviceError, Queries, TopK, TopKRequest};
use std::ops::Range;

/// A selector whose results are reused.
#[derive(Debug)]
pub(crate) struct Reuse {
    inner: Box<dyn Selector>,
    /// The least cosine at which they are.
    least: f32,
    /// The last search of each layer.
    layers: Vec<Option<Last>>,
    /// The length that is pinned, and the last searches there.
    pinned: Option<(usize, Vec<Option<Last>>)>,
}

#[derive(Clone, Debug)]
struct Last {
    query: Vec<f32>,
    keys: Range<usize>,
    found: TopK,
}

impl Reuse {
    pub(crate) fn new(inner: Box<dyn Selector>, least: f32) -> Self {
        Self { inner, least, layers: Vec::new(), pinned: None }
    }
}

impl Selector for Reuse {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn extend(&mut self, new: &Appended, keys: Range<usize>) -> Result<(), DeviceError> {
        self.inner.extend(new, keys)
    }

    fn top_k(&mut self, call: &LayerCall, q: &Queries, request: &TopKRequest) -> Result<TopK, DeviceError> {
        if call.step.kind != StepKind::Decode {
            return self.inner.top_k(call, q, request);
        }
        if self.layers.len() <= call.layer {
            self.layers.resize_with(call.layer + 1, || None);
        }
        if let Some(last) = &self.layers[call.layer] {
            // After a roll-back the keys searched may reach beyond the middle.
            let fits = last.keys.start == request.keys.start
                && last.keys.end <= request.keys.end
                && last.found.k == request.k;
            if fits && cosine(&last.query, q.data) >= self.least {
                return with_rest(among(call, q, request.k, &last.found), last.keys.end, call, q, request);
            }
        }
        let found = self.inner.top_k(call, q, request)?;
        let last = Last { query: q.data.to_vec(), keys: request.keys.clone(), found: found.clone() };
        self.layers[call.layer] = Some(last);
        Ok(found)
    }

    fn truncate(&mut self, n: usize) {
        if let Some((_, then)) = self.pinned.as_ref().filter(|(at, _)| *at == n) {
            self.layers.clone_from(then);
        }
        self.layers.iter_mut().filter(|l| l.as_ref().is_some_and(|l| l.keys.end > n)).for_each(|l| *l = None);
        self.inner.truncate(n);
        self.pinned.take_if(|(at, _)| *at > n);
    }

    fn pin(&mut self, n: usize) {
        self.pinned = Some((n, self.layers.clone()));
        self.inner.pin(n);
    }

    fn unpin(&mut self) {
        self.pinned = None;
        self.inner.unpin();
    }
}

/// The cosine of two vectors, minus one if they differ in length or one of them has none.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let length = (dot(a, a) * dot(b, b)).sqrt();
    if a.len() == b.len() && length > 0.0 { (dot(a, b) / length) as f32 } else { -1.0 }
}
