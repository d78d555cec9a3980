//! GGUF: configuration, weights, tokenizer and chat template in one file.

mod config;
pub(crate) mod header;
mod parts;
mod tokenizer;
pub(crate) mod types;

use super::source::Source;
use super::{Element, Pieces, Stored, TensorStore};
use crate::{ChatTemplate, ModelError, Tokenizer};
use header::{Header, TensorInfo, Value};
use reattention_kernels::{BlockType, Buffer, Matrix, MatrixData};
use std::path::Path;
use std::sync::Arc;

/// An opened GGUF file, or all files of a model in parts; tensors are read when asked for.
#[derive(Debug)]
pub(crate) struct Gguf {
    source: Source,
    /// Parts 2 and on of a model in parts.
    later: Vec<Source>,
    /// That of the first part, with the tensors of all.
    header: Header,
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let source = Source::open(path).map_err(ModelError::io(path))?;
        let mut header = header::read(&source)?;
        let later = parts::join(path, &source, &mut header)?;
        Ok(Self { source, later, header })
    }

    /// A model of one file, which need not be on disk.
    pub(crate) fn from_source(source: Source) -> Result<Self, ModelError> {
        let header = header::read(&source)?;
        match parts::first_of(&source, &header)? {
            None => Ok(Self { source, later: Vec::new(), header }),
            Some(_) => {
                Err(ModelError::unsupported(source.name(), "a model in parts that is not on disk", ""))
            }
        }
    }

    /// Names of its files, which are their paths, from the first part on.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.source).chain(&self.later).map(Source::name)
    }

    /// The file that a tensor is in.
    fn file_of(&self, info: &TensorInfo) -> &Source {
        info.part.checked_sub(1).and_then(|part| self.later.get(part)).unwrap_or(&self.source)
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
        Ok(Some(Stored { file: self.file_of(info).name().into(), shape: info.shape.clone(), element }))
    }

    fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    fn matrix(&self, name: &str, cols: usize, pieces: &Pieces) -> Result<Arc<Matrix>, ModelError> {
        let (info, element) = self.info(name)?;
        let Element::Quantised(kind) = element else {
            return self.file_of(info).dense(element, info.offset, cols, pieces);
        };
        // Blocks are multiplied as they stand: what is held is what the file holds.
        let row = kind.row_bytes(cols).unwrap_or_default();
        let mut bytes = Buffer::zeroed(row * pieces.rows());
        self.file_of(info).read_rows(info.offset, row, pieces, &mut bytes)?;
        let matrix = Matrix::new(pieces.rows(), cols, MatrixData::Blocks(kind, bytes));
        matrix.map(Arc::new).map_err(|_| {
            ModelError::format(self.file_of(info).name(), "GGUF", format!("tensor `{name}` has odd rows"))
        })
    }
}
