//! `string`: far tokens are moved near, over the distances a model has seldom seen (arXiv 2410.18745).
//!
//! (a) A query sees every earlier token. (b) Distances below `shift` are true; larger ones are lowered by
//! `shift - small_local`, so that the longest, rarely trained ones are not used at all. Keys keep their own positions; only
//! the query stands elsewhere towards far ones. Cosine and sine are multiplied by [`TEMPERATURE`]. (c) Everything is kept.
//! (d) The prompt is fed in chunks of any size.

use super::parts::{CHUNK, OWN, at_least_one, chunk, segment, too_far};
use super::{LayerCall, Method, Step, StepKind, View, chunks, question_apart};
use crate::ModelShape;
use crate::rope::Ropes;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::{Band, Position};
use std::ops::Range;

/// Factor on cosine and sine at every length, `1 + 0.1 ln 2`, in place of the frequency source's own.
const TEMPERATURE: f32 = 1.069_314_7;

/// The default of `small_local`.
const SMALL_LOCAL: usize = 128;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "string",
    paper: "Why Does the Effective Context Length of LLMs Fall Short? (arXiv 2410.18745)",
    summary: "every token, far ones moved near: large distances are replaced by smaller, better trained ones",
    cost: "time O(n²) in prefill and O(n) per answer token; memory O(n)",
    suits: "all models, for texts up to their window and about a third as far again; beyond that only with a --rope that reaches",
    params: &[
        ParamSpec {
            name: "target",
            default: "the model's window",
            range: "an integer of at least 4",
            doc: "length of the texts to be read, which shift follows",
        },
        ParamSpec {
            name: "shift",
            default: "0.33 * target, rounded down",
            range: "an integer of at least 1",
            doc: "distances below it are true (published shifted_offset S); advice is 0.25 to 0.4 of the length",
        },
        ParamSpec {
            name: "small_local",
            default: "128, at most an eighth of shift",
            range: "an integer, at most shift",
            doc: "the distance that shift becomes (published small_local_value W); raise it to 512 if fluency suffers",
        },
        CHUNK,
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "the published code: in prefill the token at distance shift counts twice, near and far; and texts of any length are read",
        },
    ],
};

/// Shifted rotary positions.
#[derive(Debug)]
pub struct StringPositions {
    target: usize,
    shift: usize,
    small_local: usize,
    chunk: usize,
    reference: bool,
    /// Tokens there will be at the end of the prompt that is being read.
    expected: usize,
}

impl StringPositions {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        let target = read.count("target", shape.window)?;
        if target < 4 {
            return Err(read.bad("target", target));
        }
        let shift = read.count("shift", target * 33 / 100)?;
        at_least_one(&read, &[("shift", shift)])?;
        let small_local = read.count("small_local", SMALL_LOCAL.min(shift / 8))?;
        if small_local > shift {
            return Err(read.bad("small_local", small_local));
        }
        let reference = read.value("reference", false)?;
        Ok(Self { target, shift, small_local, chunk: chunk(&read, shape)?, reference, expected: 0 })
    }

    /// The largest distance among `n` tokens.
    fn largest(&self, n: usize) -> usize {
        let near = n.min(self.shift).saturating_sub(1);
        if n > self.shift { near.max(n - 1 - self.shift + self.small_local) } else { near }
    }

    /// Refuses `n` tokens whose distances leave the `served` positions.
    fn check_reach(&self, n: usize, served: usize) -> Result<(), MethodError> {
        let largest = self.largest(n);
        if largest < served || self.reference {
            return Ok(());
        }
        let fit = served.saturating_add(self.shift - self.small_local);
        let advice = format!(
            "shift={} serves {fit} tokens: stretch the frequencies (--rope yarn:factor=...) or choose a method that looks at fewer tokens, such as reattention",
            self.shift
        );
        Err(too_far(&SPEC, n, largest, served, advice))
    }
}

