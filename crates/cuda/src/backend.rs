//! [`Backend`] on CUDA, for callers that keep their numbers on the host: what a call needs is copied there and back.

use crate::Cuda;
use crate::driver::{Block, CudaError};
use crate::paged::{Copied, copy_queries};
use crate::segments::Views;
use crate::{attend, elementwise, key_mass, top_k};
use reattention_kernels::profile::Part;
use reattention_kernels::{
    Backend, Device, DeviceType, KvView, ListedRequest, LowBitKeys, Matrix, MatrixData, Queries, Segment,
    SignRequest, TopK, TopKRequest,
};
use std::ops::Range;

impl Cuda {
    /// What the device made of it, if it did not fail; otherwise says why the host is to compute it.
    fn made<R>(&self, what: &'static str, made: Result<R, CudaError>) -> Option<R> {
        made.inspect_err(|error| tracing::warn!("{what} is computed on the CPU: {error}")).ok()
    }

    fn upload(&self, data: &[f32]) -> Result<Block, CudaError> {
        Block::of(&self.shared.driver, data)
    }
}

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

    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        assert_eq!((x.len(), y.len()), (rows * w.cols(), rows * w.rows()), "linear: {rows} rows");
        let made = (|| {
            let dtype = match w.data() {
                MatrixData::F32(_) => DeviceType::F32,
                MatrixData::F16(_) => DeviceType::F16,
                MatrixData::Bf16(_) | MatrixData::Blocks(..) => DeviceType::Bf16,
            };
            let matrix = self.matrix(w.rows(), w.cols(), dtype, &|row, out| w.copy_row(row, out))?;
            let (x, out) = (self.upload(x)?, Block::new(&self.shared.driver, size_of_val(y))?);
            let bias = bias.map(|b| self.upload(b)).transpose()?;
            self.product(x.at(), rows, &matrix, bias.as_ref().map(Block::at), out.at())?;
            out.read(0, y.len())
        })();
        match self.made("a linear layer", made) {
            Some(made) => y.copy_from_slice(&made),
            None => self.host.linear(x, rows, w, bias, y),
        }
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let made = (|| {
            let (there, w) = (self.upload(x)?, self.upload(weight)?);
            let rows = x.len() / weight.len();
            elementwise::rms_norm(
                &self.shared.driver,
                there.at(),
                w.at(),
                there.at(),
                rows,
                weight.len(),
                eps,
            )?;
            there.read(0, x.len())
        })();
        match self.made("a norm", made) {
            Some(made) => y[..x.len()].copy_from_slice(&made),
            None => self.host.rms_norm(x, weight, eps, y),
        }
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        let made = (|| {
            let (there, up) = (self.upload(gate)?, self.upload(up)?);
            elementwise::silu_mul(&self.shared.driver, there.at(), up.at(), gate.len())?;
            there.read(0, gate.len())
        })();
        match self.made("an activation", made) {
            Some(made) => gate.copy_from_slice(&made),
            None => self.host.silu_mul(gate, up),
        }
    }

    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> TopK {
        let made = (|| {
            let driver = &self.shared.driver;
            let there = Copied::within(driver, kv, std::slice::from_ref(&request.keys))?;
            let (_held, rows) = copy_queries(driver, q)?;
            top_k::top_k(driver, &rows, &there.cached(), request)?.read()
        })();
        let made = self.made("the search for the best keys", made);
        made.unwrap_or_else(|| self.host.top_k(q, kv, request))
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
        scale: f32,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) {
        let made = (|| {
            let driver = &self.shared.driver;
            let there = Copied::within(driver, kv, &extents(views))?;
            let (_held, rows) = copy_queries(driver, q)?;
            let views = Views::of(driver, &self.shared.ropes, views)?;
            let made = Block::new(driver, size_of_val(out))?;
            let sums = Block::new(driver, q.q_len * q.n_heads * size_of::<f32>())?;
            attend::attend(driver, &rows, &there.cached(), &views, scale, made.at(), Some(sums.at()))?;
            Ok((made.read::<f32>(0, out.len())?, sums.read::<f32>(0, q.q_len * q.n_heads)?))
        })();
        match self.made("attention", made) {
            Some((made, sums)) => {
                out.copy_from_slice(&made);
                if let Some(lse) = lse {
                    lse.copy_from_slice(&sums);
                }
            }
            None => self.host.attend(q, kv, views, scale, out, lse),
        }
    }

    fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        scale: f32,
        lse: &[f32],
    ) -> Vec<Vec<f32>> {
        let made = (|| {
            let driver = &self.shared.driver;
            let there = Copied::within(driver, kv, &extents(views))?;
            let (_held, rows) = copy_queries(driver, q)?;
            let views = Views::of(driver, &self.shared.ropes, views)?;
            key_mass::key_mass(driver, &rows, &there.cached(), &views, scale, self.upload(lse)?.at())?.read()
        })();
        let made = self.made("attention by key", made);
        made.unwrap_or_else(|| self.host.key_mass(q, kv, views, scale, lse))
    }
}

/// From the first token to the last of each segment.
fn extents(views: &[Vec<Segment>]) -> Vec<Range<usize>> {
    let keys = views.iter().flatten().map(|s| &s.keys).filter(|keys| !keys.is_empty());
    keys.map(|keys| keys.token(0)..keys.token(keys.len() - 1) + 1).collect()
}
