//! `infinipot`: a fixed number of cached entries, distilled whenever they would overflow (arXiv 2410.01518).
//!
//! (a) A query sees everything in the pot. (b) Entries stand at their slots, so positions are contiguous again after each
//! distillation and never reach the size of the pot (the paper's CR-RoPE). (c) When the next step would overflow the pot,
//! a *catalyst* prompt is fed and forgotten again, and each KV head keeps `keep` entries: those that surprised the model
//! most when they were read (the paper's NuC), then those that the catalyst attends to most (CaP). (d) The prompt is cut
//! where the pot is full, so the result depends neither on `chunk` nor on how the prompt is handed over.
//!
//! There is no published code. The paper re-reads kept entries for their novelty; here each entry carries the loss of the
//! moment it was read, since heads keep different tokens. The paper does not say how large |C| is, whether sinks or recent
//! tokens are pinned, or how heads of a group are put together: these are parameters.

use super::{Catalyst, Entries, LayerCall, Method, Step, View, question_apart};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::{Band, KeySet, Position, Segment};
use std::ops::Range;
use std::sync::Arc;

/// The catalyst where none is set.
const CATALYST: &str = "Which names, numbers and facts above will matter later?";

/// Tokens a catalyst may have; it is fed at once.
const LONGEST_CATALYST: usize = 512;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "infinipot",
    paper: "InfiniPot: Infinite Context Processing on Memory-Constrained LLMs (arXiv 2410.01518)",
    summary: "a pot of fixed size: when it would overflow, each KV head keeps its most surprising and most attended entries",
    cost: "time O(n) in prefill and O(1) per answer token; memory O(1); novelty (alpha above 0) costs the logits of every token read",
    suits: "all models without sliding-window layers; what was distilled away is lost",
    params: &[
        ParamSpec {
            name: "pot",
            default: "the window, at most 4096",
            range: "an integer of at least 2",
            doc: "entries cached at most, the catalyst's included (|M|)",
        },
        ParamSpec {
            name: "keep",
            default: "half the pot",
            range: "an integer of at least 1",
            doc: "entries that a distillation leaves to each KV head (|C|)",
        },
        ParamSpec {
            name: "alpha",
            default: "0.5",
            range: "a number from 0 to 1",
            doc: "share of keep chosen by novelty; the rest is chosen by the catalyst's attention. 0 spares the logits of the tokens read",
        },
        ParamSpec {
            name: "global",
            default: "4",
            range: "an integer of at least 0",
            doc: "first tokens that always stay (attention sinks); they count towards keep",
        },
        ParamSpec {
            name: "local",
            default: "0",
            range: "an integer of at least 0",
            doc: "last tokens that always stay; they count towards keep",
        },
        ParamSpec {
            name: "heads",
            default: "mean",
            range: "mean or max",
            doc: "how the attention of the query heads of one KV head is put together",
        },
        ParamSpec {
            name: "catalyst",
            default: CATALYST,
            range: "a text, `question`, or `ids:` and token ids with commas between",
            doc: "what is fed before a distillation, as a question is; `question` takes the prompt's own question, which must then be known while the context is read",
        },
        ParamSpec {
            name: "chunk",
            default: "512, at most the window",
            range: "an integer of at least 1",
            doc: "tokens fed at once; the result does not depend on it",
        },
    ],
};

/// A pot of entries.
#[derive(Debug)]
pub struct InfiniPot {
    pot: usize,
    keep: usize,
    alpha: f64,
    global: usize,
    local: usize,
    heads: Heads,
    chunk: usize,
    catalyst: Source,
    /// Token ids of the catalyst, as soon as they are known.
    ids: Option<Arc<[u32]>>,
    shape: ModelShape,
}

/// How the attention of a group's query heads becomes one number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Heads {
    Mean,
    Max,
}

#[derive(Debug)]
enum Source {
    Text(String),
    Question,
    Ids(String),
}

