//! `reattention`: position-agnostic top-k over all cached keys, then ordinary attention at contiguous positions
//! (ICLR 2025, arXiv 2407.15176).
//!
//! While the context fits `global + local` tokens, attention is full. Beyond, each layer scores the raw queries of the
//! step against the raw keys of the middle, lets the best `top_k` keys of every query and head vote, keeps the `clip`
//! most voted ones, widens them to spans, and attends to `[global | spans | local]` at positions 0, 1, 2, ...

use super::vote::{SpanRule, select};
use super::{Appended, LayerCall, Method, Selection, Step, StepKind, View, chunks, question_apart};
use crate::ModelShape;
use crate::select::{
    Boxes, ClusterSettings, Clusters, Exact, Halving, LowBit, LowBitSettings, Reach, Reuse, Selector,
};
use crate::settings::{MethodError, MethodSpec, ParamSpec, Reader, Settings};
use reattention_kernels::{Band, HeadPairing, KeySet, Position, Queries, Segment, TopKRequest, TopKRule};
use std::ops::Range;
use std::sync::Arc;

/// Keys in a tile of the published kernel; the published middle is a multiple of it.
const TILE: usize = 128;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "reattention",
    paper: "ReAttention: Training-Free Infinite Context with Finite Attention Scope (arXiv 2407.15176)",
    summary: "picks the few thousand cached tokens that matter by raw q·k over all of them, then attends at contiguous positions",
    cost: "selection per token: O(n/8192) plus a constant by default, O(n) with selector=exact, none in the context with prefill=window; attention O(1); memory O(n), clusters add up to 10 %",
    suits: "all models without sliding-window layers",
    params: &[
        ParamSpec {
            name: "global",
            default: "32; window/32 below 1,024",
            range: "an integer of at least 0",
            doc: "first tokens, always attended",
        },
        ParamSpec {
            name: "local",
            default: "8192 from a window of 16,416, 4096 from 8,192, else window/4",
            range: "an integer of at least 1",
            doc: "last tokens, always attended; the running chunk counts among them",
        },
        ParamSpec {
            name: "span",
            default: "32; window/32 below 1,024",
            range: "an integer of at least 1",
            doc: "tokens fetched around each voted key",
        },
        ParamSpec {
            name: "top_k",
            default: "4",
            range: "an integer of at least 1 (0, no selection, only with reference)",
            doc: "keys each query and head votes for (published mid_size)",
        },
        ParamSpec {
            name: "clip",
            default: "as many spans as the window holds: 256, 127, ...",
            range: "an integer of at least 1, or none",
            doc: "most voted keys that are kept, per layer (published recall_clip)",
        },
        ParamSpec {
            name: "chunk",
            default: "512, at most local/2",
            range: "an integer of at least 1",
            doc: "tokens fed at once in prefill; they share one selection; at most local, better at most half of it",
        },
        ParamSpec {
            name: "question_alone",
            default: "true",
            range: "true or false",
            doc: "feed the question as a chunk of its own, so that it votes alone; false is published",
        },
        ParamSpec {
            name: "prefill",
            default: "select",
            range: "select or window",
            doc: "select: every chunk selects (published); window: context chunks see global and local only, so that prefill is linear, and only question and answer select",
        },
        ParamSpec {
            name: "share",
            default: "layer",
            range: "layer or kv_head",
            doc: "layer: one selection for all heads of a layer (published); kv_head: one for each KV head",
        },
        ParamSpec {
            name: "selector",
            default: "clusters; exact with prefill=window or reference",
            range: "clusters, exact, low_bit, boxes or halving",
            doc: "how the best keys are found: exact scores every key; clusters looks into the most promising groups of near keys; low_bit scores every key by a copy in few bits; boxes looks into the blocks of 8 neighbours whose bound is best; halving walks down from chunks of 256 neighbours by a key that stands for each",
        },
        ParamSpec {
            name: "exact_below",
            default: "16384",
            range: "an integer of at least 0",
            doc: "up to as many keys every selector scores all in context chunks; questions and answers do up to eight times as many",
        },
        ParamSpec {
            name: "probes",
            default: "512",
            range: "an integer of at least 1",
            doc: "selector=clusters, boxes or halving: groups a query of the question or the answer looks into",
        },
        ParamSpec {
            name: "prefill_probes",
            default: "16",
            range: "an integer of at least 1",
            doc: "selector=clusters, boxes or halving: groups a query of the context looks into",
        },
        ParamSpec {
            name: "voters",
            default: "4; 1 with selector=exact",
            range: "an integer of at least 1",
            doc: "beyond exact_below keys, one token in so many of a context chunk votes",
        },
        ParamSpec {
            name: "spread_weight",
            default: "2",
            range: "a number of at least 0",
            doc: "selector=clusters: how much more a wide group promises than its centre",
        },
        ParamSpec {
            name: "bits",
            default: "4",
            range: "8, 4 or 2",
            doc: "selector=low_bit: bits of an element of a key's copy",
        },
        ParamSpec {
            name: "candidates",
            default: "4 * top_k",
            range: "an integer of at least top_k",
            doc: "selector=low_bit: keys of each query and head that are scored again as they are",
        },
        ParamSpec {
            name: "reuse",
            default: "off",
            range: "a number above 0 and up to 1, or off",
            doc: "an answer token takes the last search's keys while the cosine of its query with that search's is at least this",
        },
        ParamSpec {
            name: "positions",
            default: "contiguous",
            range: "contiguous or original",
            doc: "contiguous: slot rank in the view (published pe_original false); original: the tokens' own positions, an ablation that leaves the window",
        },
        ParamSpec {
            name: "reference",
            default: "off",
            range: "off, published or published-exact",
            doc: "published: as the released code (decode pairs head h with KV head h mod n_kv_heads, local is shortened so that the middle is a multiple of 128, one candidate per 128-key tile at top_k 4, first block whole); published-exact: the same with an exact top-k",
        },
    ],
};

