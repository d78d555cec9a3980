//! `streaming-llm`: the first few tokens and the last ones, nothing else (arXiv 2309.17453).
//!
//! The published rule keeps `global + local` tokens in a cache and counts positions within it. Seen from one query this
//! is two segments: the last `local` tokens at true distances, and the `global` first ones at the distance they have in
//! the cache. Written so, the result does not depend on how the prompt is cut.

use super::{LayerCall, Method, Step, View, question_apart};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::{Band, KeySet, Position, Segment};
use std::ops::Range;
use std::sync::Arc;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "streaming-llm",
    paper: "Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453)",
    summary: "the first tokens (attention sinks) and a local window; the middle is dropped",
    cost: "time O(n) in prefill and O(1) per answer token; memory O(1)",
    suits: "all models without sliding-window layers; fluent at any length, finds nothing outside the window",
    params: &[
        ParamSpec {
            name: "global",
            default: "4",
            range: "an integer of at least 0",
            doc: "first tokens that stay visible (attention sinks)",
        },
        ParamSpec {
            name: "local",
            default: "the window, at most 4096, less global",
            range: "an integer of at least 1",
            doc: "last tokens visible, the query itself included",
        },
        ParamSpec {
            name: "chunk",
            default: "512, at most the window",
            range: "an integer of at least 1",
            doc: "tokens fed at once; the result does not depend on it, except under dynamic NTK, whose frequencies follow the end of each chunk",
        },
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "InfLLM's re-implementation: once more than local tokens are seen, the sinks stand at distance global + local - 1 even from queries that have not reached it",
        },
    ],
};

/// Attention sinks and a local window.
#[derive(Debug)]
pub struct StreamingLlm {
    global: usize,
    local: usize,
    chunk: usize,
    reference: bool,
}

impl StreamingLlm {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range, the view exceeds the window, or the model has sliding-window layers.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        if let Some(w) = shape.sliding_window {
            return Err(read.unsuited(format!("its layers already slide over {} tokens; use full", w.size)));
        }
        let global = read.count("global", 4)?;
        let local = read.count("local", shape.window.min(4096).saturating_sub(global).max(1))?;
        let chunk = read.count("chunk", shape.window.min(512))?;
        for (name, value) in [("local", local), ("chunk", chunk)] {
            if value == 0 {
                return Err(read.bad(name, value));
            }
        }
        if global.saturating_add(local) > shape.window {
            return Err(read.contradiction(format!(
                "global={global} and local={local} together exceed the model's window of {} positions; lower local",
                shape.window
            )));
        }
        Ok(Self { global, local, chunk, reference: read.value("reference", false)? })
    }
}

impl Method for StreamingLlm {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![
            ("global", self.global.to_string()),
            ("local", self.local.to_string()),
            ("chunk", self.chunk.to_string()),
            ("reference", self.reference.to_string()),
        ]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        question_apart(tokens, question, self.chunk, 0)
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let oldest = (start + 1).saturating_sub(self.local);
        // Only distances matter inside the window; counting from its start keeps the positions small.
        let slot = Position::Index { offset: -(oldest as i64) };
        let rope = call.ropes.for_positions((self.global + self.local).max(end - oldest));
        let farthest = (self.global + self.local - 1) as i64;
        let segment = |keys, band, key_position, query_position| Segment {
            keys: KeySet::Range(keys),
            band,
            key_position,
            query_position,
            key_rope: Arc::clone(&rope),
            query_rope: Arc::clone(&rope),
        };
        let sinks = segment(
            0..self.global.min(end),
            Band::between(self.local, usize::MAX),
            Position::Index { offset: 0 },
            if self.reference { Position::Constant(farthest) } else { Position::Capped { max: farthest } },
        );
        let window = segment(oldest..end, Band::between(0, self.local), slot, slot);
        Ok(View::new(vec![vec![sinks, window]]))
    }

    fn release(&self, len: usize) -> Option<Range<usize>> {
        let oldest = (len + 1).saturating_sub(self.local);
        (oldest > self.global).then_some(self.global..oldest)
    }

    fn kept(&self, n: usize) -> usize {
        // Released by whole pages, so up to a page at either end of the dropped middle stays.
        n.min(self.global + self.local + self.chunk + 2 * reattention_kernels::PAGE)
    }

    fn is_view_stateless(&self) -> bool {
        true
    }

    fn largest_step(&self) -> usize {
        self.chunk
    }
}
