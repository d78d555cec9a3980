//! The supported architectures: what each names its tensors and which parts it has.

mod names;
mod unserved;

pub use names::{ExpertForm, ExpertNames, TensorNames};
pub(crate) use unserved::reason as unserved;

use names::{
    GGUF, GGUF_BOTH, GGUF_GPT_OSS, GGUF_POST, HF_GEMMA, HF_GLM4, HF_GPT_OSS, HF_INTERNLM2, HF_MIXTRAL,
    HF_OLMO2, HUGGING_FACE,
};

/// An architecture that the one decoder serves.
///
/// All are Llama-shaped (RMSNorm, RoPE, grouped-query attention, gated MLP); a family says only where it departs. Which
/// norms it has is told by the names of their tensors. Sources: the configuration and modelling files of Hugging Face
/// transformers 5.24, and llama.cpp's for GGUF.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` of config.json, and the name used everywhere.
    pub name: &'static str,
    /// Further model types of the same architecture.
    pub aliases: &'static [&'static str],
    /// Class in `architectures` of config.json.
    pub architecture: &'static str,
    /// `general.architecture` of GGUF files.
    pub gguf_architecture: &'static str,
    /// Keys that config.json may leave out, with the values of the published configuration class: a JSON object.
    pub defaults: &'static str,
    /// Which linear layers of attention have a bias.
    pub biases: Biases,
    /// The MLP has biases where `mlp_bias` says so.
    pub reads_mlp_bias: bool,
    /// How query and key are normalised before RoPE.
    pub qk_norm: QkNorm,
    /// Key of the activation. gpt-oss has none: its activation is its own.
    pub activation_key: Option<&'static str>,
    /// Norms multiply by one plus the weight; GGUF files hold the sum.
    pub norms_from_one: bool,
    /// By what embeddings, scores, branches and logits are multiplied.
    pub scales: Scales,
    /// Each query head has a sink: a score without a value.
    pub sinks: bool,
    /// Layers that see only the last tokens.
    pub sliding: Sliding,
    /// Layers with a sliding window take the scaling of the others' rotation.
    pub scales_sliding: bool,
    /// Sparse layers, where the family has them.
    pub experts: Option<ExpertRules>,
    /// How Hugging Face files hold the tensors.
    pub hugging_face: Form,
    /// How GGUF files hold them.
    pub gguf: Form,
}

/// Which linear layers of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Biases {
    /// None, whatever the configuration says.
    None,
    /// Query, key and value.
    Qkv,
    /// Query, key and value, where this key is true.
    QkvBy(&'static str),
    /// Query, key, value and output, where this key is true.
    AllBy(&'static str),
}

/// How query and key are normalised before RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// They are not.
    None,
    /// Each head by itself.
    Head,
    /// All heads of a token together.
    Projection,
}

/// By what embeddings, scores, branches and logits are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Scores by `1 / sqrt(head_dim)`, nothing else.
    Plain,
    /// Embeddings by the square root of their width, scores by `1 / sqrt(query_pre_attn_scalar)`; scores and logits are bent
    /// below `attn_logit_softcapping` and `final_logit_softcapping`.
    Gemma,
    /// By `embedding_multiplier`, `attention_multiplier` and `residual_multiplier`; logits are divided by `logits_scaling`.
    Granite,
}

/// Which layers see only the last `sliding_window` tokens, where `layer_types` does not list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sliding {
    /// None; the key is not read.
    Never,
    /// All.
    All,
    /// All, with `use_sliding_window`.
    AllIfUsed,
    /// Those from `max_window_layers` on, with `use_sliding_window`.
    FromLayer,
    /// Every other one below `max_window_layers`, the first included, with `use_sliding_window`.
    EveryOtherBelow,
    /// Those that do not rotate, with `use_sliding_window`.
    Unrotated,
    /// All but every so many, which `sliding_window_pattern` may tell otherwise: layer `i` is full where the number divides
    /// `i + 1`.
    AllBut(usize),
}

/// What a family with sparse layers reads, and does to the scores of the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertRules {
    /// Key of the number of experts.
    pub count: &'static str,
    /// Key of an expert's width.
    pub intermediate: &'static str,
    /// The weights of the chosen experts always add up to one; otherwise where `norm_topk_prob` says so.
    pub renormalises: bool,
    /// Router and experts have biases.
    pub biases: bool,
    /// Another expert, as wide as `shared_expert_intermediate_size`, serves every token, weighted by a sigmoid.
    pub shared: bool,
}

/// How a kind of file holds the tensors of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Their names.
    pub tensors: &'static TensorNames,
    /// Where query, key and value are.
    pub qkv: Packing,
    /// Gate and up are one matrix, the gate's rows first.
    pub gate_up: bool,
    /// RoPE turns neighbouring rows of query and key, 2i and 2i + 1, rather than the halves of a head.
    pub neighbours: bool,
}

