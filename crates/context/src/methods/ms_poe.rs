//! `ms-poe`: every head divides positions by a ratio of its own (arXiv 2403.04797).
//!
//! (a) Every query sees every earlier key. (b) In the concerned layers both stand at their index divided by the ratio of
//! their head: heads that attend to few keys above the rest, the position-aware ones, are compressed least. (c) Everything is
//! kept. (d) The whole prompt is one step, because in each layer its last query must be compared with all keys before any query
//! of that layer attends. Heads are ranked anew by every prompt, also a question asked of a context read before; an answer's
//! tokens keep the ranking of the prompt. Keys are cached raw, so the keys of the context take the new ratios too.
//!
//! The published code uses the sorted heads as if they were ranks (head `h` takes the ratio numbered `order[h]`, where the head at
//! place `i` of the order should take number `i`), and with grouped queries turns a query by its own ratio but its key by that of
//! the group's first head. Here heads are ranked, and a KV head with its queries has one ratio; `reference` gives the published
//! behaviour.

use super::{LayerCall, Method, Step, StepKind, View};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Reader, Settings};
use reattention_kernels::{Band, KeySet, Position, Queries, RopeTable, Segment};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "ms-poe",
    paper: "Found in the Middle: How Language Models Use Long Contexts Better via Plug-and-Play Positional Encoding (arXiv 2403.04797)",
    summary: "every head divides positions by its own ratio, so that the middle of a prompt within the window is used better",
    cost: "time O(n²) in prefill and O(n) per answer token; memory O(n), and hidden states of the whole prompt at once",
    suits: "models whose frequencies do not follow the length; prompts within the window",
    params: &[
        ParamSpec {
            name: "ratio_min",
            default: "1.2",
            range: "a number from 1 to 64",
            doc: "ratio of the most position-aware head",
        },
        ParamSpec {
            name: "ratio_max",
            default: "1.8",
            range: "a number from ratio_min to 64",
            doc: "where ratios end; of H heads the last has ratio_min + (ratio_max - ratio_min) (H - 1) / H",
        },
        ParamSpec {
            name: "layers",
            default: "2-",
            range: "layers and ranges of layers, such as 2- or 0-3,6",
            doc: "layers with compressed positions, counted from 0",
        },
        ParamSpec {
            name: "head_type",
            default: "multi_head",
            range: "multi_head or normal",
            doc: "multi_head ranks heads by the keys that get more than outlier times the mean attention of the prompt's last token; normal ranks the last head first",
        },
        ParamSpec {
            name: "outlier",
            default: "3",
            range: "a number above 0",
            doc: "multiple of the mean attention above which a key counts",
        },
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "the published code: sorted heads taken for ranks, a ratio for each query head even where heads share keys, and no limit to the length",
        },
    ],
};

/// Positions divided by a ratio for each head.
#[derive(Debug)]
pub struct MsPoe {
    ratio_min: f32,
    ratio_max: f32,
    layers: Layers,
    is_ranked: bool,
    outlier: f32,
    reference: bool,
    shape: ModelShape,
    /// The most tokens whose positions stay within the window.
    reach: usize,
    /// One for each prompt, in the order of their ends.
    rankings: Vec<Ranking>,
}

/// The heads of all layers as one prompt ranks them.
#[derive(Debug)]
struct Ranking {
    /// Tokens read at its end.
    end: usize,
    /// By layer; `None` where the layer is not concerned.
    layers: Vec<Option<Heads>>,
}

/// The heads of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heads {
    /// Keys above the threshold, for each query head; empty where nothing is counted.
    counts: Vec<usize>,
    /// The number of its ratio, for each KV head (under `reference` each query head).
    numbers: Vec<usize>,
}