/// Which code is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reference {
    Off,
    Published,
    PublishedExact,
}

/// ReAttention, configured.
#[derive(Debug)]
pub struct ReAttention {
    window: usize,
    n_heads: usize,
    /// KV heads of all layers, and the length of their keys.
    kv_heads: usize,
    head_dim: usize,
    global: usize,
    local: usize,
    span: usize,
    top_k: usize,
    clip: Option<usize>,
    chunk: usize,
    question_alone: bool,
    prefill_selects: bool,
    per_kv_head: bool,
    contiguous: bool,
    reference: Reference,
    voters: usize,
    selector: Box<dyn Selector>,
    clusters: ClusterSettings,
    low_bit: LowBitSettings,
    /// The least cosine at which a search is reused.
    reuse: Option<f32>,
}

impl ReAttention {
    /// From settings; see `reattn methods` for every parameter.
    ///
    /// # Errors
    /// When a value is out of range, values contradict each other, the view would exceed the trained window, or the
    /// model has sliding-window layers.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        if let Some(w) = shape.sliding_window {
            let reason = "they cannot attend to selected tokens outside it; use full";
            return Err(
                read.unsuited(format!("its layers slide over the last {} tokens, and {reason}", w.size))
            );
        }
        let window = shape.window;
        let small = if window < 1024 { (window / 32).max(1) } else { 32 };
        let local = read.count(
            "local",
            match window {
                16_416.. => 8192,
                8192.. => 4096,
                _ => (window / 4).max(1),
            },
        )?;
        let global = read.count("global", small)?;
        let span = read.count("span", small)?;
        let spans_that_fit = window.saturating_sub(global + local) / span.max(1);
        let clusters = ClusterSettings {
            reach: Reach {
                exact_below: read.count("exact_below", 16_384)?,
                prefill_probes: read.count("prefill_probes", 16)?,
                probes: read.count("probes", 512)?,
            },
            spread_weight: read.value("spread_weight", 2.0)?,
        };
        let reference = read.choice(
            "reference",
            &[
                ("off", Reference::Off),
                ("published", Reference::Published),
                ("published-exact", Reference::PublishedExact),
            ],
        )?;
        let prefill_selects = read.choice("prefill", &[("select", true), ("window", false)])?;
        // An index over keys that nobody searches until the question costs more than searching all keys then.
        let by_default_exact = reference != Reference::Off || !prefill_selects;
        let top_k = read.count("top_k", 4)?;
        let low_bit = LowBitSettings {
            reach: clusters.reach,
            bits: read.choice("bits", &[("4", 4), ("8", 8), ("2", 2)])?,
            candidates: read.count("candidates", 4 * top_k)?,
        };
        let reuse = match read.value("reuse", String::from("off"))?.as_str() {
            "off" => None,
            text => {
                let cosine = text.parse().ok().filter(|c| *c > 0.0 && *c <= 1.0);
                Some(cosine.ok_or_else(|| read.bad("reuse", text))?)
            }
        };
        let chosen = selector(&read, clusters, low_bit, reuse, by_default_exact)?;
        let method = Self {
            window,
            n_heads: shape.n_heads,
            kv_heads: shape.n_layers * shape.n_kv_heads,
            head_dim: shape.head_dim,
            global,
            local,
            span,
            top_k,
            clip: read.limit("clip", spans_that_fit.clamp(1, 256))?,
            chunk: read.count("chunk", (local / 2).clamp(1, 512))?,
            question_alone: read.value("question_alone", true)?,
            prefill_selects,
            voters: read.count("voters", if chosen.name() == "exact" { 1 } else { 4 })?,
            selector: chosen,
            clusters,
            low_bit,
            reuse,
            per_kv_head: read.choice("share", &[("layer", false), ("kv_head", true)])?,
            contiguous: read.choice("positions", &[("contiguous", true), ("original", false)])?,
            reference,
        };
        method.check(&read)?;
        Ok(method)
    }

    fn check(&self, read: &Reader) -> Result<(), MethodError> {
        for (name, value) in [
            ("local", self.local),
            ("span", self.span),
            ("chunk", self.chunk),
            ("voters", self.voters),
            ("probes", self.clusters.reach.probes),
            ("prefill_probes", self.clusters.reach.prefill_probes),
        ] {
            if value == 0 {
                return Err(read.bad(name, value));
            }
        }
        if self.clip == Some(0) {
            return Err(read.bad("clip", 0));
        }
        if self.top_k == 0 && !self.published() {
            return Err(read.bad("top_k", 0));
        }
        let most = if self.published() { self.local.saturating_sub(TILE) } else { self.local };
        if self.chunk > most {
            return Err(read.contradiction(format!(
                "chunk={} must not exceed {most} (local={}{}): a chunk lies within the local part; lower chunk or raise local",
                self.chunk,
                self.local,
                if self.published() { ", which reference shortens by up to 128" } else { "" }
            )));
        }
        if self.per_kv_head && self.published() {
            return Err(
                read.contradiction("share=kv_head does not exist in the published code; leave reference=off")
            );
        }
        if self.low_bit.candidates < self.top_k {
            return Err(read.bad("candidates", self.low_bit.candidates));
        }
        if self.reuse.is_some() && self.published() {
            return Err(read.contradiction("reuse does not exist in the published code; leave reference=off"));
        }
        if self.selector.name() != "exact" && self.published() {
            return Err(read.contradiction(format!(
                "selector={} does not exist in the published code; leave reference=off or set selector=exact",
                self.selector.name()
            )));
        }
        if !self.prefill_selects && !self.question_alone {
            return Err(read.contradiction(
                "prefill=window with question_alone=false would never let the question select; set one of them back",
            ));
        }
        // Without a clip the views are checked as they come; the full attention before the first one is checked here.
        let scope = self.global + self.local + self.clip.map_or(0, |clip| clip * self.span);
        if self.contiguous && scope > self.window {
            return Err(read.contradiction(format!(
                "global + local + clip * span = {scope} exceeds the model's window of {} positions; lower local or clip",
                self.window
            )));
        }
        Ok(())
    }

    fn published(&self) -> bool {
        self.reference != Reference::Off
    }

    /// Length of the local part once `n` tokens are cached (`n > global + local`).
    fn local_of(&self, n: usize) -> usize {
        if self.published() && self.top_k > 0 {
            self.local - (TILE - (n - self.global - self.local) % TILE)
        } else {
            self.local
        }
    }

    /// The search of a step over the middle.
    fn request(&self, step: &Step, middle: Range<usize>) -> TopKRequest {
        // The published kernel serves prefill with top_k 1 or 4; everything else goes through a dense product whose
        // reshape pairs the wrong heads.
        let kernel = step.kind != StepKind::Decode && matches!(self.top_k, 1 | 4);
        TopKRequest {
            keys: middle,
            k: self.top_k,
            pairing: if self.published() && !kernel {
                HeadPairing::Interleaved
            } else {
                HeadPairing::Grouped
            },
            rule: if self.reference == Reference::Published && kernel && self.top_k == 4 {
                TopKRule::BestPerTile { tile: TILE }
            } else {
                TopKRule::Exact
            },
        }
    }

    /// One selection for the layer, or one a KV head.
    fn selections(&mut self, call: &LayerCall, middle: Range<usize>) -> Vec<Selection> {
        let request = self.request(call.step, middle.clone());
        let data: Vec<f32>;
        let mut voters = call.q;
        let is_long = request.keys.len() > self.clusters.reach.exact_below;
        if call.step.kind == StepKind::Prefill && is_long && self.voters > 1 {
            let row = call.q.n_heads * call.q.head_dim;
            let tokens = call.q.data.chunks_exact(row).skip(self.voters / 2).step_by(self.voters);
            data = tokens.flatten().copied().collect();
            voters = Queries { data: &data, q_len: data.len() / row, ..call.q };
        }
        let best = self.selector.top_k(call, &voters, &request);
        let span =
            if self.published() { SpanRule::Published(self.span) } else { SpanRule::Centred(self.span) };
        let select = |votes: Vec<u32>| select(votes, self.clip, span, middle.clone());
        if !self.per_kv_head {
            return vec![select(best.indices)];
        }
        let group = call.q.n_heads / call.kv.n_kv_heads;
        let votes = |kv_head: usize| {
            let mut votes = Vec::with_capacity(best.q_len * group * best.k);
            for token in 0..best.q_len {
                for head in kv_head * group..(kv_head + 1) * group {
                    votes.extend_from_slice(best.row(token, head));
                }
            }
            votes
        };
        (0..call.kv.n_kv_heads).map(|kv_head| select(votes(kv_head))).collect()
    }

    /// `[global | selected | local]` at contiguous (or original) positions.
    fn segments(
        &self,
        call: &mut LayerCall,
        selected: Arc<[u32]>,
        local: usize,
    ) -> Result<Vec<Segment>, MethodError> {
        let Range { start, end } = call.step.tokens;
        let (q_len, n_selected) = (end - start, selected.len());
        let size = self.global + n_selected + local;
        if self.contiguous && size > self.window && !self.published() {
            return Err(MethodError::Contradiction {
                method: SPEC.name,
                reason: format!(
                    "the view of {size} tokens exceeds the model's window of {} positions; set clip to at most {}",
                    self.window,
                    self.window.saturating_sub(self.global + self.local) / self.span
                ),
            });
        }
        let rope = call.ropes.for_positions(if self.contiguous { size } else { end });
        let own = Position::Index { offset: 0 };
        let queries = if self.contiguous { Position::Rank { offset: (size - q_len) as i64 } } else { own };
        let segment = |keys: KeySet, before: usize| Segment {
            keys,
            band: Band::CAUSAL,
            key_position: if self.contiguous { Position::Rank { offset: before as i64 } } else { own },
            query_position: queries,
            key_rope: Arc::clone(&rope),
            query_rope: Arc::clone(&rope),
        };
        Ok(vec![
            segment(KeySet::Range(0..self.global), 0),
            segment(KeySet::Gathered(selected), self.global),
            segment(KeySet::Range(end - local..end), self.global + n_selected),
        ])
    }

    /// Everything, at its own positions.
    fn everything(&self, call: &mut LayerCall) -> View {
        let end = call.step.tokens.end;
        let rope = call.ropes.for_positions(end);
        let own = Position::Index { offset: 0 };
        let segment = Segment {
            keys: KeySet::Range(0..end),
            band: Band::CAUSAL,
            key_position: own,
            query_position: own,
            key_rope: Arc::clone(&rope),
            query_rope: rope,
        };
        View { segments: vec![vec![segment]], selections: Vec::new() }
    }
}

