//! What this machine can do at most, measured in this process: the yardstick for kernels.
//!
//! Machines are shared and clocks move, so a limit is only worth comparing with what was measured right beside it.

use crate::cpu::simd::{Kernel, Load, Operand, Pair, Simd, Single};
use crate::{Buffer, Cpu};
use std::hint::black_box;
use std::time::Instant;

/// Bytes read to measure memory: far more than caches hold.
const READ_BYTES: usize = 256 << 20;

/// Limits of one machine at one number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Multiply-adds of bf16 pairs into f32 sums, GFLOP/s; those of f32 where the path has no instruction for pairs.
    pub bf16_gflops: f64,
    /// Multiply-adds of f32, GFLOP/s.
    pub f32_gflops: f64,
    /// Reading memory in order, GB/s.
    pub read_gbytes: f64,
}

impl Limits {
    /// Measures all limits with the path and the threads of `cpu`, each as the best of five runs.
    pub fn measure(cpu: &Cpu) -> Self {
        let meter = Meter::new(cpu);
        let best = |f: fn(&Meter<'_>) -> f64| (0..5).map(|_| f(&meter)).fold(0.0, f64::max);
        Self {
            bf16_gflops: best(|m| m.bf16_gflops()),
            f32_gflops: best(|m| m.f32_gflops()),
            read_gbytes: best(|m| m.read_gbytes()),
        }
    }
}

/// Measures limits again and again, so that they can be interleaved with what they are compared to.
#[derive(Debug)]
pub struct Meter<'a> {
    cpu: &'a Cpu,
    memory: Buffer<f32>,
}

impl<'a> Meter<'a> {
    /// A meter for the path and the threads of `cpu`. Holds 256 MiB.
    pub fn new(cpu: &'a Cpu) -> Self {
        let mut memory = Buffer::zeroed(READ_BYTES / 4);
        // Untouched pages would all be one page of zeros, in cache.
        memory.iter_mut().step_by(1024).for_each(|x| *x = 1.0);
        Self { cpu, memory }
    }

    /// One measurement (about 20 ms) of bf16 multiply-adds, GFLOP/s. See [`Limits::bf16_gflops`].
    pub fn bf16_gflops(&self) -> f64 {
        if self.cpu.path().has_pair_dot() { self.gflops::<Pair>() } else { self.gflops::<Single>() }
    }

    /// One measurement (about 20 ms) of f32 multiply-adds, GFLOP/s.
    pub fn f32_gflops(&self) -> f64 {
        self.gflops::<Single>()
    }

    /// One measurement of reading 256 MiB in order, GB/s.
    pub fn read_gbytes(&self) -> f64 {
        const STRIP: usize = 1 << 18;
        let (pool, path) = (self.cpu.pool(), self.cpu.path());
        let start = Instant::now();
        let strips: Vec<&[f32]> = self.memory.chunks_exact(STRIP).collect();
        // SAFETY: the backend only holds available paths.
        pool.each(strips.len(), false, || (), |(), i| unsafe { path.call(Read(strips[i])) });
        READ_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    }

    fn gflops<M: Operand>(&self) -> f64 {
        const ROUNDS: usize = 40_000;
        const ITEMS: usize = 32;
        let (pool, path) = (self.cpu.pool(), self.cpu.path());
        let start = Instant::now();
        // SAFETY: the backend only holds available paths.
        pool.each(ITEMS, false, || (), |(), _| unsafe { path.call(MultiplyAdd(M::default(), ROUNDS)) });
        let multiply_adds = ITEMS * ROUNDS * SUMS * path.lanes() * M::PER_UNIT;
        2.0 * multiply_adds as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

/// Independent sums: enough to hide the latency of an addition, few enough for sixteen registers.
const SUMS: usize = 12;

struct MultiplyAdd<M>(M, usize);

impl<M: Operand> Kernel for MultiplyAdd<M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: arithmetic on registers; the path's contract holds.
        unsafe {
            let (a, b) = (S::splat(black_box(1e-3)), S::splat(black_box(1e-3)));
            let mut sums = [S::splat(0.0); SUMS];
            for _ in 0..self.1 {
                for sum in &mut sums {
                    *sum = M::mac::<S>(*sum, a, b);
                }
            }
            let mut total = 0.0;
            for sum in sums {
                total += S::sum(sum);
            }
            black_box(total);
        }
    }
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: whole vectors within the slice; the path's contract holds.
        unsafe {
            let mut sums = [S::splat(0.0); 8];
            let step = 8 * S::LANES;
            for i in (0..self.0.len() / step * step).step_by(step) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, f32::load::<S>(self.0.as_ptr().add(i + j * S::LANES)));
                }
            }
            let mut total = 0.0;
            for sum in sums {
                total += S::sum(sum);
            }
            black_box(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_limits_above_nothing() {
        for path in crate::cpu::Path::available() {
            let cpu = Cpu::with_path(1, path).unwrap();
            let limits = Limits::measure(&cpu);
            assert!(
                limits.bf16_gflops > 0.1 && limits.f32_gflops > 0.1 && limits.read_gbytes > 0.1,
                "{limits:?}"
            );
        }
    }
}