impl MsPoe {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range, no layer would be concerned, or the model has frequencies that follow the length.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        if shape.rope.changes_with_length() {
            return Err(read.unsuited(
                "its frequencies follow the length and so stretch the same positions a second time; use full, or fixed frequencies such as --rope none",
            ));
        }
        let number = |name, default: f32, least: f32| match read.value(name, default)? {
            x if x >= least && x <= 64.0 => Ok(x),
            x => Err(read.bad(name, x)),
        };
        let ratio_min = number("ratio_min", 1.2, 1.0)?;
        let ratio_max = number("ratio_max", ratio_min.max(1.8), ratio_min)?;
        let outlier = read.value("outlier", 3.0)?;
        if !(outlier > 0.0 && f32::is_finite(outlier)) {
            return Err(read.bad("outlier", outlier));
        }
        let reference = read.value("reference", false)?;
        if reference && shape.rope.scaling != crate::rope::RopeScaling::None {
            return Err(read.contradiction(
                "the published code knows no scaled frequencies; leave reference out or set --rope none",
            ));
        }
        let layers = Layers::read(&read, shape.n_layers)?;
        let is_everywhere = (0..shape.n_layers).all(|l| layers.holds(l));
        // Layers left alone see every token at its own index.
        let reach =
            if is_everywhere { shape.window as f64 * f64::from(ratio_min) } else { shape.window as f64 };
        Ok(Self {
            ratio_min,
            ratio_max,
            layers,
            is_ranked: read.choice("head_type", &[("multi_head", true), ("normal", false)])?,
            outlier,
            reference,
            shape: shape.clone(),
            reach: if reference { usize::MAX } else { reach as usize },
            rankings: Vec::new(),
        })
    }

    /// Heads that have a ratio of their own.
    fn heads(&self) -> usize {
        if self.reference { self.shape.n_heads } else { self.shape.n_kv_heads }
    }

    /// The ratio of this number, from 0.
    fn ratio(&self, number: usize) -> f32 {
        self.ratio_min + (self.ratio_max - self.ratio_min) * (number as f32 / self.heads() as f32)
    }

    /// The heads of the call's layer: as the last prompt ranked them for an answer's token, ranked anew by a prompt.
    fn ranked(&mut self, call: &mut LayerCall) -> Result<Heads, MethodError> {
        let Range { start, end } = call.step.tokens;
        if call.step.kind == StepKind::Decode {
            let known = self.rankings.iter().rev().find(|r| r.end <= start);
            if let Some(heads) = known.and_then(|r| r.layers[call.layer].clone()) {
                return Ok(heads);
            }
        }
        let counts = if self.is_ranked { self.count(call)? } else { Vec::new() };
        let heads = Heads { numbers: self.numbers(&counts), counts };
        if self.rankings.last().is_none_or(|r| r.end != end) {
            self.rankings.push(Ranking { end, layers: vec![None; self.shape.n_layers] });
        }
        if let Some(ranking) = self.rankings.last_mut() {
            ranking.layers[call.layer] = Some(heads.clone());
        }
        Ok(heads)
    }

    /// For each query head, the keys that get more than `outlier` times the mean attention of the step's last query, with neither
    /// turned.
    fn count(&self, call: &LayerCall) -> Result<Vec<usize>, MethodError> {
        let (end, row) = (call.step.tokens.end, call.q.n_heads * call.q.head_dim);
        let last = &call.q.data[call.q.data.len() - row..];
        let q = Queries { data: last, q_len: 1, first: end - 1, ..call.q };
        let unturned = Arc::new(RopeTable::new(vec![0.0; call.q.head_dim / 2], 1.0, 1));
        let views = [vec![segment(end, &unturned, &unturned, Position::Constant(0), Position::Constant(0))]];
        let rule = call.rule;
        let (mut out, mut lse) = (vec![0.0; row], vec![0.0; call.q.n_heads]);
        call.backend.attend(&q, &call.kv, &views, rule, &mut out, Some(&mut lse))?;
        let attention = call.backend.key_mass(&q, &call.kv, &views, rule, &lse)?;
        let threshold = self.outlier / end as f32;
        Ok(attention.iter().map(|of_head| of_head.iter().filter(|a| **a > threshold).count()).collect())
    }

    /// The number of its ratio, for each head that has one.
    fn numbers(&self, counts: &[usize]) -> Vec<usize> {
        let heads = self.heads();
        if counts.is_empty() {
            return (0..heads).rev().collect();
        }
        let of_head: Vec<usize> =
            counts.chunks(counts.len() / heads).map(|group| group.iter().sum()).collect();
        let mut order: Vec<usize> = (0..heads).collect();
        order.sort_by_key(|&h| std::cmp::Reverse(of_head[h]));
        if self.reference {
            return order;
        }
        let mut numbers = vec![0; heads];
        order.into_iter().enumerate().for_each(|(rank, head)| numbers[head] = rank);
        numbers
    }

    /// The published mix of ratios: keys take that of their group's first query head; queries are turned here, each by its own.
    fn published_view(&self, call: &mut LayerCall, heads: &Heads) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let dim = call.q.head_dim;
        let tables = heads.numbers.iter().map(|&n| call.ropes.compressed(end, self.ratio(n)));
        let tables = tables.collect::<Result<Vec<_>, _>>()?;
        let mut queries = call.q.data.to_vec();
        for (i, query) in queries.chunks_exact_mut(dim).enumerate() {
            tables[i % call.q.n_heads].rotate((start + i / call.q.n_heads) as i64, query);
        }
        let own = Position::Index { offset: 0 };
        let lists = tables.iter().step_by(self.shape.group());
        let segments =
            lists.map(|table| vec![segment(end, table, table, own, Position::Constant(0))]).collect();
        Ok(View { queries: Some(queries), ..View::new(segments) })
    }
}

