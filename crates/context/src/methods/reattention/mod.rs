//! `reattention`: position-agnostic top-k over all cached keys, then ordinary attention at contiguous positions
//! (ICLR 2025, arXiv 2407.15176).
//!
//! While the context fits `global + local` tokens, attention is full. Beyond, each layer scores the raw queries of the
//! step against the raw keys of the middle, lets the best `top_k` keys of every query and head vote, keeps the `clip`
//! most voted ones, widens them to spans, and attends to `[global | spans | local]` at positions 0, 1, 2, ...

mod spec;
#[cfg(test)]
mod tests;

pub(super) use spec::SPEC;

use super::vote::{SpanRule, select, votes};
use super::{Appended, Awaited, LayerCall, Method, Selection, Step, StepKind, View, chunks, question_apart};
use crate::ModelShape;
use crate::select::{
    Boxes, ClusterSettings, Clusters, Exact, Halving, LowBit, LowBitSettings, Reach, Reuse, Selector,
};
use crate::settings::{MethodError, MethodSpec, Reader, Settings};
use reattention_kernels::{
    Band, DeviceError, HeadPairing, KeySet, Position, Queries, Search, Segment, TopKRequest, TopKRule,
    VoteRule,
};
use std::ops::Range;
use std::sync::Arc;

/// Keys in a tile of the published kernel; the published middle is a multiple of it.
const TILE: usize = 128;

/// Most candidates of a low-bit search: their list is kept in order, which takes time for each.
const MOST_CANDIDATES: usize = 1024;

/// Groups that `probes` and `prefill_probes` may ask for at most.
const MOST_PROBES: usize = 16_384;

/// Best keys of a query and head that a device finds at most.
const DEVICE_TOP_K: usize = 64;

/// The values of `vote`.
const VOTE_RULES: &[(&str, VoteRule)] =
    &[("count", VoteRule::Count), ("margin", VoteRule::Margin), ("softmax", VoteRule::Softmax)];

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
    /// KV heads of all layers that select, and the length of their keys.
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
    vote: VoteRule,
    selector: Box<dyn Selector>,
    /// Whether the settings name the selector.
    selector_is_set: bool,
    clusters: ClusterSettings,
    low_bit: LowBitSettings,
    /// The least cosine at which a search is reused.
    reuse: Option<f32>,
}

