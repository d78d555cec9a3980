//! Methods: rules on which cached tokens a query sees, where they stand, what is kept and how a prompt is fed.
//!
//! One method is one file and answers the four questions of the design through the [`Method`] trait:
//! (a) and (b) in [`Method::view`], (c) in [`Method::release`] or [`Method::distil`], (d) in [`Method::schedule`].

mod dca;
mod full;
mod infinipot;
mod infllm;
mod lm_infinite;
mod mesa;
mod ms_poe;
mod parts;
mod reattention;
mod self_extend;
mod streaming_llm;
mod string;
#[cfg(test)]
mod tests;
mod vote;

pub use dca::Dca;
pub use full::Full;
pub use infinipot::InfiniPot;
pub use infllm::InfLlm;
pub use lm_infinite::LmInfinite;
pub use mesa::Mesa;
pub use ms_poe::MsPoe;
pub use reattention::ReAttention;
pub use self_extend::SelfExtend;
pub use streaming_llm::StreamingLlm;
pub use string::StringPositions;

use crate::ModelShape;
use crate::rope::Ropes;
use crate::settings::{MethodError, MethodSpec, Settings};
use reattention_kernels::{Backend, KvView, LogitRule, Queries, Search, Segment};
use std::ops::Range;
use std::sync::Arc;

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Tokens of the context.
    Prefill,
    /// Tokens of the question, fed apart from the context.
    Question,
    /// One token whose logits are wanted: the prompt's last, or a generated one.
    Decode,
    /// Tokens of no text, forgotten when the step ends: they are there to see what they attend to ([`Method::distil`]).
    Ephemeral,
}

/// Consecutive tokens fed through the model at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Token indices.
    pub tokens: Range<usize>,
    /// What they are.
    pub kind: StepKind,
}

/// Keys and values that one layer has just appended to the store.
#[derive(Clone, Copy, Debug)]
pub struct Appended<'a> {
    /// The layer.
    pub layer: usize,
    /// The running step, whose tokens they belong to.
    pub step: &'a Step,
    /// The layer's cached keys and values, the new ones included.
    pub kv: KvView<'a>,
    /// For what there is to compute.
    pub backend: &'a dyn Backend,
}

/// What a method is asked for one layer of one step. The layer's keys and values of the step are already appended.
#[derive(Debug)]
pub struct LayerCall<'a> {
    /// The layer.
    pub layer: usize,
    /// The running step.
    pub step: &'a Step,
    /// Raw queries of the step.
    pub q: Queries<'a>,
    /// The layer's cached keys and values, the step's included.
    pub kv: KvView<'a>,
    /// Frequencies of the layer under the model's scaling.
    pub ropes: &'a mut Ropes,
    /// What makes logits of `q · k`.
    pub rule: LogitRule,
    /// For scoring.
    pub backend: &'a dyn Backend,
}

/// What a layer attends to.
#[derive(Debug)]
pub struct View {
    /// One list of segments for all KV heads, or one a KV head.
    pub segments: Vec<Vec<Segment>>,
    /// How the keys were chosen, one entry per list of segments; empty when nothing was chosen.
    pub selections: Vec<Selection>,
    /// What to attend with instead of the raw queries, `[q_len, n_heads, head_dim]`: turned ones.
    pub queries: Option<Vec<f32>>,
    /// What the queries of each token are multiplied with, `[q_len]`.
    pub scales: Option<Vec<f32>>,
    /// The segments of each list whose keys' attention [`Method::watch`] is told; none costs nothing.
    pub watched: Range<usize>,
    /// Blocks of tokens that were put away before the view was made, for traces.
    pub archived: Vec<Archived>,
    /// Tokens that this layer is not expected to look at soon: what was read back of them from disk leaves memory again.
    pub cooled: Vec<Range<usize>>,
}

impl View {
    /// A view of `segments` (one list for all KV heads, or one a KV head) by the raw queries.
    pub fn new(segments: Vec<Vec<Segment>>) -> Self {
        Self {
            segments,
            selections: Vec::new(),
            queries: None,
            scales: None,
            watched: 0..0,
            archived: Vec::new(),
            cooled: Vec::new(),
        }
    }
}

