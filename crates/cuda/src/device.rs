//! [`Device`] on CUDA: weights and hidden states.

use crate::cache::Cache;
use crate::driver::{Block, CudaError, Dtype, Product};
use crate::elementwise as kernels;
use crate::{Cuda, Offload};
use reattention_kernels::{
    Backend, CacheShape, Device, DeviceCache, DeviceError, DeviceMatrix, DeviceType, KvRoom, PAGE, Tensor,
    bf16, f16,
};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a weight matrix that are turned into the device's type at once.
const MATRIX_ROWS: usize = 1024;

/// Lists of the best keys, parts of attention and the like, and what the driver takes for itself, in bytes.
const WORK: usize = 512 << 20;

/// Votes of a token: weight, count, and a bit for whether it was chosen.
const WORK_PER_TOKEN: usize = 13;

/// A weight matrix on the device.
#[derive(Debug)]
struct Weights {
    block: Block,
    dtype: Dtype,
}

impl Cuda {
    pub(crate) fn check<T>(&self, result: Result<T, CudaError>) -> Result<T, DeviceError> {
        result.map_err(|error| self.shared.error(error))
    }

    /// The matrix whose rows `row` writes, in `dtype`.
    pub(crate) fn matrix(
        &self,
        rows: usize,
        cols: usize,
        dtype: DeviceType,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<DeviceMatrix, CudaError> {
        let row_bytes = cols * dtype.bytes();
        let block = Block::new(&self.shared.driver, rows.saturating_mul(row_bytes))?;
        let mut bytes = vec![0; MATRIX_ROWS.min(rows) * row_bytes];
        for first in (0..rows).step_by(MATRIX_ROWS) {
            let bytes = &mut bytes[..MATRIX_ROWS.min(rows - first) * row_bytes];
            let share = (bytes.len() / row_bytes).div_ceil(self.host.threads());
            std::thread::scope(|scope| {
                for (i, part) in bytes.chunks_mut(share * row_bytes).enumerate() {
                    scope.spawn(move || {
                        let mut elements = vec![0.0; cols];
                        for (j, out) in part.chunks_exact_mut(row_bytes).enumerate() {
                            row(first + i * share + j, &mut elements);
                            encode(&elements, dtype, out);
                        }
                    });
                }
            });
            block.write(first * row_bytes, bytes)?;
        }
        let memory = Box::new(Weights { block, dtype: dtype.into() });
        Ok(DeviceMatrix::new(rows, cols, memory))
    }

    /// `y = x · wᵀ + bias` with everything on the device.
    fn product(
        &self,
        x: &Tensor,
        rows: usize,
        w: &DeviceMatrix,
        bias: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<(), CudaError> {
        let (weights, driver) = (self.weights(w)?, &self.shared.driver);
        let (inputs, outputs) = (w.cols(), w.rows());
        let (x, y) = (self.shared.floats(x)?, self.shared.floats(y)?);
        let product =
            |x| Product { rows, inputs, outputs, dtype: weights.dtype, x, w: weights.block.at(), y: y.at() };
        match weights.dtype {
            // SAFETY: the tensors have the shapes that the caller has checked, and all are this device's.
            Dtype::F32 => unsafe { driver.multiply(&product(x.at()))? },
            dtype => self.shared.with_inputs(rows * inputs * dtype.bytes(), |rounded| {
                kernels::to_element(driver, x.span(), rounded.span(), rows * inputs, dtype)?;
                // SAFETY: as above; `rounded` holds as many elements as were just written.
                unsafe { driver.multiply(&product(rounded.at())) }
            })?,
        }
        match bias {
            Some(bias) => {
                kernels::add_bias(driver, y.span(), self.shared.floats(bias)?.span(), rows, outputs)
            }
            None => Ok(()),
        }
    }

    /// What a matrix is on this kind of device, if this one made it.
    fn weights<'w>(&self, w: &'w DeviceMatrix) -> Result<&'w Weights, CudaError> {
        let weights: &Weights = self.shared.own(w.memory(), "a matrix")?;
        self.shared.is_own(&weights.block, "a matrix")?;
        Ok(weights)
    }

    /// The memory of a tensor of this device.
    fn floats<'t>(&self, tensor: &'t Tensor) -> Result<&'t Block, CudaError> {
        self.shared.floats(tensor).map(Arc::as_ref)
    }
}

