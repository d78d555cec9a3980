//! The header of a GGUF file: metadata and the table of tensors.
//!
//! Every count and length is checked against what is left of the file before anything is kept, so that a hostile header
//! cannot make the reader allocate more than a small multiple of the file.

use super::types::{Unserved, element};
use crate::ModelError;
use crate::weights::{Element, Source};
use std::collections::HashMap;

/// A metadata value. Arrays that nothing here uses are checked and skipped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<f32>),
    Skipped,
}

/// Header of a GGUF file.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: HashMap<String, Value>,
    pub(crate) tensors: HashMap<String, TensorInfo>,
}

/// A tensor as the header lists it; its extent lies within the file.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    /// The element type, or what is known of one that is not served.
    pub(crate) element: Result<Element, Unserved>,
    /// First byte in the file.
    pub(crate) offset: u64,
    /// The file of a model in parts that it is in, from 0.
    pub(crate) part: usize,
    pub(super) bytes: u64,
}

const MAX_TEXT: u64 = 16 << 20;
const MAX_NAME: u64 = 1 << 10;
const MAX_ARRAY: u64 = 1 << 26;
const KEPT_ARRAYS: [&str; 4] =
    ["tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"];

/// Ends of the keys whose value may be one a layer.
const KEPT_ENDS: [&str; 4] = [
    ".attention.sliding_window_pattern",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".feed_forward_length",
];

