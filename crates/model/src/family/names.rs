//! What the families call their tensors.

/// Tensor names; `{}` stands for the layer. Those of matrices and norms lack the `.weight` or `.bias` at their end, that
/// of the sinks is whole. Empty where a family has no such tensor.
#[derive(Debug, PartialEq, Eq)]
pub struct TensorNames {
    /// Token embedding `[vocab, hidden]`.
    pub embed: &'static str,
    /// Norm before the first matrix of attention `[hidden]`.
    pub attn_norm: &'static str,
    /// Query `[n_heads * head_dim, hidden]`.
    pub q: &'static str,
    /// Key `[n_kv_heads * head_dim, hidden]`.
    pub k: &'static str,
    /// Value `[n_kv_heads * head_dim, hidden]`.
    pub v: &'static str,
    /// Query, key and value in one matrix.
    pub qkv: &'static str,
    /// Attention output `[hidden, n_heads * head_dim]`.
    pub o: &'static str,
    /// Norm of the query, per head `[head_dim]` or over all heads `[n_heads * head_dim]`.
    pub q_norm: &'static str,
    /// Norm of the key, likewise.
    pub k_norm: &'static str,
    /// One score a query head that takes part in the softmax without a value `[n_heads]`.
    pub sinks: &'static str,
    /// Norm of what attention gives, before it is added `[hidden]`.
    pub attn_post_norm: &'static str,
    /// Norm before the MLP `[hidden]`.
    pub mlp_norm: &'static str,
    /// Gate of the MLP `[intermediate, hidden]`.
    pub gate: &'static str,
    /// Up of the MLP `[intermediate, hidden]`.
    pub up: &'static str,
    /// Gate and up in one matrix, the gate's rows first.
    pub gate_up: &'static str,
    /// Down of the MLP `[hidden, intermediate]`.
    pub down: &'static str,
    /// Norm of what the MLP gives, before it is added `[hidden]`.
    pub mlp_post_norm: &'static str,
    /// Ways in which files hold the experts of a sparse layer; the one whose tensors are there is taken.
    pub experts: &'static [ExpertNames],
    /// The expert that every token passes: gate, up, down, and the row whose sigmoid weighs it.
    pub shared: [&'static str; 4],
    /// Norm after the last layer `[hidden]`.
    pub norm: &'static str,
    /// Output head `[vocab, hidden]`, where it is not the embedding.
    pub lm_head: &'static str,
}

/// Tensors of a sparse layer's experts; `{e}` stands for the expert where each has tensors of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct ExpertNames {
    /// Router `[experts, hidden]`, without its end.
    pub router: &'static str,
    /// Gate, or gate and up in one.
    pub gate: &'static str,
    /// Up; empty where it is in one tensor with the gate.
    pub up: &'static str,
    /// Down.
    pub down: &'static str,
    /// Ends of weight and bias of gate, up and down.
    pub ends: [&'static str; 2],
    /// How the tensors are laid out.
    pub form: ExpertForm,
}

/// How files lay out experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertForm {
    /// A matrix `[outputs, inputs]` an expert.
    Single,
    /// One tensor `[experts, outputs, inputs]`; with gate and up in one, the gate's rows stand first.
    Stacked,
    /// One tensor `[experts, inputs, outputs]`; columns of gate and up take turns.
    Transposed,
    /// As stacked, with rows of gate and up taking turns, in 4-bit blocks of 32 and their scales: tensors whose names go
    /// on with `_blocks` `[experts, outputs, inputs / 32, 16]` and `_scales` `[experts, outputs, inputs / 32]`.
    Mxfp4,
}

const SINGLE: [&str; 2] = [".weight", ".bias"];
const WHOLE: [&str; 2] = ["", "_bias"];

const HF_EXPERTS: ExpertNames = ExpertNames {
    router: "model.layers.{}.mlp.gate",
    gate: "model.layers.{}.mlp.experts.{e}.gate_proj",
    up: "model.layers.{}.mlp.experts.{e}.up_proj",
    down: "model.layers.{}.mlp.experts.{e}.down_proj",
    ends: SINGLE,
    form: ExpertForm::Single,
};

