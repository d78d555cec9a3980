//! Every kernel over the whole range of shapes: head_dim 16 to 256, groups of 1 to 16 query heads, chunks of 1 to 2,048
//! queries, stores of odd lengths and searches that start anywhere. What is peculiar to a kernel is tested in its own file.

mod common;
use common::{AnyStore, Rng, assert_close, backends};
use reattention_kernels::{
    Backend, Band, Buffer, HeadPairing, KeySet, ListedRequest, LowBitKeys, Matrix, MatrixData, Position,
    Queries, Reference, RopeTable, Segment, TopKRequest, TopKRule, bf16,
};
use std::sync::Arc;

/// Multiply-adds of one case, which the plain backend does one by one.
const WORK: usize = 6 << 20;

struct Shape {
    half: bool,
    head_dim: usize,
    n_kv_heads: usize,
    group: usize,
    q_len: usize,
    len: usize,
}

impl Shape {
    /// Case `round`: every group, and chunks of every size, with as many keys as the work leaves room for.
    fn new(round: usize, rng: &mut Rng) -> Self {
        let (group, n_kv_heads) = (round % 16 + 1, rng.int(1, 2));
        let head_dim = 2 * rng.int(8, 128);
        // A random size between two powers of two, all of which come round.
        let power = 1 << (round % 11);
        let q_len = rng.int(power, 2 * power).min(2048);
        let most = WORK / (head_dim * n_kv_heads * group * q_len);
        let len = rng.int(1, most.clamp(40, 3000)) | 1;
        Self { half: rng.int(0, 1) == 0, head_dim, n_kv_heads, group, q_len, len }
    }

    fn n_heads(&self) -> usize {
        self.n_kv_heads * self.group
    }

    fn store(&self, len: usize, draw: impl FnMut() -> f32) -> AnyStore {
        AnyStore::new(self.half, len, self.n_kv_heads, self.head_dim, draw)
    }

    fn queries<'a>(&self, data: &'a [f32], first: usize) -> Queries<'a> {
        Queries { data, n_heads: self.n_heads(), q_len: self.q_len, head_dim: self.head_dim, first }
    }

    fn data(&self, mut draw: impl FnMut() -> f32) -> Vec<f32> {
        (0..self.q_len * self.n_heads() * self.head_dim).map(|_| draw()).collect()
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { half, head_dim, n_kv_heads, group, q_len, len } = self;
        write!(f, "half {half}, dim {head_dim}, {n_kv_heads} x {group} heads, {q_len} queries, {len} keys")
    }
}

#[test]
fn the_search_over_all_keys() {
    let mut rng = Rng(50);
    for round in 0..44 {
        let shape = Shape::new(round, &mut rng);
        let store = shape.store(shape.len, || rng.small());
        let data = shape.data(|| rng.small());
        let q = shape.queries(&data, shape.len);
        let start = rng.int(0, shape.len - 1);
        let request = TopKRequest {
            keys: start..rng.int(start + 1, shape.len),
            k: rng.int(1, 9),
            pairing: HeadPairing::Grouped,
            rule: TopKRule::Exact,
        };
        let want = Reference.top_k(&q, &store.view(), &request);
        for backend in backends().iter().flatten() {
            assert!(
                backend.top_k(&q, &store.view(), &request) == want,
                "{}: {shape}, {request:?}",
                backend.name()
            );
        }
    }
}

#[test]
fn the_search_among_listed_keys() {
    let mut rng = Rng(51);
    for round in 0..33 {
        let shape = Shape::new(round, &mut rng);
        let store = shape.store(shape.len, || rng.small());
        let data = shape.data(|| rng.small());
        let q = shape.queries(&data, shape.len);
        let lists = rng.int(1, 12);
        let mut dealt = vec![Vec::new(); lists];
        (0..shape.len as u32).for_each(|token| dealt[rng.int(0, lists - 1)].push(token));
        let per_row = rng.int(1, lists);
        let rows = shape.q_len * shape.n_heads();
        let looks: Vec<u32> = (0..rows)
            .flat_map(|_| {
                let first = rng.int(0, lists - 1);
                (0..per_row).map(move |i| ((first + i) % lists) as u32)
            })
            .collect();
        let keys = |list: u32| &dealt[list as usize][..];
        let request = ListedRequest { k: rng.int(1, 20), lists: &looks, per_row, keys: &keys };
        let want = Reference.top_k_listed(&q, &store.view(), &request);
        for backend in backends().iter().flatten() {
            let got = backend.top_k_listed(&q, &store.view(), &request);
            assert!(got == want, "{}: {shape}, k {}, {per_row} of {lists} lists", backend.name(), request.k);
        }
    }
}

