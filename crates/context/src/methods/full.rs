//! `full`: ordinary attention to every cached token, as the model was trained. Breaks beyond its window.

use super::{LayerCall, Method, Step, StepKind, View, chunks, question_apart};
use crate::ModelShape;
use crate::rope::RopeScaling;
use crate::settings::{MethodError, MethodSpec, ParamSpec, Settings};
use reattention_kernels::{Band, KeySet, Position, RopeTable, Segment};
use std::ops::Range;
use std::sync::Arc;

pub(super) const SPEC: MethodSpec = MethodSpec {
    name: "full",
    paper: "Attention Is All You Need (arXiv 1706.03762)",
    summary: "every token attends to every earlier one at its own position: the baseline",
    cost: "time O(n²) in prefill and O(n) per answer token; memory O(n)",
    suits: "all; exact within the trained window, useless far beyond it",
    params: &[
        ParamSpec {
            name: "chunk",
            default: "512, at most the window",
            range: "an integer of at least 1",
            doc: "tokens fed at once; the result does not depend on it",
        },
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "keep each key rotated with the frequencies of the step that wrote it, as Hugging Face's cache does under dynamic NTK; false rotates all keys with the current ones",
        },
    ],
};

/// Full attention.
#[derive(Debug)]
pub struct Full {
    chunk: usize,
    reference: bool,
    /// Under `reference`: the tokens of each step and the table their keys are rotated with.
    rotations: Vec<(Range<usize>, Arc<RopeTable>)>,
}

impl Full {
    /// From settings.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn new(settings: &Settings, shape: &ModelShape) -> Result<Self, MethodError> {
        let read = settings.reader(&SPEC);
        let chunk = read.count("chunk", shape.window.min(512))?;
        if chunk == 0 {
            return Err(read.bad("chunk", chunk));
        }
        let reference = read.value("reference", false)?;
        Ok(Self { chunk, reference, rotations: Vec::new() })
    }
}

impl Method for Full {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![("chunk", self.chunk.to_string()), ("reference", self.reference.to_string())]
    }

    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        if self.reference {
            return chunks(tokens, self.chunk, StepKind::Prefill).collect();
        }
        question_apart(tokens, question, self.chunk, 0)
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let Range { start, end } = call.step.tokens;
        let n = if self.reference { end } else { call.ropes.reading(end) };
        let rope = call.ropes.for_positions(n)?;
        let rotates_once =
            self.reference && matches!(call.ropes.config().scaling, RopeScaling::DynamicNtk { .. });
        if rotates_once && self.rotations.last().is_none_or(|(tokens, _)| tokens.end < end) {
            self.rotations.push((start..end, Arc::clone(&rope)));
        }
        let segment = |keys: Range<usize>, key_rope: &Arc<RopeTable>| Segment {
            keys: KeySet::Range(keys),
            band: Band::CAUSAL,
            key_position: Position::Index { offset: 0 },
            query_position: Position::Index { offset: 0 },
            key_rope: Arc::clone(key_rope),
            query_rope: Arc::clone(&rope),
        };
        let segments = if self.rotations.is_empty() {
            vec![segment(0..end, &rope)]
        } else {
            self.rotations.iter().map(|(tokens, table)| segment(tokens.clone(), table)).collect()
        };
        Ok(View::new(vec![segments]))
    }

    fn truncate(&mut self, n: usize) {
        self.rotations.retain_mut(|(tokens, _)| {
            tokens.end = tokens.end.min(n);
            tokens.start < tokens.end
        });
    }

    fn splits(&self) -> bool {
        !self.reference
    }

    fn is_view_stateless(&self) -> bool {
        !self.reference
    }

    fn suits_device(&self) -> bool {
        true
    }

    fn largest_step(&self) -> usize {
        self.chunk
    }
}
