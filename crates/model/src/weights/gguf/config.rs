//! The configuration in a GGUF file: metadata in the words of a config.json, so that one set of rules serves both, and what
//! its tensors tell. Keys and what readers take where they are absent: llama.cpp.

use super::Gguf;
use super::header::Value;
use crate::family::Scales;
use crate::weights::{Pieces, TensorStore};
use crate::{Config, Family, ModelError};
use reattention::rope::RopeScaling;
use serde_json::{Map, json};

/// LongRoPE's factors, which divide frequencies.
const LONG: &str = "rope_factors_long.weight";
const SHORT: &str = "rope_factors_short.weight";

impl Gguf {
    /// The configuration, with what the tensors tell: tied head, biases, and Llama 3's divided frequencies.
    pub(crate) fn config(&self) -> Result<Config, ModelError> {
        let file = self.name();
        let mut config = Config::from_json(&self.config_json()?, file)?;
        config.tie_embeddings = !self.has("output.weight");
        config.qkv_bias = self.has("blk.0.attn_q.bias") || self.has("blk.0.attn_qkv.bias");
        config.o_bias = self.has("blk.0.attn_output.bias");
        config.mlp_bias = self.has("blk.0.ffn_up.bias");
        if self.has("rope_freqs.weight") {
            let divisors = self.factors("rope_freqs.weight", config.rope.dim / 2)?;
            config.rope.scaling = RopeScaling::Divisors(divisors.into());
        }
        if self.has(LONG) && self.has(SHORT) {
            let pairs = config.rope.dim / 2;
            let keys = Keys { gguf: self, architecture: self.family()?.0 };
            let original = keys.optional("rope.scaling.original_context_length")?.as_u64();
            let factor = keys.optional("rope.scaling.attn_factor")?.as_f64();
            config.rope.scaling = RopeScaling::LongRope {
                short: self.factors(SHORT, pairs)?.into(),
                long: self.factors(LONG, pairs)?.into(),
                original_window: original.map_or(config.rope.window, |n| n as usize),
                attention_factor: factor.unwrap_or(1.0),
            };
        }
        config.checked(file)
    }

    /// A tensor of one number for each frequency.
    fn factors(&self, name: &str, pairs: usize) -> Result<Vec<f32>, ModelError> {
        let found = self.find(name)?.map(|stored| stored.shape).unwrap_or_default();
        if found[..] != [pairs] {
            return Err(ModelError::TensorShape {
                file: self.name().into(),
                tensor: name.into(),
                expected: vec![pairs],
                found,
            });
        }
        self.vector(name, &Pieces::all(pairs))
    }

