//! Models with random weights, to measure and test with: any shape, any format, from a seed.
//!
//! Weights are normal with a standard deviation of `1 / sqrt(inputs)` and rounded to bf16, so that dense formats hold the
//! same numbers and quantised ones differ by their quantisation alone. A tensor is made row by row while it is
//! written; a file of any size takes little memory.

mod gguf;
mod hugging_face;
mod text;
mod values;

pub use gguf::{GgufType, write_gguf};
pub use hugging_face::{DenseType, write_hugging_face};
pub(crate) use text::GPT2_PATTERN;
pub use text::{tokenizer_config_json, tokenizer_json};

use crate::{Config, Family, ModelError};
use serde_json::{Map, Value, json};

/// The shape of a model to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Family name, as [`Family::name`] has it.
    pub family: String,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub n_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Length of one head's vector.
    pub head_dim: usize,
    /// Tokens; at least 258.
    pub vocab_size: usize,
    /// Trained window.
    pub window: usize,
    /// RoPE base.
    pub theta: f64,
    /// The output head is the embedding.
    pub tied: bool,
    /// Further keys of config.json, for instance `rope_scaling`.
    pub extra: Map<String, Value>,
}

impl Shape {
    /// The shape of Qwen2.5-0.5B: 494 million parameters.
    pub fn qwen2_5_0_5b() -> Self {
        Self {
            n_layers: 24,
            hidden: 896,
            intermediate: 4864,
            n_heads: 14,
            n_kv_heads: 2,
            head_dim: 64,
            vocab_size: 151_936,
            window: 32_768,
            theta: 1e6,
            tied: true,
            ..Self::tiny("qwen2")
        }
    }

    /// The shape of Llama 3.1 8B: 8,030 million parameters, 16 GB in bf16.
    pub fn llama_3_1_8b() -> Self {
        let scaling = serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        Self {
            n_layers: 32,
            hidden: 4096,
            intermediate: 14_336,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            vocab_size: 128_256,
            window: 131_072,
            theta: 5e5,
            ..Self::tiny("llama").with("rope_scaling", scaling)
        }
    }

    /// A model of a few thousand parameters of this family. Where it has experts they are few and small, where its layers
    /// differ there are as many as show every kind, and what it multiplies by is none of the numbers that change nothing.
    pub fn tiny(family: &str) -> Self {
        let plain = Self::plain(family);
        let experts =
            |shape: Self, count: &str| shape.with(count, json!(4)).with("num_experts_per_tok", json!(2));
        let sliding =
            |shape: Self, n_layers: usize| Self { n_layers, ..shape }.with("sliding_window", json!(24));
        match family {
            "mixtral" => experts(plain, "num_local_experts"),
            "qwen3_moe" => experts(plain, "num_experts")
                .with("moe_intermediate_size", json!(32))
                .with("norm_topk_prob", json!(true)),
            "qwen2_moe" => experts(plain, "num_experts")
                .with("moe_intermediate_size", json!(32))
                .with("shared_expert_intermediate_size", json!(48)),
            "gpt_oss" => sliding(experts(plain, "num_local_experts"), 2)
                .with("rope_parameters", json!({ "rope_type": "default" })),
            "gemma2" => sliding(plain, 2).with("query_pre_attn_scalar", json!(16)),
            "gemma3" => sliding(plain, 6)
                .with("query_pre_attn_scalar", json!(32))
                .with("hidden_activation", json!("gelu_pytorch_tanh")),
            "olmo3" => sliding(plain, 4),
            "smollm3" => Self { n_layers: 4, ..plain },
            "granite" => plain
                .with("embedding_multiplier", json!(3.0))
                .with("attention_multiplier", json!(0.125))
                .with("residual_multiplier", json!(0.5))
                .with("logits_scaling", json!(2.0)),
            "glm4" => plain.with("attention_bias", json!(true)).with("partial_rotary_factor", json!(0.5)),
            _ => plain,
        }
    }

    fn plain(family: &str) -> Self {
        Self {
            family: family.into(),
            n_layers: 2,
            hidden: 64,
            intermediate: 96,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: if matches!(family, "qwen3" | "qwen3_moe" | "gemma3" | "glm4") { 32 } else { 16 },
            vocab_size: 320,
            window: 512,
            theta: 10_000.0,
            tied: matches!(family, "qwen2" | "qwen3" | "gemma2" | "gemma3" | "smollm3" | "granite"),
            extra: Map::new(),
        }
    }

    /// The same with another key of config.json.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.extra.insert(key.into(), value);
        self
    }

    /// Its config.json; `dtype` is what `torch_dtype` says.
    pub fn config_json(&self, dtype: &str) -> String {
        let class = Family::named(&self.family).map_or("", |f| f.architecture);
        let mut config = json!({
            "architectures": [class], "model_type": self.family, "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads, "num_key_value_heads": self.n_kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab_size, "max_position_embeddings": self.window, "rms_norm_eps": 1e-6,
            "rope_theta": self.theta, "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": self.tied,
            "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": dtype
        });
        if self.family == "internlm2" {
            config["bias"] = json!(false);
        }
        self.extra.iter().for_each(|(key, value)| config[key] = value.clone());
        config.to_string()
    }

    /// Its configuration.
    ///
    /// # Errors
    /// When there can be no such model, or the vocabulary has no room for every byte.
    pub fn config(&self) -> Result<Config, ModelError> {
        if self.vocab_size < text::MIN_VOCAB {
            let reason = format!("is {}; {} hold every byte", self.vocab_size, text::MIN_VOCAB);
            return Err(ModelError::config("shape", "vocab_size", reason));
        }
        Config::from_json(&self.config_json("float32"), "shape")
    }
}

fn write_error(e: impl std::fmt::Display) -> ModelError {
    ModelError::Write { reason: e.to_string() }
}
