//! `mesa`: a prompt read in chunks that know only the first one and themselves, and stairs of positions at its end
//! (Mesa-Extrapolation, arXiv 2410.15859).
//!
//! (a) The tokens of a middle chunk see the first chunk and their own; those of the last chunk, of the question and of the
//! answer see everything. (b) A middle chunk stands right behind the first one. Where everything is seen and it is more than
//! `train_length` tokens, the tokens from a border on stand at their own positions, and older ones on stairs that lead down
//! from there, `stair` tokens a step. Queries grow with the logarithm of their index. (c) Everything is kept. (d) The width of
//! the middle chunks is chosen so that the last chunk is neither too short nor much too long.

use super::parts::{CHUNK, OWN, at_least_one, chunk, log_scaled_bytes, log_scales, segment, too_far};
use super::{LayerCall, Method, Step, StepKind, View, chunks};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Reader, Settings};
use reattention_kernels::{Band, Position};
use std::ops::Range;

/// Tokens that a last chunk may be longer than `last` before the middle is cut anew.
const REST: i64 = 200;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "mesa",
    paper: "Mesa-Extrapolation: A Weave Position Encoding Method for Enhanced Extrapolation in LLMs (arXiv 2410.15859)",
    summary: "chunks that see the first one and themselves; the last one and the answer see everything on stairs of positions",
    cost: "time O(n) in prefill but for the last chunk, and O(n) per answer token; memory O(n)",
    suits: "all models, for texts of up to about (window - train_length) * stair tokens",
    params: &[
        ParamSpec {
            name: "train_length",
            default: "half the window",
            range: "an integer of at least 2, at most the window",
            doc: "positions used before stairs begin (T); the rest of the window is for the stairs",
        },
        ParamSpec {
            name: "global",
            default: "100, at most a twentieth of train_length",
            range: "an integer of at least 1",
            doc: "tokens of the first chunk, which every chunk sees (published first_chunk)",
        },
        ParamSpec {
            name: "global_room",
            default: "as global",
            range: "an integer of at least 0",
            doc: "further positions that the width of the middle chunks leaves unused (published first_chunk_cache)",
        },
        ParamSpec {
            name: "last",
            default: "512, at most a quarter of train_length",
            range: "an integer of at least 0",
            doc: "tokens that the last chunk has at least, reserve included (published last_context)",
        },
        ParamSpec {
            name: "reserve",
            default: "50, at most an eighth of train_length",
            range: "an integer below train_length",
            doc: "answer tokens that the last chunk leaves room for (published max_token_len)",
        },
        ParamSpec {
            name: "stair",
            default: "50",
            range: "an integer of at least 1",
            doc: "tokens that share a position on the stairs (published push_width)",
        },
        ParamSpec {
            name: "width",
            default: "train_length - global - global_room",
            range: "an integer of at least 1",
            doc: "tokens of a middle chunk where the prompt is shorter than train_length - reserve (published context_window_length); longer ones choose it",
        },
        CHUNK,
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "the published code: the question is not set apart, the border of the stairs jumps whenever the length passes a multiple of the width, so that even the newest tokens share positions, and texts of any length are read",
        },
    ],
};

/// Chunks under a common first one, then stairs.
#[derive(Debug)]
pub struct Mesa {
    train_length: usize,
    global: usize,
    global_room: usize,
    last: usize,
    reserve: usize,
    stair: usize,
    width: usize,
    chunk: usize,
    reference: bool,
    shape: ModelShape,
    /// The prompts announced so far: their tokens, and the one where the question begins.
    prompts: Vec<(Range<usize>, Option<usize>)>,
    /// What follows from them.
    plan: Plan,
}

/// How the prompt that is being read, or was read last, is cut.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    /// Its parts, in order.
    parts: Vec<Part>,
    /// Tokens of a middle chunk.
    width: usize,
    /// The first token that stands at its own position once there are stairs, while less than a width behind the end.
    border: usize,
}

impl Plan {
    /// Before the first prompt, with middle chunks of `width` tokens.
    fn none(width: usize) -> Self {
        Self { parts: Vec::new(), width, border: 0 }
    }
}

/// Tokens that the published code feeds at once.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    tokens: Range<usize>,
    /// Whether they see the first chunk and themselves only.
    is_middle: bool,
}