impl InfiniPot {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range, the pot exceeds the window or is too small for what it is to keep, or the model has
    /// sliding-window layers.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        if let Some(window) = shape.widest_window() {
            return Err(read.unsuited(format!("some of its layers slide over the last {window} tokens, which they find by distance, and a store that is compacted keeps none; use full or reattention")));
        }
        let pot = read.count("pot", shape.window.min(4096))?;
        let keep = read.count("keep", (pot / 2).max(1))?;
        let global = read.count("global", 4.min(keep))?;
        let local = read.count("local", 0)?;
        let chunk = read.count("chunk", shape.window.min(512))?;
        for (name, value, least) in [("pot", pot, 2), ("keep", keep, 1), ("chunk", chunk, 1)] {
            if value < least {
                return Err(read.bad(name, value));
            }
        }
        let alpha: f64 = read.value("alpha", 0.5)?;
        if !(0.0..=1.0).contains(&alpha) {
            return Err(read.bad("alpha", alpha));
        }
        let heads = read.choice("heads", &[("mean", Heads::Mean), ("max", Heads::Max)])?;
        if pot > shape.window {
            return Err(read.contradiction(format!(
                "pot={pot} exceeds the model's window of {} positions; lower pot",
                shape.window
            )));
        }
        if keep >= pot {
            return Err(read.contradiction(format!(
                "keep={keep} leaves no room in pot={pot} for a catalyst and new tokens; lower keep"
            )));
        }
        if global.saturating_add(local) > keep {
            return Err(read.contradiction(format!(
                "global={global} and local={local} together exceed keep={keep}; lower them"
            )));
        }
        let text: String = read.value("catalyst", CATALYST.to_string())?;
        let mut ids = None;
        let catalyst = if text == "question" {
            Source::Question
        } else if let Some(list) = text.strip_prefix("ids:") {
            let list: Result<Arc<[u32]>, _> = list.split(',').map(|id| id.trim().parse()).collect();
            ids = Some(list.map_err(|_| read.bad("catalyst", &text))?);
            Source::Ids(text)
        } else if text.trim().is_empty() {
            return Err(read.bad("catalyst", text));
        } else {
            Source::Text(text)
        };
        Ok(Self { pot, keep, alpha, global, local, heads, chunk, catalyst, ids, shape: shape.clone() })
    }

    /// Tokens of the catalyst, as far as they are known.
    fn catalyst_len(&self) -> usize {
        self.ids.as_ref().map_or(0, |ids| ids.len())
    }

    /// The first token index after `token` before which a text fed from its beginning is distilled.
    fn next_overflow(&self, token: usize) -> usize {
        let first = self.pot.saturating_sub(self.catalyst_len()).max(1);
        let cycle = self.pot.saturating_sub(self.keep + self.catalyst_len()).max(1);
        match token.checked_sub(first) {
            None => first,
            Some(beyond) => first + (beyond / cycle + 1) * cycle,
        }
    }

    fn refused(&self, reason: String) -> MethodError {
        MethodError::Contradiction { method: SPEC.name, reason }
    }

    /// The `keep` slots to keep of those whose novelty and attention are given, ascending. Ties go to the lower slot.
    fn choose(&self, novelty: Option<&[f32]>, attention: &[f32]) -> Vec<u32> {
        let slots = attention.len();
        let recent = slots.saturating_sub(self.local).max(self.global);
        let mut kept: Vec<u32> = (0..self.global.min(slots)).chain(recent..slots).map(|s| s as u32).collect();
        let mut rest: Vec<u32> = (self.global.min(slots)..recent.min(slots)).map(|s| s as u32).collect();
        let free = self.keep - kept.len();
        let by_novelty = novelty.map_or(0, |_| (self.alpha * free as f64).round() as usize);
        if let Some(novelty) = novelty {
            take_best(&mut rest, by_novelty, novelty, &mut kept);
        }
        take_best(&mut rest, free - by_novelty, attention, &mut kept);
        kept.sort_unstable();
        kept
    }
}

