//! A model's configuration, from Hugging Face's config.json.

mod experts;
mod layers;
mod rope;

pub use experts::Experts;

use crate::family::{Biases, Scales};
use crate::files::read_text;
use crate::{Family, ModelError};
use reattention::rope::RopeConfig;
use reattention::{DualChunk, LayerAttention, ModelShape};
use reattention_kernels::Activation;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// Architecture and sizes of a model. One that exists is valid: it only comes from the parsers, which check everything.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Architecture.
    pub family: &'static Family,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP, where it is not a choice among experts.
    pub intermediate: usize,
    /// Query heads.
    pub n_heads: usize,
    /// KV heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Length of one head's vector; even. Not always `hidden / n_heads`.
    pub head_dim: usize,
    /// Tokens known.
    pub vocab_size: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_eps: f32,
    /// The output head is the embedding.
    pub tie_embeddings: bool,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub o_bias: bool,
    /// The MLP's three matrices have a bias.
    pub mlp_bias: bool,
    /// Activation of the MLP and of the experts.
    pub activation: Activation,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// What attention and MLP give is multiplied by this before it is added.
    pub residual_scale: f32,
    /// Scores are multiplied by this, where it is not `1 / sqrt(head_dim)`.
    pub attention_scale: Option<f32>,
    /// Scores `s` become `c · tanh(s / c)` for this `c`.
    pub attention_softcap: Option<f32>,
    /// Logits are multiplied by this.
    pub logit_scale: f32,
    /// Logits `z` then become `c · tanh(z / c)` for this `c`.
    pub logit_softcap: Option<f32>,
    /// What each layer's attention is; `n_layers` of them.
    pub layers: Arc<[LayerAttention]>,
    /// The sparse layers, in a mixture of experts.
    pub experts: Option<Experts>,
    /// Rotary embedding, with the window (`max_position_embeddings`). A CLEX layer's is only complete once its weights were read,
    /// as opening a [`Checkpoint`](crate::Checkpoint) does.
    pub rope: RopeConfig,
    /// Rotary embedding of layers with a sliding window, where it differs.
    pub sliding_rope: Option<RopeConfig>,
    /// Dual chunk attention, for models trained with it (Qwen2.5-1M).
    pub dual_chunk: Option<DualChunk>,
    /// Token that begins a text.
    pub bos_id: Option<u32>,
    /// Tokens that end an answer; may be empty.
    pub eos_ids: Vec<u32>,
    /// Element type that the configuration announces (`torch_dtype`); the files decide.
    pub dtype: Option<String>,
}

impl Config {
    /// Reads `config.json` of a model folder, and `generation_config.json`, whose end tokens are added, if it is there.
    ///
    /// # Errors
    /// When a file cannot be read, the architecture is not supported, or a value is missing or makes no sense.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let text = read_text(&path).map_err(ModelError::io(&path))?;
        let config = Self::from_json(&text, &path.display().to_string())?;
        let path = dir.join("generation_config.json");
        match read_text(&path) {
            Ok(text) => config.with_generation_config(&text, &path.display().to_string()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(config),
            Err(e) => Err(ModelError::io(&path)(e)),
        }
    }