impl Mesa {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range or values contradict each other.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        let train_length = read.count("train_length", (shape.window / 2).max(2))?;
        if train_length < 2 || train_length > shape.window {
            return Err(read.bad("train_length", train_length));
        }
        let global = read.count("global", 100.min(train_length / 20).max(1))?;
        let global_room = read.count("global_room", global)?;
        let last = read.count("last", 512.min(train_length / 4))?;
        let width = read.count("width", train_length.saturating_sub(global + global_room).max(1))?;
        let method = Self {
            train_length,
            global,
            global_room,
            last,
            reserve: read.count("reserve", 50.min(train_length / 8))?,
            stair: read.count("stair", 50)?,
            width,
            chunk: chunk(&read, shape)?,
            reference: read.value("reference", false)?,
            shape: shape.clone(),
            prompts: Vec::new(),
            plan: Plan::none(width),
        };
        method.check(&read)?;
        Ok(method)
    }

    fn check(&self, read: &Reader) -> Result<(), MethodError> {
        at_least_one(read, &[("global", self.global), ("stair", self.stair), ("width", self.width)])?;
        if self.global + self.global_room >= self.train_length {
            return Err(read.contradiction(format!(
                "global={} and global_room={} leave no room for a chunk in train_length={}; lower global",
                self.global, self.global_room, self.train_length
            )));
        }
        if self.reserve >= self.train_length {
            return Err(read.bad("reserve", self.reserve));
        }
        Ok(())
    }

    /// Tokens of a middle chunk of a context that is read from `start` to `end` (the authors' DynamicSplit).
    fn split(&self, start: usize, end: usize) -> usize {
        if end < self.train_length - self.reserve {
            return self.width;
        }
        let most = (self.train_length - self.global - self.global_room) as i64;
        let middle = (end + self.reserve) as i64 - (self.last + start.max(self.global)) as i64;
        let (chunks, rest) = (middle.div_euclid(most), middle.rem_euclid(most));
        let width = if rest < REST || chunks < 0 { most } else { middle / (chunks + 1) };
        width as usize
    }

    /// How a prompt is cut; see [`Method::schedule`].
    fn plan(&self, tokens: Range<usize>, question: Option<usize>) -> Plan {
        let Range { start, end } = tokens;
        // A context is split as if its question were not there, so that it may as well follow later.
        let context = question.filter(|_| !self.reference).unwrap_or(end).clamp(start, end);
        let width = self.split(start, context);
        let mut parts = Vec::new();
        let part = |tokens: Range<usize>, is_middle| Part { tokens, is_middle };
        let mut at = start;
        if at < self.global.min(context) {
            at = self.global.min(context);
            parts.push(part(start..at, false));
        }
        while at + width < context {
            parts.push(part(at..at + width, true));
            at += width;
        }
        parts.extend((at < context).then(|| part(at..context, false)));
        parts.extend((context < end).then(|| part(context..end, false)));
        if start > 0 && !parts.iter().any(|p| p.is_middle) {
            // A question, or a little more text: the stairs stand where what was read before has put them.
            return Plan { parts, ..self.plan };
        }
        Plan { parts, width, border: published_border(context.max(1), width) }
    }

    /// The part of the prompt that token `token` belongs to; `None` for answers and steps of the caller's own making.
    fn part(&self, token: usize) -> Option<&Part> {
        let i = self.plan.parts.partition_point(|p| p.tokens.end <= token);
        self.plan.parts.get(i).filter(|p| p.tokens.contains(&token))
    }

    /// The first token that stands at its own position where `n` tokens are seen; 0 before stairs begin.
    fn border(&self, n: usize) -> usize {
        if n <= self.train_length {
            0
        } else if self.reference {
            published_border(n, self.plan.width)
        } else {
            self.plan.border.max((n + 1).saturating_sub(self.plan.width)).max(1)
        }
    }

    /// The largest distance among `n` tokens seen at once.
    fn largest(&self, n: usize) -> usize {
        let border = self.border(n).max(1);
        n - border + (border - 1) / self.stair
    }

    /// Refuses `n` tokens seen at once whose distances leave the `served` positions.
    fn check_reach(&self, n: usize, served: usize) -> Result<(), MethodError> {
        let largest = self.largest(n);
        if largest < served || self.reference {
            return Ok(());
        }
        let least = n.div_ceil(served.saturating_sub(self.plan.width).max(1));
        let advice = format!("set stair={least} or more, or lower train_length={}", self.train_length);
        Err(too_far(&SPEC, n, largest, served, advice))
    }
}