impl Method for StringPositions {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("target", self.target.to_string()),
            ("shift", self.shift.to_string()),
            ("small_local", self.small_local.to_string()),
            ("chunk", self.chunk.to_string()),
            ("reference", self.reference.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        if self.reference {
            return chunks(tokens, self.chunk, StepKind::Prefill).collect();
        }
        question_apart(tokens, question, self.chunk, 0)
    }

    fn begin(&mut self, _step: &Step, ropes: &mut Ropes) {
        ropes.set_multiplier(TEMPERATURE);
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let n = end.max(self.expected);
        self.check_reach(n, call.ropes.config().stretched_window())?;
        let rope = call.ropes.for_distances(self.largest(n) + 1, n)?;
        let is_counted_twice = self.reference && call.step.kind != StepKind::Decode;
        let near = self.shift + usize::from(is_counted_twice);
        let oldest = (start + 1).saturating_sub(near);
        let mut segments = vec![segment(oldest..end, Band::between(0, near), OWN, OWN, &rope)];
        if end > self.shift {
            let moved = Position::Index { offset: self.small_local as i64 - self.shift as i64 };
            let far = Band::between(self.shift, usize::MAX);
            segments.push(segment(0..end - self.shift, far, OWN, moved, &rope));
        }
        Ok(View::new(vec![segments]))
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

    fn splits(&self) -> bool {
        !self.reference
    }
}

#[cfg(test)]
mod tests {
    use super::super::parts::tests::{distances, segments_of};
    use super::*;
    use crate::tests::tiny_shape;

    fn method(pairs: &[&str]) -> Result<StringPositions, MethodError> {
        StringPositions::new(&Settings::parse(pairs).unwrap(), &tiny_shape())
    }

    /// Spec `methods.md`, section 9.
    #[test]
    fn distances_are_the_published_ones() {
        for tokens in [0..9, 3..9, 8..9] {
            let mut m = method(&["shift=4", "small_local=1"]).unwrap();
            let segments = segments_of(&mut m, tokens, StepKind::Prefill).unwrap();
            assert_eq!(distances(9, &segments), [5, 4, 3, 2, 1, 3, 2, 1, 0]);
        }
    }

    #[test]
    fn the_published_prefill_counts_one_distance_twice() {
        let mut m = method(&["shift=4", "small_local=1", "reference=true"]).unwrap();
        for (kind, twice) in [(StepKind::Prefill, vec![4]), (StepKind::Decode, vec![])] {
            let segments = segments_of(&mut m, 8..9, kind).unwrap();
            let seen =
                |key: usize| segments.iter().filter(|s| s.keys.contains(key) && s.band.sees(8, key)).count();
            assert_eq!((0..9).filter(|k| seen(*k) == 2).collect::<Vec<_>>(), twice);
            assert!((0..9).all(|k| seen(k) > 0));
        }
    }

    #[test]
    fn the_shift_follows_the_target() {
        assert_eq!((method(&[]).unwrap().shift, method(&[]).unwrap().small_local), (168, 21));
        let long = method(&["target=131072"]).unwrap();
        assert_eq!((long.shift, long.small_local), (43_253, 128));
        assert!(
            method(&["shift=0"]).is_err()
                && method(&["small_local=169"]).is_err()
                && method(&["target=3"]).is_err()
        );
    }

    #[test]
    fn what_leaves_the_window_is_refused_with_what_would_do() {
        let mut m = method(&[]).unwrap();
        let fit = 512 + 168 - 21;
        assert!(segments_of(&mut m, fit - 1..fit, StepKind::Decode).is_ok());
        let error = segments_of(&mut m, fit..fit + 1, StepKind::Decode).unwrap_err().to_string();
        assert!(error.contains("512 positions apart") && error.contains(&fit.to_string()), "{error}");
        m.expect(0..fit + 1, None);
        assert!(segments_of(&mut m, 0..9, StepKind::Prefill).is_err(), "a prompt too long is not begun");
    }

    #[test]
    fn every_table_has_the_temperature() {
        let segments = segments_of(&mut method(&[]).unwrap(), 0..300, StepKind::Prefill).unwrap();
        assert!(segments.iter().all(|s| (s.key_rope.multiplier() - 1.069_314_7).abs() < 1e-6));
    }
}