/// Makes a selector.
type MakeSelector = fn(ClusterSettings, LowBitSettings) -> Box<dyn Selector>;

/// Every selector by its name.
const SELECTORS: &[(&str, MakeSelector)] = &[
    ("clusters", |s, _| Box::new(Clusters::new(s))),
    ("exact", |_, _| Box::new(Exact)),
    ("low_bit", |_, s| Box::new(LowBit::new(s))),
    ("boxes", |s, _| Box::new(Boxes::new(s.reach))),
    ("halving", |s, _| Box::new(Halving::new(s.reach))),
];

/// The selector the settings name, its searches reused if they say so.
fn selector(
    read: &Reader,
    clusters: ClusterSettings,
    low_bit: LowBitSettings,
    reuse: Option<f32>,
    by_default_exact: bool,
) -> Result<Box<dyn Selector>, MethodError> {
    let make = match read.has("selector") {
        true => read.choice("selector", SELECTORS)?,
        false => SELECTORS[usize::from(by_default_exact)].1,
    };
    let selector = make(clusters, low_bit);
    Ok(match reuse {
        Some(least) => Box::new(Reuse::new(selector, least)),
        None => selector,
    })
}

impl Method for ReAttention {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        let either = |yes, a: &str, b: &str| if yes { a.to_string() } else { b.to_string() };
        vec![
            ("global", self.global.to_string()),
            ("local", self.local.to_string()),
            ("span", self.span.to_string()),
            ("top_k", self.top_k.to_string()),
            ("clip", self.clip.map_or("none".into(), |c| c.to_string())),
            ("chunk", self.chunk.to_string()),
            ("question_alone", self.question_alone.to_string()),
            ("prefill", either(self.prefill_selects, "select", "window")),
            ("share", either(self.per_kv_head, "kv_head", "layer")),
            ("selector", self.selector.name().into()),
            ("exact_below", self.clusters.reach.exact_below.to_string()),
            ("probes", self.clusters.reach.probes.to_string()),
            ("prefill_probes", self.clusters.reach.prefill_probes.to_string()),
            ("voters", self.voters.to_string()),
            ("spread_weight", self.clusters.spread_weight.to_string()),
            ("bits", self.low_bit.bits.to_string()),
            ("candidates", self.low_bit.candidates.to_string()),
            ("reuse", self.reuse.map_or("off".into(), |cosine| cosine.to_string())),
            ("positions", either(self.contiguous, "contiguous", "original")),
            (
                "reference",
                match self.reference {
                    Reference::Off => "off".into(),
                    Reference::Published => "published".into(),
                    Reference::PublishedExact => "published-exact".into(),
                },
            ),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        if self.published() && tokens.start == 0 {
            // The published driver: a first block that leaves a multiple of 128, chunks, and the last token alone.
            let last = tokens.end.saturating_sub(1);
            let first = match (last + self.local).checked_sub(self.global) {
                Some(ahead) => (self.global + self.local - (TILE - ahead % TILE)).min(last),
                None => last,
            };
            return chunks(0..first, first.max(1), StepKind::Prefill)
                .chain(chunks(first..last, self.chunk, StepKind::Prefill))
                .chain(chunks(last..tokens.end, 1, StepKind::Decode))
                .collect();
        }
        let apart = question.filter(|q| self.question_alone || *q == tokens.end);
        // Up to global + local tokens attention is full, and cutting it in chunks changes nothing.
        question_apart(tokens, apart, self.chunk, self.global + self.local)
    }

