//! A device that keeps weights, keys, values and hidden states in its own memory, so that a step of a model needs nothing of
//! the host between its tokens going in and its logits coming out.
//!
//! [`Backend`](crate::Backend) works on the host's memory; one that also is a device says so by
//! [`Backend::device`](crate::Backend::device). Calls take effect in the order in which they are made.

use crate::{Segment, TopKRequest};
use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

/// A device failed, or has not enough memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct DeviceError {
    /// The device.
    pub device: String,
    /// What happened, and what would help.
    pub reason: String,
}

/// Memory of a device, given back when dropped.
pub trait Memory: Any + Send + Sync + Debug {}

impl<T: Any + Send + Sync + Debug> Memory for T {}

/// Floats in a device's memory.
///
/// Where they lie only the device knows that made the tensor: it recognises its own by the type of [`Tensor::memory`], which
/// nobody else can make or take out, and refuses all others. So a tensor that somebody makes up leads nowhere:
///
/// ```compile_fail,E0451
/// # use reattention_kernels::Tensor;
/// let forged = Tensor { len: 1 << 40, memory: Box::new(0u64) };
/// ```
#[derive(Debug)]
pub struct Tensor {
    len: usize,
    memory: Box<dyn Memory>,
}

impl Tensor {
    /// For devices: `len` floats in `memory`, of a type that is the device's own.
    pub fn new(len: usize, memory: Box<dyn Memory>) -> Self {
        Self { len, memory }
    }

    /// How many floats there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What only the device knows.
    pub fn memory(&self) -> &dyn Any {
        self.memory.as_ref()
    }
}

/// A weight matrix `[rows, cols]` in a device's memory, as the device keeps it; as with [`Tensor`], a device knows its own.
#[derive(Debug)]
pub struct DeviceMatrix {
    rows: usize,
    cols: usize,
    memory: Box<dyn Memory>,
}

impl DeviceMatrix {
    /// For devices: a matrix in `memory`, of a type that is the device's own.
    pub fn new(rows: usize, cols: usize, memory: Box<dyn Memory>) -> Self {
        Self { rows, cols, memory }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What only the device knows.
    pub fn memory(&self) -> &dyn Any {
        self.memory.as_ref()
    }
}

/// Element types in which a device keeps weights, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Single precision.
    F32,
}

impl DeviceType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Arithmetic on a device. Shapes that do not fit together are a bug of the caller and panic.
///
/// Every function fails with a [`DeviceError`] when memory does not suffice, the device breaks, or it is given tensors, matrices
/// or finds that are not its own; what ran before may fail in a later call.
pub trait Device: Send + Sync + Debug {
    /// A number that no other device of this process has.
    fn id(&self) -> u64;

    /// Its name, for messages.
    fn name(&self) -> String;

    /// Bytes of its memory that are free.
    ///
    /// # Errors
    /// When it does not tell.
    fn free_memory(&self) -> Result<usize, DeviceError>;

    /// Memory that keys and values of `tokens` tokens will take.
    fn kv_room(&self, shape: CacheShape, tokens: usize) -> KvRoom;

    /// Bytes of its memory that kernels work in besides what they are given, while they search among `tokens` tokens.
    fn work_bytes(&self, tokens: usize) -> usize;

    /// Waits until all that was asked before is done.
    ///
    /// # Errors
    /// When some of it failed.
    fn wait(&self) -> Result<(), DeviceError>;

    /// `len` floats of any value.
    ///
    /// # Errors
    /// See [`Device`].
    fn tensor(&self, len: usize) -> Result<Tensor, DeviceError>;

    /// Overwrites the first `data.len()` elements.
    ///
    /// # Errors
    /// See [`Device`].
    fn write(&self, to: &mut Tensor, data: &[f32]) -> Result<(), DeviceError>;

    /// Elements of `from`, once all that was asked before is done.
    ///
    /// # Errors
    /// See [`Device`].
    fn read(&self, from: &Tensor, elements: Range<usize>) -> Result<Vec<f32>, DeviceError>;

