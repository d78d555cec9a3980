//! How close each kernel comes to the limit of the device, measured beside it in one process.

use crate::Cuda;
use crate::driver::{Block, CudaError, Driver, Dtype, Product};
use crate::paged::{Cached, CachedShape, PageEntry, Rows};
use crate::segments::Views;
use crate::{attend, top_k};
use reattention_kernels::bench::Record;
use reattention_kernels::{
    Band, HeadPairing, KeySet, PAGE, Position, RopeTable, Segment, TopKRequest, TopKRule,
};
use std::sync::Arc;

/// Sizes of what is measured.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows, columns and depth of the product that is the limit of arithmetic.
    pub matrix: usize,
    /// Bytes of the copy that is the limit of memory.
    pub copy: usize,
    /// Tokens of a prefill step.
    pub q_len: usize,
    /// Keys that a prefill step searches.
    pub prefill_keys: usize,
    /// Keys that a decode step searches.
    pub decode_keys: usize,
    /// Keys that are attended to.
    pub view: usize,
}

impl Default for Sizes {
    /// Those of an 8B model that reads a long text.
    fn default() -> Self {
        Self {
            matrix: 8192,
            copy: 1 << 30,
            q_len: 512,
            prefill_keys: 131_072,
            decode_keys: 1 << 20,
            view: 16_384,
        }
    }
}

/// An attention shape that is measured.
#[derive(Clone, Copy)]
struct Shape {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

/// Llama 3.1 8B, and Qwen2.5 0.5B.
const SHAPES: [Shape; 2] =
    [Shape { n_heads: 32, n_kv_heads: 8, head_dim: 128 }, Shape { n_heads: 14, n_kv_heads: 2, head_dim: 64 }];

impl Cuda {
    /// Measures every kernel whose name contains `only`, `rounds` times beside its limit; each record goes to `done` as soon
    /// as it is known. Needs some 4 GiB of the device with the default sizes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn bench(
        &self,
        sizes: Sizes,
        rounds: usize,
        only: &str,
        done: &mut dyn FnMut(&Record),
    ) -> Result<Vec<Record>, CudaError> {
        let driver = &self.shared.driver;
        let mut bench = Bench::new(driver, sizes, rounds.max(1), only, done)?;
        for (name, outputs, inputs) in [("up", 14_336, 4096), ("down", 4096, 14_336)] {
            let scale = |n: usize| (n * sizes.matrix / 8192).max(16);
            bench.linear(name, sizes.q_len, scale(inputs), scale(outputs), 0.6)?;
            bench.linear(name, 1, scale(inputs), scale(outputs), 0.75)?;
        }
        for shape in SHAPES {
            bench.search(shape, sizes.q_len, sizes.prefill_keys, 0.6)?;
            bench.search(shape, 1, sizes.decode_keys, 0.75)?;
            bench.attention(self, shape, sizes.q_len, sizes.view, 0.4)?;
            bench.attention(self, shape, 1, sizes.view, 0.5)?;
        }
        Ok(bench.records)
    }
}

struct Bench<'a> {
    driver: &'a Arc<dyn Driver>,
    matrix: usize,
    /// Two factors of the product that is the limit, and room for it.
    factors: [Block; 3],
    copy: [Block; 2],
    rounds: usize,
    only: &'a str,
    done: &'a mut dyn FnMut(&Record),
    records: Vec<Record>,
}

/// What bounds a kernel, with the work of one call.
#[derive(Clone, Copy)]
enum Bound {
    /// Floating-point operations against the large product's.
    Arithmetic(f64),
    /// Bytes against those that a copy reads and writes.
    Memory(f64),
}

impl<'a> Bench<'a> {
    fn new(
        driver: &'a Arc<dyn Driver>,
        sizes: Sizes,
        rounds: usize,
        only: &'a str,
        done: &'a mut dyn FnMut(&Record),
    ) -> Result<Self, CudaError> {
        let n = sizes.matrix;
        let elements = random(n * n, 1);
        let factors = [
            Block::of(driver, &elements)?,
            Block::of(driver, &elements)?,
            Block::new(driver, n * n * size_of::<f32>())?,
        ];
        let copy = [Block::zeroed(driver, sizes.copy)?, Block::new(driver, sizes.copy)?];
        Ok(Self { driver, matrix: n, factors, copy, rounds, only, done, records: Vec::new() })
    }