    /// Parses the text of a config.json; `file` names it in messages.
    ///
    /// # Errors
    /// As [`Config::from_dir`].
    pub fn from_json(text: &str, file: &str) -> Result<Self, ModelError> {
        let mut fields = Fields::parse(text, file)?.language_model()?;
        let family = fields.family()?;
        fields.fill(family)?;
        fields.refuse_foreign_features()?;
        let n_layers = fields.size("num_hidden_layers", 1 << 12)?;
        let hidden = fields.size("hidden_size", 1 << 20)?;
        let n_heads = fields.size("num_attention_heads", 1 << 14)?;
        let n_kv_heads = fields.optional_size("num_key_value_heads", 1 << 14)?.unwrap_or(n_heads);
        let head_dim = match fields.optional_size("head_dim", 1 << 12)? {
            Some(d) => d,
            None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            None => {
                return Err(
                    fields.error("head_dim", "is absent and num_attention_heads does not divide hidden_size")
                );
            }
        };
        // What lies beyond the positions it was trained on is dual chunk attention's to reach.
        let dual_chunk = fields.dual_chunk()?;
        let window = match &dual_chunk {
            Some((_, original)) => *original,
            None => fields.size("max_position_embeddings", 1 << 32)?,
        };
        let dual_chunk = dual_chunk.map(|(chunks, _)| chunks);
        let rotary = rope::parse(&fields, head_dim, window, family.scales_sliding)?;
        let (qkv_bias, o_bias) = match family.biases {
            Biases::None => (false, false),
            Biases::Qkv => (true, false),
            Biases::QkvBy(key) => (fields.boolean(key)? == Some(true), false),
            Biases::AllBy(key) => {
                let has = fields.boolean(key)? == Some(true);
                (has, has)
            }
        };
        let scales = fields.scales(family, hidden)?;
        let config = Self {
            family,
            n_layers,
            hidden,
            intermediate: fields.size("intermediate_size", 1 << 22)?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab_size: fields.size("vocab_size", 1 << 24)?,
            rms_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tie_embeddings: fields.boolean("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias,
            o_bias,
            mlp_bias: family.reads_mlp_bias && fields.boolean("mlp_bias")? == Some(true),
            activation: fields.activation(family)?,
            embedding_scale: scales.embedding,
            residual_scale: scales.residual,
            attention_scale: scales.attention,
            attention_softcap: scales.attention_softcap,
            logit_scale: scales.logits,
            logit_softcap: scales.logit_softcap,
            layers: layers::parse(&fields, family, n_layers, window)?.into(),
            experts: experts::parse(&fields, family, n_layers)?,
            rope: rotary.full,
            sliding_rope: rotary.sliding,
            dual_chunk,
            bos_id: fields.tokens("bos_token_id")?.and_then(|ids| ids.first().copied()),
            eos_ids: fields.tokens("eos_token_id")?.unwrap_or_default(),
            dtype: fields.text("torch_dtype").or(fields.text("dtype")).map(str::to_string),
        };
        config.checked(file)
    }

    /// Takes over the begin token of a generation_config.json, where it names one, and adds its end tokens.
    ///
    /// # Errors
    /// When the text is not JSON or a token is no token of the model.
    pub fn with_generation_config(mut self, text: &str, file: &str) -> Result<Self, ModelError> {
        let fields = Fields::parse(text, file)?;
        if let Some(ids) = fields.tokens("bos_token_id")? {
            self.bos_id = ids.first().copied();
        }
        // Either file names the wrong one, or one of several, often enough: all of them end.
        for id in fields.tokens("eos_token_id")?.unwrap_or_default() {
            if !self.eos_ids.contains(&id) {
                self.eos_ids.push(id);
            }
        }
        self.checked(file)
    }

    /// What a method must know of the model.
    pub fn shape(&self) -> ModelShape {
        ModelShape {
            family: self.family.name.to_string(),
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            window: self.rope.reach(),
            rope: self.rope.clone(),
            sliding_rope: self.sliding_rope.clone(),
            dual_chunk: self.dual_chunk,
            layers: Arc::clone(&self.layers),
            scale: self.attention_scale,
            softcap: self.attention_softcap,
        }
    }

    /// The relations between values, whatever file they came from.
    pub(crate) fn checked(self, file: &str) -> Result<Self, ModelError> {
        let error = |key: &str, reason: String| Err(ModelError::config(file, key, reason));
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let reason =
                format!("is {}, which does not divide the {} query heads", self.n_kv_heads, self.n_heads);
            return error("num_key_value_heads", reason);
        }
        if !self.head_dim.is_multiple_of(2) {
            return error("head_dim", format!("is {}; rotary embedding needs an even length", self.head_dim));
        }
        if self.n_heads as u64 * self.head_dim as u64 > 1 << 20 {
            return error(
                "head_dim",
                format!("{} times {} heads is absurdly large", self.head_dim, self.n_heads),
            );
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return error("rms_norm_eps", format!("is {}; it must be between 0 and 1", self.rms_eps));
        }
        for rope in std::iter::once(&self.rope).chain(&self.sliding_rope) {
            rope.validate().map_err(|error| ModelError::Rope { file: file.into(), error })?;
        }
        // Some published configurations name a begin token beyond the vocabulary they trim; such a token is no token.
        let known = |id: &u32| (*id as usize) < self.vocab_size;
        let (bos_id, eos_ids) =
            (self.bos_id.filter(known), self.eos_ids.iter().copied().filter(known).collect());
        Ok(Self { bos_id, eos_ids, ..self })
    }
}