/// As transformers 5 holds experts in memory, which some files keep.
const HF_EXPERTS_STACKED: ExpertNames = ExpertNames {
    gate: "model.layers.{}.mlp.experts.gate_up_proj",
    up: "",
    down: "model.layers.{}.mlp.experts.down_proj",
    ends: WHOLE,
    form: ExpertForm::Stacked,
    ..HF_EXPERTS
};

/// Names of most families in Hugging Face files.
pub(super) const HUGGING_FACE: TensorNames = TensorNames {
    embed: "model.embed_tokens",
    attn_norm: "model.layers.{}.input_layernorm",
    q: "model.layers.{}.self_attn.q_proj",
    k: "model.layers.{}.self_attn.k_proj",
    v: "model.layers.{}.self_attn.v_proj",
    qkv: "model.layers.{}.self_attn.qkv_proj",
    o: "model.layers.{}.self_attn.o_proj",
    q_norm: "model.layers.{}.self_attn.q_norm",
    k_norm: "model.layers.{}.self_attn.k_norm",
    sinks: "model.layers.{}.self_attn.sinks",
    attn_post_norm: "",
    mlp_norm: "model.layers.{}.post_attention_layernorm",
    gate: "model.layers.{}.mlp.gate_proj",
    up: "model.layers.{}.mlp.up_proj",
    gate_up: "model.layers.{}.mlp.gate_up_proj",
    down: "model.layers.{}.mlp.down_proj",
    mlp_post_norm: "",
    experts: &[HF_EXPERTS, HF_EXPERTS_STACKED],
    shared: [
        "model.layers.{}.mlp.shared_expert.gate_proj",
        "model.layers.{}.mlp.shared_expert.up_proj",
        "model.layers.{}.mlp.shared_expert.down_proj",
        "model.layers.{}.mlp.shared_expert_gate",
    ],
    norm: "model.norm",
    lm_head: "lm_head",
};

/// Norms before and after both branches.
pub(super) const HF_GEMMA: TensorNames = TensorNames {
    attn_post_norm: "model.layers.{}.post_attention_layernorm",
    mlp_norm: "model.layers.{}.pre_feedforward_layernorm",
    mlp_post_norm: "model.layers.{}.post_feedforward_layernorm",
    ..HUGGING_FACE
};

/// Norms after both branches alone.
pub(super) const HF_OLMO2: TensorNames = TensorNames {
    attn_norm: "",
    attn_post_norm: "model.layers.{}.post_attention_layernorm",
    mlp_norm: "",
    mlp_post_norm: "model.layers.{}.post_feedforward_layernorm",
    ..HUGGING_FACE
};

/// `post_attention_layernorm` stands before the MLP, as in Llama; the norms after the branches have names of their own.
pub(super) const HF_GLM4: TensorNames = TensorNames {
    attn_post_norm: "model.layers.{}.post_self_attn_layernorm",
    mlp_post_norm: "model.layers.{}.post_mlp_layernorm",
    ..HUGGING_FACE
};

pub(super) const HF_GPT_OSS: TensorNames =
    TensorNames { experts: &[HF_GPT_OSS_EXPERTS, HF_GPT_OSS_MXFP4], ..HUGGING_FACE };

const HF_GPT_OSS_EXPERTS: ExpertNames =
    ExpertNames { router: "model.layers.{}.mlp.router", form: ExpertForm::Transposed, ..HF_EXPERTS_STACKED };
const HF_GPT_OSS_MXFP4: ExpertNames = ExpertNames { form: ExpertForm::Mxfp4, ..HF_GPT_OSS_EXPERTS };

pub(super) const HF_MIXTRAL: TensorNames =
    TensorNames { experts: &[HF_MIXTRAL_EXPERTS, HF_EXPERTS_STACKED], ..HUGGING_FACE };

