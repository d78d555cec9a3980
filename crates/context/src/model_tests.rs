//! Whatever is done to a store or a context in whatever order, it stands as a plain model of it does.
//!
//! The model of a store is a list of numbers for each layer and KV head. The model of a context is the list of steps that are
//! left of it: a fresh context that is fed those, and nothing else, must give the same to the last bit.

use crate::methods::{Step, StepKind, build};
use crate::rope::{RopeConfig, RopeScaling};
use crate::tests::tiny_shape;
use crate::{Context, KvDtype, ModelShape, Settings, Store, TruncateError};
use proptest::prelude::*;
use reattention_kernels::{Cpu, PAGE};
use std::ops::Range;
use std::sync::Arc;

/// What is done to a store. Places are shares of its length, in thousandths.
#[derive(Clone, Debug)]
enum Change {
    Append(usize),
    /// A step that fails after it has appended to the first layer.
    Fail(usize),
    Truncate(usize),
    Release(usize, usize, usize),
    Freeze(usize, usize),
    Cool(usize, usize),
    /// Keeps about so many thousandths, by a pattern of its own for each layer and head.
    Compact(usize),
    /// Goes on with a copy.
    Copy(usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let share = || 0usize..=1000;
    let change = prop_oneof![
        5 => (1usize..1700).prop_map(Change::Append),
        1 => (1usize..1700).prop_map(Change::Fail),
        2 => share().prop_map(Change::Truncate),
        2 => (share(), share(), share()).prop_map(|(a, b, c)| Change::Release(a, b, c)),
        2 => (share(), share()).prop_map(|(a, b)| Change::Freeze(a, b)),
        1 => (share(), share()).prop_map(|(a, b)| Change::Cool(a, b)),
        1 => share().prop_map(Change::Compact),
        1 => share().prop_map(Change::Copy),
    ];
    proptest::collection::vec(change, 1..24)
}

/// The plain model of a store.
#[derive(Clone, Debug)]
struct Plain {
    /// The token in each slot, by layer and KV head.
    tokens: Vec<Vec<Vec<usize>>>,
    /// Whether each page is there.
    pages: Vec<bool>,
    floor: usize,
    /// Tokens appended so far.
    next: usize,
}

impl Plain {
    fn len(&self) -> usize {
        self.tokens[0][0].len()
    }

    fn held(&self) -> usize {
        (0..self.len()).filter(|slot| self.pages[slot / PAGE]).count()
    }