    fn learn(&mut self, new: &Appended) {
        let end = new.step.tokens.end;
        if end > self.global + self.local && self.top_k > 0 {
            self.selector.extend(new, self.global..end - self.local_of(end));
        }
    }

    fn truncate(&mut self, n: usize) {
        self.selector.truncate(n);
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        if end <= self.global + self.local || (self.published() && start == 0) {
            return Ok(self.everything(call));
        }
        let local = self.local_of(end);
        let searched = self.top_k > 0 && (self.prefill_selects || call.step.kind != StepKind::Prefill);
        let selections = if searched {
            self.selections(call, self.global..end - local)
        } else {
            vec![Selection::default()]
        };
        let segments = selections
            .iter()
            .map(|s| self.segments(call, Arc::clone(&s.tokens), local))
            .collect::<Result<_, _>>()?;
        Ok(View { segments, selections: if searched { selections } else { Vec::new() } })
    }

    fn is_view_stateless(&self) -> bool {
        self.reuse.is_none()
    }

    fn largest_step(&self) -> usize {
        if self.published() { self.chunk.max(self.global + self.local) } else { self.chunk }
    }

    fn extra_bytes(&self, n: usize) -> usize {
        if n <= self.clusters.reach.exact_below {
            return 0;
        }
        (n as f64 * self.kv_heads as f64 * self.selector.bytes_per_key(self.head_dim)) as usize
    }