impl Method for MsPoe {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ratio_min", self.ratio_min.to_string()),
            ("ratio_max", self.ratio_max.to_string()),
            ("layers", self.layers.text.clone()),
            ("head_type", if self.is_ranked { "multi_head" } else { "normal" }.to_string()),
            ("outlier", self.outlier.to_string()),
            ("reference", self.reference.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, _question: Option<usize>) -> Vec<Step> {
        let whole = Step { tokens, kind: StepKind::Prefill };
        if whole.tokens.is_empty() { Vec::new() } else { vec![whole] }
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let end = call.step.tokens.end;
        if end > self.reach {
            return Err(MethodError::Contradiction {
                method: SPEC.name,
                reason: format!(
                    "{end} tokens are more than the {} whose positions stay within the model's window of {}; shorten the text, or use a method that reads on, such as reattention",
                    self.reach,
                    self.shape.rope.stretched_window()
                ),
            });
        }
        let own = Position::Index { offset: 0 };
        if !self.layers.holds(call.layer) {
            let table = call.ropes.for_positions(end)?;
            return Ok(View::new(vec![vec![segment(end, &table, &table, own, own)]]));
        }
        let heads = self.ranked(call)?;
        if self.reference {
            return self.published_view(call, &heads);
        }
        let list = |&number: &usize| -> Result<_, MethodError> {
            let table = call.ropes.compressed(end, self.ratio(number))?;
            Ok(vec![segment(end, &table, &table, own, own)])
        };
        Ok(View::new(heads.numbers.iter().map(list).collect::<Result<_, _>>()?))
    }

    fn truncate(&mut self, n: usize) {
        self.rankings.retain(|r| r.end <= n);
    }

    fn largest_step(&self) -> usize {
        self.reach
    }

    fn extra_bytes(&self, n: usize) -> usize {
        // A table of turns for each ratio: 256 fine and n / 256 coarse rows, the latter doubled as they grow.
        let rows = 256 + n.saturating_mul(2).max(4096) / 256;
        (self.heads() * self.shape.head_dim * size_of::<f32>()).saturating_mul(rows)
    }

    fn step_bytes(&self, q_len: usize) -> usize {
        let attention = if self.is_ranked { self.shape.n_heads * q_len } else { 0 };
        let turned = if self.reference { q_len * self.shape.n_heads * self.shape.head_dim } else { 0 };
        (attention + turned) * size_of::<f32>()
    }

    fn splits(&self) -> bool {
        false
    }

    fn measured(&self, layer: usize) -> Vec<(&'static str, Vec<usize>)> {
        let heads = self.rankings.last().and_then(|r| r.layers.get(layer)?.as_ref());
        heads.map_or(Vec::new(), |h| {
            let counts = ("outlier_counts", h.counts.clone());
            [counts, ("head_order", h.numbers.clone())].into_iter().filter(|(_, v)| !v.is_empty()).collect()
        })
    }
}

/// Every key up to token `end`, with a table for keys and queries each.
fn segment(
    end: usize,
    key_rope: &Arc<RopeTable>,
    query_rope: &Arc<RopeTable>,
    key_position: Position,
    query_position: Position,
) -> Segment {
    Segment {
        keys: KeySet::Range(0..end),
        band: Band::CAUSAL,
        key_position,
        query_position,
        key_rope: Arc::clone(key_rope),
        query_rope: Arc::clone(query_rope),
    }
}