    /// Measures `call` beside its limit.
    fn measure(
        &mut self,
        name: String,
        bound: Bound,
        goal: f64,
        mut call: impl FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if !name.contains(self.only) {
            return Ok(());
        }
        // Compiles kernels and takes memory once.
        call()?;
        let (mut values, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let limit = self.limit(bound)?;
            let work = match bound {
                Bound::Arithmetic(work) | Bound::Memory(work) => work,
            };
            let value = work / self.driver.time(&mut call)? / 1e9;
            values.push(value);
            limits.push(limit);
            ratios.push(value / limit);
        }
        let unit = match bound {
            Bound::Arithmetic(_) => "GFLOP/s",
            Bound::Memory(_) => "GB/s",
        };
        let [value, limit, of_limit] = [values, limits, ratios].map(median);
        let record = Record { name, value, unit, limit, of_limit, goal };
        (self.done)(&record);
        self.records.push(record);
        Ok(())
    }

    /// The limit, now: operations or bytes in a second, in units of 10^9.
    fn limit(&self, bound: Bound) -> Result<f64, CudaError> {
        let n = self.matrix;
        let [x, w, y] = [0, 1, 2].map(|i| self.factors[i].at());
        let product = Product { rows: n, inputs: n, outputs: n, dtype: Dtype::Bf16, x, w, y };
        let bytes = self.copy[0].bytes();
        let mut run = || match bound {
            // SAFETY: the factors have n x n elements, and so has the room for the product.
            Bound::Arithmetic(_) => unsafe { self.driver.multiply(&product) },
            // SAFETY: both blocks are that long.
            Bound::Memory(_) => unsafe { self.driver.copy(self.copy[0].at(), self.copy[1].at(), bytes) },
        };
        run()?;
        let seconds = self.driver.time(&mut run)?;
        Ok(match bound {
            Bound::Arithmetic(_) => 2.0 * (n as f64).powi(3),
            Bound::Memory(_) => 2.0 * bytes as f64,
        } / seconds
            / 1e9)
    }

    fn linear(
        &mut self,
        name: &str,
        rows: usize,
        inputs: usize,
        outputs: usize,
        goal: f64,
    ) -> Result<(), CudaError> {
        let driver = Arc::clone(self.driver);
        let w = Block::of(&driver, &random(inputs * outputs, 2))?;
        let x = Block::of(&driver, &random(rows * inputs, 3))?;
        let y = Block::new(&driver, rows * outputs * size_of::<f32>())?;
        let (x, w, y) = (x, w, y);
        let product = Product { rows, inputs, outputs, dtype: Dtype::Bf16, x: x.at(), w: w.at(), y: y.at() };
        let (kind, bound) = bound(rows, 2 * inputs * outputs * rows, 2 * inputs * outputs);
        let name = format!("linear.bf16.{kind}.{name}.{rows}x{inputs}x{outputs}");
        // SAFETY: the blocks have these shapes and live as long as the measurement.
        self.measure(name, bound, goal, || unsafe { driver.multiply(&product) })
    }