/// A JSON object with typed access, naming file and key in its errors.
pub(crate) struct Fields<'a> {
    pub(crate) file: &'a str,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn parse(text: &str, file: &'a str) -> Result<Self, ModelError> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { file, map }),
            Ok(_) => Err(ModelError::format(file, "JSON", "an object is expected")),
            Err(e) => Err(ModelError::format(file, "JSON", e.to_string())),
        }
    }

    /// The value of `key`, `None` when it is absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The object under `key`.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, map: map.clone() })),
            Some(_) => Err(self.error(key, "must be an object or null")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| self.error(key, "must be a number")),
        }
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_bool().map(Some).ok_or_else(|| self.error(key, "must be true or false")),
        }
    }

    pub(crate) fn optional_size(&self, key: &str, max: u64) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = value.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f < 9e15).map(|f| f as u64);
        match value.as_u64().or(whole) {
            Some(n) if n >= 1 && n <= max => {
                usize::try_from(n).map(Some).map_err(|_| self.error(key, "does not fit this machine"))
            }
            _ => Err(self.error(key, format!("is {value}; it must be a whole number from 1 to {max}"))),
        }
    }

    pub(crate) fn size(&self, key: &str, max: u64) -> Result<usize, ModelError> {
        self.optional_size(key, max)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A token id or a list of them; negative ids, as some files write "none", are dropped.
    fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>, ModelError> {
        let wrong = || self.error(key, "must be a token id or a list of token ids");
        let one = |v: &Value| match v.as_i64() {
            Some(id) if id < 0 => Ok(None),
            Some(id) => u32::try_from(id).map(Some).map_err(|_| wrong()),
            None => Err(wrong()),
        };
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => {
                let ids: Result<Vec<_>, _> = list.iter().map(one).collect();
                Ok(Some(ids?.into_iter().flatten().collect()))
            }
            Some(v) => Ok(Some(one(v)?.into_iter().collect())),
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn error(&self, key: &str, reason: impl Into<String>) -> ModelError {
        ModelError::config(self.file, key, reason)
    }

    /// The value of `key` as it stands.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.get(key)
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&[Value]>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.error(key, "must be a list or null")),
        }
    }

    /// The configuration of the language model in one that has other parts besides; their tensors are left alone.
    fn language_model(mut self) -> Result<Self, ModelError> {
        const SERVED: [&str; 2] = ["Gemma3ForConditionalGeneration", "Mistral3ForConditionalGeneration"];
        let is_served = self.class().is_some_and(|class| SERVED.contains(&class));
        let Some(Value::Object(text)) = self.map.get("text_config").filter(|_| is_served) else {
            return Ok(self);
        };
        let text = text.clone();
        self.map.remove("architectures");
        self.map.remove("model_type");
        self.map.extend(text);
        Ok(self)
    }

    /// Adds what the published configuration class has for keys that are not there.
    fn fill(&mut self, family: &Family) -> Result<(), ModelError> {
        for (key, value) in Fields::parse(family.defaults, self.file)?.map {
            self.map.entry(key).or_insert(value);
        }
        Ok(())
    }

    fn class(&self) -> Option<&str> {
        self.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str)
    }

    fn family(&self) -> Result<&'static Family, ModelError> {
        let class = self.class();
        // Files of a base model name its class, `LlamaModel` for `LlamaForCausalLM`.
        let by_class = |c: &str| {
            Family::all().iter().find(|f| {
                let base = f.architecture.strip_suffix("ForCausalLM");
                f.architecture.eq_ignore_ascii_case(c)
                    || c.strip_suffix("Model").is_some_and(|stem| base == Some(stem))
            })
        };
        let found = match (self.text("model_type"), class) {
            // As transformers does, where the two name different families; a class of neither kind may compute anything.
            (Some(name), Some(class)) => Family::named(name).filter(|_| by_class(class).is_some()),
            (Some(name), None) => Family::named(name),
            (None, Some(class)) => by_class(class),
            (None, None) => return Err(self.error("model_type", "is missing, and so is `architectures`")),
        };
        found.ok_or_else(|| {
            let found = class.or(self.text("model_type")).unwrap_or_default();
            let known: Vec<_> = Family::all().iter().map(|f| f.architecture).collect();
            ModelError::architecture(self.file, self.text("model_type").unwrap_or(found), found, &known)
        })
    }

    /// `dual_chunk_attention_config` of Qwen2.5-1M, and the positions of the model before it.
    fn dual_chunk(&self) -> Result<Option<(DualChunk, usize)>, ModelError> {
        let Some(fields) = self.object("dual_chunk_attention_config")? else { return Ok(None) };
        let size = |key: &str| fields.optional_size(key, 1 << 32);
        let missing = |key: &str| fields.error(&format!("dual_chunk_attention_config.{key}"), "is missing");
        let chunk = size("chunk_size")?.ok_or_else(|| missing("chunk_size"))?;
        let local = size("local_size")?.ok_or_else(|| missing("local_size"))?;
        let original = size("original_max_position_embeddings")?.unwrap_or(chunk);
        if local == 0 || local >= chunk || chunk > original {
            let reason = format!(
                "has chunk_size {chunk} and local_size {local}; local_size must be above 0 and below chunk_size, and chunk_size at most the window of {original}"
            );
            return Err(self.error("dual_chunk_attention_config", reason));
        }
        Ok(Some((DualChunk { size: chunk, local }, original)))
    }

    fn refuse_foreign_features(&self) -> Result<(), ModelError> {
        let refuse = |what: String, help| Err(ModelError::unsupported(self.file, what, help));
        if self.boolean("use_bidirectional_attention")? == Some(true) {
            return refuse("attention to later tokens (use_bidirectional_attention)".into(), "");
        }
        let method = self.object("quantization_config")?;
        // What MXFP4 leaves of gpt-oss' experts is read as it is.
        if method.is_some_and(|m| m.text("quant_method") != Some("mxfp4")) {
            return refuse(
                "a quantised Hugging Face checkpoint (quantization_config)".into(),
                "use the bf16 checkpoint or a GGUF file",
            );
        }
        Ok(())
    }

    fn activation(&self, family: &Family) -> Result<Activation, ModelError> {
        let Some(key) = family.activation_key else {
            let positive = |key: &str| match self.number(key)? {
                Some(x) if x > 0.0 && x < 1e4 => Ok(x as f32),
                found => Err(self.error(key, format!("is {found:?}; it must be a number above 0"))),
            };
            return Ok(Activation::ClampedSwiglu {
                alpha: positive("swiglu_alpha")?,
                limit: positive("swiglu_limit")?,
            });
        };
        match self.text(key) {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some(other) => {
                let other: String = other.chars().take(80).collect();
                let what = format!("activation `{other}` ({key})");
                Err(ModelError::unsupported(self.file, what, "silu and gelu_pytorch_tanh are"))
            }
        }
    }

    fn scales(&self, family: &Family, hidden: usize) -> Result<Found, ModelError> {
        let positive = |key: &str| match self.number(key)? {
            None => Ok(None),
            Some(x) if x > 0.0 && x < 1e9 => Ok(Some(x as f32)),
            Some(x) => Err(self.error(key, format!("is {x}; it must be above 0"))),
        };
        let plain = Found {
            embedding: 1.0,
            residual: 1.0,
            attention: None,
            attention_softcap: None,
            logits: 1.0,
            logit_softcap: None,
        };
        Ok(match family.scales {
            Scales::Plain => plain,
            Scales::Gemma => Found {
                embedding: (hidden as f32).sqrt(),
                attention: positive("query_pre_attn_scalar")?.map(|scalar| 1.0 / scalar.sqrt()),
                attention_softcap: positive("attn_logit_softcapping")?,
                logit_softcap: positive("final_logit_softcapping")?,
                ..plain
            },
            Scales::Granite => Found {
                embedding: positive("embedding_multiplier")?.unwrap_or(1.0),
                residual: positive("residual_multiplier")?.unwrap_or(1.0),
                attention: positive("attention_multiplier")?,
                logits: 1.0 / positive("logits_scaling")?.unwrap_or(1.0),
                ..plain
            },
        })
    }
}

/// By what a family multiplies, as its configuration has it.
struct Found {
    embedding: f32,
    residual: f32,
    attention: Option<f32>,
    attention_softcap: Option<f32>,
    logits: f32,
    logit_softcap: Option<f32>,
}

#[cfg(test)]
mod tests;