    /// A matrix whose row `i` is what `row(i, out: [cols])` writes, rounded to `dtype`.
    ///
    /// # Errors
    /// See [`Device`].
    fn matrix(
        &self,
        rows: usize,
        cols: usize,
        dtype: DeviceType,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<DeviceMatrix, DeviceError>;

    /// `out: [ids.len(), table.cols]`: the rows `ids` of `table`, all below `table.rows`.
    ///
    /// # Errors
    /// See [`Device`].
    fn embed(&self, table: &DeviceMatrix, ids: &[u32], out: &mut Tensor) -> Result<(), DeviceError>;

    /// `y = x · wᵀ + bias`, as [`Backend::linear`](crate::Backend::linear); inputs are rounded to the type of the weights.
    ///
    /// # Errors
    /// See [`Device`].
    fn linear(
        &self,
        x: &Tensor,
        rows: usize,
        w: &DeviceMatrix,
        bias: Option<&Tensor>,
        y: &mut Tensor,
    ) -> Result<(), DeviceError>;

    /// Root-mean-square norm of the first `rows` rows of `x: [rows, weight.len]`, into `y`.
    ///
    /// # Errors
    /// See [`Device`].
    fn rms_norm(
        &self,
        x: &Tensor,
        rows: usize,
        weight: &Tensor,
        eps: f32,
        y: &mut Tensor,
    ) -> Result<(), DeviceError>;

    /// The same in place.
    ///
    /// # Errors
    /// See [`Device`].
    fn rms_norm_within(
        &self,
        x: &mut Tensor,
        rows: usize,
        weight: &Tensor,
        eps: f32,
    ) -> Result<(), DeviceError>;

    /// `gate = silu(gate) · up` for the first `len` elements.
    ///
    /// # Errors
    /// See [`Device`].
    fn silu_mul(&self, gate: &mut Tensor, up: &Tensor, len: usize) -> Result<(), DeviceError>;

    /// `y += x` for the first `len` elements.
    ///
    /// # Errors
    /// See [`Device`].
    fn add(&self, y: &mut Tensor, x: &Tensor, len: usize) -> Result<(), DeviceError>;

    /// Multiplies row `i` of `x: [factors.len(), cols]` with `factors[i]`.
    ///
    /// # Errors
    /// See [`Device`].
    fn scale_rows(&self, x: &mut Tensor, cols: usize, factors: &[f32]) -> Result<(), DeviceError>;

    /// `out: [rows.len(), cols]`: the rows `rows` of `x: [_, cols]`.
    ///
    /// # Errors
    /// See [`Device`].
    fn pick(&self, x: &Tensor, cols: usize, rows: &[u32], out: &mut Tensor) -> Result<(), DeviceError>;

    /// Minus the natural logarithm of the probability of `targets[i]` by row `i` of `logits: [_, vocab]`.
    ///
    /// # Errors
    /// See [`Device`].
    fn losses(&self, logits: &Tensor, vocab: usize, targets: &[u32]) -> Result<Vec<f32>, DeviceError>;

    /// An empty store of keys and values. Memory is taken as it grows.
    fn cache(&self, shape: CacheShape) -> Box<dyn DeviceCache>;
}

/// What a [`DeviceCache`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// KV heads of a layer.
    pub n_kv_heads: usize,
    /// Length of one head's key or value.
    pub head_dim: usize,
    /// Type of the elements.
    pub dtype: DeviceType,
}

/// Memory for keys and values, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvRoom {
    /// On the device.
    pub device: usize,
    /// On the host.
    pub host: usize,
    /// How much of what is on the device goes to the host when the device is full.
    pub movable: usize,
}

/// Raw queries of a step on a device: `data: [q_len, n_heads, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct DeviceQueries<'a> {
    /// The elements.
    pub data: &'a Tensor,
    /// Query heads.
    pub n_heads: usize,
    /// Tokens of the step.
    pub q_len: usize,
    /// Token index of the first.
    pub first: usize,
}

/// What a vote of a query and head for one of its best keys weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteRule {
    /// One, as published: a head that hardly prefers its keys decides as much as one that knows.
    Count,
    /// By how much the key's logit exceeds that of the last of the query and head's best keys.
    Margin,
    /// The key's share of a softmax over the query and head's best keys, so that each query and head has one vote to give
    /// (a softened vote by head; TokenSelect, arXiv 2411.02886, takes the softmax over all keys).
    Softmax,
}

/// A search whose finds become spans, from scores to tokens, without the host (ReAttention's selection).
#[derive(Clone, Debug)]
pub struct Search {
    /// The keys searched, and how.
    pub request: TopKRequest,
    /// Boxes around neighbouring keys that each query and head looks into, instead of all keys.
    pub boxes: Option<usize>,
    /// The first token of the step that votes.
    pub first_voter: usize,
    /// Every so-manieth token from there on votes.
    pub voter_stride: usize,
    /// What votes weigh.
    pub vote: VoteRule,
    /// Turns scores into logits.
    pub scale: f32,
    /// Tokens with the heaviest votes that stay; ties to the lower token.
    pub clip: usize,
    /// What a span covers around its centre; it is cut off at the ends of `request.keys`.
    pub offsets: Range<i64>,
}

