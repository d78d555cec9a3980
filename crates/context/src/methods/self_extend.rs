//! `self-extend`: near tokens at true distances, far ones in groups that share a position (arXiv 2401.01325).
//!
//! (a) A query sees every earlier token. (b) Distances below `local` are true. Beyond, positions are those of groups of
//! `group` tokens, `⌊i / group⌋ - ⌊j / group⌋`, moved by `local - ⌊local / group⌋` so that they go on where the true ones
//! end. (c) Everything is kept. (d) The prompt is fed in chunks of any size.

use super::parts::{CHUNK, OWN, at_least_one, chunk, log_scaled_bytes, log_scales, segment, too_far};
use super::{LayerCall, Method, Step, View, question_apart};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::{Band, Position};
use std::ops::Range;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "self-extend",
    paper: "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning (arXiv 2401.01325)",
    summary: "every token, near ones at true distances, far ones in groups that share a position",
    cost: "time O(n²) in prefill and O(n) per answer token; memory O(n)",
    suits: "all models, for texts of up to (window - local) * group + local tokens",
    params: &[
        ParamSpec {
            name: "group",
            default: "8",
            range: "an integer of at least 1",
            doc: "tokens that share a position far away; the authors take 2 to 64",
        },
        ParamSpec {
            name: "local",
            default: "a quarter of the window",
            range: "an integer of at least 1, below the window",
            doc: "tokens at true distances (published neighbor window), the query itself included; best a multiple of group",
        },
        ParamSpec {
            name: "log_scale",
            default: "off",
            range: "off, or an integer of at least 2",
            doc: "multiplies the query of token i by max(1, ln(i + 1) / ln(log_scale)), which keeps attention sharp among many tokens; the authors set it to the window",
        },
        CHUNK,
    ],
};

/// Grouped positions beyond a window.
#[derive(Debug)]
pub struct SelfExtend {
    group: usize,
    local: usize,
    log_scale: Option<usize>,
    chunk: usize,
    shape: ModelShape,
    /// Tokens there will be at the end of the prompt that is being read.
    expected: usize,
}

impl SelfExtend {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        let group = read.count("group", 8)?;
        let local = read.count("local", (shape.window / 4).max(1))?;
        at_least_one(&read, &[("group", group), ("local", local)])?;
        if local >= shape.window {
            return Err(read.bad("local", local));
        }
        let log_scale = match read.value("log_scale", String::from("off"))?.as_str() {
            "off" => None,
            text => match read.count("log_scale", 0)? {
                0 | 1 => return Err(read.bad("log_scale", text)),
                base => Some(base),
            },
        };
        Ok(Self { group, local, log_scale, chunk: chunk(&read, shape)?, shape: shape.clone(), expected: 0 })
    }

    /// The largest distance among `n` tokens with groups of `group`.
    fn largest(&self, n: usize, group: usize) -> usize {
        if n > self.local { (n - 1) / group + self.moved(group) } else { n.saturating_sub(1) }
    }

    /// What far distances are moved by.
    fn moved(&self, group: usize) -> usize {
        self.local - self.local / group
    }

    /// Refuses `n` tokens whose distances leave the `served` positions, and says which groups would do.
    fn check_reach(&self, n: usize, served: usize) -> Result<(), MethodError> {
        let largest = self.largest(n, self.group);
        if largest < served {
            return Ok(());
        }
        let least = n.saturating_sub(self.local).div_ceil(served.saturating_sub(self.local).max(1));
        let advice = match (least..least + 4).find(|group| self.largest(n, (*group).max(1)) < served) {
            Some(group) => format!("set group={group} or more"),
            None => format!("lower local={}", self.local),
        };
        Err(too_far(&SPEC, n, largest, served, advice))
    }
}