/// Moves the `n` slots with the largest scores from `rest` to `kept`; ties go to the lower slot.
fn take_best(rest: &mut Vec<u32>, n: usize, scores: &[f32], kept: &mut Vec<u32>) {
    rest.sort_unstable_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    kept.extend(rest.drain(..n.min(rest.len())));
}

impl Method for InfiniPot {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        let heads = match self.heads {
            Heads::Mean => "mean",
            Heads::Max => "max",
        };
        let catalyst = match &self.catalyst {
            Source::Text(text) | Source::Ids(text) => text,
            Source::Question => "question",
        };
        vec![
            ("pot", self.pot.to_string()),
            ("keep", self.keep.to_string()),
            ("alpha", self.alpha.to_string()),
            ("global", self.global.to_string()),
            ("local", self.local.to_string()),
            ("heads", heads.to_string()),
            ("catalyst", catalyst.to_string()),
            ("chunk", self.chunk.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        let mut steps = Vec::new();
        for Step { tokens, kind } in question_apart(tokens, question, usize::MAX, 0) {
            let mut start = tokens.start;
            while start < tokens.end {
                let end = tokens.end.min(start + self.chunk).min(self.next_overflow(start));
                steps.push(Step { tokens: start..end, kind });
                start = end;
            }
        }
        steps
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let rope = call.ropes.for_positions(call.kv.len)?;
        let segment = Segment {
            keys: KeySet::Range(0..call.kv.len),
            band: Band::CAUSAL,
            key_position: Position::Index { offset: 0 },
            query_position: Position::Index { offset: 0 },
            key_rope: Arc::clone(&rope),
            query_rope: rope,
        };
        // The same slots for all KV heads, but not the same tokens.
        Ok(View::new(vec![vec![segment]; self.shape.n_kv_heads]))
    }

    fn catalyst(&self, slots: usize, n: usize) -> Result<Option<Arc<[u32]>>, MethodError> {
        let (pot, keep) = (self.pot, self.keep);
        if slots + n + self.catalyst_len() <= pot {
            return Ok(None);
        }
        let Some(ids) = &self.ids else {
            return Err(self.refused(match self.catalyst {
                Source::Question => format!(
                    "the context outgrows pot={pot} and catalyst=question, but no question is known yet; ask it in one prompt with the context, or set another catalyst"
                ),
                _ => "the context outgrows the pot, and the catalyst has no token ids: its text could not be tokenised, or the session has no tokenizer; set catalyst=ids:1,2,3".into(),
            }));
        };
        let p = ids.len();
        if keep + p + n > pot || slots + p > pot || p > LONGEST_CATALYST {
            return Err(self.refused(format!(
                "pot={pot}, holding {slots} entries, has no room for keep={keep}, a catalyst of {p} tokens (at most {LONGEST_CATALYST}) and a step of {n}; raise pot, lower keep or shorten the catalyst"
            )));
        }
        Ok(Some(Arc::clone(ids)))
    }

    fn distil(&mut self, entries: &Entries) -> Option<Vec<Vec<u32>>> {
        if entries.slots <= self.keep {
            return None;
        }
        let group = self.shape.n_heads / self.shape.n_kv_heads;
        let of_head = |(head, masses): (usize, &[Vec<f32>])| {
            let pick = |slot: usize| {
                let of_group = masses.iter().map(|m| m[slot]);
                match self.heads {
                    // A sum ranks as a mean does.
                    Heads::Mean => of_group.sum(),
                    Heads::Max => of_group.fold(0.0, f32::max),
                }
            };
            let attention: Vec<f32> = (0..entries.slots).map(pick).collect();
            self.choose(entries.losses.get(head).map(Vec::as_slice), &attention)
        };
        Some(entries.mass.chunks(group).enumerate().map(of_head).collect())
    }

    fn distils(&self) -> bool {
        true
    }

    fn wants_losses(&self) -> bool {
        self.alpha > 0.0
    }

    fn catalyst_source(&self) -> Option<Catalyst<'_>> {
        match &self.catalyst {
            Source::Text(text) => Some(Catalyst::Text(text)),
            Source::Question => Some(Catalyst::Question),
            Source::Ids(_) => None,
        }
    }