    /// The metadata in the words of a config.json.
    fn config_json(&self) -> Result<String, ModelError> {
        let (architecture, family) = self.family()?;
        let keys = Keys { gguf: self, architecture };
        let mut config = Map::new();
        config.insert("model_type".into(), json!(family.name));
        for (to, from) in [
            ("num_hidden_layers", "block_count"),
            ("hidden_size", "embedding_length"),
            ("num_attention_heads", "attention.head_count"),
            ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
            ("max_position_embeddings", "context_length"),
        ] {
            config.insert(to.into(), keys.needed(from)?);
        }
        // A null keeps the default of config.json away.
        for (to, from) in [
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.key_length"),
            ("final_logit_softcapping", "final_logit_softcapping"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("attention_multiplier", "attention.scale"),
            ("logits_scaling", "logit_scale"),
            ("sliding_window", "attention.sliding_window"),
        ] {
            config.insert(to.into(), keys.optional(from)?);
        }
        config.insert("rope_theta".into(), keys.or("rope.freq_base", json!(10_000.0))?);
        self.dense_or_sparse(&keys, family, &mut config)?;
        self.lengths(&keys, &mut config)?;
        self.sliding(&keys, family, &mut config)?;
        if family.scales == Scales::Gemma {
            self.gemma(family, &mut config);
            if self.header.metadata.contains_key(&keys.full("rope.freq_base_swa")) {
                config.insert("rope_local_base_freq".into(), keys.optional("rope.freq_base_swa")?);
            }
        }
        let table = self.header.tensors.get("token_embd.weight").map(|t| t.shape[0]);
        config.insert("vocab_size".into(), json!(table));
        let tokens = |keys: &[&str]| {
            let ids = keys.iter().filter_map(|k| self.integer(&format!("tokenizer.ggml.{k}_token_id")));
            json!(ids.filter_map(|id| i64::try_from(id).ok()).collect::<Vec<_>>())
        };
        config.insert("bos_token_id".into(), tokens(&["bos"]));
        // Where a code model goes on to another file, its answer is over too.
        config.insert("eos_token_id".into(), tokens(&["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"]));
        config.insert("rope_scaling".into(), self.rope_scaling(&keys)?);
        config.insert("rope_parameters".into(), serde_json::Value::Null);
        Ok(serde_json::Value::Object(config).to_string())
    }

    /// The architecture that keys begin with, and the family. `llama` is also that of Mistral and Mixtral, `olmo2` that of
    /// OLMo 3.
    fn family(&self) -> Result<(String, &'static Family), ModelError> {
        let architecture = self.text("general.architecture").unwrap_or_default();
        let positive = |name: &str| self.integer(&format!("{architecture}.{name}")).is_some_and(|n| n > 0);
        let slides = positive("attention.sliding_window");
        let wanted = match architecture {
            "llama" if positive("expert_count") => Family::named("mixtral"),
            "llama" if slides => Family::named("mistral"),
            "mistral3" if !positive("expert_count") => Family::named("mistral"),
            "olmo2" if slides => Family::named("olmo3"),
            _ => Family::all().iter().find(|f| f.gguf_architecture == architecture),
        };
        let refusal = |id: &str| {
            let mut known: Vec<_> = Family::all().iter().map(|f| f.gguf_architecture).collect();
            known.sort_unstable();
            known.dedup();
            ModelError::architecture(self.name(), id, architecture, &known)
        };
        if self.header.metadata.contains_key(&format!("{architecture}.attention.temperature_scale")) {
            return Err(refusal("ministral3"));
        }
        wanted.map(|family| (architecture.to_string(), family)).ok_or_else(|| refusal(architecture))
    }

    /// Widths of the MLP and of experts.
    fn dense_or_sparse(
        &self,
        keys: &Keys,
        family: &Family,
        config: &mut Map<String, serde_json::Value>,
    ) -> Result<(), ModelError> {
        let width = keys.optional("feed_forward_length")?;
        let Some(rules) = family.experts else {
            config.insert("num_experts".into(), keys.optional("expert_count")?);
            let width = if width.is_null() { keys.needed("feed_forward_length")? } else { width };
            config.insert("intermediate_size".into(), width);
            return Ok(());
        };
        let of_expert = keys.or("expert_feed_forward_length", width.clone())?;
        // Layers without experts do not occur, and then nothing is as wide as this.
        let width = if width.is_null() { of_expert.clone() } else { width };
        config.insert("intermediate_size".into(), width.clone());
        config.insert(rules.intermediate.into(), of_expert);
        config.insert(rules.count.into(), keys.needed("expert_count")?);
        config.insert("num_experts_per_tok".into(), keys.needed("expert_used_count")?);
        config.insert("norm_topk_prob".into(), json!(family.name == "qwen3_moe"));
        if rules.shared {
            let shared = keys.or("expert_shared_feed_forward_length", width)?;
            config.insert("shared_expert_intermediate_size".into(), shared);
        }
        Ok(())
    }

    /// Lengths of a head's parts.
    fn lengths(&self, keys: &Keys, config: &mut Map<String, serde_json::Value>) -> Result<(), ModelError> {
        let of = |k: &str| config.get(k).and_then(serde_json::Value::as_i64).map(i128::from);
        let head_dim = of("head_dim").or_else(|| of("hidden_size")?.checked_div(of("num_attention_heads")?));
        let value_length = self.integer(&keys.full("attention.value_length"));
        if value_length.is_some_and(|length| Some(length) != head_dim) {
            return Err(ModelError::unsupported(self.name(), "a value length of its own", ""));
        }
        let rotated = self.integer(&keys.full("rope.dimension_count"));
        let part = match (rotated, head_dim) {
            // A little more than the ratio: a fraction of an element is cut off.
            (Some(rotated), Some(all)) if rotated != all => {
                json!((rotated as f64 + 0.25) / all.max(1) as f64)
            }
            // Also where the family's default is another.
            _ => json!(1.0),
        };
        config.insert("partial_rotary_factor".into(), part);
        Ok(())
    }

    /// Which layers slide.
    fn sliding(
        &self,
        keys: &Keys,
        family: &Family,
        config: &mut Map<String, serde_json::Value>,
    ) -> Result<(), ModelError> {
        if config.get("sliding_window").and_then(serde_json::Value::as_f64) == Some(0.0) {
            config.insert("sliding_window".into(), serde_json::Value::Null);
        }
        if family.name == "gemma2" {
            config.insert("sliding_window".into(), keys.or("attention.sliding_window", json!(4096))?);
        }
        match self.header.metadata.get(&keys.full("attention.sliding_window_pattern")) {
            Some(Value::Int(pattern)) => {
                config.insert("sliding_window_pattern".into(), json!(i64::try_from(*pattern).unwrap_or(0)));
            }
            Some(Value::Numbers(slides)) => {
                let name = |slides: &f32| if *slides == 0.0 { "full_attention" } else { "sliding_attention" };
                config.insert("layer_types".into(), json!(slides.iter().map(name).collect::<Vec<_>>()));
            }
            None => {}
            Some(_) => {
                let reason = "must be a number or one a layer";
                let key = keys.full("attention.sliding_window_pattern");
                return Err(ModelError::config(self.name(), &key, reason));
            }
        }
        Ok(())
    }

    /// What llama.cpp fixes for Gemma: scores by the head's length, but by the width a head for the models of 27 billion
    /// parameters, which it knows by their layers; caps where a file of Gemma 2 names none; a base of 10000 for sliding layers.
    fn gemma(&self, family: &Family, config: &mut Map<String, serde_json::Value>) {
        let of = |k: &str| config.get(k).and_then(serde_json::Value::as_f64);
        let width = of("hidden_size").zip(of("num_attention_heads")).map(|(h, n)| h / n);
        let head_dim = of("head_dim").or(width);
        let largest = if family.name == "gemma2" { 46.0 } else { 62.0 };
        let scalar = if of("num_hidden_layers") == Some(largest) { width } else { head_dim };
        config.insert("query_pre_attn_scalar".into(), json!(scalar));
        config.insert("hidden_activation".into(), json!("gelu_pytorch_tanh"));
        if family.name == "gemma2" {
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if config.get(key).is_some_and(serde_json::Value::is_null) {
                    config.remove(key);
                }
            }
        }
    }