    fn cut(&mut self, n: usize) {
        self.tokens.iter_mut().flatten().for_each(|slots| slots.truncate(n));
        self.pages.truncate(n.div_ceil(PAGE));
    }
}

/// The key of a token; its value is the negative. Exact in bf16.
fn element(layer: usize, head: usize, token: usize, i: usize) -> f32 {
    ((token * 7 + layer * 3 + head * 5 + i) % 251) as f32
}

fn rows(layer: usize, tokens: Range<usize>) -> [Vec<f32>; 2] {
    let shape = tiny_shape();
    let of = |token| {
        (0..shape.n_kv_heads)
            .flat_map(move |head| (0..shape.head_dim).map(move |i| element(layer, head, token, i)))
    };
    let keys: Vec<f32> = tokens.flat_map(of).collect();
    let values = keys.iter().map(|x| -x).collect();
    [keys, values]
}

fn change(store: &mut Store, plain: &mut Plain, change: &Change) {
    let layers = tiny_shape().n_layers;
    let at = |share: usize, plain: &Plain| plain.len() * share / 1000;
    let between = |a: usize, b: usize, plain: &Plain| at(a.min(b), plain)..at(a.max(b), plain);
    match *change {
        Change::Append(n) => {
            let tokens = plain.next..plain.next + n;
            for layer in 0..layers {
                let [keys, values] = rows(layer, tokens.clone());
                store.append(layer, &keys, &values);
            }
            store.commit();
            plain.next += n;
            plain.tokens.iter_mut().flatten().for_each(|slots| slots.extend(tokens.clone()));
            plain.pages.resize(plain.len().div_ceil(PAGE), true);
        }
        Change::Fail(n) => {
            let [keys, values] = rows(0, 0..n);
            store.append(0, &keys, &values);
            store.abort();
        }
        Change::Truncate(share) => {
            let n = at(share, plain);
            let result = store.truncate(n);
            if n < plain.floor {
                assert_eq!(result, Err(TruncateError::Released { to: n, floor: plain.floor }));
            } else {
                assert_eq!(result, Ok(()));
                plain.cut(n);
            }
        }
        Change::Release(a, b, c) => {
            let tokens = between(a, b, plain);
            let floor = tokens.end + (plain.len() - tokens.end) * c / 1000;
            store.release(tokens.clone(), floor);
            let pages = tokens.start.div_ceil(PAGE)..tokens.end / PAGE;
            let mut any = false;
            for page in pages {
                any |= std::mem::replace(&mut plain.pages[page], false);
            }
            if any {
                plain.floor = plain.floor.max(floor);
            }
        }
        Change::Freeze(a, b) => store.freeze(between(a, b, plain)).unwrap(),
        Change::Cool(a, b) => (0..layers).for_each(|layer| store.cool(layer, between(a, b, plain))),
        Change::Compact(share) => {
            let slots: Vec<usize> = (0..plain.len()).filter(|slot| plain.pages[slot / PAGE]).collect();
            let n = slots.len() * share / 1000;
            if n == 0 {
                return;
            }
            let list = |salt: usize| -> Vec<usize> {
                let mut list = slots.clone();
                list.sort_by_key(|slot| (slot + 1) * (salt + 1) * 7919 % 104_729);
                list.truncate(n);
                list.sort_unstable();
                list
            };
            let heads = tiny_shape().n_kv_heads;
            let kept: Vec<Vec<Vec<usize>>> = (0..layers)
                .map(|layer| (0..heads).map(|head| list(layer * heads + head)).collect())
                .collect();
            let as_slots = |lists: &Vec<Vec<usize>>| -> Vec<Vec<u32>> {
                lists.iter().map(|list| list.iter().map(|&s| s as u32).collect()).collect()
            };
            store.compact(&kept.iter().map(as_slots).collect::<Vec<_>>());
            for (slots, list) in plain.tokens.iter_mut().flatten().zip(kept.iter().flatten()) {
                *slots = list.iter().map(|&slot| slots[slot]).collect();
            }
            // Pages at the front that were given back are taken anew.
            plain.pages.truncate(n.div_ceil(PAGE));
            plain.pages.fill(true);
            plain.floor = n;
        }
        Change::Copy(share) => {
            let n = at(share, plain).max(plain.floor);
            *store = store.copy(n);
            plain.cut(n);
        }
    }
}

fn check(store: &Store, plain: &Plain) -> Result<(), TestCaseError> {
    let shape = tiny_shape();
    prop_assert_eq!((store.len(), store.held()), (plain.len(), plain.held()));
    let mut row = vec![0.0; shape.head_dim];
    for layer in 0..shape.n_layers {
        let view = store.view(layer);
        prop_assert_eq!(view.len, plain.len());
        for head in 0..shape.n_kv_heads {
            // Every border of a page, and some in between.
            for slot in (0..plain.len()).filter(|s| s % 61 == 0 || (s + 1) % PAGE < 2 || s + 1 == plain.len())
            {
                if !plain.pages[slot / PAGE] {
                    continue;
                }
                let token = plain.tokens[layer][head][slot];
                view.copy_key(head, slot, &mut row);
                let want: Vec<f32> = (0..shape.head_dim).map(|i| element(layer, head, token, i)).collect();
                prop_assert_eq!(&row, &want, "key of slot {} of layer {}, head {}", slot, layer, head);
                view.copy_value(head, slot, &mut row);
                prop_assert!(row.iter().zip(&want).all(|(v, k)| *v == -k), "value of slot {}", slot);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_store_holds_what_lists_would(changes in changes(), is_f32: bool) {
        let shape = tiny_shape();
        let mut store = Store::new(&shape, if is_f32 { KvDtype::F32 } else { KvDtype::Bf16 });
        let lists = vec![vec![Vec::new(); shape.n_kv_heads]; shape.n_layers];
        let mut plain = Plain { tokens: lists, pages: Vec::new(), floor: 0, next: 0 };
        for one in &changes {
            change(&mut store, &mut plain, one);
            check(&store, &plain)?;
        }
    }
}

/// What is done to a context.
#[derive(Clone, Debug)]
enum Act {
    /// Reads a prompt of so many tokens; with a share of it, its question begins there.
    Read(usize, Option<usize>),
    /// Announces a prompt, reads so many thousandths of its steps, and gives up, within a step or between two.
    GiveUp(usize, usize, bool),
    /// Generates tokens.
    Answer(usize),
    /// Rolls back to the end of a step, so many thousandths of all steps.
    Return(usize),
    Pin,
    Unpin,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let share = || 0usize..=1000;
    let act = prop_oneof![
        4 => (1usize..260, proptest::option::of(share())).prop_map(|(n, q)| Act::Read(n, q)),
        1 => (1usize..260, share(), any::<bool>()).prop_map(|(n, s, within)| Act::GiveUp(n, s, within)),
        2 => (1usize..6).prop_map(Act::Answer),
        3 => share().prop_map(Act::Return),
        1 => Just(Act::Pin),
        1 => Just(Act::Unpin),
    ];
    proptest::collection::vec(act, 1..12)
}

/// Something that was read, with the steps it was read in: what a fresh context has to be fed.
#[derive(Clone, Debug)]
struct Read {
    /// Tokens and question as they were announced, as far as they were read; none for answers.
    announced: Option<(Range<usize>, Option<usize>)>,
    steps: Vec<Step>,
}

/// A context of a shape that is fed vectors, each a function of the place of its token alone.
struct Fed {
    shape: ModelShape,
    context: Context,
}

impl Fed {
    fn new(shape: &ModelShape, method: &str, settings: &[&str]) -> Self {
        let method = build(method, &Settings::parse(settings).unwrap(), shape).unwrap();
        let context = Context::new(shape, method, None, KvDtype::Bf16, Arc::new(Cpu::new(1).unwrap()));
        Self { shape: shape.clone(), context }
    }

    fn layer(&mut self, layer: usize, tokens: Range<usize>) -> Result<Vec<f32>, crate::MethodError> {
        let dim = self.shape.head_dim;
        let vectors = |heads: usize, salt: usize| -> Vec<f32> {
            let of = |token: usize, i: usize| {
                ((token * 977 + salt * 131 + layer * 31 + i * 17) as f32 * 0.7).sin()
            };
            tokens.clone().flat_map(|token| (0..heads * dim).map(move |i| 2.0 * of(token, i))).collect()
        };
        let (q, k) = (vectors(self.shape.n_heads, 1), vectors(self.shape.n_kv_heads, 2));
        let v = vectors(self.shape.n_kv_heads, 3);
        let mut out = vec![0.0; q.len()];
        self.context.attend(layer, &q, &k, &v, None, &mut out)?;
        Ok(out)
    }

    /// A step in all layers, after what the method wants to see before it, as the decoder does it. What is refused is
    /// dropped.
    fn step(&mut self, step: &Step) -> Option<Vec<f32>> {
        let catalyst = self.context.catalyst(step).ok()?;
        if let Some(ids) = catalyst {
            let n = self.context.len();
            self.run(&Step { tokens: n..n + ids.len(), kind: StepKind::Ephemeral })?;
        }
        self.run(step)
    }

    fn run(&mut self, step: &Step) -> Option<Vec<f32>> {
        self.context.begin(step);
        let mut all = Vec::new();
        for layer in 0..self.shape.n_layers {
            match self.layer(layer, step.tokens.clone()) {
                Ok(out) => all.extend(out),
                Err(error) => {
                    assert!(error.is_refusal(), "{error}");
                    self.context.abort();
                    return None;
                }
            }
        }
        self.context.finish();
        Some(all)
    }

    /// Reads again what was read.
    fn replay(&mut self, reads: &[Read]) {
        for read in reads {
            if let Some((tokens, question)) = &read.announced {
                self.context.schedule(tokens.clone(), *question);
            }
            read.steps.iter().for_each(|step| drop(self.step(step).expect("it was read before")));
        }
    }
}

/// Cuts what was read down to the first `n` tokens, where a step ends.
fn cut(reads: &mut Vec<Read>, n: usize) {
    for read in reads.iter_mut() {
        read.steps.retain(|step| step.tokens.end <= n);
        if let Some((tokens, question)) = &mut read.announced {
            tokens.end = tokens.end.min(n);
            *question = question.map(|q| q.min(n));
        }
    }
    reads.retain(|read| !read.steps.is_empty());
}

fn act(fed: &mut Fed, reads: &mut Vec<Read>, act: &Act) {
    let start = fed.context.len();
    let mut read_steps = |fed: &mut Fed, announced: Option<(Range<usize>, Option<usize>)>, steps: &[Step]| {
        let mut done = Vec::new();
        for step in steps {
            // A method that refuses a step leaves what was read until then.
            if fed.step(step).is_none() {
                fed.context.abort();
                break;
            }
            done.push(step.clone());
        }
        reads.push(Read { announced, steps: done });
        cut(reads, fed.context.len());
    };
    match *act {
        Act::Read(n, question) => {
            let question = question.map(|share| start + n * share / 1000);
            let steps = fed.context.schedule(start..start + n, question);
            read_steps(fed, Some((start..start + n, question)), &steps);
        }
        Act::GiveUp(n, share, within) => {
            let steps = fed.context.schedule(start..start + n, None);
            let some = steps.len() * share / 1000;
            read_steps(fed, Some((start..start + n, None)), &steps[..some]);
            let end = fed.context.len();
            if let Some(step) = steps.get(some).filter(|step| within && step.tokens.start == end) {
                fed.context.begin(step);
                let _ = fed.layer(0, step.tokens.clone());
            }
            fed.context.abort();
        }
        Act::Answer(n) => {
            let steps: Vec<Step> =
                (start..start + n).map(|t| Step { tokens: t..t + 1, kind: StepKind::Decode }).collect();
            read_steps(fed, None, &steps);
        }
        Act::Return(share) => {
            let ends: Vec<usize> = std::iter::once(0)
                .chain(reads.iter().flat_map(|r| r.steps.iter().map(|s| s.tokens.end)))
                .collect();
            let n = ends[(ends.len() - 1) * share / 1000];
            if fed.context.truncate(n).is_ok() {
                cut(reads, n);
            }
        }
        Act::Pin => fed.context.pin(),
        Act::Unpin => fed.context.unpin(),
    }
}

/// Methods with settings so small that a few hundred tokens show everything.
const METHODS: &[(&str, &[&str])] = &[
    ("full", &[]),
    ("streaming-llm", &["global=4", "local=32"]),
    ("lm-infinite", &["global=4", "local=32"]),
    ("string", &["target=256", "shift=32", "small_local=4"]),
    ("self-extend", &["group=8", "local=32"]),
    ("dca", &["size=48", "local=8"]),
    ("mesa", &["train_length=64", "global=4", "last=16", "reserve=8", "stair=16"]),
    ("infllm", &["local=16", "global=3", "block=4", "top_k=2", "repr=2", "exc_block=6"]),
    ("ms-poe", &["layers=0-"]),
    ("infinipot", &["pot=96", "keep=40", "alpha=0", "global=4", "local=16", "catalyst=ids:1,2,3"]),
    ("reattention", &["global=4", "local=32", "span=4", "clip=4", "chunk=16", "selector=exact"]),
    (
        "reattention",
        &["global=4", "local=32", "span=4", "clip=4", "chunk=16", "selector=clusters", "exact_below=60"],
    ),
    (
        "reattention",
        &["global=4", "local=32", "span=4", "clip=4", "chunk=16", "selector=boxes", "exact_below=60"],
    ),
    (
        "reattention",
        &["global=4", "local=32", "span=4", "clip=4", "chunk=16", "selector=low_bit", "exact_below=60"],
    ),
    (
        "reattention",
        &["global=4", "local=32", "span=4", "clip=4", "chunk=16", "selector=exact", "share=kv_head"],
    ),
    // Spans far beyond any context.
    (
        "reattention",
        &[
            "global=4",
            "local=32",
            "span=1000000000",
            "clip=256",
            "chunk=16",
            "selector=exact",
            "positions=original",
        ],
    ),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn a_context_stands_as_a_fresh_one_fed_what_is_left_of_it(
        which in 0..METHODS.len(),
        acts in acts(),
        is_dynamic: bool,
    ) {
        let (method, settings) = METHODS[which];
        // Ms-PoE refuses frequencies that follow the length.
        let is_dynamic = is_dynamic && method != "ms-poe";
        let scaling =
            if is_dynamic { RopeScaling::DynamicNtk { factor: 2.0 } } else { RopeScaling::None };
        let shape = ModelShape { rope: RopeConfig { scaling, ..tiny_shape().rope }, ..tiny_shape() };
        let mut fed = Fed::new(&shape, method, settings);
        let mut reads = Vec::new();
        for one in &acts {
            act(&mut fed, &mut reads, one);
        }
        let mut fresh = Fed::new(&shape, method, settings);
        fresh.replay(&reads);
        let n = fed.context.len();
        prop_assert_eq!(fresh.context.len(), n);
        // What comes next is seen alike: a token of an answer, and a prompt with its question.
        let answer = Step { tokens: n..n + 1, kind: StepKind::Decode };
        prop_assert_eq!(fed.step(&answer), fresh.step(&answer), "{} {:?}: the next token", method, settings);
        let next = fed.context.len();
        let more = next..next + 150;
        let steps = fed.context.schedule(more.clone(), Some(next + 100));
        prop_assert_eq!(&fresh.context.schedule(more, Some(next + 100)), &steps);
        for step in &steps {
            let (a, b) = (fed.step(step), fresh.step(step));
            prop_assert!(a == b, "{method} {settings:?}: step {step:?}");
            if a.is_none() {
                break;
            }
        }
    }
}

/// Plans are made of whatever length was asked for, before it can be refused.
#[test]
fn absurd_lengths_are_planned_without_overflowing() {
    const LENGTHS: [usize; 6] = [0, 1, 4096, 1 << 40, usize::MAX - 1, usize::MAX];
    let layers = vec![crate::LayerAttention::FULL; 100].into();
    let wide = ModelShape { n_layers: 100, n_heads: 128, n_kv_heads: 128, head_dim: 256, ..tiny_shape() };
    let shape = ModelShape { layers, ..wide };
    for (method, settings) in METHODS.iter().chain(&[("infllm", &["cold=disk"][..])]) {
        let built = build(method, &Settings::parse(settings).unwrap(), &shape).unwrap();
        let mut before = 0;
        for n in LENGTHS {
            let bytes = built.extra_bytes(n);
            assert!(bytes >= before, "{method}: {bytes} bytes for {n} tokens, {before} for fewer");
            before = bytes;
            assert!(built.on_disk(n) <= n, "{method}");
            let _ = (built.kept(n), built.step_bytes(built.largest_step()));
        }
    }
}