#[test]
fn the_search_among_keys_in_few_bits() {
    let mut rng = Rng(52);
    for round in 0..33 {
        let shape = Shape::new(round, &mut rng);
        let tiles = shape.len.div_ceil(LowBitKeys::TILE);
        let store = shape.store(tiles * LowBitKeys::TILE, || rng.normal());
        let data = shape.data(|| rng.normal());
        let q = shape.queries(&data, shape.len);
        let bits = [8, 4, 2][round % 3];
        let mut keys = LowBitKeys::new(bits, shape.n_kv_heads, shape.head_dim);
        keys.add(&store.view(), 0..tiles * LowBitKeys::TILE);
        let k = rng.int(1, 20);
        let want = Reference.top_k_low_bit(&q, &keys, k);
        for backend in backends().iter().flatten() {
            let got = backend.top_k_low_bit(&q, &keys, k);
            assert!(got == want, "{}: {shape}, {bits} bits, k {k}", backend.name());
        }
    }
}

#[test]
fn attention() {
    let mut rng = Rng(53);
    for round in 0..33 {
        let shape = Shape::new(round, &mut rng);
        // The chunk is the end of the store; before it, spans with gaps from anywhere on.
        let len = shape.len + shape.q_len;
        let store = shape.store(len, || rng.normal());
        let data = shape.data(|| rng.normal());
        let q = shape.queries(&data, shape.len);
        let inv_freq =
            (0..shape.head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / shape.head_dim as f32)).collect();
        let rope = Arc::new(RopeTable::new(inv_freq, 1.0, len));
        let segment = |keys, band| Segment {
            keys,
            band,
            key_position: Position::Index { offset: 0 },
            query_position: Position::Index { offset: 0 },
            key_rope: rope.clone(),
            query_rope: rope.clone(),
        };
        let (start, gap) = (rng.int(0, shape.len - 1), rng.int(2, 60));
        let spans: Vec<u32> = (start..shape.len).filter(|t| t % gap != 1).map(|t| t as u32).collect();
        let most = WORK / (shape.head_dim * shape.n_heads() * shape.q_len);
        let own = len - shape.q_len.min(most.max(20))..len;
        let views = [vec![
            segment(KeySet::Gathered(spans.into()), Band::CAUSAL),
            segment(KeySet::Range(own), Band::between(0, rng.int(1, 3000))),
        ]];
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let (mut want, mut want_lse) = (vec![0.0; data.len()], vec![0.0; shape.q_len * shape.n_heads()]);
        Reference.attend(&q, &store.view(), &views, scale, &mut want, Some(&mut want_lse));
        for backends in backends() {
            let what = format!("{}: {shape}", backends[0].name());
            let tolerance = if shape.half && backends[0].name().contains("bf16") { 4e-2 } else { 2e-5 };
            let mut first = None;
            for backend in &backends {
                let (mut got, mut lse) = (vec![f32::NAN; data.len()], vec![f32::NAN; want_lse.len()]);
                backend.attend(&q, &store.view(), &views, scale, &mut got, Some(&mut lse));
                assert_close(&got, &want, tolerance, &what);
                assert_close(&lse, &want_lse, tolerance, &what);
                assert!(
                    first.get_or_insert_with(|| got.clone()) == &got,
                    "{what}: depends on the number of threads"
                );
            }
        }
    }
}

#[test]
fn dense_layers() {
    let mut rng = Rng(54);
    for round in 0..44 {
        let power = 1 << (round % 11);
        let rows = rng.int(power, 2 * power).min(2048);
        let inputs = rng.int(1, (WORK / rows / 60).clamp(20, 1500));
        let outputs = rng.int(1, (WORK / rows / inputs).clamp(1, 700));
        // Small numbers are exact in bf16, and so are the sums of their products.
        let weights: Vec<f32> = (0..outputs * inputs).map(|_| rng.small()).collect();
        let halves: Vec<bf16> = weights.iter().map(|&w| bf16::from_f32(w)).collect();
        let data = match round % 2 {
            0 => MatrixData::F32(Buffer::from_slice(&weights)),
            _ => MatrixData::Bf16(Buffer::from_slice(&halves)),
        };
        let w = Matrix::new(outputs, inputs, data).unwrap();
        let x: Vec<f32> = (0..rows * inputs).map(|_| rng.small()).collect();
        let mut want = vec![0.0; rows * outputs];
        Reference.linear(&x, rows, &w, None, &mut want);
        for backend in backends().iter().flatten() {
            let mut got = vec![f32::NAN; rows * outputs];
            backend.linear(&x, rows, &w, None, &mut got);
            assert!(got == want, "{}: {rows} x {inputs} -> {outputs}", backend.name());
        }
    }
}
