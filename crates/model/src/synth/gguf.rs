//! Random models as GGUF files, laid out as llama.cpp's converter does.

use super::values::{StoredTensor, tensors};
use super::{DenseType, Shape, text, write_error};
use crate::family::Scales;
use crate::quant::candle_type;
use crate::weights::gguf::types::number;
use crate::weights::{Element, Layout};
use crate::{Config, ModelError};
use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use reattention::rope::{RopeConfig, RopeScaling};
use reattention_kernels::BlockType;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Type of a GGUF file's matrices. Where a row is no whole number of a type's blocks, the next larger type that fits is
/// taken, down to F16, as llama.cpp does; vectors are F32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits, bfloat16.
    Bf16,
    /// 8.5 bits, blocks of 32.
    Q8_0,
    /// 4.5 bits, blocks of 32.
    Q4_0,
    /// 5 bits, blocks of 32.
    Q4_1,
    /// 5.5 bits, blocks of 32.
    Q5_0,
    /// 6 bits, blocks of 32.
    Q5_1,
    /// 2.6 bits, blocks of 256.
    Q2K,
    /// 3.4 bits, blocks of 256.
    Q3K,
    /// 4.5 bits, blocks of 256.
    Q4K,
    /// 5.5 bits, blocks of 256.
    Q5K,
    /// 6.6 bits, blocks of 256.
    Q6K,
}

const ALIGNMENT: u64 = 32;

/// Writes a model with its tokenizer to one GGUF file.
///
/// # Errors
/// When there can be no such model, its rotary scaling has no GGUF form, or the file cannot be written.
pub fn write_gguf(path: &Path, shape: &Shape, dtype: GgufType, seed: u64) -> Result<(), ModelError> {
    let config = shape.config()?;
    let tensors = tensors(&config, Layout::gguf(config.family), seed)?;
    let divisors = divisors(&config.rope)?;
    let mut header = Header::default();
    header.metadata(&config, shape)?;
    let mut offset = 0;
    let mut place = |header: &mut Header, name: &str, shape: &[usize], element: Element| {
        header.tensor(name, shape, element, offset);
        let cols = shape[shape.len() - 1];
        let rows = shape.iter().product::<usize>() / cols;
        let bytes = element.row_bytes(cols).unwrap_or_default() * rows;
        offset += (bytes as u64).next_multiple_of(ALIGNMENT);
    };
    for tensor in &tensors {
        place(&mut header, &tensor.name, &tensor.shape, dtype.of(tensor));
    }
    if !divisors.is_empty() {
        place(&mut header, "rope_freqs.weight", &[divisors.len()], Element::F32);
    }
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(ModelError::io(path))?);
    let mut write = |bytes: &[u8]| {
        let padding = (bytes.len() as u64).next_multiple_of(ALIGNMENT) as usize - bytes.len();
        out.write_all(bytes)
            .and_then(|()| out.write_all(&[0; ALIGNMENT as usize][..padding]))
            .map_err(ModelError::io(path))
    };
    write(&header.bytes())?;
    for tensor in &tensors {
        write(&encode(tensor, dtype.of(tensor))?)?;
    }
    if !divisors.is_empty() {
        let mut bytes = Vec::new();
        DenseType::F32.encode(&divisors, &mut bytes);
        write(&bytes)?;
    }
    out.flush().map_err(write_error)
}

impl GgufType {
    fn of(self, tensor: &StoredTensor) -> Element {
        if tensor.cols() == 1 || tensor.name.contains("ffn_gate_inp") {
            return Element::F32;
        }
        let wanted = match self {
            Self::F32 => Element::F32,
            Self::F16 => Element::F16,
            Self::Bf16 => Element::Bf16,
            Self::Q8_0 => Element::Quantised(BlockType::Q8_0),
            Self::Q4_0 => Element::Quantised(BlockType::Q4_0),
            Self::Q4_1 => Element::Quantised(BlockType::Q4_1),
            Self::Q5_0 => Element::Quantised(BlockType::Q5_0),
            Self::Q5_1 => Element::Quantised(BlockType::Q5_1),
            Self::Q2K => Element::Quantised(BlockType::Q2K),
            Self::Q3K => Element::Quantised(BlockType::Q3K),
            Self::Q4K => Element::Quantised(BlockType::Q4K),
            Self::Q5K => Element::Quantised(BlockType::Q5K),
            Self::Q6K => Element::Quantised(BlockType::Q6K),
        };
        let fits = |element: &Element| element.row_bytes(tensor.cols()).is_some();
        [wanted, Element::Quantised(BlockType::Q8_0)].into_iter().find(fits).unwrap_or(Element::F16)
    }
}

/// The bytes of a whole tensor; a chunk of rows is made and quantised at a time, on all threads.
fn encode(tensor: &StoredTensor, element: Element) -> Result<Vec<u8>, ModelError> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let chunk = (1 << 16) / cols.max(1) + 1;
    let chunks: Result<Vec<Vec<u8>>, candle_core::Error> = (0..rows.div_ceil(chunk))
        .into_par_iter()
        .map(|i| {
            let range = i * chunk..rows.min((i + 1) * chunk);
            let n = range.len();
            let mut values = vec![0.0; n * cols];
            range.zip(values.chunks_exact_mut(cols)).for_each(|(row, out)| tensor.fill_row(row, out));
            let dense = match element {
                Element::F32 => DenseType::F32,
                Element::F16 => DenseType::F16,
                Element::Bf16 => DenseType::Bf16,
                Element::Quantised(kind) => {
                    let Some(dtype) = candle_type(kind) else {
                        return Err(candle_core::Error::Msg(format!("nothing here quantises to {kind:?}")));
                    };
                    let values = Tensor::from_vec(values, (n, cols), &Device::Cpu)?;
                    return Ok(QTensor::quantize(&values, dtype)?.data()?.into_owned());
                }
            };
            let mut bytes = Vec::new();
            dense.encode(&values, &mut bytes);
            Ok(bytes)
        })
        .collect();
    Ok(chunks.map_err(write_error)?.concat())
}