impl Device for Cuda {
    fn id(&self) -> u64 {
        self.shared.id
    }

    fn name(&self) -> String {
        self.shared.driver.facts().name.clone()
    }

    fn free_memory(&self) -> Result<usize, DeviceError> {
        self.check(self.shared.driver.free_memory())
    }

    fn kv_room(&self, shape: CacheShape, tokens: usize) -> KvRoom {
        let side = shape.layers * shape.n_kv_heads * shape.head_dim * shape.dtype.bytes();
        let side = side.saturating_mul(tokens.div_ceil(PAGE).saturating_mul(PAGE));
        match self.shared.offload {
            Offload::Off => KvRoom { device: side.saturating_mul(2), host: 0, movable: 0 },
            Offload::Values => KvRoom { device: side, host: side, movable: 0 },
            Offload::Old => KvRoom { device: side, host: side, movable: side },
        }
    }

    fn work_bytes(&self, tokens: usize) -> usize {
        WORK.saturating_add(tokens.saturating_mul(WORK_PER_TOKEN))
    }

    fn wait(&self) -> Result<(), DeviceError> {
        self.check(self.shared.driver.wait())
    }

    fn tensor(&self, len: usize) -> Result<Tensor, DeviceError> {
        self.check(self.shared.tensor(len))
    }

    fn write(&self, to: &mut Tensor, data: &[f32]) -> Result<(), DeviceError> {
        assert!(data.len() <= to.len(), "{} elements into {}", data.len(), to.len());
        self.check(self.floats(to).and_then(|block| block.write(0, data)))
    }

    fn read(&self, from: &Tensor, elements: Range<usize>) -> Result<Vec<f32>, DeviceError> {
        let Range { start, end } = elements;
        assert!(start <= end && end <= from.len(), "elements {start}..{end} of {}", from.len());
        let read = |block: &Block| block.read(start * size_of::<f32>(), end - start);
        self.check(self.floats(from).and_then(read))
    }