/// A search that a device carries out before a layer attends, and what becomes of the tokens it finds.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// The search.
    pub search: Search,
    /// The segment of the view's only list whose keys are the tokens found; the view has it without keys.
    pub index: usize,
    /// Whether the keys of the segments behind it and all queries stand as many positions further as tokens were found.
    pub moves: bool,
}

/// What one layer has cached, with what is known of it when an ephemeral step asks what should stay.
#[derive(Debug)]
pub struct Entries<'a> {
    /// The layer.
    pub layer: usize,
    /// Slots filled; the ephemeral tokens are none of them.
    pub slots: usize,
    /// Attention that each slot got from the ephemeral tokens, added up over them: `[n_heads][slots]`.
    pub mass: &'a [Vec<f32>],
    /// Loss of each slot's token when it was read (minus the natural logarithm of its probability), by KV head:
    /// `[n_kv_heads][slots]`. Minus infinity where nothing predicted the token; empty unless [`Method::wants_losses`].
    pub losses: &'a [Vec<f32>],
}

/// Where the tokens of a method's ephemeral steps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalyst<'a> {
    /// They are this text, asked as a question is.
    Text(&'a str),
    /// They are the question of the prompt.
    Question,
}

/// A choice of cached tokens, as token indices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Distinct tokens that were voted for, ascending.
    pub candidates: Vec<u32>,
    /// Their votes.
    pub votes: Vec<u32>,
    /// The candidates that became centres of spans, ascending.
    pub centres: Vec<u32>,
    /// All selected tokens, ascending.
    pub tokens: Arc<[u32]>,
}

/// A block of tokens that only its representatives can bring back into view (InfLLM).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// The tokens of the block.
    pub tokens: Range<usize>,
    /// For every query head the tokens whose keys stand for the block, ascending.
    pub representatives: Vec<Vec<u32>>,
}

/// A method, configured for one model and used by one session.
pub trait Method: Send + Sync + std::fmt::Debug {
    /// Name, paper, parameters.
    fn spec(&self) -> &'static MethodSpec;

