//! The supported architectures: what each names its tensors and which parts it has.

/// An architecture that the one decoder serves.
///
/// All are Llama-shaped (RMSNorm, RoPE, grouped-query attention, SwiGLU); a family says only where it departs.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// `model_type` of config.json, and the name used everywhere: `llama`, `mistral`, `qwen2`, `qwen3`, `internlm2`.
    pub name: &'static str,
    /// Class in `architectures` of config.json.
    pub architecture: &'static str,
    /// Query, key and value projections have a bias unless the configuration says otherwise.
    pub qkv_bias: bool,
    /// Query and key are normalised per head before RoPE.
    pub qk_norm: bool,
    /// Hugging Face files pack query, key and value rows in one matrix, grouped per KV head.
    pub packed_qkv: bool,
    /// Names in Hugging Face files.
    pub tensors: &'static TensorNames,
}

/// Tensor names without the `.weight` or `.bias` at their end; `{}` stands for the layer.
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
    /// Packed query, key and value; empty where the family has none.
    pub qkv: &'static str,
    /// Attention output `[hidden, n_heads * head_dim]`.
    pub o: &'static str,
    /// Norm of each query head `[head_dim]`.
    pub q_norm: &'static str,
    /// Norm of each key head `[head_dim]`.
    pub k_norm: &'static str,
    /// Norm before the MLP `[hidden]`.
    pub mlp_norm: &'static str,
    /// SwiGLU gate `[intermediate, hidden]`.
    pub gate: &'static str,
    /// SwiGLU up `[intermediate, hidden]`.
    pub up: &'static str,
    /// SwiGLU down `[hidden, intermediate]`.
    pub down: &'static str,
    /// Norm after the last layer `[hidden]`.
    pub norm: &'static str,
    /// Output head `[vocab, hidden]`, where it is not the embedding.
    pub lm_head: &'static str,
}

const HUGGING_FACE: TensorNames = TensorNames {
    embed: "model.embed_tokens",
    attn_norm: "model.layers.{}.input_layernorm",
    q: "model.layers.{}.self_attn.q_proj",
    k: "model.layers.{}.self_attn.k_proj",
    v: "model.layers.{}.self_attn.v_proj",
    qkv: "",
    o: "model.layers.{}.self_attn.o_proj",
    q_norm: "model.layers.{}.self_attn.q_norm",
    k_norm: "model.layers.{}.self_attn.k_norm",
    mlp_norm: "model.layers.{}.post_attention_layernorm",
    gate: "model.layers.{}.mlp.gate_proj",
    up: "model.layers.{}.mlp.up_proj",
    down: "model.layers.{}.mlp.down_proj",
    norm: "model.norm",
    lm_head: "lm_head",
};

const INTERNLM2: TensorNames = TensorNames {
    embed: "model.tok_embeddings",
    attn_norm: "model.layers.{}.attention_norm",
    q: "",
    k: "",
    v: "",
    qkv: "model.layers.{}.attention.wqkv",
    o: "model.layers.{}.attention.wo",
    q_norm: "",
    k_norm: "",
    mlp_norm: "model.layers.{}.ffn_norm",
    gate: "model.layers.{}.feed_forward.w1",
    up: "model.layers.{}.feed_forward.w3",
    down: "model.layers.{}.feed_forward.w2",
    norm: "model.norm",
    lm_head: "output",
};

/// Names in GGUF files, the same for every architecture.
pub(crate) const GGUF: TensorNames = TensorNames {
    embed: "token_embd",
    attn_norm: "blk.{}.attn_norm",
    q: "blk.{}.attn_q",
    k: "blk.{}.attn_k",
    v: "blk.{}.attn_v",
    qkv: "",
    o: "blk.{}.attn_output",
    q_norm: "blk.{}.attn_q_norm",
    k_norm: "blk.{}.attn_k_norm",
    mlp_norm: "blk.{}.ffn_norm",
    gate: "blk.{}.ffn_gate",
    up: "blk.{}.ffn_up",
    down: "blk.{}.ffn_down",
    norm: "output_norm",
    lm_head: "output",
};

const PLAIN: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    qkv_bias: false,
    qk_norm: false,
    packed_qkv: false,
    tensors: &HUGGING_FACE,
};

static FAMILIES: [Family; 5] = [
    PLAIN,
    Family { name: "mistral", architecture: "MistralForCausalLM", ..PLAIN },
    Family { name: "qwen2", architecture: "Qwen2ForCausalLM", qkv_bias: true, ..PLAIN },
    Family { name: "qwen3", architecture: "Qwen3ForCausalLM", qk_norm: true, ..PLAIN },
    Family {
        name: "internlm2",
        architecture: "InternLM2ForCausalLM",
        packed_qkv: true,
        tensors: &INTERNLM2,
        ..PLAIN
    },
];

impl Family {
    /// Every supported family.
    pub fn all() -> &'static [Family] {
        &FAMILIES
    }

    /// The family of this name.
    pub fn named(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.name == name)
    }
}
