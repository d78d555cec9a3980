//! How close each kernel comes to the limit of the machine, measured side by side in one process.

use crate::limits::Meter;
use crate::{
    Backend, Band, BlockType, Buffer, Cpu, HeadPairing, KeySet, KvView, Matrix, MatrixData, PAGE, Pages,
    Position, Queries, RopeTable, Segment, TopKRequest, TopKRule, bf16,
};
use std::sync::Arc;
use std::time::Instant;

/// One kernel on one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Kernel, type, phase and shape, joined by dots: `linear.bf16.prefill.512x2048x2048`.
    pub name: String,
    /// What was reached (median over the rounds).
    pub value: f64,
    /// Unit of `value` and `limit`: `GFLOP/s` or `GB/s`.
    pub unit: &'static str,
    /// What the machine can do at most, or, for weights in blocks, what the faster of two other ways does: the peer's
    /// product, and ours with the same weights in bf16 (median over the rounds).
    pub limit: f64,
    /// `value / limit`, the median of the ratios of single rounds.
    pub of_limit: f64,
    /// The ratio aimed for.
    pub goal: f64,
}

/// Another implementation of the product with weights in blocks, made from their type, `[rows, inputs, outputs]` and
/// bytes: calling it with `x: [rows, inputs]` fills `y: [rows, outputs]`. `None` where it does not know the type.
pub type Peer<'a> = &'a dyn Fn(BlockType, [usize; 3], &[u8]) -> Option<Product>;

/// See [`Peer`].
pub type Product = Box<dyn FnMut(&[f32], &mut [f32]) + Send>;

/// What bounds a kernel, with the work of one call.
#[derive(Clone, Copy)]
enum Bound {
    /// Floating-point operations against the bf16 limit.
    Bf16(f64),
    /// Floating-point operations against the f32 limit.
    F32(f64),
    /// Bytes against the limit of reading memory.
    Read(f64),
}

/// Measures every kernel `rounds` times with the path and threads of `cpu`, each run beside its limit.
///
/// `only` keeps the kernels whose name contains it (all when empty). A `peer` should run on as many threads as `cpu`. Takes
/// some `2 · rounds` seconds on two threads, and up to 1 GiB of memory. Each record goes to `done` as soon as it is known.
pub fn run(
    cpu: &Cpu,
    rounds: usize,
    only: &str,
    peer: Option<Peer<'_>>,
    mut done: impl FnMut(&Record),
) -> Vec<Record> {
    let mut bench = Bench {
        cpu,
        meter: Meter::new(cpu),
        rounds: rounds.max(1),
        only,
        done: &mut done,
        records: Vec::new(),
    };
    bench.linear("linear.bf16.prefill", 512, 2048, 2048, true, 0.85);
    bench.linear("linear.f32.prefill", 512, 2048, 2048, false, 0.85);
    bench.linear("linear.bf16.decode", 1, 4096, 16384, true, 0.85);
    bench.linear("linear.f32.decode", 1, 4096, 16384, false, 0.85);
    for kind in BlockType::ALL {
        bench.blocks(kind, 512, 2048, 2048, peer);
        bench.blocks(kind, 1, 4096, 16384, peer);
    }
    bench.top_k(
        "top_k.bf16.prefill",
        Shape { q_len: 512, n_heads: 14, n_kv_heads: 2, head_dim: 64, keys: 32_768 },
        0.7,
    );
    bench.top_k(
        "top_k.bf16.prefill",
        Shape { q_len: 512, n_heads: 14, n_kv_heads: 2, head_dim: 64, keys: 131_072 },
        0.7,
    );
    bench.top_k(
        "top_k.bf16.prefill",
        Shape { q_len: 512, n_heads: 32, n_kv_heads: 8, head_dim: 128, keys: 131_072 },
        0.7,
    );
    bench.top_k(
        "top_k.bf16.decode",
        Shape { q_len: 1, n_heads: 14, n_kv_heads: 2, head_dim: 64, keys: 1_048_576 },
        0.75,
    );
    bench.top_k(
        "top_k.bf16.decode",
        Shape { q_len: 1, n_heads: 32, n_kv_heads: 8, head_dim: 128, keys: 131_072 },
        0.75,
    );
    bench.attend(
        "attend.bf16.prefill",
        Shape { q_len: 512, n_heads: 14, n_kv_heads: 2, head_dim: 64, keys: 8192 },
        0.5,
    );
    bench.attend(
        "attend.bf16.prefill",
        Shape { q_len: 512, n_heads: 32, n_kv_heads: 8, head_dim: 128, keys: 8192 },
        0.5,
    );
    bench.attend(
        "attend.bf16.decode",
        Shape { q_len: 1, n_heads: 14, n_kv_heads: 2, head_dim: 64, keys: 8192 },
        0.6,
    );
    bench.attend(
        "attend.bf16.decode",
        Shape { q_len: 1, n_heads: 32, n_kv_heads: 8, head_dim: 128, keys: 8192 },
        0.6,
    );
    // No more than the logits of attention, so the share of the limit should be the same.
    bench.attend(
        "key_mass.bf16.prefill",
        Shape { q_len: 512, n_heads: 14, n_kv_heads: 2, head_dim: 64, keys: 4096 },
        0.5,
    );
    bench.attend(
        "key_mass.bf16.prefill",
        Shape { q_len: 512, n_heads: 32, n_kv_heads: 8, head_dim: 128, keys: 4096 },
        0.5,
    );
    bench.records
}

