//! The fast CPU backend: SIMD paths chosen at run time, on a persistent thread pool.

mod attend;
mod attend_few;
mod attend_piece;
mod best;
mod blocks;
mod elementwise;
mod key_mass;
mod keys;
mod linear;
mod listed;
mod low_bit;
mod path;
mod pool;
mod signs;
pub(crate) mod simd;
mod top_k;

pub(crate) use attend::visible;
pub use path::Path;

use crate::profile::AttendClock;
use crate::{
    Activation, Backend, DeviceError, KvView, ListedRequest, LogitRule, LowBitKeys, Matrix, Queries, Segment,
    SignRequest, TopK, TopKRequest,
};
use pool::Pool;
use std::sync::Arc;

/// The environment variable that forces a path by its name.
const PATH_VARIABLE: &str = "REATTENTION_CPU_PATH";

/// The fast CPU backend.
///
/// Keys and values in f32, and weights in f32 or f16, are computed with in f32 throughout. bf16 keys, values and (with
/// more than a few rows) weights are multiplied in bf16 on the path that has an instruction for it, queries and
/// activations being rounded to bf16; sums are always f32. Weights in blocks are multiplied as integers by few rows of
/// activations, rounded to 8 bits with a scale for each 32, and by many rows like bf16 weights.
#[derive(Debug)]
pub struct Cpu {
    pool: Pool,
    path: Path,
    clock: Option<Arc<AttendClock>>,
}

/// The backend could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// The name of a path is none of the known ones.
    #[error("unknown CPU path {name:?}: known are avx512-bf16, avx2, neon and portable")]
    UnknownPath {
        /// The name given.
        name: String,
    },
    /// This machine lacks the instructions of the path.
    #[error("this machine cannot run CPU path {path}: use {best}, or leave {PATH_VARIABLE} unset")]
    Unavailable {
        /// The path asked for.
        path: Path,
        /// The fastest path this machine can run.
        best: Path,
    },
    /// The threads could not be started.
    #[error("cannot start {threads} threads: try fewer")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        source: rayon::ThreadPoolBuildError,
    },
}

impl Cpu {
    /// A backend on `threads` threads of its own (at least one), with the fastest path this machine has, or with the
    /// one the environment variable `REATTENTION_CPU_PATH` names.
    ///
    /// # Errors
    /// When the threads cannot be started, or the variable names no path this machine can run.
    pub fn new(threads: usize) -> Result<Self, CpuError> {
        let path = match std::env::var(PATH_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse()?,
            _ => Path::best(),
        };
        Self::with_path(threads, path)
    }

    /// A backend on `threads` threads of its own (at least one), with this path.
    ///
    /// # Errors
    /// When the threads cannot be started, or this machine cannot run the path.
    pub fn with_path(threads: usize, path: Path) -> Result<Self, CpuError> {
        if !path.is_available() {
            return Err(CpuError::Unavailable { path, best: Path::best() });
        }
        Ok(Self { pool: Pool::new(threads)?, path, clock: None })
    }

    /// Measures on `clock` what attention spends on fetching and rotating.
    pub fn with_clock(self, clock: Arc<AttendClock>) -> Self {
        Self { clock: Some(clock), ..self }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The path this backend computes with.
    pub fn path(&self) -> Path {
        self.path
    }
}

impl Cpu {
    /// [`Backend::top_k`], which cannot fail here.
    pub fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> TopK {
        top_k::top_k(&self.pool, self.path, q, kv, request)
    }

    /// [`Backend::attend`], which cannot fail here.
    pub fn attend(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: impl Into<LogitRule>,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) {
        attend::attend(&self.pool, self.path, self.clock.as_deref(), q, kv, views, rule.into(), out, lse)
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
        key_mass::key_mass(&self.pool, self.path, q, kv, views, rule.into(), lse)
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        let threads = self.threads();
        format!("cpu ({}, {threads} thread{})", self.path, if threads == 1 { "" } else { "s" })
    }

    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn install(&self, f: &mut (dyn FnMut() + Send)) {
        self.pool.install(f)
    }

    fn each(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        self.pool.each(n, false, || (), |(), i| work(i))
    }

    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]) {
        linear::linear(&self.pool, self.path, x, rows, w, bias, y)
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        elementwise::rms_norm(&self.pool, self.path, x, weight, eps, y)
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        self.gate(Activation::Silu, gate, up)
    }

    fn gate(&self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        elementwise::gate(&self.pool, self.path, activation, gate, up)
    }

    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> Result<TopK, DeviceError> {
        Ok(self.top_k(q, kv, request))
    }

    fn top_k_listed(&self, q: &Queries, kv: &KvView, request: &ListedRequest) -> TopK {
        listed::top_k_listed(&self.pool, self.path, q, kv, request)
    }

    fn top_k_low_bit(&self, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK {
        low_bit::top_k_low_bit(&self.pool, self.path, q, keys, k)
    }

    fn top_k_signs(&self, q: &Queries, request: &SignRequest) -> TopK {
        signs::top_k_signs(&self.pool, self.path, q, request)
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

    fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        lse: &[f32],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        Ok(self.key_mass(q, kv, views, rule, lse))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_by_their_names() {
        for path in [Path::Avx512Bf16, Path::Avx2, Path::Neon, Path::Portable] {
            assert_eq!(path.to_string().parse::<Path>().unwrap(), path);
        }
        let error = "sse9".parse::<Path>().unwrap_err().to_string();
        assert!(error.contains("\"sse9\"") && error.contains("portable"), "{error}");
        let cpu = Cpu::with_path(2, Path::Portable).unwrap();
        assert_eq!((cpu.name().as_str(), cpu.threads()), ("cpu (portable, 2 threads)", 2));
        assert_eq!(Cpu::with_path(0, Path::Portable).unwrap().name(), "cpu (portable, 1 thread)");
    }

    #[test]
    fn a_path_of_another_machine_is_refused() {
        let foreign = if cfg!(target_arch = "aarch64") { Path::Avx2 } else { Path::Neon };
        assert!(!Path::available().contains(&foreign));
        let error = Cpu::with_path(1, foreign).unwrap_err().to_string();
        assert!(error.contains(foreign.name()) && error.contains(Path::best().name()), "{error}");
    }
}