/// Layers as `layers` names them.
#[derive(Debug)]
struct Layers {
    text: String,
    ranges: Vec<RangeInclusive<usize>>,
}

impl Layers {
    fn read(read: &Reader, n_layers: usize) -> Result<Self, MethodError> {
        let text: String = read.value("layers", "2-".to_string())?;
        let range = |part: &str| {
            let number = |n: &str| n.trim().parse::<usize>().ok();
            match part.split_once('-') {
                None => number(part).map(|n| n..=n),
                Some((first, last)) if last.trim().is_empty() => number(first).map(|n| n..=usize::MAX),
                Some((first, last)) => Some(number(first)?..=number(last)?),
            }
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        let Some(ranges) = ranges.filter(|r| r.iter().all(|r| !r.is_empty())) else {
            return Err(read.bad("layers", text));
        };
        let layers = Self { text, ranges };
        if !(0..n_layers).any(|l| layers.holds(l)) {
            return Err(read.contradiction(format!(
                "layers={} concerns none of the model's {n_layers} layers, so nothing would change; set layers=0- for all",
                layers.text
            )));
        }
        Ok(layers)
    }

    fn holds(&self, layer: usize) -> bool {
        self.ranges.iter().any(|r| r.contains(&layer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{RopeConfig, RopeScaling};
    use crate::tests::tiny_shape;
    use crate::{Context, KvDtype};
    use reattention_kernels::Reference;

    fn shape(n_heads: usize, n_kv_heads: usize) -> ModelShape {
        ModelShape { n_heads, n_kv_heads, ..tiny_shape() }
    }

    fn method(pairs: &[&str], shape: &ModelShape) -> MsPoe {
        MsPoe::new(&Settings::parse(pairs).unwrap(), shape).unwrap()
    }

    #[test]
    fn ratios_never_reach_the_largest() {
        let of = |m: &MsPoe| (0..m.heads()).map(|i| m.ratio(i)).collect::<Vec<_>>();
        let m = method(&["layers=0-"], &shape(8, 8));
        for (got, want) in of(&m).iter().zip([1.2, 1.275, 1.35, 1.425, 1.5, 1.575, 1.65, 1.725]) {
            assert!((got - want).abs() < 1e-6, "{got} instead of {want}");
        }
        // Heads that share keys share a ratio, unless the published behaviour is asked for.
        assert_eq!(of(&method(&["layers=0-"], &shape(8, 2))).len(), 2);
        assert_eq!(of(&method(&["layers=0-", "reference=true"], &shape(8, 2))).len(), 8);
    }

    #[test]
    fn the_head_with_most_outliers_has_the_smallest_ratio() {
        let counts = [3, 9, 1, 7];
        assert_eq!(method(&["layers=0-"], &shape(4, 4)).numbers(&counts), [2, 0, 3, 1]);
        assert_eq!(method(&["layers=0-"], &shape(4, 2)).numbers(&counts), [0, 1]);
        assert_eq!(method(&["layers=0-"], &shape(4, 2)).numbers(&[1, 1, 5, 5]), [1, 0]);
        // The published code takes the sorted heads themselves for numbers.
        let published = ["layers=0-", "reference=true"];
        assert_eq!(method(&published, &shape(4, 2)).numbers(&counts), [1, 3, 0, 2]);
        let ties = method(&["layers=0-"], &shape(4, 4)).numbers(&[2, 2, 2, 2]);
        assert_eq!(ties, [0, 1, 2, 3]);
        let fixed = method(&["layers=0-", "head_type=normal"], &shape(4, 4));
        assert_eq!(fixed.numbers(&[]), [3, 2, 1, 0]);
    }

    /// Feeds steps of random tokens through a context and returns the numbers of layer 1 after each.
    fn numbers_after(context: &mut Context, steps: &[(usize, StepKind)], seed: &mut u32) -> Vec<Vec<usize>> {
        let shape = tiny_shape();
        let mut noise = |n: usize| -> Vec<f32> {
            let next = |s: &mut u32| {
                *s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (*s >> 8) as f32 / (1 << 22) as f32 - 2.0
            };
            (0..n).map(|_| next(seed)).collect()
        };
        let mut all = Vec::new();
        for &(n, kind) in steps {
            let start = context.len();
            context.begin(&Step { tokens: start..start + n, kind });
            for layer in 0..shape.n_layers {
                let (wide, narrow) =
                    (n * shape.n_heads * shape.head_dim, n * shape.n_kv_heads * shape.head_dim);
                let mut out = vec![0.0; wide];
                context.attend(layer, &noise(wide), &noise(narrow), &noise(narrow), None, &mut out).unwrap();
            }
            context.finish();
            let measured = context.method().measured(1);
            all.push(measured.into_iter().find(|m| m.0 == "head_order").unwrap().1);
        }
        all
    }

    #[test]
    fn a_prompt_ranks_and_its_answer_keeps_the_ranking() {
        let shape = tiny_shape();
        let context = |pairs: &[&str]| {
            let method = Box::new(method(pairs, &shape));
            Context::new(&shape, method, None, KvDtype::F32, Arc::new(Reference))
        };
        use StepKind::{Decode, Prefill};
        let (mut context, mut seed) = (context(&["layers=0-"]), 5);
        let first = numbers_after(&mut context, &[(40, Prefill), (1, Decode), (1, Decode)], &mut seed);
        assert!(first.iter().all(|n| *n == first[0]), "{first:?}");
        // Among many prompts some must rank differently, and a roll-back must bring the first ranking back.
        let mut differed = false;
        for _ in 0..20 {
            let asked = numbers_after(&mut context, &[(10, Prefill), (1, Decode)], &mut seed);
            assert_eq!(asked[0], asked[1]);
            differed |= asked[0] != first[0];
            context.truncate(42).unwrap();
            let again = numbers_after(&mut context, &[(1, Decode)], &mut seed);
            assert_eq!(again[0], first[0]);
            context.truncate(42).unwrap();
        }
        assert!(differed);
    }

    #[test]
    fn one_step_reads_a_prompt_and_the_window_ends_it() {
        let shape = tiny_shape();
        let m = method(&["layers=0-"], &shape);
        assert_eq!(m.schedule(3..400, Some(390)), [Step { tokens: 3..400, kind: StepKind::Prefill }]);
        assert!(m.schedule(3..3, None).is_empty() && !m.splits());
        assert_eq!((m.largest_step(), method(&["layers=1"], &shape).largest_step()), (614, 512));
        let method = Box::new(method(&["layers=1-"], &shape));
        let mut context = Context::new(&shape, method, None, KvDtype::F32, Arc::new(Reference));
        context.begin(&Step { tokens: 0..513, kind: StepKind::Prefill });
        let (q, kv) = (vec![0.0; 513 * 32], vec![0.0; 513 * 16]);
        let error = context.attend(0, &q, &kv, &kv, None, &mut vec![0.0; 513 * 32]).unwrap_err().to_string();
        assert!(error.contains("513") && error.contains("512"), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let shape = tiny_shape();
        let refused = |pairs: &[&str], shape: &ModelShape, culprit: &str| {
            let error = MsPoe::new(&Settings::parse(pairs).unwrap(), shape).unwrap_err().to_string();
            assert!(error.contains(culprit), "{pairs:?}: {error}");
        };
        // The tiny model has two layers, which the published default leaves alone.
        refused(&[], &shape, "none of the model's 2 layers");
        for bad in ["layers=", "layers=3-1", "layers=x", "layers=1,,2", "layers=-"] {
            refused(&[bad], &shape, "layers");
        }
        refused(&["layers=0-", "ratio_min=0.5"], &shape, "ratio_min");
        refused(&["layers=0-", "ratio_min=2", "ratio_max=1.5"], &shape, "ratio_max");
        refused(&["layers=0-", "ratio_max=nan"], &shape, "ratio_max");
        refused(&["layers=0-", "outlier=0"], &shape, "outlier");
        refused(&["layers=0-", "head_type=best"], &shape, "head_type");
        let with = |scaling| {
            let rope = RopeConfig { scaling, ..shape.rope.clone() };
            shape.clone().with_rope(rope)
        };
        refused(&["layers=0-"], &with(RopeScaling::DynamicNtk { factor: 2.0 }), "follow the length");
        refused(&["layers=0-", "reference=true"], &with(RopeScaling::Linear { factor: 2.0 }), "published");
        let linear = with(RopeScaling::Linear { factor: 2.0 });
        assert!(MsPoe::new(&Settings::parse(&["layers=0,1"]).unwrap(), &linear).is_ok());
    }
}