const HF_MIXTRAL_EXPERTS: ExpertNames = ExpertNames {
    router: "model.layers.{}.block_sparse_moe.gate",
    gate: "model.layers.{}.block_sparse_moe.experts.{e}.w1",
    up: "model.layers.{}.block_sparse_moe.experts.{e}.w3",
    down: "model.layers.{}.block_sparse_moe.experts.{e}.w2",
    ..HF_EXPERTS
};

pub(super) const HF_INTERNLM2: TensorNames = TensorNames {
    embed: "model.tok_embeddings",
    attn_norm: "model.layers.{}.attention_norm",
    q: "",
    k: "",
    v: "",
    qkv: "model.layers.{}.attention.wqkv",
    o: "model.layers.{}.attention.wo",
    mlp_norm: "model.layers.{}.ffn_norm",
    gate: "model.layers.{}.feed_forward.w1",
    up: "model.layers.{}.feed_forward.w3",
    gate_up: "",
    down: "model.layers.{}.feed_forward.w2",
    lm_head: "output",
    ..HUGGING_FACE
};

const GGUF_EXPERTS: ExpertNames = ExpertNames {
    router: "blk.{}.ffn_gate_inp",
    gate: "blk.{}.ffn_gate_exps",
    up: "blk.{}.ffn_up_exps",
    down: "blk.{}.ffn_down_exps",
    ends: SINGLE,
    form: ExpertForm::Stacked,
};
const GGUF_EXPERTS_FUSED: ExpertNames =
    ExpertNames { gate: "blk.{}.ffn_gate_up_exps", up: "", ..GGUF_EXPERTS };
/// As the first files of Mixtral have them.
const GGUF_EXPERTS_SINGLE: ExpertNames = ExpertNames {
    gate: "blk.{}.ffn_gate.{e}",
    up: "blk.{}.ffn_up.{e}",
    down: "blk.{}.ffn_down.{e}",
    form: ExpertForm::Single,
    ..GGUF_EXPERTS
};

/// Names in GGUF files, the same for nearly every architecture.
pub(super) const GGUF: TensorNames = TensorNames {
    embed: "token_embd",
    attn_norm: "blk.{}.attn_norm",
    q: "blk.{}.attn_q",
    k: "blk.{}.attn_k",
    v: "blk.{}.attn_v",
    qkv: "blk.{}.attn_qkv",
    o: "blk.{}.attn_output",
    q_norm: "blk.{}.attn_q_norm",
    k_norm: "blk.{}.attn_k_norm",
    sinks: "blk.{}.attn_sinks.weight",
    attn_post_norm: "",
    mlp_norm: "blk.{}.ffn_norm",
    gate: "blk.{}.ffn_gate",
    up: "blk.{}.ffn_up",
    gate_up: "blk.{}.ffn_up",
    down: "blk.{}.ffn_down",
    mlp_post_norm: "",
    experts: &[GGUF_EXPERTS, GGUF_EXPERTS_FUSED, GGUF_EXPERTS_SINGLE],
    shared: [
        "blk.{}.ffn_gate_shexp",
        "blk.{}.ffn_up_shexp",
        "blk.{}.ffn_down_shexp",
        "blk.{}.ffn_gate_inp_shexp",
    ],
    norm: "output_norm",
    lm_head: "output",
};

/// Norms before and after both branches.
pub(super) const GGUF_BOTH: TensorNames = TensorNames {
    attn_post_norm: "blk.{}.post_attention_norm",
    mlp_post_norm: "blk.{}.post_ffw_norm",
    ..GGUF
};

/// Norms after both branches alone.
pub(super) const GGUF_POST: TensorNames = TensorNames { attn_norm: "", mlp_norm: "", ..GGUF_BOTH };

/// The norm before the MLP has the name that others give the one after attention.
pub(super) const GGUF_GPT_OSS: TensorNames = TensorNames { mlp_norm: "blk.{}.post_attention_norm", ..GGUF };
