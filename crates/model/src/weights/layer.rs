//! The weights of a model, as the decoder takes them.

use crate::Linear;

/// All weights of a model.
#[derive(Debug)]
pub struct Weights {
    /// Token embedding `[vocab, hidden]`, looked up with [`Linear::copy_row`].
    pub embed: Linear,
    /// Decoder layers, from the first.
    pub layers: Vec<LayerWeights>,
    /// Norm after the last layer `[hidden]`.
    pub norm: Vec<f32>,
    /// Output head `[vocab, hidden]`; shares the embedding's memory when the two are tied.
    pub lm_head: Linear,
}

/// The weights of one decoder layer. Query and key rows are in half-split RoPE order: the first half of a head's rotated
/// rows holds the cosine parts, whatever order the file had. Norms multiply by their weights, whatever a file adds to them.
#[derive(Debug)]
pub struct LayerWeights {
    /// Norm before attention `[hidden]`, in families that have it.
    pub attn_norm: Option<Vec<f32>>,
    /// Query projection `[n_heads * head_dim, hidden]`.
    pub q: Linear,
    /// Key projection `[n_kv_heads * head_dim, hidden]`.
    pub k: Linear,
    /// Value projection `[n_kv_heads * head_dim, hidden]`.
    pub v: Linear,
    /// Output projection `[hidden, n_heads * head_dim]`.
    pub o: Linear,
    /// Norm of the query before RoPE, in families that have it: of each head `[head_dim]`, or of all together
    /// `[n_heads * head_dim]`.
    pub q_norm: Option<Vec<f32>>,
    /// Norm of the key, likewise.
    pub k_norm: Option<Vec<f32>>,
    /// A score of each query head that takes part in the softmax and has no value `[n_heads]`.
    pub sinks: Option<Vec<f32>>,
    /// Norm of what attention gives `[hidden]`.
    pub attn_post_norm: Option<Vec<f32>>,
    /// Norm before the MLP `[hidden]`.
    pub mlp_norm: Option<Vec<f32>>,
    /// The MLP.
    pub mlp: Mlp,
    /// Norm of what the MLP gives `[hidden]`.
    pub mlp_post_norm: Option<Vec<f32>>,
}

/// The MLP of a layer.
#[derive(Debug)]
pub enum Mlp {
    /// One for all tokens.
    Dense(GatedMlp),
    /// A choice among experts.
    Sparse(SparseMlp),
}

/// `down(activation(gate(x), up(x)))`.
#[derive(Debug)]
pub struct GatedMlp {
    /// Gate projection `[intermediate, hidden]`.
    pub gate: Linear,
    /// Up projection `[intermediate, hidden]`.
    pub up: Linear,
    /// Down projection `[hidden, intermediate]`.
    pub down: Linear,
}

/// A mixture of experts.
#[derive(Debug)]
pub struct SparseMlp {
    /// Scores of the experts `[experts, hidden]`.
    pub router: Linear,
    /// The experts.
    pub experts: Vec<GatedMlp>,
    /// An expert that every token passes, and the row `[1, hidden]` whose sigmoid weighs it.
    pub shared: Option<(GatedMlp, Linear)>,
}

impl Weights {
    /// Memory held, in bytes; tied matrices count once.
    pub fn bytes(&self) -> usize {
        let head = if std::sync::Arc::ptr_eq(self.lm_head.weight(), self.embed.weight()) {
            0
        } else {
            self.lm_head.bytes()
        };
        let layers: usize = self.layers.iter().map(LayerWeights::bytes).sum();
        self.embed.bytes() + head + layers + size_of_val(&self.norm[..])
    }
}

impl LayerWeights {
    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let linear = [&self.q, &self.k, &self.v, &self.o];
        let vectors = [
            &self.attn_norm,
            &self.q_norm,
            &self.k_norm,
            &self.sinks,
            &self.attn_post_norm,
            &self.mlp_norm,
            &self.mlp_post_norm,
        ];
        linear.iter().map(|l| l.bytes()).sum::<usize>()
            + vectors.into_iter().flatten().map(|n| size_of_val(&n[..])).sum::<usize>()
            + self.mlp.bytes()
    }
}

impl Mlp {
    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.bytes(),
            Self::Sparse(sparse) => {
                let shared = sparse.shared.as_ref().map_or(0, |(mlp, weight)| mlp.bytes() + weight.bytes());
                sparse.router.bytes() + sparse.experts.iter().map(GatedMlp::bytes).sum::<usize>() + shared
            }
        }
    }
}

impl GatedMlp {
    /// Gate, up and down.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.linears().iter().map(|l| l.bytes()).sum()
    }
}
