//! GGUF: configuration, weights, tokenizer and chat template in one file.

mod config;
pub(crate) mod header;
mod tokenizer;

use super::source::Source;
use super::{Element, Pieces, Stored, TensorStore};
use crate::linear::Weight;
use crate::quant::{QuantMatrix, block_type, row_bytes};
use crate::{ChatTemplate, ModelError, Tokenizer};
use candle_core::quantized::GgmlDType;
use header::{Header, TensorInfo, Value};
use reattention_kernels::{Buffer, Matrix, MatrixData};
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

    fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
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
