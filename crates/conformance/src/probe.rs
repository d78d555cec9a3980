//! A backend that also notes which keys nearly tied, so that a vote that rounding moved can be told from a wrong one.

use reattention_kernels::profile::Part;
use reattention_kernels::{
    Backend, DeviceError, KvView, ListedRequest, LowBitKeys, Matrix, Queries, Segment, SignRequest, TopK,
    TopKRequest, TopKRule,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Scores closer than this, relative to their size, are within the rounding of f32 sums in another order.
const NEAR: f32 = 1e-5;

/// A row whose last chosen and first rejected key nearly tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NearTie {
    /// The key that was chosen.
    pub(crate) chosen: u32,
    /// The key that was not.
    pub(crate) rejected: u32,
}

/// Passes everything on to another backend.
#[derive(Debug)]
pub(crate) struct Probe {
    inner: Arc<dyn Backend>,
    /// One list for every search since the last [`Probe::take`].
    searches: Mutex<Vec<Vec<NearTie>>>,
}

impl Probe {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, searches: Mutex::default() }
    }

    /// The near ties of every search so far, in order.
    pub(crate) fn take(&self) -> Vec<Vec<NearTie>> {
        std::mem::take(&mut self.searches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Backend for Probe {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn install(&self, f: &mut (dyn FnMut() + Send)) {
        self.inner.install(f);
    }

    fn each(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        self.inner.each(n, work);
    }

    fn mark(&self, part: Part) {
        self.inner.mark(part);
    }

    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        self.inner.linear(x, rows, w, bias, y);
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        self.inner.rms_norm(x, weight, eps, y);
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        self.inner.silu_mul(gate, up);
    }

    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> Result<TopK, DeviceError> {
        let found = self.inner.top_k(q, kv, request);
        let mut ties = Vec::new();
        if request.rule == TopKRule::Exact {
            let wider = self.inner.top_k(q, kv, &TopKRequest { k: request.k + 1, ..request.clone() });
            for (tokens, scores) in wider.indices.chunks(wider.k).zip(wider.scores.chunks(wider.k)) {
                if wider.k > request.k
                    && scores[request.k - 1] - scores[request.k] <= NEAR * scores[request.k].abs()
                {
                    ties.push(NearTie { chosen: tokens[request.k - 1], rejected: tokens[request.k] });
                }
            }
        }
        self.searches.lock().unwrap_or_else(PoisonError::into_inner).push(ties);
        found
    }

    fn top_k_listed(&self, q: &Queries, kv: &KvView, request: &ListedRequest) -> TopK {
        self.inner.top_k_listed(q, kv, request)
    }

    fn top_k_low_bit(&self, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK {
        self.inner.top_k_low_bit(q, keys, k)
    }

    fn top_k_signs(&self, q: &Queries, request: &SignRequest) -> TopK {
        self.inner.top_k_signs(q, request)
    }

    fn attend(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        scale: f32,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) -> Result<(), DeviceError> {
        self.inner.attend(q, kv, views, scale, out, lse)
    }

    fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        scale: f32,
        lse: &[f32],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        self.inner.key_mass(q, kv, views, scale, lse)
    }
}