/// Where query, key and value projections are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// In three matrices.
    Separate,
    /// In one: all rows of the query, then of the key, then of the value.
    Stacked,
    /// In one: for each KV head the rows of its query heads, of the key and of the value.
    Grouped,
}

const PLAIN: Form =
    Form { tensors: &HUGGING_FACE, qkv: Packing::Separate, gate_up: false, neighbours: false };
const PLAIN_GGUF: Form = Form { tensors: &GGUF, ..PLAIN };
const NEIGHBOURS_GGUF: Form = Form { neighbours: true, ..PLAIN_GGUF };

const LLAMA: Family = Family {
    name: "llama",
    aliases: &[],
    architecture: "LlamaForCausalLM",
    gguf_architecture: "llama",
    defaults: r#"{ "max_position_embeddings": 2048 }"#,
    biases: Biases::AllBy("attention_bias"),
    reads_mlp_bias: true,
    qk_norm: QkNorm::None,
    activation_key: Some("hidden_act"),
    norms_from_one: false,
    scales: Scales::Plain,
    sinks: false,
    sliding: Sliding::Never,
    scales_sliding: true,
    experts: None,
    hugging_face: PLAIN,
    gguf: NEIGHBOURS_GGUF,
};

const MISTRAL: Family = Family {
    name: "mistral",
    architecture: "MistralForCausalLM",
    defaults: r#"{ "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072 }"#,
    biases: Biases::None,
    reads_mlp_bias: false,
    sliding: Sliding::All,
    ..LLAMA
};

const QWEN2: Family = Family {
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    gguf_architecture: "qwen2",
    defaults: r#"{ "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28,
        "max_position_embeddings": 32768 }"#,
    biases: Biases::Qkv,
    reads_mlp_bias: false,
    sliding: Sliding::FromLayer,
    gguf: PLAIN_GGUF,
    ..LLAMA
};

const QWEN3: Family = Family {
    name: "qwen3",
    architecture: "Qwen3ForCausalLM",
    gguf_architecture: "qwen3",
    defaults: r#"{ "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28,
        "max_position_embeddings": 32768 }"#,
    biases: Biases::AllBy("attention_bias"),
    qk_norm: QkNorm::Head,
    ..QWEN2
};

const OLMO2: Family = Family {
    name: "olmo2",
    architecture: "Olmo2ForCausalLM",
    gguf_architecture: "olmo2",
    defaults: r#"{ "rms_norm_eps": 1e-5, "max_position_embeddings": 2048 }"#,
    reads_mlp_bias: false,
    qk_norm: QkNorm::Projection,
    hugging_face: Form { tensors: &HF_OLMO2, ..PLAIN },
    gguf: Form { tensors: &GGUF_POST, ..PLAIN_GGUF },
    ..LLAMA
};

const GEMMA3: Family = Family {
    name: "gemma3",
    aliases: &["gemma3_text"],
    architecture: "Gemma3ForCausalLM",
    gguf_architecture: "gemma3",
    defaults: r#"{ "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6, "tie_word_embeddings": true,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072, "bos_token_id": 2, "eos_token_id": 1 }"#,
    reads_mlp_bias: false,
    qk_norm: QkNorm::Head,
    activation_key: Some("hidden_activation"),
    norms_from_one: true,
    scales: Scales::Gemma,
    sliding: Sliding::AllBut(6),
    hugging_face: Form { tensors: &HF_GEMMA, ..PLAIN },
    gguf: Form { tensors: &GGUF_BOTH, ..PLAIN_GGUF },
    ..LLAMA
};

