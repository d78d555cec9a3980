//! GGUF: configuration, weights, tokenizer and chat template in one file.

mod config;
pub(crate) mod header;
mod tokenizer;
pub(crate) mod types;

use super::source::Source;
use super::{Element, Pieces, Stored, TensorStore};
use crate::{ChatTemplate, ModelError, Tokenizer};
use header::{Header, TensorInfo, Value};
use reattention_kernels::{BlockType, Buffer, Matrix, MatrixData};
use std::path::Path;
use std::sync::Arc;

/// An opened GGUF file; tensors are read when asked for.
#[derive(Debug)]
pub(crate) struct Gguf {
    source: Source,
    header: Header,
}

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

    fn info(&self, name: &str) -> Result<(&TensorInfo, Element), ModelError> {
        let info = self.header.tensors.get(name).ok_or_else(|| ModelError::TensorMissing {
            file: self.source.name().into(),
            tensor: name.into(),
            help: String::new(),
        })?;
        let element = info.element.map_err(|unserved| ModelError::TensorType {
            file: self.source.name().into(),
            tensor: name.into(),
            found: unserved.to_string(),
            supported: unserved.supported(),
        })?;
        Ok((info, element))
    }

    /// Scales of NVFP4 reach to 240 at most, so its writers divide a whole matrix by a number that they store beside it.
    /// Weights read without it would be wrong and look right.
    fn refuse_outer_scale(&self, name: &str, element: Element) -> Result<(), ModelError> {
        let scale = name.strip_suffix(".weight").map(|base| format!("{base}.scale")).unwrap_or_default();
        if element == Element::Quantised(BlockType::Nvfp4) && self.header.tensors.contains_key(&scale) {
            let what = format!("NVFP4 weights with a scale beside them (`{scale}`)");
            let help = "take another file of the same model, such as MXFP4, IQ4_XS or Q4_K_M";
            return Err(ModelError::unsupported(self.source.name(), what, help));
        }
        Ok(())
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
        let (info, element) = self.info(name)?;
        self.refuse_outer_scale(name, element)?;
        Ok(Some(Stored { file: self.source.name().into(), shape: info.shape.clone(), element }))
    }

    fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    fn matrix(&self, name: &str, cols: usize, pieces: &Pieces) -> Result<Arc<Matrix>, ModelError> {
        let (info, element) = self.info(name)?;
        let Element::Quantised(kind) = element else {
            return self.source.dense(element, info.offset, cols, pieces);
        };
        // Blocks are multiplied as they stand: what is held is what the file holds.
        let row = kind.row_bytes(cols).unwrap_or_default();
        let mut bytes = Buffer::zeroed(row * pieces.rows());
        self.source.read_rows(info.offset, row, pieces, &mut bytes)?;
        let matrix = Matrix::new(pieces.rows(), cols, MatrixData::Blocks(kind, bytes));
        matrix.map(Arc::new).map_err(|_| {
            ModelError::format(self.source.name(), "GGUF", format!("tensor `{name}` has odd rows"))
        })
    }
}