    /// The values of all its parameters, in the order of the specification.
    fn params(&self) -> Vec<(&'static str, String)>;

    /// (d) How the tokens `tokens` of a prompt are fed. `question` is the token its question starts at, if it has one;
    /// `tokens.end` says that all of it is context and the question will follow in another prompt.
    ///
    /// The steps cover `tokens` without gap or overlap. Tokens before `tokens.start` are in the store already.
    fn schedule(&self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step>;

    /// Told of a prompt before its first step, by [`Context::schedule`](crate::Context::schedule): its arguments are those of
    /// [`Method::schedule`]. Steps of the caller's own making come without.
    fn expect(&mut self, _tokens: Range<usize>, _question: Option<usize>) {}

    /// Called once before the layers of a step.
    fn begin(&mut self, _step: &Step, _ropes: &mut Ropes) {}

    /// Called for every layer of a step once its keys and values are in the store, before [`Method::view`] and also where
    /// the view is skipped (see [`Method::is_view_stateless`]): the place to keep an index over the keys.
    ///
    /// # Errors
    /// When the device that it is learnt with fails; the step is aborted then.
    fn learn(&mut self, _new: &Appended) -> Result<(), MethodError> {
        Ok(())
    }

    /// (a), (b) What the queries of a step attend to in one layer, and at which positions.
    ///
    /// # Errors
    /// When the view would be larger than the model can attend to.
    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError>;

    /// Whether a device that keeps queries, keys and values can serve it: [`Method::device_view`] then looks at none of
    /// them, and [`Method::learn`] and [`Method::watch`] are not needed.
    fn suits_device(&self) -> bool {
        false
    }

    /// Told that a device keeps queries, keys and values from now on, before the first step: what it would have used by
    /// default to search on the host gives way to what the device has.
    fn settle_on_device(&mut self) {}

    /// As [`Method::view`], for a device: what depends on queries and keys is a search that it carries out. The call has
    /// no elements of queries and keys.
    ///
    /// # Errors
    /// As [`Method::view`].
    fn device_view(&mut self, call: &mut LayerCall) -> Result<(View, Option<Awaited>), MethodError> {
        Ok((self.view(call)?, None))
    }

    /// Told after attention what the keys of the view's watched segments got: one list a query head, a number for each key in
    /// the order of the segments, added up over the step's queries.
    fn watch(&mut self, _call: &mut LayerCall, _mass: Vec<Vec<f32>>) {}

    /// Whether [`Method::view`] leaves nothing behind that a later view is made of, so that one nobody attends to need not
    /// be made: a step whose logits nobody wants does without its last layer's.
    fn is_view_stateless(&self) -> bool {
        false
    }

    /// (c) Tokens no later step needs once `len` tokens are in the store.
    fn release(&self, _len: usize) -> Option<Range<usize>> {
        None
    }

    /// (c) The tokens of the [`StepKind::Ephemeral`] step to feed before a step of `n` tokens is appended to `slots` slots,
    /// if that would be more than the method keeps: [`Method::distil`] then makes room.
    ///
    /// # Errors
    /// When there is no way to make enough room, or the tokens are not known.
    fn catalyst(&self, _slots: usize, _n: usize) -> Result<Option<Arc<[u32]>>, MethodError> {
        Ok(None)
    }

    /// (c) The slots that each KV head of a layer keeps after an ephemeral step, `[n_kv_heads]` lists, ascending and all of
    /// the same length in all layers; `None` keeps everything. What is kept moves to the front: from then on slots are no
    /// longer tokens, and views are by slot, one list of segments a KV head.
    fn distil(&mut self, _entries: &Entries) -> Option<Vec<Vec<u32>>> {
        None
    }

    /// Whether [`Method::distil`] may keep a part. Such a method has all its slots at hand: it neither releases tokens nor
    /// lets any go to disk, and [`build`] refuses one that would.
    fn distils(&self) -> bool {
        false
    }

    /// Whether [`Method::distil`] wants to know how well tokens were predicted. Costs the logits of every token read.
    fn wants_losses(&self) -> bool {
        false
    }

    /// Where the tokens that [`Method::catalyst`] gives come from, if somebody has to turn text into tokens and tell them
    /// by [`Method::set_catalyst`].
    fn catalyst_source(&self) -> Option<Catalyst<'_>> {
        None
    }

    /// Told the token ids of its catalyst.
    fn set_catalyst(&mut self, _ids: &[u32]) {}

    /// (c) Tokens that may leave memory for the disk once `len` tokens are in the store: they can still be attended to, at the
    /// price of reading them back ([`View::cooled`] says when that is over).
    fn cold(&self, _len: usize) -> Range<usize> {
        0..0
    }

    /// Forgets what it knows of tokens from `n` on: a length for which [`Method::returns_to`] holds, or the one at which the
    /// running step began.
    fn truncate(&mut self, _n: usize) {}

    /// Whether [`Method::truncate`] to `n` tokens gives back the state that the method had with `n` tokens.
    fn returns_to(&self, _n: usize) -> bool {
        true
    }

    /// Keeps what a return to `n`, the current length, needs, until [`Method::unpin`] or another call.
    fn pin(&mut self, _n: usize) {}

    /// Ends [`Method::pin`].
    fn unpin(&mut self) {}

    /// Tokens whose keys and values stay in memory out of `n`, for planning: those of a pinned state included.
    fn kept(&self, n: usize) -> usize {
        n
    }

    /// Tokens out of `n` whose keys and values lie on disk, for planning.
    fn on_disk(&self, _n: usize) -> usize {
        0
    }

    /// The most tokens of one step, for planning.
    fn largest_step(&self) -> usize;

    /// Bytes the method holds for `n` tokens besides their keys and values (an index, for instance), for planning.
    fn extra_bytes(&self, _n: usize) -> usize {
        0
    }

    /// Bytes the method works in while it makes the view of a step of `q_len` tokens, for planning.
    fn step_bytes(&self, _q_len: usize) -> usize {
        0
    }

    /// Whether a context read first and a question read later give what both give as one prompt.
    fn splits(&self) -> bool {
        true
    }

    /// What the method has found out about the text in one layer, by name: for reports, and to compare with other
    /// implementations.
    fn measured(&self, _layer: usize) -> Vec<(&'static str, Vec<usize>)> {
        Vec::new()
    }
}

/// Makes a method of `settings` for a model.
type Build = fn(&Settings, &ModelShape) -> Result<Box<dyn Method>, MethodError>;

/// Every method: the one place that lists them.
const REGISTRY: &[(&MethodSpec, Build)] = &[
    (&reattention::SPEC, |s, m| Ok(Box::new(ReAttention::new(s, m)?))),
    (&full::SPEC, |s, m| Ok(Box::new(Full::new(s, m)?))),
    (&infllm::SPEC, |s, m| Ok(Box::new(InfLlm::new(s, m)?))),
    (&streaming_llm::SPEC, |s, m| Ok(Box::new(StreamingLlm::new(s, m)?))),
    (&lm_infinite::SPEC, |s, m| Ok(Box::new(LmInfinite::new(s, m)?))),
    (&string::SPEC, |s, m| Ok(Box::new(StringPositions::new(s, m)?))),
    (&self_extend::SPEC, |s, m| Ok(Box::new(SelfExtend::new(s, m)?))),
    (&dca::SPEC, |s, m| Ok(Box::new(Dca::new(s, m)?))),
    (&mesa::SPEC, |s, m| Ok(Box::new(Mesa::new(s, m)?))),
    (&ms_poe::SPEC, |s, m| Ok(Box::new(MsPoe::new(s, m)?))),
    (&infinipot::SPEC, |s, m| Ok(Box::new(InfiniPot::new(s, m)?))),
];

/// The specifications of all methods.
pub fn specs() -> impl Iterator<Item = &'static MethodSpec> {
    REGISTRY.iter().map(|(spec, _)| *spec)
}