/// The border that the published code has at `n` tokens: the last one that follows a multiple of `width` tokens.
fn published_border(n: usize, width: usize) -> usize {
    (n - 1) / width * width + 1
}

impl Method for Mesa {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("train_length", self.train_length.to_string()),
            ("global", self.global.to_string()),
            ("global_room", self.global_room.to_string()),
            ("last", self.last.to_string()),
            ("reserve", self.reserve.to_string()),
            ("stair", self.stair.to_string()),
            ("width", self.width.to_string()),
            ("chunk", self.chunk.to_string()),
            ("reference", self.reference.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        let end = tokens.end;
        // The last token of a prompt is fed alone, as those of the answer are.
        let alone = if self.reference || question == Some(end) { end } else { end.saturating_sub(1) };
        let asked = question.filter(|_| !self.reference).unwrap_or(end);
        let mut steps = Vec::new();
        for Part { tokens, .. } in self.plan(tokens, question).parts {
            let kind = if tokens.start >= asked { StepKind::Question } else { StepKind::Prefill };
            let cut = alone.clamp(tokens.start, tokens.end);
            steps.extend(chunks(tokens.start..cut, self.chunk, kind));
            steps.extend(chunks(cut..tokens.end, self.chunk, StepKind::Decode));
        }
        steps
    }

    fn expect(&mut self, tokens: Range<usize>, question: Option<usize>) {
        self.truncate(tokens.start);
        self.plan = self.plan(tokens.clone(), question);
        self.prompts.push((tokens, question));
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let global = self.global;
        let part = self.part(start).filter(|p| end <= p.tokens.end);
        // What the end of a prompt cannot look at need not be read.
        let last = self.plan.parts.last().filter(|_| part.is_some());
        self.check_reach(last.map_or(end, |p| p.tokens.end), call.ropes.config().stretched_window())?;
        if let Some(part) = part.filter(|p| p.is_middle) {
            let at = part.tokens.start;
            let rope = call.ropes.for_positions(global + end - at)?;
            let slot = Position::Index { offset: global as i64 - at as i64 };
            let segments = vec![
                segment(0..global, Band::CAUSAL, OWN, slot, &rope),
                segment(at..end, Band::CAUSAL, slot, slot, &rope),
            ];
            let scales = log_scales(call.q.q_len, self.train_length, global + start - at);
            return Ok(View { scales, ..View::new(vec![segments]) });
        }
        // All steps of a part share the border that it has as a whole.
        let seen = part.map_or(end, |p| p.tokens.end);
        let border = self.border(seen);
        let rope = call.ropes.for_distances(self.largest(seen) + 1, seen)?;
        let stairs = Position::Stair { border, width: self.stair };
        let scales = log_scales(call.q.q_len, self.train_length, start);
        let segments = vec![segment(0..end, Band::CAUSAL, stairs, stairs, &rope)];
        Ok(View { scales, ..View::new(vec![segments]) })
    }

    fn truncate(&mut self, n: usize) {
        if self.prompts.last().is_none_or(|(tokens, _)| tokens.end <= n) {
            return;
        }
        // Width and border are those of the prompts as far as they are still there.
        self.prompts.retain(|(tokens, _)| tokens.start < n);
        if let Some((tokens, question)) = self.prompts.last_mut() {
            tokens.end = tokens.end.min(n);
            *question = question.map(|at| at.min(n));
        }
        self.plan = Plan::none(self.width);
        for (tokens, question) in &self.prompts {
            self.plan = self.plan(tokens.clone(), *question);
        }
    }

    fn is_view_stateless(&self) -> bool {
        true
    }

    fn suits_device(&self) -> bool {
        true
    }

    fn largest_step(&self) -> usize {
        self.chunk
    }

    fn step_bytes(&self, q_len: usize) -> usize {
        log_scaled_bytes(&self.shape, q_len)
    }

