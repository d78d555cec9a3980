//! Safetensors: one file, or a folder of shards with an index.

use super::source::Source;
use super::wrappers::own_name;
use super::{Element, Pieces, Stored, TensorStore};
use crate::ModelError;
use reattention_kernels::Matrix;
use safetensors::tensor::{Dtype, Metadata};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint, by name; data are read when asked for.
#[derive(Debug)]
pub struct SafeTensors {
    name: String,
    files: Vec<Source>,
    tensors: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    offset: u64,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl SafeTensors {
    /// Opens `model.safetensors` of a folder, or the shards its index names, or its only `.safetensors` file.
    ///
    /// # Errors
    /// When there is none, a header is not valid, a shard is missing, lies outside the folder or repeats a tensor.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let single = dir.join(SINGLE);
        if single.is_file() {
            return Self::from_sources(dir, vec![Source::open(&single).map_err(ModelError::io(&single))?]);
        }
        let index = dir.join(INDEX);
        if index.is_file() {
            let text = crate::files::read_text(&index).map_err(ModelError::io(&index))?;
            return Self::open_shards(dir, &index.display().to_string(), &text);
        }
        let mut found = files_ending_in(dir, ".safetensors")?;
        match (found.pop(), found.pop()) {
            (Some(path), None) => Self::from_sources(dir, vec![Source::open(&path).map_err(ModelError::io(&path))?]),
            (one, _) => Err(ModelError::NoModel {
                path: dir.to_path_buf(),
                reason: match one {
                    Some(_) => format!("several .safetensors files but no {INDEX}"),
                    None if !files_ending_in(dir, ".bin")?.is_empty() => {
                        "only pickled .bin weights; convert them with transformers' save_pretrained(safe_serialization=True)".into()
                    }
                    None => format!("neither {SINGLE} nor {INDEX}"),
                },
            }),
        }
    }

    /// The tensors of these files; `dir` names the whole in messages.
    ///
    /// # Errors
    /// As [`SafeTensors::open`].
    pub fn from_sources(dir: &Path, files: Vec<Source>) -> Result<Self, ModelError> {
        let mut tensors: HashMap<String, Entry> = HashMap::new();
        for (file, source) in files.iter().enumerate() {
            for (stored, entry) in read_header(source, file)? {
                let tensor = own_name(&stored).into_owned();
                if let Some(other) = tensors.get(&tensor) {
                    let (first, second) = (files[other.file].name().into(), source.name().into());
                    return Err(ModelError::DuplicateTensor { tensor, first, second });
                }
                tensors.insert(tensor, entry);
            }
        }
        let name = if let [one] = &files[..] { one.name().to_string() } else { dir.display().to_string() };
        Ok(Self { name, files, tensors })
    }

    /// Names of all tensors, as the model's own class has them: without prefixes of wrappers, and with `model.` where a base model
    /// leaves it out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn open_shards(dir: &Path, index: &str, text: &str) -> Result<Self, ModelError> {
        let map = parse_index(index, text)?;
        let mut shards: Vec<&String> = map.values().collect();
        shards.sort();
        shards.dedup();
        let mut files = Vec::with_capacity(shards.len());
        for shard in shards {
            let path = dir.join(shard);
            files.push(Source::open(&path).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => ModelError::format(
                    index,
                    "index",
                    format!("it names the shard {shard}, which is missing; download it"),
                ),
                _ => ModelError::io(&path)(e),
            })?);
        }
        let tensors = Self::from_sources(dir, files)?;
        match map.iter().find(|(tensor, _)| !tensors.tensors.contains_key(own_name(tensor).as_ref())) {
            None => Ok(tensors),
            Some((tensor, shard)) => Err(ModelError::TensorMissing {
                file: dir.join(shard).display().to_string(),
                tensor: tensor.clone(),
                help: format!("; {INDEX} places it there"),
            }),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::TensorMissing {
            file: self.name.clone(),
            tensor: name.into(),
            help: String::new(),
        })
    }
}