static FAMILIES: [Family; 17] = [
    LLAMA,
    MISTRAL,
    Family {
        name: "mixtral",
        architecture: "MixtralForCausalLM",
        defaults: r#"{ "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8,
            "num_experts_per_tok": 2, "max_position_embeddings": 131072 }"#,
        experts: Some(ExpertRules {
            count: "num_local_experts",
            intermediate: "intermediate_size",
            renormalises: true,
            biases: false,
            shared: false,
        }),
        hugging_face: Form { tensors: &HF_MIXTRAL, ..PLAIN },
        ..MISTRAL
    },
    QWEN2,
    QWEN3,
    Family {
        name: "qwen2_moe",
        architecture: "Qwen2MoeForCausalLM",
        gguf_architecture: "qwen2moe",
        defaults: r#"{ "num_key_value_heads": 16, "qkv_bias": true, "sliding_window": 4096, "max_window_layers": 28,
            "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "norm_topk_prob": false, "max_position_embeddings": 32768 }"#,
        biases: Biases::QkvBy("qkv_bias"),
        sliding: Sliding::EveryOtherBelow,
        experts: Some(ExpertRules {
            count: "num_experts",
            intermediate: "moe_intermediate_size",
            renormalises: false,
            biases: false,
            shared: true,
        }),
        ..QWEN2
    },
    Family {
        name: "qwen3_moe",
        architecture: "Qwen3MoeForCausalLM",
        gguf_architecture: "qwen3moe",
        defaults: r#"{ "num_key_value_heads": 4, "sliding_window": 4096, "num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "norm_topk_prob": false, "max_position_embeddings": 32768 }"#,
        sliding: Sliding::AllIfUsed,
        experts: Some(ExpertRules {
            count: "num_experts",
            intermediate: "moe_intermediate_size",
            renormalises: false,
            biases: false,
            shared: false,
        }),
        ..QWEN3
    },
    Family {
        name: "internlm2",
        architecture: "InternLM2ForCausalLM",
        gguf_architecture: "internlm2",
        defaults: r#"{ "bias": true, "max_position_embeddings": 2048 }"#,
        biases: Biases::AllBy("bias"),
        reads_mlp_bias: false,
        hugging_face: Form { tensors: &HF_INTERNLM2, qkv: Packing::Grouped, ..PLAIN },
        ..LLAMA
    },
    Family {
        name: "smollm3",
        architecture: "SmolLM3ForCausalLM",
        gguf_architecture: "smollm3",
        defaults: r#"{ "num_key_value_heads": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": true,
            "rope_theta": 2e6, "max_position_embeddings": 32768 }"#,
        sliding: Sliding::Unrotated,
        ..LLAMA
    },
    Family {
        name: "phi3",
        architecture: "Phi3ForCausalLM",
        gguf_architecture: "phi3",
        defaults: r#"{ "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096 }"#,
        biases: Biases::None,
        reads_mlp_bias: false,
        sliding: Sliding::All,
        hugging_face: Form { qkv: Packing::Stacked, gate_up: true, ..PLAIN },
        gguf: Form { qkv: Packing::Stacked, gate_up: true, ..PLAIN_GGUF },
        ..LLAMA
    },
    Family {
        name: "gemma2",
        aliases: &[],
        architecture: "Gemma2ForCausalLM",
        gguf_architecture: "gemma2",
        defaults: r#"{ "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 2,
            "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50,
            "final_logit_softcapping": 30, "max_position_embeddings": 8192, "bos_token_id": 2, "eos_token_id": 1 }"#,
        qk_norm: QkNorm::None,
        sliding: Sliding::AllBut(2),
        ..GEMMA3
    },
    GEMMA3,
    Family {
        name: "gpt_oss",
        architecture: "GptOssForCausalLM",
        gguf_architecture: "gpt-oss",
        defaults: r#"{ "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "rms_norm_eps": 1e-5,
            "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
            "attention_bias": true, "rope_theta": 150000, "max_position_embeddings": 131072, "rope_parameters": {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                "original_max_position_embeddings": 4096 } }"#,
        reads_mlp_bias: false,
        activation_key: None,
        sinks: true,
        sliding: Sliding::AllBut(2),
        experts: Some(ExpertRules {
            count: "num_local_experts",
            intermediate: "intermediate_size",
            renormalises: true,
            biases: true,
            shared: false,
        }),
        hugging_face: Form { tensors: &HF_GPT_OSS, ..PLAIN },
        gguf: Form { tensors: &GGUF_GPT_OSS, ..PLAIN_GGUF },
        ..LLAMA
    },
    OLMO2,
    Family {
        name: "olmo3",
        architecture: "Olmo3ForCausalLM",
        defaults: r#"{ "rms_norm_eps": 1e-5, "sliding_window": 4096, "max_position_embeddings": 2048 }"#,
        sliding: Sliding::AllBut(4),
        scales_sliding: false,
        ..OLMO2
    },
    Family {
        name: "granite",
        architecture: "GraniteForCausalLM",
        gguf_architecture: "granite",
        defaults: r#"{ "attention_multiplier": 1.0, "max_position_embeddings": 2048 }"#,
        scales: Scales::Granite,
        ..LLAMA
    },
    Family {
        name: "glm4",
        architecture: "Glm4ForCausalLM",
        gguf_architecture: "glm4",
        defaults: r#"{ "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1.5625e-7,
            "partial_rotary_factor": 0.5, "attention_bias": true, "max_position_embeddings": 131072 }"#,
        biases: Biases::QkvBy("attention_bias"),
        reads_mlp_bias: false,
        hugging_face: Form { tensors: &HF_GLM4, gate_up: true, neighbours: true, ..PLAIN },
        gguf: Form { tensors: &GGUF_BOTH, gate_up: true, ..NEIGHBOURS_GGUF },
        ..LLAMA
    },
];

impl Family {
    /// Every supported family.
    pub fn all() -> &'static [Family] {
        &FAMILIES
    }

    /// The family of this `model_type`.
    pub fn named(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.name == name || f.aliases.contains(&name))
    }
}
