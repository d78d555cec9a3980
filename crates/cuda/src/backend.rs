//! [`Backend`] on CUDA, for callers that keep their numbers on the host: what goes over a layer's keys is copied to the device and
//! back, the rest is the host's. A device that fails is an error, and nothing is computed on the host in its place.

use crate::Cuda;
use crate::driver::{Block, CudaError};
use crate::paged::{Copied, copy_queries};
use crate::segments::Views;
use crate::{attend, key_mass, top_k};
use reattention_kernels::profile::Part;
use reattention_kernels::{
    Backend, Device, DeviceError, KvView, ListedRequest, LogitRule, LowBitKeys, Matrix, Queries, Segment,
    SignRequest, TopK, TopKRequest,
};
use std::ops::Range;

impl Backend for Cuda {
    fn name(&self) -> String {
        format!("cuda ({})", self.shared.driver.facts().name)
    }

    fn threads(&self) -> usize {
        self.host.threads()
    }

    fn device(&self) -> Option<&dyn Device> {
        Some(self)
    }

    fn install(&self, f: &mut (dyn FnMut() + Send)) {
        self.host.install(f);
    }

    fn each(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        self.host.each(n, work);
    }

    fn mark(&self, part: Part) {
        self.host.mark(part);
    }

    /// Layers of a model whose weights lie on the host; one on the device goes through [`Device`].
    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        self.host.linear(x, rows, w, bias, y);
    }

    /// As [`Backend::linear`] of this backend.
    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        self.host.rms_norm(x, weight, eps, y);
    }

    /// As [`Backend::linear`] of this backend.
    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        self.host.silu_mul(gate, up);
    }

    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> Result<TopK, DeviceError> {
        self.check((|| {
            let driver = &self.shared.driver;
            let there = Copied::within(driver, kv, std::slice::from_ref(&request.keys))?;
            let rows = copy_queries(driver, q)?;
            top_k::top_k(driver, &rows, &there.cached(), request)?.read()
        })())
    }

    /// Lists lie on the host, and so do the keys that they name.
    fn top_k_listed(&self, q: &Queries, kv: &KvView, request: &ListedRequest) -> TopK {
        self.host.top_k_listed(q, kv, request)
    }

    /// The copies in few bits lie on the host.
    fn top_k_low_bit(&self, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK {
        self.host.top_k_low_bit(q, keys, k)
    }

    /// The groups lie on the host.
    fn top_k_signs(&self, q: &Queries, request: &SignRequest) -> TopK {
        self.host.top_k_signs(q, request)
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
        let (made, sums) = self.check((|| {
            let scale = plain(rule)?;
            let driver = &self.shared.driver;
            let there = Copied::within(driver, kv, &extents(views))?;
            let rows = copy_queries(driver, q)?;
            let views = Views::of(driver, &self.shared.ropes, views)?;
            let made = Block::new(driver, size_of_val(out))?;
            let sums = Block::new(driver, q.q_len * q.n_heads * size_of::<f32>())?;
            attend::attend(driver, &rows, &there.cached(), &views, scale, made.span(), Some(sums.span()))?;
            Ok((made.read::<f32>(0, out.len())?, sums.read::<f32>(0, q.q_len * q.n_heads)?))
        })())?;
        out.copy_from_slice(&made);
        if let Some(lse) = lse {
            lse.copy_from_slice(&sums);
        }
        Ok(())
    }

    fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        lse: &[f32],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        self.check((|| {
            let scale = plain(rule)?;
            let driver = &self.shared.driver;
            let there = Copied::within(driver, kv, &extents(views))?;
            let rows = copy_queries(driver, q)?;
            let views = Views::of(driver, &self.shared.ropes, views)?;
            let lse = Block::of(driver, lse)?;
            key_mass::key_mass(driver, &rows, &there.cached(), &views, scale, lse.span())?.read()
        })())
    }
}

/// The factor of a rule that is only that: the kernels cap no logits.
fn plain(rule: LogitRule) -> Result<f32, CudaError> {
    match rule.softcap {
        None => Ok(rule.scale),
        Some(cap) => Err(CudaError::Unsupported { what: format!("a soft cap of logits ({cap})") }),
    }
}

/// From the first token to the last of each segment.
fn extents(views: &[Vec<Segment>]) -> Vec<Range<usize>> {
    let keys = views.iter().flatten().map(|s| &s.keys).filter(|keys| !keys.is_empty());
    keys.map(|keys| keys.token(0)..keys.token(keys.len() - 1) + 1).collect()
}