    /// Scaling of rotation that keys describe. Where none is named it is linear; LongRoPE's is in tensors.
    fn rope_scaling(&self, keys: &Keys) -> Result<serde_json::Value, ModelError> {
        let old = keys.optional("rope.scale_linear")?;
        let factor = keys.or("rope.scaling.factor", old)?.as_f64().filter(|f| *f != 0.0);
        let name = match (self.text(&keys.full("rope.scaling.type")), factor) {
            (None, Some(factor)) if factor != 1.0 => "linear",
            (None | Some("none" | "longrope"), _) => return Ok(serde_json::Value::Null),
            (Some("linear"), None) => return Ok(serde_json::Value::Null),
            (Some(name), _) => name,
        };
        let mut scaling = Map::new();
        scaling.insert("rope_type".into(), json!(name));
        // An absent factor, or 0, means 1 (llama.cpp), whatever the windows are.
        scaling.insert("factor".into(), json!(factor.unwrap_or(1.0)));
        for (to, from) in [
            ("original_max_position_embeddings", "rope.scaling.original_context_length"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            scaling.insert(to.into(), keys.optional(from)?);
        }
        let own = keys.optional("rope.scaling.yarn_attn_factor")?;
        let own = keys.or("rope.scaling.attn_factor", own)?.as_f64();
        if let (Some(own), Some(factor)) = (own, factor.filter(|f| name == "yarn" && *f > 1.0)) {
            // It multiplies YaRN's.
            scaling.insert("attention_factor".into(), json!(own * (1.0 + 0.1 * factor.ln())));
        }
        Ok(serde_json::Value::Object(scaling))
    }
}

/// Numbers under the keys of an architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: String,
}

impl Keys<'_> {
    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// The number, or null.
    fn optional(&self, name: &str) -> Result<serde_json::Value, ModelError> {
        match self.gguf.header.metadata.get(&self.full(name)) {
            Some(Value::Int(i)) => Ok(json!(i64::try_from(*i).unwrap_or(i64::MAX))),
            Some(Value::Float(f)) => Ok(json!(f)),
            None => Ok(serde_json::Value::Null),
            // One a layer, and all the same.
            Some(Value::Numbers(list)) if list.windows(2).all(|w| w[0] == w[1]) && !list.is_empty() => {
                Ok(json!(list[0]))
            }
            Some(_) => {
                let what = format!("a `{}` that is no number, as of layers that differ,", self.full(name));
                Err(ModelError::unsupported(self.gguf.name(), what, ""))
            }
        }
    }

    fn or(&self, name: &str, absent: serde_json::Value) -> Result<serde_json::Value, ModelError> {
        let found = self.optional(name)?;
        Ok(if found.is_null() { absent } else { found })
    }

    fn needed(&self, name: &str) -> Result<serde_json::Value, ModelError> {
        match self.optional(name)? {
            serde_json::Value::Null => {
                Err(ModelError::config(self.gguf.name(), &self.full(name), "is missing"))
            }
            value => Ok(value),
        }
    }
}