    fn set_catalyst(&mut self, ids: &[u32]) {
        self.ids = Some(ids.into());
    }

    fn is_view_stateless(&self) -> bool {
        true
    }

    fn kept(&self, n: usize) -> usize {
        // A pinned pot is copied before it is distilled; its pages do not end where the other's begin.
        if n <= self.pot { n } else { 2 * self.pot.next_multiple_of(reattention_kernels::PAGE) }
    }

    fn largest_step(&self) -> usize {
        self.chunk.max(LONGEST_CATALYST.min(self.pot - self.keep))
    }

    fn extra_bytes(&self, n: usize) -> usize {
        // Token and loss of each entry, of a pinned pot too, and what a distillation chooses.
        let heads = self.shape.n_layers * self.shape.n_kv_heads;
        if n <= self.pot { 4 * n } else { heads * self.keep * (2 * 8 + 8 + 4) + 2 * 4 * self.pot }
    }

    fn step_bytes(&self, _q_len: usize) -> usize {
        // Attention of the catalyst by query head (twice: by key and by slot), losses and order by KV head.
        2 * 4 * self.pot * (2 * self.shape.n_heads + 2 * self.shape.n_kv_heads)
    }

    fn splits(&self) -> bool {
        !matches!(self.catalyst, Source::Question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::StepKind;
    use crate::tests::tiny_shape;

    fn pot(pairs: &[&str]) -> Result<InfiniPot, MethodError> {
        let base = ["pot=32", "keep=16", "global=2", "chunk=8", "catalyst=ids:5,6,7"];
        InfiniPot::new(&Settings::parse(&[&base[..], pairs].concat())?, &tiny_shape())
    }

    #[test]
    fn novelty_chooses_first_then_attention_and_ties_go_to_the_lower_slot() {
        let unread = f32::NEG_INFINITY;
        let novelty = [unread, 5.0, 1.0, 9.0, 2.0, 9.0, 9.0, 0.0, 0.0, 9.0];
        let attention = [0.0, 0.3, 0.1, 0.9, 0.2, 0.0, 0.1, 0.4, 0.3, 0.0];
        let choose = |pairs: &[&str], novelty: Option<&[f32]>| {
            pot(&[&["keep=6", "global=1", "local=1"], pairs].concat()).unwrap().choose(novelty, &attention)
        };
        // 0 and 9 are pinned; two of four by novelty (3 and 5, before their equal 6), two by attention (7, and 1 before 8).
        assert_eq!(choose(&[], Some(&novelty)), [0, 1, 3, 5, 7, 9]);
        assert_eq!(choose(&["alpha=1"], Some(&novelty)), [0, 1, 3, 5, 6, 9]);
        assert_eq!(choose(&["alpha=0"], None), [0, 1, 3, 7, 8, 9]);
        assert_eq!(choose(&["alpha=0", "global=0", "local=0"], None), [1, 2, 3, 4, 7, 8]);
        // What nothing predicted is the least surprising of all.
        assert!(!choose(&["alpha=1", "global=0", "keep=9"], Some(&novelty)).contains(&0));
    }

    #[test]
    fn each_kv_head_chooses_by_the_attention_of_its_own_query_heads() {
        // Two KV heads of two query heads; 4 slots, of which 1 stays. In the mean slot 1 wins, at most slot 2.
        let mass = [[0.0, 0.5, 0.8, 0.1], [0.0, 0.5, 0.1, 0.1], [0.9, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]];
        let mass = mass.map(|m| m.to_vec());
        let entries = Entries { layer: 0, slots: 4, mass: &mass, losses: &[] };
        let kept = |pairs: &[&str]| {
            pot(&[&["keep=1", "global=0", "alpha=0"], pairs].concat()).unwrap().distil(&entries).unwrap()
        };
        assert_eq!(kept(&[]), [[1], [0]]);
        assert_eq!(kept(&["heads=max"]), [[2], [0]]);
        assert_eq!(pot(&[]).unwrap().distil(&entries), None, "what fits stays");
    }

    #[test]
    fn steps_end_where_the_pot_is_full_whatever_the_cut() {
        let ends = |method: &InfiniPot, from: usize, to: usize, question| -> Vec<usize> {
            method.schedule(from..to, question).iter().map(|s| s.tokens.end).collect()
        };
        // 32 less the catalyst's 3, and then 32 - 16 - 3 more each time.
        let method = pot(&["chunk=100"]).unwrap();
        assert_eq!(ends(&method, 0, 60, Some(60)), [29, 42, 55, 60]);
        assert_eq!(ends(&method, 30, 60, Some(60)), [42, 55, 60]);
        assert_eq!(ends(&method, 0, 60, Some(50)), [29, 42, 50, 55, 59, 60]);
        assert_eq!(ends(&pot(&[]).unwrap(), 0, 60, Some(60)), [8, 16, 24, 29, 37, 42, 50, 55, 60]);
        let kinds: Vec<StepKind> = method.schedule(0..60, Some(50)).iter().map(|s| s.kind).collect();
        assert_eq!(kinds[2..], [StepKind::Prefill, StepKind::Question, StepKind::Question, StepKind::Decode]);
    }

    #[test]
    fn the_catalyst_comes_only_when_a_step_would_overflow() {
        let method = pot(&[]).unwrap();
        assert_eq!(method.catalyst(21, 8).unwrap(), None);
        assert_eq!(method.catalyst(22, 8).unwrap().as_deref(), Some(&[5, 6, 7][..]));
        assert_eq!(method.catalyst(29, 13).unwrap().as_deref(), Some(&[5, 6, 7][..]));
        let error = |method: &InfiniPot, slots, n| method.catalyst(slots, n).unwrap_err().to_string();
        assert!(error(&method, 29, 14).contains("a step of 14"), "{}", error(&method, 29, 14));
        assert!(error(&method, 30, 1).contains("holding 30"), "{}", error(&method, 30, 1));
        assert!(error(&pot(&["catalyst=question"]).unwrap(), 32, 1).contains("no question is known"));
        let mut text = pot(&["catalyst=What matters?"]).unwrap();
        assert!(error(&text, 32, 1).contains("no token ids"));
        assert_eq!(text.catalyst_source(), Some(Catalyst::Text("What matters?")));
        text.set_catalyst(&[1, 2]);
        assert_eq!(text.catalyst(30, 1).unwrap().as_deref(), Some(&[1, 2][..]));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for pairs in [
            "alpha=1.5",
            "alpha=-0.1",
            "alpha=nan",
            "pot=1",
            "keep=0",
            "chunk=0",
            "heads=min",
            "catalyst=",
            "catalyst=ids:",
            "catalyst=ids:1,x",
        ] {
            assert!(matches!(pot(&[pairs]), Err(MethodError::BadValue { .. })), "{pairs}");
        }
        for pairs in ["pot=513", "keep=32", "local=15"] {
            assert!(matches!(pot(&[pairs]), Err(MethodError::Contradiction { .. })), "{pairs}");
        }
        let sliding = ModelShape { layers: [crate::LayerAttention::sliding(24); 2].into(), ..tiny_shape() };
        assert!(matches!(InfiniPot::new(&Settings::new(), &sliding), Err(MethodError::Unsuited { .. })));
        let default = InfiniPot::new(&Settings::new(), &tiny_shape()).unwrap();
        assert_eq!((default.pot, default.keep, default.alpha), (512, 256, 0.5));
    }
}
