//! Random models as Hugging Face lays them out.

use super::values::{StoredTensor, tensors};
use super::{Shape, tokenizer_config_json, tokenizer_json, write_error};
use crate::ModelError;
use crate::weights::Layout;
use half::{bf16, f16};
use serde_json::{Map, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Element type of a safetensors file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseType {
    /// 4 bytes.
    F32,
    /// 2 bytes, IEEE half precision.
    F16,
    /// 2 bytes, bfloat16.
    Bf16,
}

/// Writes a model folder: config.json, tokenizer.json, tokenizer_config.json, and the weights in one file, or in shards
/// of at most about `shard_bytes` with an index.
///
/// # Errors
/// When there can be no such model, or the folder cannot be written.
pub fn write_hugging_face(
    dir: &Path,
    shape: &Shape,
    dtype: DenseType,
    seed: u64,
    shard_bytes: Option<u64>,
) -> Result<(), ModelError> {
    let config = shape.config()?;
    let tensors = tensors(&config, Layout::hugging_face(config.family), seed)?;
    std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
    let write = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).map_err(ModelError::io(&dir.join(name)))
    };
    write("config.json", shape.config_json(dtype.torch_name()))?;
    write("tokenizer.json", tokenizer_json(shape.vocab_size))?;
    write("tokenizer_config.json", tokenizer_config_json())?;
    let shards = split(&tensors, dtype, shard_bytes.unwrap_or(u64::MAX));
    if let [one] = &shards[..] {
        return write_shard(&dir.join("model.safetensors"), one, dtype);
    }
    let mut map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_shard(&dir.join(&name), shard, dtype)?;
        map.extend(shard.iter().map(|t| (t.name.clone(), json!(name))));
    }
    let total: u64 = tensors.iter().map(|t| t.elements() * dtype.size()).sum();
    write(
        "model.safetensors.index.json",
        json!({ "metadata": { "total_size": total }, "weight_map": map }).to_string(),
    )
}

impl DenseType {
    fn size(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn header_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Appends `values` as this type.
    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
            Self::F16 => values.iter().for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
            Self::Bf16 => values.iter().for_each(|v| out.extend(bf16::from_f32(*v).to_le_bytes())),
        }
    }
}

fn split(tensors: &[StoredTensor], dtype: DenseType, limit: u64) -> Vec<Vec<&StoredTensor>> {
    let mut shards = vec![Vec::new()];
    let mut bytes = 0;
    for tensor in tensors {
        let size = tensor.elements() * dtype.size();
        if bytes > 0 && bytes + size > limit {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

fn write_shard(path: &Path, tensors: &[&StoredTensor], dtype: DenseType) -> Result<(), ModelError> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.elements() * dtype.size();
        let info =
            json!({ "dtype": dtype.header_name(), "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), info);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // Data begin on an 8-byte boundary, as the format asks.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(ModelError::io(path))?);
    let io = ModelError::io(path);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(&io)?;
    out.write_all(header.as_bytes()).map_err(&io)?;
    for tensor in tensors {
        let mut row = vec![0.0; tensor.cols()];
        let mut bytes = Vec::new();
        for i in 0..tensor.rows() {
            tensor.fill_row(i, &mut row);
            bytes.clear();
            dtype.encode(&row, &mut bytes);
            out.write_all(&bytes).map_err(&io)?;
        }
    }
    out.flush().map_err(write_error)
}