/// Heads, queries and keys of a search or of attention.
#[derive(Clone, Copy)]
struct Shape {
    q_len: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    keys: usize,
}

struct Bench<'a> {
    cpu: &'a Cpu,
    meter: Meter<'a>,
    rounds: usize,
    only: &'a str,
    done: &'a mut dyn FnMut(&Record),
    records: Vec<Record>,
}

impl Bench<'_> {
    fn linear(&mut self, name: &str, rows: usize, inputs: usize, outputs: usize, half: bool, goal: f64) {
        let name = format!("{name}.{rows}x{inputs}x{outputs}");
        if !name.contains(self.only) {
            return;
        }
        let data = if half {
            MatrixData::Bf16(noise(outputs * inputs, 1, bf16::from_f32))
        } else {
            MatrixData::F32(noise(outputs * inputs, 1, |x| x))
        };
        let Ok(w) = Matrix::new(outputs, inputs, data) else { return };
        let x = noise(rows * inputs, 2, |x| x);
        let mut y = vec![0.0; rows * outputs];
        let bound = match (rows, half) {
            (1, _) => Bound::Read(w.bytes() as f64),
            (_, true) => Bound::Bf16(2.0 * (rows * inputs * outputs) as f64),
            (_, false) => Bound::F32(2.0 * (rows * inputs * outputs) as f64),
        };
        let cpu = self.cpu;
        self.measure(name, bound, goal, |_| cpu.linear(&x, rows, &w, None, &mut y));
    }

    fn blocks(
        &mut self,
        kind: BlockType,
        rows: usize,
        inputs: usize,
        outputs: usize,
        peer: Option<Peer<'_>>,
    ) {
        let phase = if rows == 1 { "decode" } else { "prefill" };
        let name = format!("linear.{}.{phase}.{rows}x{inputs}x{outputs}", kind.name());
        let bytes = kind.row_bytes(inputs).unwrap_or_default() * outputs;
        if !name.contains(self.only) || bytes == 0 {
            return;
        }
        // Without the largest exponents in its half-precision numbers.
        let blocks = noise(bytes, 8, |x| ((x + 1.0) * 128.0) as u8 & 0x3b);
        let mut product = peer.and_then(|peer| peer(kind, [rows, inputs, outputs], &blocks));
        let dense = MatrixData::Bf16(noise(outputs * inputs, 1, bf16::from_f32));
        let (Ok(w), Ok(dense)) = (
            Matrix::new(outputs, inputs, MatrixData::Blocks(kind, blocks)),
            Matrix::new(outputs, inputs, dense),
        ) else {
            return;
        };
        let x = noise(rows * inputs, 2, |x| x);
        let (mut y, mut y_peer) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
        let (unit, work) = match rows {
            1 => ("GB/s", bytes as f64),
            _ => ("GFLOP/s", 2.0 * (rows * inputs * outputs) as f64),
        };
        let cpu = self.cpu;
        self.beside(
            name,
            work,
            unit,
            0.8,
            |_| {
                let theirs = product.as_mut().map_or(0.0, |p| rate(cpu, work, || p(&x, &mut y_peer)));
                theirs.max(rate(cpu, work, || cpu.linear(&x, rows, &dense, None, &mut y_peer)))
            },
            |_| cpu.linear(&x, rows, &w, None, &mut y),
        );
    }

    fn top_k(&mut self, name: &str, shape: Shape, goal: f64) {
        let Shape { q_len, n_heads, n_kv_heads, head_dim, keys } = shape;
        let name = format!("{name}.{q_len}x{n_heads}x{head_dim}.{n_kv_heads}x{keys}");
        if !name.contains(self.only) {
            return;
        }
        let store = pages(keys, n_kv_heads, head_dim, 3);
        // A search reads no values; the keys stand in for them.
        let kv =
            KvView { pages: Pages::Bf16 { keys: &store, values: &store }, len: keys, n_kv_heads, head_dim };
        let data = noise(q_len * n_heads * head_dim, 4, |x| x);
        let q = Queries { data: &data, n_heads, q_len, head_dim, first: keys };
        let request =
            TopKRequest { keys: 0..keys, k: 4, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
        let bound = if q_len == 1 {
            Bound::Read((2 * keys * n_kv_heads * head_dim) as f64)
        } else {
            Bound::Bf16(2.0 * (q_len * n_heads * head_dim) as f64 * keys as f64)
        };
        let cpu = self.cpu;
        self.measure(name, bound, goal, |_| drop(cpu.top_k(&q, &kv, &request)));
    }

    /// Attention, or what the keys got of it, over spans of 32 keys spread over a store, all visible. Every call takes other
    /// spans, so none finds them in cache.
    fn attend(&mut self, name: &str, shape: Shape, goal: f64) {
        let Shape { q_len, n_heads, n_kv_heads, head_dim, keys } = shape;
        let name = format!("{name}.{q_len}x{n_heads}x{head_dim}.{n_kv_heads}x{keys}");
        if !name.contains(self.only) {
            return;
        }
        let sets = (64 << 20) / (2 * keys * n_kv_heads * head_dim) + 1;
        let len = keys * sets;
        let (store, values) = (pages(len, n_kv_heads, head_dim, 5), pages(len, n_kv_heads, head_dim, 6));
        let kv = KvView { pages: Pages::Bf16 { keys: &store, values: &values }, len, n_kv_heads, head_dim };
        let data = noise(q_len * n_heads * head_dim, 7, |x| x);
        let q = Queries { data: &data, n_heads, q_len, head_dim, first: len };
        let inv_freq = (0..head_dim / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let rope = Arc::new(RopeTable::new(inv_freq, 1.0, keys + q_len));
        let views: Vec<[Vec<Segment>; 1]> = (0..sets)
            .map(|set| {
                let spans =
                    (0..keys / 32).flat_map(|s| (0..32).map(move |i| ((s * sets + set) * 32 + i) as u32));
                [vec![Segment {
                    keys: KeySet::Gathered(spans.collect()),
                    band: Band::CAUSAL,
                    key_position: Position::Rank { offset: 0 },
                    query_position: Position::Rank { offset: keys as i64 },
                    key_rope: rope.clone(),
                    query_rope: rope.clone(),
                }]]
            })
            .collect();
        let products = (q_len * n_heads * head_dim) as f64 * keys as f64;
        let (mut out, lse) = (vec![0.0; data.len()], vec![0.0; q_len * n_heads]);
        let (scale, cpu) = (1.0 / (head_dim as f32).sqrt(), self.cpu);
        if name.starts_with("key_mass") {
            let call = |i: usize| drop(cpu.key_mass(&q, &kv, &views[i % sets], scale, &lse));
            return self.measure(name, Bound::Bf16(2.0 * products), goal, call);
        }
        let bound = if q_len == 1 {
            Bound::Read((4 * keys * n_kv_heads * head_dim) as f64)
        } else {
            Bound::Bf16(4.0 * products)
        };
        self.measure(name, bound, goal, |i| cpu.attend(&q, &kv, &views[i % sets], scale, &mut out, None));
    }

    /// Runs `call` beside its limit. It is told how often it has been called before.
    fn measure(&mut self, name: String, bound: Bound, goal: f64, call: impl FnMut(usize) + Send) {
        match bound {
            Bound::Bf16(work) => self.beside(name, work, "GFLOP/s", goal, |m| m.bf16_gflops(), call),
            Bound::F32(work) => self.beside(name, work, "GFLOP/s", goal, |m| m.f32_gflops(), call),
            Bound::Read(work) => self.beside(name, work, "GB/s", goal, |m| m.read_gbytes(), call),
        }
    }

    /// Runs `limit` and `call` in turn; `call` does `work` billionths of the unit a second.
    fn beside(
        &mut self,
        name: String,
        work: f64,
        unit: &'static str,
        goal: f64,
        mut limit: impl FnMut(&Meter<'_>) -> f64,
        mut call: impl FnMut(usize) + Send,
    ) {
        let (mut values, mut limits, mut ratios, mut calls) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for round in 0..=self.rounds {
            let limit = limit(&self.meter);
            let value = rate(self.cpu, work, || {
                call(calls);
                calls += 1;
            });
            // The first round warms up.
            if round > 0 {
                values.push(value);
                limits.push(limit);
                ratios.push(value / limit);
            }
        }
        let (value, limit, of_limit) = (median(values), median(limits), median(ratios));
        let record = Record { name, value, unit, limit, of_limit, goal };
        (self.done)(&record);
        self.records.push(record);
    }
}

/// Billions of `work` a second that repeated calls do.
fn rate(cpu: &Cpu, work: f64, mut call: impl FnMut() + Send) -> f64 {
    /// Seconds to call for at least.
    const ROUND: f64 = 0.03;
    let (start, mut calls) = (Instant::now(), 0);
    cpu.install(&mut || {
        while calls == 0 || start.elapsed().as_secs_f64() < ROUND {
            call();
            calls += 1;
        }
    });
    work * calls as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Even noise in -1..1, the same for the same seed.
fn noise<T: bytemuck::Pod>(len: usize, seed: u64, convert: impl Fn(f32) -> T) -> Buffer<T> {
    let mut buffer = Buffer::zeroed(len);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for x in buffer.iter_mut() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *x = convert((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
    }
    buffer
}

fn pages(len: usize, n_kv_heads: usize, head_dim: usize, seed: u64) -> Vec<Option<Buffer<bf16>>> {
    let page = |i: usize| Some(noise(n_kv_heads * PAGE * head_dim, seed + 100 * i as u64, bf16::from_f32));
    (0..len.div_ceil(PAGE)).map(page).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Path;

    #[test]
    fn a_record_compares_a_kernel_with_its_limit() {
        let cpu = Cpu::with_path(1, Path::best()).unwrap();
        let mut seen = 0;
        let records = run(&cpu, 1, "linear.bf16.decode", None, |_| seen += 1);
        assert_eq!((records.len(), seen), (1, 1));
        let record = &records[0];
        assert_eq!((record.name.as_str(), record.unit), ("linear.bf16.decode.1x4096x16384", "GB/s"));
        assert!(record.value > 0.0 && record.of_limit > 0.0 && record.of_limit < 5.0, "{record:?}");
    }
}