impl TensorStore for SafeTensors {
    fn name(&self) -> &str {
        &self.name
    }

    fn find(&self, name: &str) -> Result<Option<Stored>, ModelError> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        let file = self.files[entry.file].name().to_string();
        let element = match entry.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            other => {
                return Err(ModelError::TensorType {
                    file,
                    tensor: name.into(),
                    found: format!("{other:?}"),
                    supported: "F32, F16 and BF16; for fewer bits use a GGUF file",
                });
            }
        };
        Ok(Some(Stored { file, shape: entry.shape.clone(), element }))
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn find_bytes(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).filter(|e| e.dtype == Dtype::U8).map(|e| e.shape.clone())
    }

    fn bytes(&self, name: &str, row_bytes: usize, rows: Range<usize>) -> Result<Vec<u8>, ModelError> {
        let (entry, rows) = (self.entry(name)?, Pieces::range(rows));
        let mut out = vec![0; rows.rows() * row_bytes];
        self.files[entry.file].read_rows(entry.offset, row_bytes, &rows, &mut out)?;
        Ok(out)
    }

    fn matrix(&self, name: &str, cols: usize, pieces: &Pieces) -> Result<Arc<Matrix>, ModelError> {
        let entry = self.entry(name)?;
        let element = match entry.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            _ => Element::Bf16,
        };
        self.files[entry.file].dense(element, entry.offset, cols, pieces)
    }
}

/// The tensors of one file. The safetensors crate checks that their extents follow each other without gap or overlap
/// and agree with shape and type; here, that they end where the file ends.
fn read_header(source: &Source, file: usize) -> Result<Vec<(String, Entry)>, ModelError> {
    const MAX: u64 = 100_000_000;
    let error = |reason: String| ModelError::format(source.name(), "safetensors", reason);
    let read = |offset, out: &mut [u8]| source.read_at(offset, out).map_err(|e| error(e.to_string()));
    let mut prefix = [0; 8];
    if source.len() < 8 {
        return Err(error(format!("it has only {} bytes", source.len())));
    }
    read(0, &mut prefix)?;
    let n = u64::from_le_bytes(prefix);
    if n > MAX || n > source.len() - 8 {
        return Err(error(format!(
            "its header claims {n} bytes of {}; is the download complete?",
            source.len()
        )));
    }
    let mut header = vec![0; n as usize];
    read(8, &mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| error(e.to_string()))?;
    let data = 8 + n;
    if data.checked_add(metadata.data_len() as u64) != Some(source.len()) {
        let reason = format!(
            "its header describes {} bytes of data, {} are there; is the download complete?",
            metadata.data_len(),
            source.len() - data
        );
        return Err(error(reason));
    }
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let offset = data + info.data_offsets.0 as u64;
        (name, Entry { file, offset, shape: info.shape.clone(), dtype: info.dtype })
    };
    Ok(metadata.tensors().into_iter().map(entry).collect())
}

/// Tensor name to shard file name, refusing paths that leave the folder.
pub(crate) fn parse_index(index: &str, text: &str) -> Result<HashMap<String, String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let error = |reason: String| ModelError::format(index, "index", reason);
    let parsed: Index = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
    for shard in parsed.weight_map.values() {
        let mut parts = Path::new(shard).components();
        if shard.is_empty() || shard.contains('\\') || !parts.all(|c| matches!(c, Component::Normal(_))) {
            let shard: String = shard.chars().take(200).collect();
            return Err(error(format!(
                "it names the shard `{shard}`, which is not a file inside the folder"
            )));
        }
    }
    Ok(parsed.weight_map)
}

fn files_ending_in(dir: &Path, end: &str) -> Result<Vec<std::path::PathBuf>, ModelError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(ModelError::io(dir))? {
        let path = entry.map_err(ModelError::io(dir))?.path();
        if path.is_file() && path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    Ok(found)
}