/// Llama 3's scaling, as numbers that the plain frequencies are divided by.
fn divisors(rope: &RopeConfig) -> Result<Vec<f32>, ModelError> {
    if !matches!(rope.scaling, RopeScaling::Llama3 { .. }) {
        return Ok(Vec::new());
    }
    let plain = RopeConfig { scaling: RopeScaling::None, ..rope.clone() };
    let frequencies = |rope: &RopeConfig| rope.frequencies(1).map_err(write_error);
    Ok(frequencies(&plain)?.0.iter().zip(frequencies(rope)?.0).map(|(p, f)| p / f).collect())
}

/// A GGUF header as it grows.
#[derive(Default)]
struct Header {
    values: u64,
    metadata: Vec<u8>,
    tensors: u64,
    table: Vec<u8>,
}

impl Header {
    fn metadata(&mut self, config: &Config, shape: &Shape) -> Result<(), ModelError> {
        let architecture = config.family.gguf_architecture;
        let key = |name: &str| format!("{architecture}.{name}");
        self.text("general.architecture", architecture);
        self.text("general.name", "random weights");
        for (name, value) in [
            ("block_count", config.n_layers),
            ("embedding_length", config.hidden),
            ("feed_forward_length", config.intermediate),
            ("attention.head_count", config.n_heads),
            ("attention.head_count_kv", config.n_kv_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
            ("rope.dimension_count", config.rope.dim),
            ("context_length", config.rope.window),
            ("vocab_size", config.vocab_size),
        ] {
            self.number(&key(name), value as u32);
        }
        self.float(&key("attention.layer_norm_rms_epsilon"), config.rms_eps);
        self.float(&key("rope.freq_base"), config.rope.theta as f32);
        if let Some(window) = config.layers.iter().find_map(|layer| layer.window) {
            self.number(&key("attention.sliding_window"), window as u32);
        }
        if let Some(experts) = &config.experts {
            self.number(&key("expert_count"), experts.count as u32);
            self.number(&key("expert_used_count"), experts.per_token as u32);
            self.number(&key("expert_feed_forward_length"), experts.intermediate as u32);
            if let Some(shared) = experts.shared {
                self.number(&key("expert_shared_feed_forward_length"), shared as u32);
            }
        }
        if config.family.scales == Scales::Granite {
            self.float(&key("embedding_scale"), config.embedding_scale);
            self.float(&key("residual_scale"), config.residual_scale);
            self.float(&key("attention.scale"), config.attention_scale.unwrap_or(1.0));
            self.float(&key("logit_scale"), 1.0 / config.logit_scale);
        }
        for (name, cap) in [
            ("attn_logit_softcapping", config.attention_softcap),
            ("final_logit_softcapping", config.logit_softcap),
        ] {
            if let Some(cap) = cap {
                self.float(&key(name), cap);
            }
        }
        match config.rope.scaling {
            RopeScaling::None | RopeScaling::Llama3 { .. } => {}
            RopeScaling::Linear { factor } => {
                self.text(&key("rope.scaling.type"), "linear");
                self.float(&key("rope.scaling.factor"), factor as f32);
            }
            RopeScaling::Yarn { factor, original_window, .. } => {
                self.text(&key("rope.scaling.type"), "yarn");
                self.float(&key("rope.scaling.factor"), factor as f32);
                self.number(&key("rope.scaling.original_context_length"), original_window as u32);
            }
            ref other => return Err(write_error(format!("GGUF has no rotary scaling like {other:?}"))),
        }
        let tokens = text::tokens(shape.vocab_size);
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", "gpt-2");
        self.key("tokenizer.ggml.token_type", 9);
        self.array(5, tokens.len());
        (0..tokens.len()).for_each(|id| self.metadata.extend(if id < 2 { 3i32 } else { 1 }.to_le_bytes()));
        self.texts("tokenizer.ggml.tokens", &tokens);
        let merges: Vec<_> = text::merges(shape.vocab_size).map(|(a, b)| format!("{a} {b}")).collect();
        self.texts("tokenizer.ggml.merges", &merges);
        self.number("tokenizer.ggml.bos_token_id", 0);
        self.number("tokenizer.ggml.eos_token_id", 1);
        self.key("tokenizer.ggml.add_bos_token", 7);
        self.metadata.push(1);
        Ok(())
    }

    fn tensor(&mut self, name: &str, shape: &[usize], element: Element, offset: u64) {
        self.tensors += 1;
        push_text(&mut self.table, name);
        self.table.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&d| self.table.extend((d as u64).to_le_bytes()));
        let kind: u32 = match element {
            Element::F32 => 0,
            Element::F16 => 1,
            Element::Bf16 => 30,
            Element::Quantised(kind) => number(kind),
        };
        self.table.extend(kind.to_le_bytes());
        self.table.extend(offset.to_le_bytes());
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.values.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.table);
        bytes
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.values += 1;
        push_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
    }

    fn array(&mut self, kind: u32, len: usize) {
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        push_text(&mut self.metadata, value);
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        self.key(key, 9);
        self.array(8, values.len());
        values.iter().for_each(|v| push_text(&mut self.metadata, v));
    }

    fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