    fn splits(&self) -> bool {
        !self.reference
    }
}

#[cfg(test)]
mod tests {
    use super::super::parts::tests::{distances, segments_of, view_of};
    use super::*;
    use crate::tests::tiny_shape;

    fn method(pairs: &[&str]) -> Result<Mesa, MethodError> {
        Mesa::new(&Settings::parse(pairs).unwrap(), &tiny_shape())
    }

    /// Starts and widths of the parts of a prompt.
    fn cut(m: &Mesa, tokens: Range<usize>, question: Option<usize>) -> Vec<(usize, usize, bool)> {
        let parts = m.plan(tokens, question).parts;
        parts.iter().map(|p| (p.tokens.start, p.tokens.len(), p.is_middle)).collect()
    }

    /// Spec `methods.md`, sections 4 and 9.
    #[test]
    fn distances_are_the_published_ones() {
        let settings = ["train_length=16", "global=1", "last=2", "reserve=1", "stair=3", "width=8"];
        for reference in ["reference=false", "reference=true"] {
            let mut m = method(&[&settings[..], &[reference]].concat()).unwrap();
            m.plan.border = 17;
            let segments = segments_of(&mut m, 19..20, StepKind::Decode).unwrap();
            let want = [8, 8, 7, 7, 7, 6, 6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 1, 0];
            assert_eq!(distances(20, &segments), want);
            let segments = segments_of(&mut m, 24..25, StepKind::Decode).unwrap();
            let end = if reference.ends_with("true") {
                [2, 2, 2, 1, 1, 1, 0, 0, 0]
            } else {
                [7, 7, 6, 5, 4, 3, 2, 1, 0]
            };
            assert_eq!(distances(25, &segments)[16..], end);
        }
    }

    /// Section 4: the published defaults, whose last chunk holds 50 places for the answer.
    #[test]
    fn long_prompts_are_cut_as_published() {
        let shape = ModelShape { window: 4096, ..tiny_shape() };
        let m = Mesa::new(&Settings::new().set("last", 800), &shape).unwrap();
        assert_eq!((m.train_length, m.global, m.global_room, m.reserve), (2048, 100, 100, 50));
        for (n, width, middle, last) in
            [(8192, 1835, 4, 802), (16_000, 1683, 9, 803), (32_000, 1832, 17, 806)]
        {
            let parts = cut(&m, 0..n, None);
            assert_eq!(parts[0], (0, 100, false));
            assert!(parts[1..=middle].iter().all(|p| p.1 == width && p.2), "{parts:?}");
            assert_eq!(parts[middle + 1..], [(n + 50 - last, last - 50, false)]);
        }
        // Shorter ones know everything: one chunk after the first.
        assert_eq!(cut(&m, 0..1900, None), [(0, 100, false), (100, 1800, false)]);
    }

    #[test]
    fn a_question_may_follow_later() {
        let (mut once, mut twice) = (method(&[]).unwrap(), method(&[]).unwrap());
        for (context, end) in [(3000, 3040), (900, 1300), (100, 140), (250, 290)] {
            once.expect(0..end, Some(context));
            let whole = once.schedule(0..end, Some(context));
            let mut halves = twice.schedule(0..context, Some(context));
            twice.expect(0..context, Some(context));
            for step in &halves {
                let [a, b] =
                    [&mut once, &mut twice].map(|m| segments_of(m, step.tokens.clone(), step.kind).unwrap());
                assert_eq!(format!("{a:?}"), format!("{b:?}"));
            }
            halves.extend(twice.schedule(context..end, Some(context)));
            twice.expect(context..end, Some(context));
            assert_eq!(whole, halves);
            for n in [context, end - 1, end, end + 30] {
                let [a, b] =
                    [&mut once, &mut twice].map(|m| segments_of(m, n..n + 1, StepKind::Decode).unwrap());
                assert_eq!(distances(n + 1, &a), distances(n + 1, &b));
            }
        }
    }