    fn step_bytes(&self, q_len: usize) -> usize {
        // For each vote: index and score in the lists of ranges searched at once and in what comes of them (twice 8
        // bytes), and, while votes are counted, copies of indices, candidates, their votes and their order (20 bytes).
        q_len.saturating_mul(self.n_heads).saturating_mul(self.top_k).saturating_mul(36)
    }

    fn splits(&self) -> bool {
        self.question_alone && !self.published()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tiny_shape;

    fn build(pairs: &[&str], window: usize) -> Result<ReAttention, MethodError> {
        ReAttention::new(&Settings::parse(pairs).unwrap(), &ModelShape { window, ..tiny_shape() })
    }

    /// Settings of the paper follow from the window: LLaMA3-8B, then LLaMA3.1, Mistral-v0.3, Qwen2.5, InternLM2.5.
    #[test]
    fn defaults_are_the_published_settings() {
        let of = |window| {
            let m = build(&[], window).unwrap();
            (m.global, m.local, m.span, m.top_k, m.clip, m.chunk)
        };
        assert_eq!(of(8192), (32, 4096, 32, 4, Some(127), 512));
        assert_eq!(of(32_768), (32, 8192, 32, 4, Some(256), 512));
        assert_eq!(of(131_072), (32, 8192, 32, 4, Some(256), 512));
        assert_eq!(of(512), (16, 128, 16, 4, Some(23), 64));
        for window in [4, 16, 100, 512, 1000, 1024, 4096, 10_000, 20_000] {
            let m = build(&[], window).unwrap();
            assert!(m.global + m.local + m.clip.unwrap() * m.span <= window, "window {window}: {m:?}");
        }
    }

    /// Check values of the published driver: prompts of `n` tokens and their first block, chunks and selecting steps.
    #[test]
    fn published_schedule_has_the_published_blocks() {
        let a = build(&["reference=published"], 8192).unwrap();
        for (n, first, steps, last_chunk) in [
            (100_000, 4127, 190, 128),
            (4128, 4127, 2, 4127),
            (4129, 4000, 3, 128),
            (4200, 4071, 3, 128),
            (131_072, 4095, 250, 512),
        ] {
            let schedule = a.schedule(0..n, None);
            assert_eq!(schedule[0].tokens, 0..first, "{n}");
            let chunk = &schedule[schedule.len() - 2];
            assert_eq!((schedule.len(), chunk.tokens.len()), (steps, last_chunk), "{n}");
            assert_eq!(schedule.last().unwrap(), &Step { tokens: n - 1..n, kind: StepKind::Decode });
        }
        assert_eq!(a.local_of(99_871), 4095);
        assert_eq!(a.local_of(100_000), 3968);
        assert_eq!(a.local_of(100_001), 3969);
        assert_eq!(a.local_of(4129), 3969);
        let b = build(&["reference=published"], 131_072).unwrap();
        assert_eq!(b.schedule(0..1_000_000, None)[0].tokens.end, 8127);
        assert_eq!(b.local_of(1_000_000), 8096);
    }

    #[test]
    fn the_question_stands_alone_unless_told_otherwise() {
        let kinds = |m: &ReAttention, question| {
            m.schedule(0..400, question).iter().map(|s| (s.tokens.clone(), s.kind)).collect::<Vec<_>>()
        };
        let alone = kinds(&build(&[], 512).unwrap(), Some(330));
        let tail = [
            (272..330, StepKind::Prefill),
            (330..394, StepKind::Question),
            (394..399, StepKind::Question),
            (399..400, StepKind::Decode),
        ];
        assert_eq!(alone[alone.len() - 4..], tail);
        // 144 = global + local: the first selecting chunk starts there.
        assert!(
            alone.contains(&(128..144, StepKind::Prefill)) && alone.contains(&(144..208, StepKind::Prefill))
        );
        let together = kinds(&build(&["question_alone=false"], 512).unwrap(), Some(330));
        assert!(together.contains(&(336..399, StepKind::Prefill)));
        let context_only = kinds(&build(&["question_alone=false"], 512).unwrap(), Some(400));
        assert_eq!(context_only.last().unwrap(), &(336..400, StepKind::Prefill));
    }

    #[test]
    fn contradictions_are_refused() {
        for (bad, says) in [
            (vec!["chunk=129"], "chunk=129 must not exceed 128"),
            (vec!["span=0"], "span=0"),
            (vec!["top_k=0"], "top_k=0"),
            (vec!["clip=0"], "clip=0"),
            (vec!["clip=24"], "exceeds the model's window of 512"),
            (vec!["local=600"], "exceeds the model's window"),
            (vec!["share=heads"], "layer or kv_head"),
            (vec!["selector=magic"], "selector=magic must be clusters, exact, low_bit, boxes or halving"),
            (vec!["probes=0"], "probes=0"),
            (vec!["prefill_probes=0"], "prefill_probes=0"),
            (vec!["bits=3"], "bits=3 must be 8, 4 or 2"),
            (vec!["candidates=3"], "candidates=3 must be an integer of at least top_k"),
            (vec!["reuse=0"], "reuse=0 must be"),
            (vec!["reuse=1.5"], "reuse=1.5 must be"),
            (vec!["reference=published"], "must not exceed 0"),
            (
                vec!["reference=published-exact", "local=256", "chunk=64", "clip=1", "selector=boxes"],
                "selector=boxes does not exist in the published code",
            ),
            (vec!["top_k=four"], "top_k=four"),
            (vec!["span=18446744073709551615"], "span=18446744073709551615"),
            (vec!["clip=none", "local=900"], "exceeds the model's window of 512"),
            (vec!["prefill=window", "question_alone=false"], "never let the question select"),
        ] {
            let error = build(&bad, 512).unwrap_err().to_string();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
        let sliding = ModelShape {
            sliding_window: Some(crate::SlidingWindow { size: 64, first_layer: 0 }),
            ..tiny_shape()
        };
        assert!(matches!(ReAttention::new(&Settings::new(), &sliding), Err(MethodError::Unsuited { .. })));
    }
}
