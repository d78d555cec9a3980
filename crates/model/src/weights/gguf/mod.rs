//! GGUF: configuration, weights, tokenizer and chat template in one file.

pub(crate) mod header;
mod tokenizer;

use super::source::Source;
use super::{Element, Layout, Pieces, Stored, TensorStore};
use crate::family::GGUF;
use crate::linear::Weight;
use crate::quant::{QuantMatrix, block_type, row_bytes};
use crate::{ChatTemplate, Config, Family, ModelError, Tokenizer};
use candle_core::quantized::GgmlDType;
use header::{Header, TensorInfo, Value};
use reattention::rope::RopeScaling;
use reattention_kernels::{Buffer, Matrix, MatrixData};
use serde_json::{Map, json};
use std::path::Path;
use std::sync::Arc;

/// An opened GGUF file; tensors are read when asked for.
#[derive(Debug)]
pub(crate) struct Gguf {
    source: Source,
    header: Header,
}

const SUPPORTED: &str =
    "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K; choose another quantisation";

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        Self::from_source(Source::open(path).map_err(ModelError::io(path))?)
    }

    pub(crate) fn from_source(source: Source) -> Result<Self, ModelError> {
        let header = header::read(&source)?;
        Ok(Self { source, header })
    }

    /// The configuration, with what the tensors tell: tied head, biases, and Llama 3's divided frequencies.
    pub(crate) fn config(&self) -> Result<Config, ModelError> {
        let file = self.source.name();
        let mut config = Config::from_json(&self.config_json()?, file)?;
        let has = |name: &str| self.header.tensors.contains_key(name);
        config.tie_embeddings = !has("output.weight");
        config.qkv_bias = has("blk.0.attn_q.bias");
        config.o_bias = has("blk.0.attn_output.bias");
        config.mlp_bias = has("blk.0.ffn_gate.bias");
        if has("rope_freqs.weight") {
            let pairs = config.head_dim / 2;
            let found = &self.header.tensors["rope_freqs.weight"].shape;
            if found[..] != [pairs] {
                return Err(ModelError::TensorShape {
                    file: file.into(),
                    tensor: "rope_freqs.weight".into(),
                    expected: vec![pairs],
                    found: found.clone(),
                });
            }
            self.find("rope_freqs.weight")?;
            config.rope.scaling =
                RopeScaling::Divisors(self.vector("rope_freqs.weight", &Pieces::all(pairs))?.into());
        }
        config.checked(file)
    }

    /// Rows of query and key are interleaved where llama.cpp rotates neighbouring elements.
    pub(crate) fn layout(&self, family: &Family) -> Layout {
        let interleaved = matches!(family.name, "llama" | "mistral" | "internlm2");
        Layout { names: &GGUF, packed_qkv: false, interleaved }
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        tokenizer::build(&self.header, self.source.name())
    }

    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        let Some(source) = self.text("tokenizer.chat_template") else { return Ok(None) };
        let token = |key: &str| {
            let id = self.integer(&format!("tokenizer.ggml.{key}_token_id"))?;
            match self.header.metadata.get("tokenizer.ggml.tokens") {
                Some(Value::Texts(tokens)) => tokens.get(usize::try_from(id).ok()?).map(String::as_str),
                _ => None,
            }
        };
        ChatTemplate::new(source, token("bos"), token("eos")).map(Some)
    }

    /// The metadata in the words of a config.json, so that one set of rules serves both.
    fn config_json(&self) -> Result<String, ModelError> {
        let architecture = self.text("general.architecture").unwrap_or_default().to_string();
        let key = |name: &str| format!("{architecture}.{name}");
        let window = self.integer(&key("attention.sliding_window")).filter(|&w| w > 0);
        let name = if architecture == "llama" && window.is_some() { "mistral" } else { &architecture };
        let Some(family) = Family::named(name) else {
            let known: Vec<_> = Family::all().iter().map(|f| f.name).collect();
            return Err(ModelError::UnknownArchitecture {
                file: self.source.name().into(),
                found: architecture.chars().take(80).collect(),
                known: known.join(", "),
            });
        };
        let mut config = Map::new();
        config.insert("model_type".into(), json!(family.name));
        let mut number = |to: &str, from: &str, needed: bool| {
            let value = match self.header.metadata.get(&key(from)) {
                Some(Value::Int(i)) => json!(i64::try_from(*i).unwrap_or(i64::MAX)),
                Some(Value::Float(f)) => json!(f),
                None if !needed => return Ok(()),
                None => return Err(ModelError::config(self.source.name(), &key(from), "is missing")),
                Some(_) => {
                    let what = format!("a `{}` that is no number, as of layers that differ,", key(from));
                    return Err(ModelError::unsupported(self.source.name(), what, ""));
                }
            };
            config.insert(to.into(), value);
            Ok(())
        };
        number("num_hidden_layers", "block_count", true)?;
        number("hidden_size", "embedding_length", true)?;
        number("intermediate_size", "feed_forward_length", true)?;
        number("num_attention_heads", "attention.head_count", true)?;
        number("num_key_value_heads", "attention.head_count_kv", false)?;
        number("head_dim", "attention.key_length", false)?;
        number("rms_norm_eps", "attention.layer_norm_rms_epsilon", true)?;
        number("max_position_embeddings", "context_length", true)?;
        number("rope_theta", "rope.freq_base", false)?;
        number("num_experts", "expert_count", false)?;
        let rotated = self.integer(&key("rope.dimension_count"));
        let value_length = self.integer(&key("attention.value_length"));
        let head_dim =
            config.get("head_dim").and_then(serde_json::Value::as_i64).map(i128::from).or_else(|| {
                let of = |k: &str| config.get(k)?.as_i64().map(i128::from);
                of("hidden_size")?.checked_div(of("num_attention_heads")?)
            });
        for (what, length) in
            [("partial rotary embedding", rotated), ("a value length of its own", value_length)]
        {
            if length.is_some_and(|l| Some(l) != head_dim) {
                return Err(ModelError::unsupported(self.source.name(), what, ""));
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
        if let Some(size) = window {
            config.insert("sliding_window".into(), json!(i64::try_from(size).unwrap_or(i64::MAX)));
        }
        config.insert("rope_scaling".into(), self.rope_scaling(&key));
        Ok(serde_json::Value::Object(config).to_string())
    }

    fn rope_scaling(&self, key: &impl Fn(&str) -> String) -> serde_json::Value {
        let name = match self.text(&key("rope.scaling.type")) {
            None | Some("none") => return serde_json::Value::Null,
            Some(name) => name,
        };
        let mut scaling = Map::new();
        scaling.insert("rope_type".into(), json!(name));
        for (to, from) in [
            ("factor", "factor"),
            ("original_max_position_embeddings", "original_context_length"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ] {
            match self.header.metadata.get(&key(&format!("rope.scaling.{from}"))) {
                Some(Value::Int(i)) => {
                    scaling.insert(to.into(), json!(i64::try_from(*i).unwrap_or(i64::MAX)))
                }
                Some(Value::Float(f)) => scaling.insert(to.into(), json!(f)),
                _ => None,
            };
        }
        serde_json::Value::Object(scaling)
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.header.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn integer(&self, key: &str) -> Option<i128> {
        match self.header.metadata.get(key) {
            Some(Value::Int(i)) => Some(*i),
            _ => None,
        }
    }

    fn info(&self, name: &str) -> Result<(&TensorInfo, GgmlDType), ModelError> {
        let info = self.header.tensors.get(name).ok_or_else(|| ModelError::TensorMissing {
            file: self.source.name().into(),
            tensor: name.into(),
            help: String::new(),
        })?;
        let dtype = info.dtype.map_err(|kind| ModelError::TensorType {
            file: self.source.name().into(),
            tensor: name.into(),
            found: format!("number {kind}"),
            supported: SUPPORTED,
        })?;
        Ok((info, dtype))
    }
}

impl TensorStore for Gguf {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn find(&self, name: &str) -> Result<Option<Stored>, ModelError> {
        if !self.header.tensors.contains_key(name) {
            return Ok(None);
        }
        let (info, dtype) = self.info(name)?;
        let element = match dtype {
            GgmlDType::F32 => Element::F32,
            GgmlDType::F16 => Element::F16,
            GgmlDType::BF16 => Element::Bf16,
            quantised => Element::Quantised(quantised),
        };
        Ok(Some(Stored { file: self.source.name().into(), shape: info.shape.clone(), element }))
    }

    fn matrix(&self, name: &str, cols: usize, pieces: &Pieces) -> Result<Weight, ModelError> {
        let (info, dtype) = self.info(name)?;
        let element = match dtype {
            GgmlDType::F32 => Element::F32,
            GgmlDType::F16 => Element::F16,
            GgmlDType::BF16 => Element::Bf16,
            quantised => {
                let row = row_bytes(quantised, cols).unwrap_or_default();
                let mut bytes = Buffer::zeroed(row * pieces.rows());
                self.source.read_rows(info.offset, row, pieces, &mut bytes)?;
                let matrix = match block_type(quantised) {
                    // Our own kernels read these blocks in place.
                    Some(kind) => Matrix::new(pieces.rows(), cols, MatrixData::Blocks(kind, bytes))
                        .ok()
                        .map(|m| Weight::Dense(Arc::new(m))),
                    None => QuantMatrix::from_bytes(quantised, pieces.rows(), cols, &bytes)
                        .map(|m| Weight::Quantised(Arc::new(m))),
                };
                let error = || {
                    ModelError::format(self.source.name(), "GGUF", format!("tensor `{name}` has odd rows"))
                };
                return matrix.ok_or_else(error);
            }
        };
        self.source.dense(element, info.offset, cols, pieces)
    }
}