/// The method `name`, configured by `settings` for a model.
///
/// # Errors
/// When there is no such method, a setting is unknown, out of range or contradicts another, or the method cannot serve
/// the model.
pub fn build(name: &str, settings: &Settings, shape: &ModelShape) -> Result<Box<dyn Method>, MethodError> {
    match REGISTRY.iter().find(|(spec, _)| spec.name == name) {
        Some((spec, build)) => {
            settings.reader(spec).check_names()?;
            consistent(build(settings, shape)?)
        }
        None => Err(MethodError::UnknownMethod {
            name: name.to_string(),
            known: specs().map(|s| s.name).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The method, unless it would distil what it has given away.
fn consistent(method: Box<dyn Method>) -> Result<Box<dyn Method>, MethodError> {
    const MANY: usize = 1 << 24;
    if method.distils() && (method.release(MANY).is_some() || method.on_disk(MANY) > 0) {
        return Err(MethodError::Contradiction {
            method: method.spec().name,
            reason: "what is distilled must be at hand: keep all slots in memory, or distil nothing".into(),
        });
    }
    Ok(method)
}

/// The method as it works on `backend`: settled on its device, if that is one that suits it.
pub fn settled(mut method: Box<dyn Method>, backend: &dyn Backend) -> Box<dyn Method> {
    if backend.device().is_some() && method.suits_device() {
        method.settle_on_device();
    }
    method
}

/// `tokens` in pieces of at most `chunk`, all of one kind.
pub(crate) fn chunks(tokens: Range<usize>, chunk: usize, kind: StepKind) -> impl Iterator<Item = Step> {
    tokens
        .clone()
        .step_by(chunk)
        .map(move |first| Step { tokens: first..first.saturating_add(chunk).min(tokens.end), kind })
}

/// The common schedule: the context in chunks, the question (if it stands apart) in chunks of its own, and the last
/// token alone, so that it chooses for itself. No chunk reaches across token `block`.
fn question_apart(tokens: Range<usize>, question: Option<usize>, chunk: usize, block: usize) -> Vec<Step> {
    let Range { start, end } = tokens;
    let question = question.unwrap_or(end.saturating_sub(1)).clamp(start, end);
    let last = if question == end { end } else { end - 1 };
    let block = block.clamp(start, question);
    chunks(start..block, chunk, StepKind::Prefill)
        .chain(chunks(block..question, chunk, StepKind::Prefill))
        .chain(chunks(question..last, chunk, StepKind::Question))
        .chain(chunks(last..end, chunk, StepKind::Decode))
        .collect()
}