impl Method for SelfExtend {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("group", self.group.to_string()),
            ("local", self.local.to_string()),
            ("log_scale", self.log_scale.map_or("off".into(), |base| base.to_string())),
            ("chunk", self.chunk.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        question_apart(tokens, question, self.chunk, 0)
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let n = end.max(self.expected);
        self.check_reach(n, call.ropes.config().stretched_window())?;
        let rope = call.ropes.for_distances(self.largest(n, self.group) + 1, n)?;
        let oldest = (start + 1).saturating_sub(self.local);
        let mut segments = vec![segment(oldest..end, Band::between(0, self.local), OWN, OWN, &rope)];
        if end > self.local {
            let grouped = |offset: usize| Position::Grouped { width: self.group, offset: offset as i64 };
            let far = Band::between(self.local, usize::MAX);
            let moved = grouped(self.moved(self.group));
            segments.push(segment(0..end - self.local, far, grouped(0), moved, &rope));
        }
        let scales = self.log_scale.and_then(|base| log_scales(call.q.q_len, base, start));
        Ok(View { scales, ..View::new(vec![segments]) })
    }

    fn expect(&mut self, tokens: Range<usize>, _question: Option<usize>) {
        self.expected = tokens.end;
    }

    fn truncate(&mut self, n: usize) {
        self.expected = self.expected.min(n);
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
        if self.log_scale.is_some() { log_scaled_bytes(&self.shape, q_len) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::StepKind;
    use super::super::parts::tests::{distances, segments_of, view_of};
    use super::*;
    use crate::tests::tiny_shape;

    fn method(pairs: &[&str]) -> Result<SelfExtend, MethodError> {
        SelfExtend::new(&Settings::parse(pairs).unwrap(), &tiny_shape())
    }

    /// Spec `methods.md`, section 9.
    #[test]
    fn distances_are_the_published_ones() {
        for tokens in [0..10, 3..10, 9..10] {
            let mut m = method(&["group=2", "local=4"]).unwrap();
            let segments = segments_of(&mut m, tokens, StepKind::Prefill).unwrap();
            assert_eq!(distances(10, &segments), [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]);
        }
    }

    #[test]
    fn groups_of_one_are_plain_attention() {
        let segments = segments_of(&mut method(&["group=1"]).unwrap(), 0..400, StepKind::Prefill).unwrap();
        assert_eq!(distances(400, &segments), (0..400).rev().collect::<Vec<i64>>());
    }

    #[test]
    fn the_reach_is_what_the_page_says_and_the_advice_helps() {
        let mut m = method(&["group=4", "local=128"]).unwrap();
        let reach = (512 - 128) * 4 + 128;
        assert!(segments_of(&mut m, reach - 1..reach, StepKind::Decode).is_ok());
        m.expect(0..reach + 1, None);
        assert!(segments_of(&mut m, 0..9, StepKind::Prefill).is_err(), "a prompt too long is not begun");
        for (n, group) in [(reach + 1, "group=5"), (30_000, "group=78")] {
            let error = segments_of(&mut m, n - 1..n, StepKind::Decode).unwrap_err().to_string();
            assert!(error.contains(group), "{error}");
            let mut wider = method(&[group, "local=128"]).unwrap();
            assert!(segments_of(&mut wider, n - 1..n, StepKind::Decode).is_ok(), "{group}");
        }
    }

    #[test]
    fn queries_are_scaled_only_where_asked_for() {
        let scaled = |pairs: &[&str], tokens: Range<usize>| {
            view_of(&mut method(pairs).unwrap(), tokens, StepKind::Prefill).unwrap().scales
        };
        assert_eq!(scaled(&[], 600..601), None);
        assert_eq!(scaled(&["log_scale=512"], 500..512), None);
        let last = *scaled(&["log_scale=512"], 590..600).unwrap().last().unwrap();
        assert!((f64::from(last) - 600f64.ln() / 512f64.ln()).abs() < 1e-6);
        assert!(method(&["log_scale=1"]).is_err() && method(&["log_scale=x"]).is_err());
        assert!(method(&["group=0"]).is_err() && method(&["local=512"]).is_err());
    }
}
