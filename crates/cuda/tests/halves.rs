//! Cached keys and values in half precision, which no store of the host has: the same kernels, beside the reference on the same
//! numbers in f32.

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
mod views;

use common::{AnyStore, Rng};
use reattention_cuda::driver::{Block, Driver, Dtype};
use reattention_cuda::testing::attend::attend;
use reattention_cuda::testing::paged::{Cached, CachedShape, PageEntry, copy_queries};
use reattention_cuda::testing::rope::Ropes;
use reattention_cuda::testing::segments::Views;
use reattention_cuda::testing::top_k::top_k;
use reattention_kernels::{
    Band, HeadPairing, KeySet, KvView, PAGE, Position, Queries, Reference, TopKRequest, TopKRule, f16,
};
use std::sync::Arc;

/// Pages on a device, with the table that leads to them.
struct Halves {
    driver: Arc<dyn Driver>,
    #[allow(dead_code, reason = "the table points into them")]
    pages: Vec<Block>,
    table: Block,
    shape: CachedShape,
}

impl Halves {
    /// The numbers of `kv`, which halves hold exactly.
    fn of(driver: &Arc<dyn Driver>, kv: &KvView) -> Self {
        let (mut pages, mut entries) = (Vec::new(), Vec::new());
        let mut row = vec![0.0; kv.head_dim];
        for page in 0..kv.len.div_ceil(PAGE) {
            let mut sides = [0, 1].map(|_| vec![f16::NAN; kv.n_kv_heads * PAGE * kv.head_dim]);
            for token in page * PAGE..kv.len.min((page + 1) * PAGE) {
                for head in 0..kv.n_kv_heads {
                    for (i, side) in sides.iter_mut().enumerate() {
                        if i == 0 {
                            kv.copy_key(head, token, &mut row);
                        } else {
                            kv.copy_value(head, token, &mut row);
                        }
                        let at = (head * PAGE + token % PAGE) * kv.head_dim;
                        side[at..at + kv.head_dim]
                            .iter_mut()
                            .zip(&row)
                            .for_each(|(o, x)| *o = f16::from_f32(*x));
                    }
                }
            }
            let [keys, values] = sides.map(|side| Block::of(driver, &side).unwrap());
            entries.push(PageEntry { keys: keys.at(), values: values.at() });
            pages.extend([keys, values]);
        }
        let table = Block::of(driver, &entries).unwrap();
        let KvView { len, n_kv_heads, head_dim, .. } = *kv;
        let shape = CachedShape { len, n_kv_heads, head_dim, dtype: Dtype::F16 };
        Self { driver: Arc::clone(driver), pages, table, shape }
    }

    fn cached(&self) -> Cached<'_> {
        // SAFETY: the table was made for pages of this shape, and both are held.
        unsafe { Cached::new(&self.driver, self.table.at(), self.shape) }
    }
}

/// A number that a half holds exactly.
fn half(rng: &mut Rng) -> f32 {
    f16::from_f32(rng.normal()).to_f32()
}

#[test]
fn halves_are_searched_and_attended_to_like_other_types() {
    let mut rng = Rng(11);
    for (head_dim, n_kv_heads, group, q_len, len) in
        [(64, 2, 3, 5, 1100), (128, 1, 4, 40, 300), (16, 2, 1, 1, 2100)]
    {
        let Some(driver) = views::device(len as u64) else { return };
        let n_heads = n_kv_heads * group;
        let store = AnyStore::new(false, len, n_kv_heads, head_dim, || half(&mut rng));
        let data: Vec<f32> = (0..q_len * n_heads * head_dim).map(|_| half(&mut rng)).collect();
        let q = Queries { data: &data, n_heads, q_len, head_dim, first: len - q_len };
        let halves = Halves::of(&driver, &store.view());
        let rows = copy_queries(&driver, &q).unwrap();

        let request =
            TopKRequest { keys: 3..len - 2, k: 4, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
        let got = top_k(&driver, &rows, &halves.cached(), &request).unwrap().read().unwrap();
        let want = Reference.top_k(&q, &store.view(), &request);
        for (a, b) in got.scores.iter().zip(&want.scores) {
            assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "heads of {head_dim}: {a} and {b}");
        }
        let same = got.indices.iter().zip(&want.indices).filter(|(a, b)| a == b).count();
        assert!(
            same * 100 >= 99 * want.indices.len(),
            "heads of {head_dim}: {same} of {}",
            want.indices.len()
        );

        let own = Position::Index { offset: 0 };
        let rope = views::rope(head_dim, 10_000.0, 1.0);
        let segments = [vec![views::part(KeySet::Range(0..len), Band::CAUSAL, own, own, &rope)]];
        let there = Views::of(&driver, &Ropes::new(&driver), &segments).unwrap();
        let out = Block::new(&driver, size_of_val(&data[..])).unwrap();
        let scale = 1.0 / (head_dim as f32).sqrt();
        attend(&driver, &rows, &halves.cached(), &there, scale, out.span(), None).unwrap();
        let got: Vec<f32> = out.read(0, data.len()).unwrap();
        let mut want = vec![0.0; data.len()];
        Reference.attend(&q, &store.view(), &segments, scale, &mut want, None);
        // Rotated keys and queries and weights are rounded to 11 bits.
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-3, "heads of {head_dim}: {worst}");
    }
}