/// Reads and checks the header.
pub(crate) fn read(source: &Source) -> Result<Header, ModelError> {
    let mut r = Reader { source, at: 0, buffer: Vec::new(), start: 0 };
    if source.len() < 24 || r.bytes(4)? != *b"GGUF" {
        return Err(r.error("it does not begin with GGUF"));
    }
    let version = r.u32()?;
    if version.swap_bytes() <= 3 && version > 3 {
        return Err(r.error("it is big-endian; get the little-endian file of the same model"));
    }
    if !(2..=3).contains(&version) {
        return Err(r.error(format!("version {version} is not supported; versions 2 and 3 are")));
    }
    let (n_tensors, n_values) = (r.u64()?, r.u64()?);
    r.check_count("tensors", n_tensors, 24)?;
    r.check_count("metadata values", n_values, 13)?;
    let mut metadata = HashMap::new();
    for _ in 0..n_values {
        let key = r.text(MAX_NAME)?;
        let kind = r.u32()?;
        let is_kept = KEPT_ARRAYS.contains(&key.as_str()) || KEPT_ENDS.iter().any(|end| key.ends_with(end));
        let value = r.value(kind, is_kept)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(r.error(format!("metadata `{key}` comes twice")));
        }
    }
    let mut tensors = HashMap::new();
    for _ in 0..n_tensors {
        let (name, info) = r.tensor()?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(r.error(format!("tensor `{name}` comes twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Int(a)) if (1..=1 << 20).contains(a) && (*a as u64).is_power_of_two() => *a as u64,
        Some(_) => return Err(r.error("general.alignment must be a power of two")),
    };
    let data = r.at.div_ceil(alignment) * alignment;
    place(&r, &mut tensors, data, alignment)?;
    Ok(Header { metadata, tensors })
}

/// Makes offsets absolute and checks that every extent is aligned, inside the file and its own.
fn place(
    r: &Reader,
    tensors: &mut HashMap<String, TensorInfo>,
    data: u64,
    alignment: u64,
) -> Result<(), ModelError> {
    let mut extents = Vec::with_capacity(tensors.len());
    for (name, info) in tensors.iter_mut() {
        let start = data.checked_add(info.offset).filter(|_| info.offset.is_multiple_of(alignment));
        let start =
            start.ok_or_else(|| r.error(format!("tensor `{name}` has the offset {}", info.offset)))?;
        let end = start.checked_add(info.bytes).filter(|&end| end <= r.source.len()).ok_or_else(|| {
            r.error(format!("tensor `{name}` reaches beyond the end of the file; is the download complete?"))
        })?;
        info.offset = start;
        extents.push((start, end, name));
    }
    extents.sort();
    match extents.windows(2).find(|w| w[0].1 > w[1].0) {
        Some(w) => Err(r.error(format!("tensors `{}` and `{}` overlap", w[0].2, w[1].2))),
        None => Ok(()),
    }
}

/// A position in the file, reading ahead in pieces.
struct Reader<'a> {
    source: &'a Source,
    at: u64,
    buffer: Vec<u8>,
    /// File position of the buffer's first byte.
    start: u64,
}

const AHEAD: u64 = 256 << 10;

impl Reader<'_> {
    fn error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::format(self.source.name(), "GGUF", reason)
    }

    fn left(&self) -> u64 {
        self.source.len() - self.at
    }

    fn check_count(&self, what: &str, n: u64, least_bytes: u64) -> Result<(), ModelError> {
        match n.checked_mul(least_bytes) {
            Some(bytes) if bytes <= self.left() => Ok(()),
            _ => Err(self.error(format!("its header claims {n} {what}, more than the file can hold"))),
        }
    }

    /// The next `n` bytes.
    fn take(&mut self, n: u64) -> Result<&[u8], ModelError> {
        if n > self.left() {
            return Err(
                self.error("its header reaches beyond the end of the file; is the download complete?")
            );
        }
        // What was skipped may lie far beyond the buffer, further than memory has addresses.
        if self.at - self.start + n > self.buffer.len() as u64 {
            let len = usize::try_from(self.left().min(n.max(AHEAD)))
                .map_err(|_| self.error(format!("its header has a piece of {n} bytes")))?;
            self.buffer.resize(len, 0);
            self.source.read_at(self.at, &mut self.buffer).map_err(|e| self.error(e.to_string()))?;
            self.start = self.at;
        }
        let first = (self.at - self.start) as usize;
        self.at += n;
        Ok(&self.buffer[first..first + n as usize])
    }

    fn bytes<const N: usize>(&mut self, n: u64) -> Result<[u8; N], ModelError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(n)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, ModelError> {
        self.bytes(4).map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ModelError> {
        self.bytes(8).map(u64::from_le_bytes)
    }

    fn text(&mut self, max: u64) -> Result<String, ModelError> {
        let len = self.u64()?;
        if len > max {
            return Err(self.error(format!("a text of {len} bytes where at most {max} make sense")));
        }
        // Vocabularies hold pieces of characters now and then; they only matter to tokens no text reaches.
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    fn value(&mut self, kind: u32, keep: bool) -> Result<Value, ModelError> {
        Ok(match kind {
            8 => Value::Text(self.text(MAX_TEXT)?),
            9 => return self.array(keep),
            _ => self.scalar(kind)?,
        })
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.bytes(1)?).into()),
            1 => Value::Int(i8::from_le_bytes(self.bytes(1)?).into()),
            2 => Value::Int(u16::from_le_bytes(self.bytes(2)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.bytes(2)?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.bytes(4)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes(4)?).into()),
            7 => Value::Bool(u8::from_le_bytes(self.bytes(1)?) != 0),
            10 => Value::Int(self.u64()?.into()),
            11 => Value::Int(i64::from_le_bytes(self.bytes(8)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes(8)?)),
            _ => return Err(self.error(format!("metadata of the unknown type {kind}"))),
        })
    }

    fn array(&mut self, keep: bool) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        let len = self.u64()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => return Err(self.error(format!("an array of the unsupported type {kind}"))),
        };
        self.check_count("array elements", len, size)?;
        if keep && len > MAX_ARRAY {
            return Err(self.error(format!("an array of {len} elements")));
        }
        match (kind, keep) {
            (8, true) => (0..len).map(|_| self.text(MAX_TEXT)).collect::<Result<_, _>>().map(Value::Texts),
            (8, false) => {
                for _ in 0..len {
                    let n = self.u64()?;
                    self.skip(n)?;
                }
                Ok(Value::Skipped)
            }
            (_, true) => {
                (0..len).map(|_| self.scalar(kind).map(number)).collect::<Result<_, _>>().map(Value::Numbers)
            }
            (_, false) => self.skip(len * size).map(|()| Value::Skipped),
        }
    }

    fn skip(&mut self, n: u64) -> Result<(), ModelError> {
        if n > self.left() {
            return Err(
                self.error("its header reaches beyond the end of the file; is the download complete?")
            );
        }
        self.at += n;
        Ok(())
    }

    fn tensor(&mut self) -> Result<(String, TensorInfo), ModelError> {
        let name = self.text(MAX_NAME)?;
        let n_dims = self.u32()?;
        if !(1..=4).contains(&n_dims) {
            return Err(self.error(format!("tensor `{name}` has {n_dims} dimensions")));
        }
        let mut shape = Vec::new();
        let mut elements = 1usize;
        for _ in 0..n_dims {
            let dim = self.u64()?;
            let dim = usize::try_from(dim).ok().filter(|&d| d > 0);
            let product = dim.and_then(|d| elements.checked_mul(d));
            let (Some(dim), Some(product)) = (dim, product) else {
                return Err(self.error(format!("tensor `{name}` has an absurd shape")));
            };
            elements = product;
            shape.insert(0, dim);
        }
        let element = element(self.u32()?);
        let cols = shape[shape.len() - 1];
        let bytes = match element {
            Ok(element) => {
                element.row_bytes(cols).and_then(|b| b.checked_mul(elements / cols)).ok_or_else(|| {
                    let kind = element.name().to_uppercase();
                    self.error(format!(
                        "rows of {cols} elements in tensor `{name}` are no whole blocks of {kind}"
                    ))
                })?
            }
            Err(_) => 0,
        };
        Ok((name, TensorInfo { shape, element, offset: self.u64()?, part: 0, bytes: bytes as u64 }))
    }
}

fn number(value: Value) -> f32 {
    match value {
        Value::Int(i) => i as f32,
        Value::Float(f) => f as f32,
        Value::Bool(b) => f32::from(b),
        _ => 0.0,
    }
}