    #[test]
    fn answers_never_fall_on_the_stairs_and_stay_in_the_window() {
        let mut m = method(&[]).unwrap();
        m.expect(0..3000, None);
        for n in 3001..3600 {
            let segments = segments_of(&mut m, n - 1..n, StepKind::Decode).unwrap();
            let row = distances(n, &segments);
            assert!(row[0] < 512);
            for (near, distance) in row.iter().rev().take(50).enumerate() {
                assert_eq!(*distance, near as i64);
            }
        }
        let error = segments_of(&mut m, 30_000..30_001, StepKind::Decode).unwrap_err().to_string();
        m.expect(0..30_001, None);
        assert!(
            segments_of(&mut m, 0..5, StepKind::Prefill).is_err(),
            "the end of the prompt is known to be too far"
        );
        let stair = error.split(' ').find(|w| w.starts_with("stair=")).unwrap();
        let mut higher = method(&[stair]).unwrap();
        assert!(segments_of(&mut higher, 30_000..30_001, StepKind::Decode).is_ok(), "{error}");
    }

    #[test]
    fn a_middle_chunk_sees_the_first_one_and_itself() {
        let mut m = method(&[]).unwrap();
        m.expect(0..3000, None);
        let part = m.plan.parts[3].tokens.clone();
        assert!(m.plan.parts[3].is_middle);
        // Wherever the chunk is cut.
        for from in [part.start, part.start + 70] {
            let tokens = from..part.end;
            let view = view_of(&mut m, tokens, StepKind::Prefill).unwrap();
            let query = part.end - 1;
            let seen: Vec<usize> = (0..part.end)
                .filter(|k| view.segments[0].iter().any(|s| s.keys.contains(*k) && s.band.sees(query, *k)))
                .collect();
            let want: Vec<usize> = (0..m.global).chain(part.clone()).collect();
            assert_eq!(seen, want);
            let positions: Vec<i64> = view.segments[0]
                .iter()
                .flat_map(|s| (0..s.keys.len()).map(|r| s.key_position.at(s.keys.token(r), r)))
                .collect();
            assert_eq!(positions, (0..want.len() as i64).collect::<Vec<_>>());
            assert_eq!(view.scales, None, "a chunk lies within train_length");
        }
    }

    #[test]
    fn rolled_back_contexts_go_on() {
        let mut m = method(&[]).unwrap();
        m.expect(0..3000, None);
        m.truncate(700);
        assert!(m.plan.parts.iter().all(|p| p.tokens.end <= 700));
        let row = distances(701, &segments_of(&mut m, 700..701, StepKind::Decode).unwrap());
        // The stairs stand where a prompt of 700 tokens has put them.
        let near = 701 - m.plan.border;
        assert!(near > 0 && row.iter().rev().take(near).enumerate().all(|(near, d)| *d == near as i64));
    }

    /// What was read and forgotten leaves no trace: neither in the width of chunks nor in the border of the stairs.
    #[test]
    fn a_rolled_back_context_stands_as_one_that_was_never_read_further() {
        let (first, second) = (0..900, 900..2600);
        for to in [900, 1, 500, 899] {
            let mut back = method(&[]).unwrap();
            back.expect(first.clone(), None);
            back.expect(second.clone(), Some(2500));
            back.expect(2700..6000, None);
            back.truncate(to);
            let mut fresh = method(&[]).unwrap();
            fresh.expect(0..to, None);
            assert_eq!((&back.plan, &back.prompts), (&fresh.plan, &fresh.prompts), "at {to}");
            let next = to..to + 3000;
            for m in [&mut back, &mut fresh] {
                m.expect(next.clone(), Some(next.end - 40));
            }
            assert_eq!(back.schedule(next.clone(), None), fresh.schedule(next.clone(), None));
            for tokens in [to..to + 5, to + 1500..to + 1510, next.end - 1..next.end, next.end..next.end + 1] {
                let [a, b] = [&mut back, &mut fresh]
                    .map(|m| segments_of(m, tokens.clone(), StepKind::Decode).unwrap());
                assert_eq!(format!("{a:?}"), format!("{b:?}"), "{tokens:?} after a return to {to}");
            }
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in [
            "train_length=1",
            "train_length=513",
            "global=0",
            "global=130",
            "reserve=256",
            "stair=0",
            "width=0",
            "chunk=0",
        ] {
            assert!(method(&[bad]).is_err(), "{bad}");
        }
    }
}