    fn matrix(
        &self,
        rows: usize,
        cols: usize,
        dtype: DeviceType,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<DeviceMatrix, DeviceError> {
        self.check(self.matrix(rows, cols, dtype, row))
    }

    fn embed(&self, table: &DeviceMatrix, ids: &[u32], out: &mut Tensor) -> Result<(), DeviceError> {
        let (n, cols) = (ids.len(), table.cols());
        assert!(n * cols <= out.len(), "{n} rows of {cols} into {}", out.len());
        assert!(ids.iter().all(|&id| (id as usize) < table.rows()), "embed: an id beyond {}", table.rows());
        let run = || {
            let (weights, driver) = (self.weights(table)?, &self.shared.driver);
            let (there, out) = (Block::of(driver, ids)?, self.floats(out)?);
            // SAFETY: the table has `table.rows()` rows, which all ids are below.
            unsafe {
                kernels::embed(driver, weights.block.span(), weights.dtype, there.span(), out.span(), n, cols)
            }
        };
        self.check(run())
    }

    fn linear(
        &self,
        x: &Tensor,
        rows: usize,
        w: &DeviceMatrix,
        bias: Option<&Tensor>,
        y: &mut Tensor,
    ) -> Result<(), DeviceError> {
        assert!(
            rows * w.cols() <= x.len()
                && rows * w.rows() <= y.len()
                && bias.is_none_or(|b| b.len() == w.rows()),
            "linear: {rows} rows of {} into {}, {} x {}",
            x.len(),
            y.len(),
            w.rows(),
            w.cols()
        );
        self.check(self.product(x, rows, w, bias, y))
    }

    fn rms_norm(
        &self,
        x: &Tensor,
        rows: usize,
        weight: &Tensor,
        eps: f32,
        y: &mut Tensor,
    ) -> Result<(), DeviceError> {
        let n = weight.len();
        assert!(rows * n <= x.len() && rows * n <= y.len(), "rms_norm: {rows} rows of {n} in {}", x.len());
        let run = || {
            let (x, weight, y) = (self.floats(x)?, self.floats(weight)?, self.floats(y)?);
            kernels::rms_norm(&self.shared.driver, x.span(), weight.span(), y.span(), rows, n, eps)
        };
        self.check(run())
    }

    fn rms_norm_within(
        &self,
        x: &mut Tensor,
        rows: usize,
        weight: &Tensor,
        eps: f32,
    ) -> Result<(), DeviceError> {
        let n = weight.len();
        assert!(rows * n <= x.len(), "rms_norm: {rows} rows of {n} in {}", x.len());
        let run = || {
            let (x, weight) = (self.floats(x)?, self.floats(weight)?);
            kernels::rms_norm(&self.shared.driver, x.span(), weight.span(), x.span(), rows, n, eps)
        };
        self.check(run())
    }

    fn silu_mul(&self, gate: &mut Tensor, up: &Tensor, len: usize) -> Result<(), DeviceError> {
        assert!(len <= gate.len() && len <= up.len(), "silu_mul: {len} of {} and {}", gate.len(), up.len());
        let run = || {
            let (gate, up) = (self.floats(gate)?, self.floats(up)?);
            kernels::silu_mul(&self.shared.driver, gate.span(), up.span(), len)
        };
        self.check(run())
    }

    fn add(&self, y: &mut Tensor, x: &Tensor, len: usize) -> Result<(), DeviceError> {
        assert!(len <= y.len() && len <= x.len(), "add: {len} of {} and {}", y.len(), x.len());
        let run = || {
            let (y, x) = (self.floats(y)?, self.floats(x)?);
            kernels::add(&self.shared.driver, y.span(), x.span(), len)
        };
        self.check(run())
    }

    fn scale_rows(&self, x: &mut Tensor, cols: usize, factors: &[f32]) -> Result<(), DeviceError> {
        let rows = factors.len();
        assert!(rows * cols <= x.len(), "scale_rows: {rows} rows of {cols} in {}", x.len());
        let run = || {
            let driver = &self.shared.driver;
            let there = Block::of(driver, factors)?;
            kernels::scale_rows(driver, self.floats(x)?.span(), there.span(), rows, cols)
        };
        self.check(run())
    }

    fn pick(&self, x: &Tensor, cols: usize, rows: &[u32], out: &mut Tensor) -> Result<(), DeviceError> {
        let last = rows.iter().max().map_or(0, |&r| r as usize + 1);
        assert!(
            last * cols <= x.len() && rows.len() * cols <= out.len(),
            "pick: row {last} of {} / {cols}",
            x.len()
        );
        let run = || {
            let driver = &self.shared.driver;
            let (there, x, out) = (Block::of(driver, rows)?, self.floats(x)?, self.floats(out)?);
            // SAFETY: `x` has the last row asked for.
            unsafe { kernels::gather_rows(driver, x.span(), there.span(), out.span(), rows.len(), cols) }
        };
        self.check(run())
    }

    fn losses(&self, logits: &Tensor, vocab: usize, targets: &[u32]) -> Result<Vec<f32>, DeviceError> {
        assert!(targets.len() * vocab <= logits.len(), "losses: {} rows of {vocab}", targets.len());
        assert!(targets.iter().all(|&t| (t as usize) < vocab), "losses: a target beyond {vocab}");
        let run = || {
            let driver = &self.shared.driver;
            let (there, out) = (Block::of(driver, targets)?, Block::new(driver, size_of_val(targets))?);
            let logits = self.floats(logits)?.span();
            // SAFETY: every target is below `vocab`.
            unsafe { kernels::losses(driver, logits, there.span(), out.span(), targets.len(), vocab)? };
            out.read(0, targets.len())
        };
        self.check(run())
    }

    fn cache(&self, shape: CacheShape) -> Box<dyn DeviceCache> {
        Box::new(Cache::new(Arc::clone(&self.shared), shape))
    }
}

/// Elements in a type of the device.
fn encode(elements: &[f32], dtype: DeviceType, out: &mut [u8]) {
    match dtype {
        DeviceType::F32 => out.copy_from_slice(bytemuck::cast_slice(elements)),
        DeviceType::Bf16 => {
            let pairs = out.chunks_exact_mut(2).zip(elements);
            pairs.for_each(|(o, &x)| o.copy_from_slice(&bf16::from_f32(x).to_le_bytes()));
        }
        DeviceType::F16 => {
            let pairs = out.chunks_exact_mut(2).zip(elements);
            pairs.for_each(|(o, &x)| o.copy_from_slice(&f16::from_f32(x).to_le_bytes()));
        }
    }
}
