//! `dca`: dual chunk attention, positions that start anew in every chunk (ChunkLlama, arXiv 2402.17463).
//!
//! (a) A query sees every earlier token. (b) Keys stand at their index within chunks of `size - local` tokens. A query stands
//! at its own index within its chunk towards keys of the same chunk, one chunk further (but at most at `size`) towards the
//! chunk before, and at `size` towards all older ones: distances are true among the last `local` tokens at least and never
//! exceed `size`. (c) Everything is kept. (d) The prompt is fed in chunks of any size.

use super::parts::{CHUNK, at_least_one, chunk, segment};
use super::{LayerCall, Method, Step, View, question_apart};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::{Band, Position};
use std::ops::Range;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "dca",
    paper: "Training-Free Long-Context Scaling of Large Language Models (arXiv 2402.17463)",
    summary: "every token, at positions that start anew in every chunk (dual chunk attention)",
    cost: "time O(n²) in prefill and O(n) per answer token; memory O(n)",
    suits: "all models, at any length",
    params: &[
        ParamSpec {
            name: "size",
            default: "the chunk_size of models trained with it, else three quarters of the window",
            range: "an integer of at least 2, below the window (or the chunk_size of the model)",
            doc: "the largest distance (published chunk_size)",
        },
        ParamSpec {
            name: "local",
            default: "the local_size of models trained with it, else a sixteenth of the window",
            range: "an integer of at least 1, below size",
            doc: "distances that are true across the border of two chunks (published local_window)",
        },
        CHUNK,
    ],
};

/// Dual chunk attention.
#[derive(Debug)]
pub struct Dca {
    size: usize,
    local: usize,
    chunk: usize,
}

impl Dca {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        let trained = shape.dual_chunk;
        let size = read.count("size", trained.map_or((shape.window / 4 * 3).max(2), |t| t.size))?;
        let local = read.count("local", trained.map_or((shape.window / 16).max(1), |t| t.local))?;
        at_least_one(&read, &[("local", local)])?;
        // Models trained with it know the distance at which their farthest tokens stand.
        let is_trained = trained.is_some_and(|t| t.size == size);
        if size < 2 || size >= shape.window && !is_trained {
            return Err(read.bad("size", size));
        }
        if local >= size {
            return Err(read.bad("local", local));
        }
        Ok(Self { size, local, chunk: chunk(&read, shape)? })
    }
}

impl Method for Dca {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("size", self.size.to_string()),
            ("local", self.local.to_string()),
            ("chunk", self.chunk.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        question_apart(tokens, question, self.chunk, 0)
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let modulus = self.size - self.local;
        let rope = call.ropes.for_positions(self.size + 1)?;
        let within = |offset, max| Position::Modulo { modulus, offset, max };
        let key = within(0, i64::MAX);
        let farthest = self.size as i64;
        // Chunks of the step's first and last query.
        let (first, last) = (start / modulus, (end - 1) / modulus);
        let part = |keys: Range<usize>, min, max, query| {
            segment(keys, Band { min, max, unit: modulus }, key, query, &rope)
        };
        let mut segments = vec![part(first * modulus..end, 0, 1, key)];
        if last >= 1 {
            let before = within(modulus as i64, farthest);
            segments.push(part(first.saturating_sub(1) * modulus..last * modulus, 1, 2, before));
        }
        if last >= 2 {
            segments.push(part(0..(last - 1) * modulus, 2, usize::MAX, Position::Constant(farthest)));
        }
        Ok(View::new(vec![segments]))
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
}

#[cfg(test)]
mod tests {
    use super::super::StepKind;
    use super::super::parts::tests::{distance, distances, segments_of};
    use super::*;
    use crate::tests::tiny_shape;

    fn method(pairs: &[&str]) -> Result<Dca, MethodError> {
        Dca::new(&Settings::parse(pairs).unwrap(), &tiny_shape())
    }

    /// Spec `methods.md`, section 9.
    #[test]
    fn distances_are_the_published_ones() {
        for tokens in [0..14, 5..14, 13..14] {
            let mut m = method(&["size=6", "local=2"]).unwrap();
            let segments = segments_of(&mut m, tokens, StepKind::Prefill).unwrap();
            assert_eq!(distances(14, &segments), [6, 5, 4, 3, 6, 5, 4, 3, 5, 4, 3, 2, 1, 0]);
        }
    }

    #[test]
    fn distances_are_true_nearby_and_never_exceed_size() {
        let mut m = method(&[]).unwrap();
        assert_eq!((m.size, m.local), (384, 32));
        let segments = segments_of(&mut m, 1000..5000, StepKind::Prefill).unwrap();
        for query in (1000..5000).step_by(97) {
            for key in (0..=query).rev().step_by(13) {
                let d = distance(query, key, &segments);
                assert!((0..=384).contains(&d), "{query} to {key}: {d}");
                assert!(query - key >= 32 || d == (query - key) as i64, "{query} to {key}: {d}");
            }
        }
    }

    /// Qwen2.5-1M: chunks as long as the window it had before.
    #[test]
    fn models_trained_with_it_bring_their_chunks() {
        let trained = Some(crate::DualChunk { size: 512, local: 64 });
        let shape = ModelShape { dual_chunk: trained, ..tiny_shape() };
        let m = Dca::new(&Settings::new(), &shape).unwrap();
        assert_eq!((m.size, m.local), (512, 64));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in ["size=512", "size=1", "local=0", "local=384", "chunk=0"] {
            assert!(method(&[bad]).is_err(), "{bad}");
        }
    }
}
