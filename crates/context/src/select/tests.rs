//! What every selector must hold to.

use super::*;
use crate::methods::Step;
use crate::rope::Ropes;
use crate::store::{KvDtype, Store};
use crate::tests::tiny_shape;
use reattention_kernels::{Backend, Cpu, HeadPairing, TopKRule};

/// First token of the middle, as the global part of a method leaves it.
const START: usize = 5;
const K: usize = 4;

fn noise(seed: &mut u64, n: usize) -> Vec<f32> {
    (0..n)
        .map(|_| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A layer that feeds selectors.
struct Layer {
    store: Store,
    backend: Cpu,
    seed: u64,
}

impl Layer {
    fn new() -> Self {
        Self {
            store: Store::new(&tiny_shape(), KvDtype::Bf16),
            backend: Cpu::new(1).expect("one thread"),
            seed: 7,
        }
    }

    /// Appends the keys of `n` tokens drawn with `seed` and lets `selectors` learn them.
    fn feed(&mut self, selectors: &mut [Box<dyn Selector>], n: usize, kind: StepKind) {
        let shape = tiny_shape();
        let row = shape.n_kv_heads * shape.head_dim;
        let keys = noise(&mut self.seed, n * row);
        let first = self.store.len();
        for layer in 0..shape.n_layers {
            self.store.append(layer, &keys, &keys);
        }
        self.store.commit();
        let step = Step { tokens: first..first + n, kind };
        for layer in 0..shape.n_layers {
            let kv = self.store.view(layer);
            let new = Appended { layer, step: &step, kv, backend: &self.backend };
            selectors.iter_mut().for_each(|s| s.extend(&new, START..first + n).unwrap());
        }
    }

    fn truncate(&mut self, selectors: &mut [Box<dyn Selector>], n: usize) {
        self.store.truncate(n).expect("nothing was released");
        selectors.iter_mut().for_each(|s| s.truncate(n));
    }

    /// What a selector finds for the queries `[q_len, n_heads, head_dim]`.
    fn search(&self, selector: &mut dyn Selector, data: &[f32], kind: StepKind) -> TopK {
        let shape = tiny_shape();
        let (end, q_len) = (self.store.len(), data.len() / (shape.n_heads * shape.head_dim));
        let q = Queries { data, n_heads: shape.n_heads, q_len, head_dim: shape.head_dim, first: end - q_len };
        let step = Step { tokens: end - q_len..end, kind };
        let backend: &dyn Backend = &self.backend;
        let mut ropes = Ropes::new(shape.rope.clone(), shape.head_dim);
        let call = LayerCall {
            layer: 1,
            step: &step,
            q,
            kv: self.store.view(1),
            ropes: &mut ropes,
            rule: shape.logit_rule(),
            backend,
        };
        let request =
            TopKRequest { keys: START..end, k: K, pairing: HeadPairing::Grouped, rule: TopKRule::Exact };
        selector.top_k(&call, &q, &request).unwrap()
    }

    fn queries(&mut self, q_len: usize) -> Vec<f32> {
        let shape = tiny_shape();
        noise(&mut self.seed, q_len * shape.n_heads * shape.head_dim)
    }
}

/// Every selector with this reach.
fn all(exact_below: usize, probes: usize) -> Vec<Box<dyn Selector>> {
    let reach = Reach { exact_below, prefill_probes: probes, probes };
    let low_bit = |bits| LowBitSettings { reach, bits, candidates: probes };
    vec![
        Box::new(Clusters::new(ClusterSettings { reach, spread_weight: 2.0, candidates: probes })),
        Box::new(Boxes::new(reach)),
        Box::new(Halving::new(reach)),
        Box::new(LowBit::new(low_bit(8))),
        Box::new(LowBit::new(low_bit(4))),
        Box::new(LowBit::new(low_bit(2))),
    ]
}

#[test]
fn a_wide_reach_finds_what_exact_finds() {
    let (mut layer, mut selectors) = (Layer::new(), all(100, 4000));
    for (n, kind) in [(90, StepKind::Prefill), (700, StepKind::Prefill), (13, StepKind::Question)] {
        layer.feed(&mut selectors, n, kind);
        let q = layer.queries(n.min(20));
        let want = layer.search(&mut Exact, &q, kind);
        for s in &mut selectors {
            assert!(layer.search(s.as_mut(), &q, kind) == want, "{} after {n} more", s.name());
        }
    }
}

#[test]
fn a_narrow_reach_finds_less_but_not_below_exact_below() {
    let (mut layer, mut selectors) = (Layer::new(), all(2000, 4));
    layer.feed(&mut selectors, 1900, StepKind::Prefill);
    let q = layer.queries(20);
    let want = layer.search(&mut Exact, &q, StepKind::Prefill);
    for s in &mut selectors {
        assert!(layer.search(s.as_mut(), &q, StepKind::Prefill) == want, "{}", s.name());
    }
    layer.feed(&mut selectors, 6000, StepKind::Prefill);
    let q = layer.queries(20);
    let want = layer.search(&mut Exact, &q, StepKind::Prefill);
    for s in &mut selectors {
        let found = layer.search(s.as_mut(), &q, StepKind::Prefill);
        // Few bits and no candidates to spare lose some keys, and blocks of neighbours most random ones.
        assert!(found != want, "{}", s.name());
        let exact: f32 = want.scores.iter().sum();
        let got: f32 = found.scores.iter().sum();
        assert!(got > exact / 4.0 && got <= exact, "{}: {got} of {exact}", s.name());
    }
}

#[test]
fn what_was_truncated_is_forgotten_and_may_come_again() {
    for (probes, cuts) in [(4, [1500, 700]), (4, [1024, 40]), (3000, [600, 90])] {
        let (mut layer, mut selectors) = (Layer::new(), all(100, probes));
        layer.feed(&mut selectors, 2000, StepKind::Prefill);
        for n in cuts {
            layer.truncate(&mut selectors, n);
            layer.feed(&mut selectors, 300, StepKind::Prefill);
            layer.feed(&mut selectors, 200, StepKind::Question);
        }
        // The same keys, never truncated.
        let mut fresh = all(100, probes);
        let step = Step { tokens: 0..layer.store.len(), kind: StepKind::Prefill };
        for layer_number in 0..2 {
            let kv = layer.store.view(layer_number);
            let new = Appended { layer: layer_number, step: &step, kv, backend: &layer.backend };
            fresh.iter_mut().for_each(|s| s.extend(&new, START..layer.store.len()).unwrap());
        }
        let q = layer.queries(10);
        for (s, fresh) in selectors.iter_mut().zip(&mut fresh) {
            // Which groups grew depends on what was there before.
            if s.name() == "clusters" && probes < 100 {
                continue;
            }
            let (got, want) = (
                layer.search(s.as_mut(), &q, StepKind::Prefill),
                layer.search(fresh.as_mut(), &q, StepKind::Prefill),
            );
            assert!(got == want, "{} with {probes} probes, cut to {cuts:?}", s.name());
        }
    }
}

/// Rolled back to the end of a step, a selector finds what one finds that never saw more.
#[test]
fn a_roll_back_leaves_no_trace_of_what_was_forgotten() {
    use StepKind::{Decode, Prefill, Question};
    let steps =
        [(90, Prefill), (400, Prefill), (1300, Prefill), (700, Question), (1, Decode), (2200, Prefill)];
    let feed = |layer: &mut Layer, selectors: &mut [Box<dyn Selector>], steps: &[(usize, StepKind)]| {
        steps.iter().for_each(|&(n, kind)| layer.feed(selectors, n, kind));
    };
    for kept in 1..steps.len() {
        let (mut layer, mut rolled_back) = (Layer::new(), all(200, 6));
        feed(&mut layer, &mut rolled_back, &steps);
        feed(&mut layer, &mut rolled_back, &[(5000, Question), (300, Prefill)]);
        let n = steps[..kept].iter().map(|s| s.0).sum();
        layer.truncate(&mut rolled_back, n);
        let (mut fresh_layer, mut fresh) = (Layer::new(), all(200, 6));
        feed(&mut fresh_layer, &mut fresh, &steps[..kept]);
        for more in [(1, Decode), (40, Question), (1500, Prefill), (1, Decode)] {
            let seed = fresh_layer.seed;
            for (layer, selectors) in [(&mut layer, &mut rolled_back), (&mut fresh_layer, &mut fresh)] {
                layer.seed = seed;
                feed(layer, selectors, &[more]);
            }
            let q = layer.queries(more.0.min(4));
            for (a, b) in rolled_back.iter_mut().zip(&mut fresh) {
                let (got, want) =
                    (layer.search(a.as_mut(), &q, more.1), layer.search(b.as_mut(), &q, more.1));
                assert!(got == want, "{} differs {more:?} after a return to {n} tokens", a.name());
            }
        }
    }
}

#[test]
fn a_search_is_reused_while_the_query_barely_turns() {
    let mut layer = Layer::new();
    let mut selectors: Vec<Box<dyn Selector>> = vec![Box::new(Reuse::new(Box::new(Exact), 0.9))];
    layer.feed(&mut selectors, 3000, StepKind::Prefill);
    let q = layer.queries(1);
    let near: Vec<f32> = layer.queries(1).iter().zip(&q).map(|(n, q)| q + 0.3 * n).collect();
    let far = layer.queries(1);
    let mut reused = |layer: &Layer, q: &[f32], kind| layer.search(selectors[0].as_mut(), q, kind);
    let exact = |layer: &Layer, q: &[f32]| layer.search(&mut Exact, q, StepKind::Decode);

    let first = reused(&layer, &q, StepKind::Decode);
    assert_eq!(first, exact(&layer, &q));
    let again = reused(&layer, &near, StepKind::Decode);
    assert_ne!(again, exact(&layer, &near), "another search would have found other keys");
    for head in 0..tiny_shape().n_heads {
        let (mut got, mut want) = (again.row(0, head).to_vec(), first.row(0, head).to_vec());
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "the keys of the last search");
    }
    assert_eq!(reused(&layer, &near, StepKind::Question), exact(&layer, &near), "questions search");

    // Keys that have joined since are looked at.
    let mut none: Vec<Box<dyn Selector>> = Vec::new();
    layer.feed(&mut none, 2000, StepKind::Decode);
    let grown = reused(&layer, &near, StepKind::Decode);
    assert!(grown.indices.iter().any(|&i| i >= 3000), "two fifths of the keys are new");
    assert!(grown.indices.iter().filter(|&&i| i < 3000).all(|i| first.indices.contains(i)));

    assert_eq!(reused(&layer, &far, StepKind::Decode), exact(&layer, &far), "a query that turned searches");
    layer.truncate(&mut none, 4000);
    assert_eq!(
        reused(&layer, &far, StepKind::Decode),
        exact(&layer, &far),
        "keys that are gone are not reused"
    );
    selectors[0].truncate(3500);
    layer.truncate(&mut none, 3500);
    layer.feed(&mut none, 800, StepKind::Decode);
    let found = layer.search(selectors[0].as_mut(), &far, StepKind::Decode);
    assert_eq!(found, exact(&layer, &far), "a truncated search is forgotten");
}

/// From a pinned point a search is reused as if nothing had been read beyond it.
#[test]
fn a_pinned_search_is_reused_after_a_roll_back() {
    let new = || -> Vec<Box<dyn Selector>> { vec![Box::new(Reuse::new(Box::new(Exact), 0.9))] };
    let (mut layer, mut selectors, mut fresh) = (Layer::new(), new(), new());
    layer.feed(&mut selectors, 3000, StepKind::Prefill);
    let q = layer.queries(1);
    let near: Vec<f32> = layer.queries(1).iter().zip(&q).map(|(n, q)| q + 0.3 * n).collect();
    for s in [&mut selectors, &mut fresh] {
        layer.search(s[0].as_mut(), &q, StepKind::Decode);
    }
    selectors[0].pin(3000);
    layer.feed(&mut selectors, 500, StepKind::Prefill);
    let other = layer.queries(1);
    layer.search(selectors[0].as_mut(), &other, StepKind::Decode);
    for _ in 0..2 {
        layer.truncate(&mut selectors, 3000);
        layer.feed(&mut [], 1, StepKind::Decode);
        let [got, want] =
            [&mut selectors, &mut fresh].map(|s| layer.search(s[0].as_mut(), &near, StepKind::Decode));
        assert!(got == want && got != layer.search(&mut Exact, &near, StepKind::Decode));
        layer.feed(&mut selectors, 200, StepKind::Prefill);
        layer.search(selectors[0].as_mut(), &other, StepKind::Decode);
    }
}

#[test]
fn clusters_do_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let mut layer = Layer::new();
        layer.backend = Cpu::new(threads).expect("threads");
        let mut selectors = all(100, 6);
        selectors.truncate(1);
        layer.feed(&mut selectors, 5000, StepKind::Prefill);
        layer.feed(&mut selectors, 2000, StepKind::Prefill);
        [StepKind::Prefill, StepKind::Decode].map(|kind| {
            let q = layer.queries(20);
            layer.search(selectors[0].as_mut(), &q, kind)
        })
    };
    let one = run(1);
    assert_eq!(one[0].k, K);
    for threads in [2, 5] {
        assert!(run(threads) == one, "{threads} threads");
    }
}
