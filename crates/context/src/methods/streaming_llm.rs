//! `streaming-llm`: the first few tokens and the last ones, nothing else (arXiv 2309.17453).
//!
//! The published rule keeps `global + local` tokens in a cache and counts positions within it. Seen from one query, the
//! last `local` tokens stand at true distances, and the `global` first ones at the distance they have in the cache.

use super::parts::{CHUNK, OWN, SinksAndWindow};
use super::{LayerCall, Method, Step, View, question_apart};
use crate::ModelShape;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::Position;
use std::ops::Range;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "streaming-llm",
    paper: "Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453)",
    summary: "the first tokens (attention sinks) and a local window; the middle is dropped",
    cost: "time O(n) in prefill and O(1) per answer token; memory O(1)",
    suits: "all models; fluent at any length, finds nothing outside the window",
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
        CHUNK,
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "InfLLM's re-implementation: once more than local tokens are seen, the sinks stand at distance global + local - 1 even from queries that have not reached it",
        },
    ],
};

/// Attention sinks and a local window, positions counted in the cache.
#[derive(Debug)]
pub struct StreamingLlm {
    kept: SinksAndWindow,
    reference: bool,
}

impl StreamingLlm {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range or the view exceeds the window.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        Ok(Self { kept: SinksAndWindow::new(&read, shape, 4)?, reference: read.value("reference", false)? })
    }
}

impl Method for StreamingLlm {
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
        let farthest = (self.kept.global + self.kept.local - 1) as i64;
        let from =
            if self.reference { Position::Constant(farthest) } else { Position::Capped { max: farthest } };
        self.kept.view(call, OWN, from)
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