    fn search(&mut self, shape: Shape, q_len: usize, keys: usize, goal: f64) -> Result<(), CudaError> {
        let driver = Arc::clone(self.driver);
        let (store, rows) = (Store::new(&driver, shape, keys)?, queries(&driver, shape, q_len, keys)?);
        let request =
            TopKRequest { keys: 0..keys, k: 4, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
        let Shape { n_heads, n_kv_heads, head_dim } = shape;
        let (kind, bound) =
            bound(q_len, 2 * q_len * n_heads * head_dim * keys, 2 * n_kv_heads * head_dim * keys);
        let name = format!("top_k.bf16.{kind}.{n_heads}x{head_dim}.{keys}");
        self.measure(name, bound, goal, || {
            top_k::top_k(&driver, &rows, &store.cached(), &request).map(|_| ())
        })
    }

    fn attention(
        &mut self,
        cuda: &Cuda,
        shape: Shape,
        q_len: usize,
        keys: usize,
        goal: f64,
    ) -> Result<(), CudaError> {
        let driver = Arc::clone(self.driver);
        let Shape { n_heads, n_kv_heads, head_dim } = shape;
        let (store, rows) = (Store::new(&driver, shape, keys)?, queries(&driver, shape, q_len, keys)?);
        let frequencies = (0..head_dim / 2).map(|i| 500_000f32.powf(-2.0 * i as f32 / head_dim as f32));
        let rope = Arc::new(RopeTable::new(frequencies.collect(), 1.0, keys));
        let segment = Segment {
            keys: KeySet::Range(0..keys),
            band: Band::CAUSAL,
            key_position: Position::Index { offset: 0 },
            query_position: Position::Index { offset: 0 },
            key_rope: Arc::clone(&rope),
            query_rope: rope,
        };
        let views = Views::of(&driver, &cuda.shared.ropes, &[vec![segment]])?;
        let out = Block::new(&driver, q_len * n_heads * head_dim * size_of::<f32>())?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (kind, bound) =
            bound(q_len, 4 * q_len * n_heads * head_dim * keys, 4 * n_kv_heads * head_dim * keys);
        let name = format!("attend.bf16.{kind}.{n_heads}x{head_dim}.{keys}");
        self.measure(name, bound, goal, || {
            attend::attend(&driver, &rows, &store.cached(), &views, scale, out.span(), None)
        })
    }
}

/// One row reads its operands once; many rows compute.
fn bound(rows: usize, operations: usize, bytes: usize) -> (&'static str, Bound) {
    if rows == 1 {
        ("decode", Bound::Memory(bytes as f64))
    } else {
        ("prefill", Bound::Arithmetic(operations as f64))
    }
}

/// Keys and values of one layer.
struct Store {
    driver: Arc<dyn Driver>,
    #[allow(dead_code, reason = "the table points into them")]
    pages: Vec<Block>,
    table: Block,
    shape: CachedShape,
}

impl Store {
    fn cached(&self) -> Cached<'_> {
        // SAFETY: the table was made for pages of this shape, and both are held for as long as they are lent.
        unsafe { Cached::new(&self.driver, self.table.at(), self.shape) }
    }

    fn new(driver: &Arc<dyn Driver>, shape: Shape, keys: usize) -> Result<Self, CudaError> {
        let (mut pages, mut entries) = (Vec::new(), Vec::new());
        for page in 0..keys.div_ceil(PAGE) {
            let elements = random(shape.n_kv_heads * PAGE * shape.head_dim, 4 + page as u64);
            let block = Block::of(driver, &elements)?;
            entries.push(PageEntry { keys: block.at(), values: block.at() });
            pages.push(block);
        }
        let table = Block::of(driver, &entries)?;
        let Shape { n_kv_heads, head_dim, .. } = shape;
        let shape = CachedShape { len: keys, n_kv_heads, head_dim, dtype: Dtype::Bf16 };
        Ok(Self { driver: Arc::clone(driver), pages, table, shape })
    }
}

fn queries(driver: &Arc<dyn Driver>, shape: Shape, q_len: usize, keys: usize) -> Result<Rows, CudaError> {
    let Shape { n_heads, head_dim, .. } = shape;
    let elements = random(q_len * n_heads * head_dim, 0);
    let data: Vec<f32> = elements.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect();
    let data = Arc::new(Block::of(driver, &data)?);
    Ok(Rows { data, n_heads, q_len, head_dim, first: keys - q_len })
}

/// Bits of `n` bfloat16 numbers of sizes between a half and one, of either sign.
fn random(n: usize, seed: u64) -> Vec<u16> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut elements = Vec::with_capacity(n + 3);
    while elements.len() < n {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bits = |shift: u32| (state >> shift) as u16 & 0x807f | 0x3f00;
        elements.extend([bits(0), bits(16), bits(32), bits(48)]);
    }
    elements.truncate(n);
    elements
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