/// Tokens that a search has found, ascending: how many, only the device knows. As with [`Tensor`], a device knows its own.
#[derive(Debug)]
pub struct Chosen {
    most: usize,
    memory: Box<dyn Memory>,
}

impl Chosen {
    /// For devices: at most `most` tokens in `memory`, of a type that is the device's own.
    pub fn new(most: usize, memory: Box<dyn Memory>) -> Self {
        Self { most, memory }
    }

    /// The most there can be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// What only the device knows.
    pub fn memory(&self) -> &dyn Any {
        self.memory.as_ref()
    }
}

/// What the queries of a step attend to on a device.
#[derive(Debug)]
pub struct DeviceView<'a> {
    /// One list of segments for all KV heads, or one a KV head.
    pub segments: &'a [Vec<Segment>],
    /// Tokens that a search has found, in the only list.
    pub chosen: Option<ChosenSegment<'a>>,
}

/// A segment of tokens that only the device knows.
#[derive(Clone, Copy, Debug)]
pub struct ChosenSegment<'a> {
    /// The tokens.
    pub tokens: &'a Chosen,
    /// Its place among the segments; that segment says everything but its keys.
    pub index: usize,
    /// Whether the keys behind it and all queries stand as many positions further as there are tokens.
    pub moves: bool,
}

/// Keys and values of all layers on a device. Keys are raw: not rotated.
///
/// Fails as [`Device`] does.
pub trait DeviceCache: Send + Sync + Debug {
    /// Tokens that `layer` holds.
    fn len(&self, layer: usize) -> usize;

    /// Whether `layer` holds none.
    fn is_empty(&self, layer: usize) -> bool {
        self.len(layer) == 0
    }

    /// Appends keys and values `[n, n_kv_heads, head_dim]` to a layer.
    ///
    /// # Errors
    /// See [`DeviceCache`].
    fn append(&mut self, layer: usize, n: usize, keys: &Tensor, values: &Tensor) -> Result<(), DeviceError>;

    /// Forgets the tokens from `n` on, in every layer.
    fn truncate(&mut self, n: usize);

    /// Gives back the pages `pages` of every layer.
    fn release(&mut self, pages: Range<usize>);

    /// Tokens held, out of `len`.
    fn held(&self, len: usize) -> usize;

    /// Memory held: on the device, and on the host for it, in bytes.
    fn bytes(&self) -> (usize, usize);

    /// Keys and values of the tokens `tokens` of a layer, each `[n, n_kv_heads, head_dim]`.
    ///
    /// # Errors
    /// See [`DeviceCache`].
    ///
    /// # Panics
    /// If some are not held.
    fn read(&self, layer: usize, tokens: Range<usize>) -> Result<[Vec<f32>; 2], DeviceError>;

    /// Finds tokens of a layer.
    ///
    /// # Errors
    /// See [`DeviceCache`].
    fn search(&mut self, layer: usize, q: &DeviceQueries, search: &Search) -> Result<Chosen, DeviceError>;

    /// The tokens found, ascending; waits for them.
    ///
    /// # Errors
    /// See [`DeviceCache`].
    fn chosen(&self, chosen: &Chosen) -> Result<Vec<u32>, DeviceError>;

    /// The most tokens that any search has found.
    ///
    /// # Errors
    /// See [`DeviceCache`].
    fn chosen_most(&self) -> Result<usize, DeviceError>;

    /// [`Backend::attend`](crate::Backend::attend) in one layer. `out: [q_len, n_heads, head_dim]`. With `records`, of steps of
    /// one token and one list of segments, what each token gets of attention is added up ([`DeviceCache::take_mass`]).
    ///
    /// # Errors
    /// See [`DeviceCache`].
    fn attend(
        &mut self,
        layer: usize,
        q: &DeviceQueries,
        view: &DeviceView,
        scale: f32,
        out: &mut Tensor,
        records: bool,
    ) -> Result<(), DeviceError>;

    /// The attention that each token got while it was recorded, over all layers and heads, since the last call.
    ///
    /// # Errors
    /// See [`DeviceCache`].
    fn take_mass(&mut self) -> Result<Vec<f32>, DeviceError>;
}
