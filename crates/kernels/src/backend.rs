//! The contract between the engine and the arithmetic.

use crate::profile::Part;
use crate::{
    Activation, Device, DeviceError, KvView, ListedRequest, LowBitKeys, Matrix, Segment, SignRequest, TopK,
    TopKRequest,
};

/// Raw queries (before RoPE) of the tokens of one step.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[q_len, n_heads, head_dim]`.
    pub data: &'a [f32],
    /// Query heads.
    pub n_heads: usize,
    /// Tokens in this step.
    pub q_len: usize,
    /// Length of one head's vector.
    pub head_dim: usize,
    /// Token index of the first query; the others follow it one by one. Causality is judged on these.
    pub first: usize,
}

impl<'a> Queries<'a> {
    /// The vector of query `token` (0 is the first of the step) and `head`: `[head_dim]`.
    pub fn row(&self, token: usize, head: usize) -> &'a [f32] {
        let start = (token * self.n_heads + head) * self.head_dim;
        &self.data[start..start + self.head_dim]
    }
}

/// How products of queries and keys become logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitRule {
    /// Factor on the product.
    pub scale: f32,
    /// Scaled products `x` become `cap · tanh(x / cap)` for this `cap` (Gemma 2's `attn_logit_softcapping`).
    pub softcap: Option<f32>,
}

impl LogitRule {
    /// The logit of a product.
    pub fn logit(self, product: f32) -> f32 {
        let scaled = self.scale * product;
        self.softcap.map_or(scaled, |cap| cap * (scaled / cap).tanh())
    }
}

impl From<f32> for LogitRule {
    /// A factor alone.
    fn from(scale: f32) -> Self {
        Self { scale, softcap: None }
    }
}

/// Everything the engine asks of the hardware.
///
/// Contracts, for every implementation:
///
/// * Results do not depend on the number of threads.
/// * Query head `h` belongs to KV head `h / (n_heads / n_kv_heads)`.
/// * Shapes that do not fit together are a bug of the caller and panic with the shapes in the message.
/// * What goes over the keys of a layer ([`Backend::top_k`], [`Backend::attend`], [`Backend::key_mass`]) may run on a device,
///   and fails when the device does: no backend computes elsewhere instead. Everything else runs on the host and cannot fail.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Name and path, for reports: `reference`, `cpu (avx512-bf16, 2 threads)`.
    fn name(&self) -> String;

    /// Threads this backend computes with.
    fn threads(&self) -> usize;

    /// The device behind this backend, if it is one that keeps what a model works on in memory of its own.
    fn device(&self) -> Option<&dyn Device> {
        None
    }

    /// Runs `f` on the backend's thread pool, so that calls inside need not enter it one by one.
    fn install(&self, f: &mut (dyn FnMut() + Send));

    /// Calls `work` with every number below `n`, in any order, on the threads of this backend; calls of the backend inside
    /// are welcome.
    fn each(&self, n: usize, work: &(dyn Fn(usize) + Sync));

    /// Says what the work that follows is for, until the next mark: a backend that measures takes note
    /// ([`crate::profile::Profiler`]), others have no use for it.
    fn mark(&self, _part: Part) {}

    /// `y = x · wᵀ + bias`. `x: [rows, w.cols()]`, `bias: [w.rows()]`, `y: [rows, w.rows()]` (overwritten).
    fn linear(&self, x: &[f32], rows: usize, w: &Matrix, bias: Option<&[f32]>, y: &mut [f32]);

    /// Root-mean-square norm of each row of `x: [rows, weight.len()]`: `y = x / sqrt(mean(x²) + eps) · weight`.
    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]);

    /// SwiGLU's product: `gate = silu(gate) · up`, elementwise.
    fn silu_mul(&self, gate: &mut [f32], up: &[f32]);

    /// The product of a gated MLP, elementwise, left in `gate`.
    fn gate(&self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate: lengths of gate and up");
        match activation {
            Activation::Silu => self.silu_mul(gate, up),
            other => gate.iter_mut().zip(up).for_each(|(g, u)| *g = other.of(*g, *u)),
        }
    }

    /// The keys of `request.keys` with the largest `q · k` for each query and head, without rotation, scaling or mask.
    ///
    /// Ties go to the lower token index. See [`TopKRequest`] for the pairing of heads and the tile rule.
    ///
    /// # Errors
    /// When a device fails.
    fn top_k(&self, q: &Queries, kv: &KvView, request: &TopKRequest) -> Result<TopK, DeviceError>;

    /// The best keys of each query and head among those of the lists it looks into, scored as in [`Backend::top_k`].
    ///
    /// Best first, ties to the lower token index. Slots for which the lists held no key (or only scores that are not
    /// numbers) have the index [`ListedRequest::NONE`] and a score of minus infinity.
    fn top_k_listed(&self, q: &Queries, kv: &KvView, request: &ListedRequest) -> TopK;

    /// The `k` keys with the largest products of codes for each query and head, among keys in few bits.
    ///
    /// Queries are rounded to 8 bits, with a scale for each query and head; elements that are no numbers become the
    /// smallest code in keys and zero in queries. Best first, ties to the lower number; fewer than `k` where there are
    /// fewer keys, and slots that found none have the index [`ListedRequest::NONE`]. A score is the product of the decoded
    /// vectors.
    fn top_k_low_bit(&self, q: &Queries, keys: &LowBitKeys, k: usize) -> TopK;

    /// The `request.k` keys that promise most for each query and head in the groups it looks into, by signs.
    ///
    /// Queries are rounded to 8 bits. In no order, ties to the group that is named first and the lower slot; slots for which
    /// the groups held no key (or only scores that are not numbers) have the index [`ListedRequest::NONE`] and a score of
    /// minus infinity.
    fn top_k_signs(&self, q: &Queries, request: &SignRequest) -> TopK;

    /// Softmax attention over segments.
    ///
    /// `views` holds one list of segments shared by all KV heads (length 1) or one list a KV head (length
    /// `n_kv_heads`). The logit of a query and a visible key is what `rule` makes of `rotate(q) · rotate(k)`; one softmax runs over
    /// all visible keys of all segments of the list (equivalently: each segment's attention, merged by log-sum-exp).
    /// A query that sees no key gives zeros and a log-sum-exp of minus infinity.
    ///
    /// `out: [q_len, n_heads, head_dim]` is overwritten; `lse: [q_len, n_heads]` too, when given.
    ///
    /// # Errors
    /// When a device fails; what `out` and `lse` hold then is no result.
    fn attend(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        out: &mut [f32],
        lse: Option<&mut [f32]>,
    ) -> Result<(), DeviceError>;

    /// The attention each key of `views` gets from each query head, added up over the queries of the step.
    ///
    /// One list a query head, a number for each key of the head's list of segments, in its order: the queries of a head
    /// that see any key give 1 each in all. `lse: [q_len, n_heads]` is what [`Backend::attend`] gave for these segments, or for
    /// more of them than are asked about here.
    ///
    /// # Errors
    /// When a device fails.
    fn key_mass(
        &self,
        q: &Queries,
        kv: &KvView,
        views: &[Vec<Segment>],
        rule: LogitRule,
        lse: &[f32],
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        Ok(crate::reference::key_mass(q, kv, views, rule, lse))
    }
}