impl ReAttention {
    /// From settings; see `reattn methods` for every parameter.
    ///
    /// # Errors
    /// When a value is out of range, values contradict each other, or the view would exceed the trained
    /// window.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
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
        // Groups of neighbours hold fewer keys, and tell less of them.
        let by_place = matches!(read.value("selector", String::new())?.as_str(), "boxes" | "halving");
        let top_k = read.count("top_k", 4)?;
        let candidates = |of_each: usize| {
            let most = MOST_CANDIDATES.max(top_k);
            read.count("candidates", top_k.saturating_mul(of_each).min(most))
        };
        let clusters = ClusterSettings {
            reach: Reach {
                exact_below: read.count("exact_below", 16_384)?,
                prefill_probes: read.count("prefill_probes", if by_place { 16 } else { 12 })?,
                probes: read.count("probes", if by_place { 512 } else { 64 })?,
            },
            spread_weight: read.value("spread_weight", 2.0)?,
            candidates: candidates(128)?,
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
        let low_bit = LowBitSettings {
            reach: clusters.reach,
            bits: read.choice("bits", &[("4", 4), ("8", 8), ("2", 2)])?,
            candidates: candidates(4)?,
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
            kv_heads: shape.full_layers() * shape.n_kv_heads,
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
            vote: match read.has("vote") {
                true => read.choice("vote", VOTE_RULES)?,
                // The published code counts, and a single key has no lead over another.
                false if reference != Reference::Off || top_k == 1 => VoteRule::Count,
                false => VoteRule::Margin,
            },
            selector: chosen,
            selector_is_set: read.has("selector"),
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
            if value == 0 || name.ends_with("probes") && value > MOST_PROBES {
                return Err(read.bad(name, value));
            }
        }
        let weight = self.clusters.spread_weight;
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(read.bad("spread_weight", weight));
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
        if !(self.top_k..=self.top_k.max(MOST_CANDIDATES)).contains(&self.low_bit.candidates) {
            return Err(read.bad("candidates", self.low_bit.candidates));
        }
        if self.vote != VoteRule::Count && self.published() {
            return Err(
                read.contradiction("the published code counts votes; leave vote=count or reference=off")
            );
        }
        if self.vote == VoteRule::Margin && self.top_k == 1 {
            return Err(read.contradiction(
                "vote=margin needs a second key to compare the first with; set top_k=2 or more",
            ));
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
        let spans = self.clip.map_or(0, |clip| clip.saturating_mul(self.span));
        let scope = spans.saturating_add(self.global + self.local);
        if self.contiguous && scope > self.window {
            return Err(read.contradiction(format!(
                "global + local + clip * span = {scope} exceeds the model's window of {} positions; lower local or clip",
                self.window
            )));
        }
        Ok(())
    }

    /// Keys of each query and head that the selector scores after it has found them by few bits.
    fn candidates(&self) -> usize {
        if self.selector.name() == "low_bit" { self.low_bit.candidates } else { self.clusters.candidates }
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
        let tiles = self.reference == Reference::Published && kernel && self.top_k == 4;
        TopKRequest {
            // No more than there are; the published kernel fills up what is missing.
            k: if tiles { self.top_k } else { self.top_k.min(middle.len()) },
            keys: middle,
            pairing: if self.published() && !kernel {
                HeadPairing::Interleaved
            } else {
                HeadPairing::Grouped
            },
            rule: if tiles { TopKRule::BestPerTile { tile: TILE } } else { TopKRule::Exact },
        }
    }

    /// The tokens of a step that vote on `keys` keys: the first, and the stride from one to the next.
    fn voters(&self, step: &Step, keys: usize) -> (usize, usize) {
        let is_long = keys > self.clusters.reach.exact_below;
        if step.kind == StepKind::Prefill && is_long && self.voters > 1 {
            // The last chunk may be shorter than the stride, and still needs a voter.
            return ((self.voters / 2).min(step.tokens.len().saturating_sub(1)), self.voters);
        }
        (0, 1)
    }

    /// Which tokens a span covers.
    fn spans(&self) -> SpanRule {
        if self.published() { SpanRule::Published(self.span) } else { SpanRule::Centred(self.span) }
    }

    /// Whether a step that sees more than `global + local` tokens chooses among them.
    fn searches(&self, step: &Step) -> bool {
        self.top_k > 0 && (self.prefill_selects || step.kind != StepKind::Prefill)
    }

    /// One selection for the layer, or one a KV head.
    fn selections(&mut self, call: &LayerCall, middle: Range<usize>) -> Result<Vec<Selection>, DeviceError> {
        let request = self.request(call.step, middle.clone());
        let data: Vec<f32>;
        let mut voters = call.q;
        let (first, stride) = self.voters(call.step, request.keys.len());
        if stride > 1 {
            let row = call.q.n_heads * call.q.head_dim;
            let tokens = call.q.data.chunks_exact(row).skip(first).step_by(stride);
            data = tokens.flatten().copied().collect();
            voters = Queries { data: &data, q_len: data.len() / row, ..call.q };
        }
        let best = self.selector.top_k(call, &voters, &request)?;
        let scale = call.rule.scale;
        let lists = if self.per_kv_head { call.kv.n_kv_heads } else { 1 };
        let heads = call.q.n_heads / lists;
        let votes_of = |list: usize| {
            let rows =
                (0..best.q_len).flat_map(|token| (list * heads..(list + 1) * heads).map(move |h| (token, h)));
            rows.flat_map(|(token, head)| votes(self.vote, &best, token, head, scale)).collect()
        };
        let select = |list| select(votes_of(list), self.clip, self.spans(), middle.clone());
        Ok((0..lists).map(select).collect())
    }

    /// `[global | selected | local]` at contiguous (or original) positions, for at most `most_selected` selected tokens.
    fn segments(
        &self,
        call: &mut LayerCall,
        selected: Arc<[u32]>,
        most_selected: usize,
        local: usize,
    ) -> Result<Vec<Segment>, MethodError> {
        let Range { start, end } = call.step.tokens;
        let (q_len, n_selected) = (end - start, selected.len());
        let size = self.global + most_selected + local;
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
        let rope = call.ropes.for_positions(if self.contiguous { size } else { call.ropes.reading(end) })?;
        let own = Position::Index { offset: 0 };
        let first = self.global + n_selected + local - q_len;
        let queries = if self.contiguous { Position::Rank { offset: first as i64 } } else { own };
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
    fn everything(&self, call: &mut LayerCall) -> Result<View, MethodError> {
        let end = call.step.tokens.end;
        let rope = call.ropes.for_positions(end)?;
        let own = Position::Index { offset: 0 };
        let segment = Segment {
            keys: KeySet::Range(0..end),
            band: Band::CAUSAL,
            key_position: own,
            query_position: own,
            key_rope: Arc::clone(&rope),
            query_rope: rope,
        };
        Ok(View::new(vec![vec![segment]]))
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
            ("vote", VOTE_RULES.iter().find(|r| r.1 == self.vote).map_or("count", |r| r.0).to_string()),
            ("spread_weight", self.clusters.spread_weight.to_string()),
            ("bits", self.low_bit.bits.to_string()),
            ("candidates", self.candidates().to_string()),
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

    fn learn(&mut self, new: &Appended) -> Result<(), MethodError> {
        let end = new.step.tokens.end;
        if end > self.global + self.local && self.top_k > 0 {
            self.selector.extend(new, self.global..end - self.local_of(end))?;
        }
        Ok(())
    }

    fn truncate(&mut self, n: usize) {
        // The last tokens are local from here on, and no longer searched.
        self.selector.truncate(n.saturating_sub(self.local));
    }

    fn pin(&mut self, n: usize) {
        self.selector.pin(n.saturating_sub(self.local));
    }

    fn unpin(&mut self) {
        self.selector.unpin();
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        if end <= self.global + self.local || (self.published() && start == 0) {
            return self.everything(call);
        }
        let local = self.local_of(end);
        let searched = self.searches(call.step);
        let selections = if searched {
            self.selections(call, self.global..end - local)?
        } else {
            vec![Selection::default()]
        };
        let segments = selections
            .iter()
            .map(|s| self.segments(call, Arc::clone(&s.tokens), s.tokens.len(), local))
            .collect::<Result<_, _>>()?;
        let selections = if searched { selections } else { Vec::new() };
        Ok(View { selections, ..View::new(segments) })
    }

    fn is_view_stateless(&self) -> bool {
        self.reuse.is_none()
    }

    fn suits_device(&self) -> bool {
        let is_plain = !self.published() && !self.per_kv_head && self.reuse.is_none();
        let is_there = matches!(self.selector.name(), "exact" | "boxes") || !self.selector_is_set;
        is_plain && is_there && self.clip.is_some() && self.top_k <= DEVICE_TOP_K
    }

    fn settle_on_device(&mut self) {
        // A search of the device reads every key, or boxes that it keeps itself.
        if self.selector.name() != "boxes" {
            self.selector = Box::new(Exact);
        }
    }

    fn device_view(&mut self, call: &mut LayerCall) -> Result<(View, Option<Awaited>), MethodError> {
        let end = call.step.tokens.end;
        let Some(clip) = self.clip.filter(|_| end > self.global + self.local && self.searches(call.step))
        else {
            return Ok((self.view(call)?, None));
        };
        let local = self.local_of(end);
        let request = self.request(call.step, self.global..end - local);
        let (first_voter, voter_stride) = self.voters(call.step, request.keys.len());
        let most = clip.saturating_mul(self.span).min(request.keys.len());
        let segments = self.segments(call, Arc::from([]), most, local)?;
        let scale = call.rule.scale;
        let offsets = self.spans().offsets();
        let reach = self.clusters.reach;
        let kind = call.step.kind;
        let is_near = self.selector.name() == "boxes" && !reach.is_exact(kind, request.keys.len());
        let boxes = is_near.then(|| reach.probes(kind));
        let vote = self.vote;
        let search = Search { request, boxes, first_voter, voter_stride, vote, scale, clip, offsets };
        Ok((View::new(vec![segments]), Some(Awaited { search, index: 1, moves: self.contiguous })))
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
        // bytes), and, while votes are counted, weighed and sorted copies, candidates, their votes and their order (40 bytes).
        let votes = self.top_k.saturating_mul(56);
        // For each group looked into: twice (groups, and what holds them or candidates in them) index and score, with as much
        // while they are collected, the score of its centre, and where it lies.
        let looks = match self.selector.name() {
            "exact" => 0,
            _ => self.clusters.reach.probes * 76 + self.candidates() * 40,
        };
        q_len.saturating_mul(self.n_heads).saturating_mul(votes.saturating_add(looks))
    }

    fn splits(&self) -> bool {
        self.question_alone && !self.published()
    }
}
