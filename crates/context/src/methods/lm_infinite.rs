//! `lm-infinite`: the first few tokens and the last ones, the first ones never farther than the window (arXiv 2308.16137).
//!
//! (a) A query sees the last `local` tokens and the `global` first ones. (b) The last ones stand at true distances, the first
//! ones all at one distance, `local`: their keys are not rotated, and the query stands at that position towards them.
//! (c) What lies between is dropped. (d) The prompt is fed in chunks of any size.

use super::parts::{CHUNK, SinksAndWindow};
use super::{LayerCall, Method, Step, View, question_apart};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::Position;
use std::ops::Range;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "lm-infinite",
    paper: "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models (arXiv 2308.16137)",
    summary: "the first tokens, all at one distance, and a local window; the middle is dropped",
    cost: "time O(n) in prefill and O(1) per answer token; memory O(1)",
    suits: "all models; fluent at any length, finds nothing outside the window",
    params: &[
        ParamSpec {
            name: "global",
            default: "10",
            range: "an integer of at least 0",
            doc: "first tokens that stay visible; the paper takes 10 to 100",
        },
        ParamSpec {
            name: "local",
            default: "the window, at most 4096, less global",
            range: "an integer of at least 1",
            doc: "last tokens visible, the query itself included, and the distance of the first ones",
        },
        CHUNK,
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "InfLLM's re-implementation: the first tokens stand at distance local - 1, where the authors' code has local",
        },
    ],
};

/// A Λ-shaped mask with bounded distances.
#[derive(Debug)]
pub struct LmInfinite {
    kept: SinksAndWindow,
    reference: bool,
}

impl LmInfinite {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range or the view exceeds the window.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        Ok(Self { kept: SinksAndWindow::new(&read, shape, 10)?, reference: read.value("reference", false)? })
    }
}

impl Method for LmInfinite {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("global", self.kept.global.to_string()),
            ("local", self.kept.local.to_string()),
            ("chunk", self.kept.chunk.to_string()),
            ("reference", self.reference.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        question_apart(tokens, question, self.kept.chunk, 0)
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        // A query that sees a first token this way stands at `local` or beyond, so the authors' min(local, n - 1) is local.
        let from = self.kept.local as i64 - i64::from(self.reference);
        self.kept.view(call, Position::Constant(0), Position::Constant(from))
    }

    fn release(&self, len: usize) -> Option<Range<usize>> {
        self.kept.release(len)
    }

    fn kept(&self, n: usize) -> usize {
        self.kept.kept(n)
    }

    fn is_view_stateless(&self) -> bool {
        true
    }

    fn suits_device(&self) -> bool {
        true
    }

    fn largest_step(&self) -> usize {
        self.kept.chunk
    }
}

#[cfg(test)]
mod tests {
    use super::super::StepKind;
    use super::super::parts::tests::{distance, segments_of};
    use super::*;
    use crate::tests::tiny_shape;

    #[test]
    fn first_tokens_stand_at_one_distance_and_the_middle_is_dropped() {
        let settings =
            |reference| Settings::new().set("global", 3).set("local", 5).set("reference", reference);
        for (reference, far) in [(false, 5), (true, 4)] {
            let mut m = LmInfinite::new(&settings(reference), &tiny_shape()).unwrap();
            let segments = segments_of(&mut m, 4..12, StepKind::Prefill).unwrap();
            let row = |query: usize| -> Vec<(usize, i64)> {
                let seen =
                    |key: &usize| segments.iter().any(|s| s.keys.contains(*key) && s.band.sees(query, *key));
                (0..12).filter(seen).map(|key| (key, distance(query, key, &segments))).collect()
            };
            assert_eq!(row(4), [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0)]);
            assert_eq!(row(6), [(0, far), (1, far), (2, 4), (3, 3), (4, 2), (5, 1), (6, 0)]);
            let last = [(0, far), (1, far), (2, far), (7, 4), (8, 3), (9, 2), (10, 1), (11, 0)];
            assert_eq!(row(11), last);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let m = LmInfinite::new(&Settings::new(), &tiny_shape()).unwrap();
        assert_eq!(m.release(400), None);
        assert_eq!(m.release(100_000), Some(10..100_001 - 502));
        assert_eq!(m.kept(1 << 20), m.kept(1 << 30));
    }

    #[test]
    fn what_exceeds_the_window_is_refused() {
        let settings = Settings::new().set("global", 20).set("local", 500);
        let error = LmInfinite::new(&settings, &tiny_shape()).unwrap_err().to_string();
        assert!(error.contains("window of 512"), "{error}");
        assert!(LmInfinite::new(&Settings::new().set("local", 0), &tiny_shape()).is_err());
    }
}
