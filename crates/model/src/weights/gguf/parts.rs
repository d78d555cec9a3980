//! Models in parts: `NAME-00001-of-00003.gguf` and its fellows, as llama.cpp's splitter writes them.
//!
//! The first part holds all metadata; later ones may hold nothing but their place (`split.no`, from 0, and `split.count`). A
//! tensor is whole in one part, and each part is a GGUF file with an alignment and a beginning of data of its own.

use super::header::{self, Header, Value};
use crate::ModelError;
use crate::files::part_of;
use crate::weights::Source;
use std::path::{Path, PathBuf};

/// Opens the later parts of the model whose first part is `source`, read from `path`, and enters their tensors into `header`.
///
/// # Errors
/// When `path` is a later part, or another part is missing, is none of this model or repeats a tensor, or all of them do not
/// hold as many tensors as the first announces.
pub(super) fn join(path: &Path, source: &Source, header: &mut Header) -> Result<Vec<Source>, ModelError> {
    let Some(count) = first_of(source, header)? else { return Ok(Vec::new()) };
    let others = others(path, count).ok_or_else(|| {
        error(
            source,
            format!("it is part 1 of {count} of a model in parts; the others are found by its name, which must end in -00001-of-{count:05}.gguf"),
        )
    })?;
    let missing: Vec<_> = others.iter().filter(|p| !p.is_file()).collect();
    if let Some(first) = missing.first() {
        let name = first.file_name().unwrap_or_default().to_string_lossy();
        let more =
            if missing.len() > 1 { format!(" (and {} more)", missing.len() - 1) } else { String::new() };
        let reason = format!(
            "it is part 1 of {count} of a model in parts, of which {name}{more} is missing; download it to the same folder"
        );
        return Err(ModelError::NoModel { path: path.into(), reason });
    }
    let mut later: Vec<Source> = Vec::with_capacity(others.len());
    for (i, path) in others.iter().enumerate() {
        let part = Source::open(path).map_err(ModelError::io(path))?;
        let read = header::read(&part)?;
        let claims = (integer(&part, &read, "split.no")?, integer(&part, &read, "split.count")?);
        if claims != (Some(i as u64 + 1), Some(count)) {
            let shown = |value: Option<u64>| value.map_or("none".to_string(), |v| v.to_string());
            let reason = format!(
                "as part {} of {count} it must have split.no {} and split.count {count}; it has {} and {}",
                i + 2,
                i + 1,
                shown(claims.0),
                shown(claims.1)
            );
            return Err(error(&part, reason));
        }
        for (tensor, info) in read.tensors {
            if let Some(other) = header.tensors.get(&tensor) {
                let first = other.part.checked_sub(1).and_then(|p| later.get(p)).unwrap_or(source);
                let (first, second) = (first.name().into(), part.name().into());
                return Err(ModelError::DuplicateTensor { tensor, first, second });
            }
            header.tensors.insert(tensor, header::TensorInfo { part: i + 1, ..info });
        }
        later.push(part);
    }
    let found = header.tensors.len() as u64;
    match integer(source, header, "split.tensors.count")? {
        Some(announced) if announced != found => Err(error(
            source,
            format!(
                "it announces {announced} tensors in {count} parts, which hold {found}; are all parts of the same model?"
            ),
        )),
        _ => Ok(later),
    }
}

/// The number of parts if this is the first of several; `None` for a model in one file.
///
/// # Errors
/// When it is a later part, or its keys are no numbers of parts.
pub(super) fn first_of(source: &Source, header: &Header) -> Result<Option<u64>, ModelError> {
    let (no, count) = (integer(source, header, "split.no")?, integer(source, header, "split.count")?);
    match (no.unwrap_or(0), count.unwrap_or(1)) {
        (_, 0 | 1) => Ok(None),
        (no, count) if no >= count || count > u64::from(u16::MAX) => {
            Err(error(source, format!("split.no {no} and split.count {count} are no part of a model")))
        }
        (0, count) => Ok(Some(count)),
        (no, count) => Err(ModelError::NoModel {
            path: source.name().into(),
            reason: format!(
                "it is part {} of {count} of a model in parts; name the first, NAME-00001-of-{count:05}.gguf, and the others are found beside it",
                no + 1
            ),
        }),
    }
}

/// The paths of parts 2 to `count`, if `path` is named as the first.
fn others(path: &Path, count: u64) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    let named = part_of(&name.to_ascii_lowercase())?;
    if named != (1, u32::try_from(count).ok()?) {
        return None;
    }
    let stem = name.get(..name.len().checked_sub("-00001-of-00002.gguf".len())?)?;
    let ending = name.get(name.len() - ".gguf".len()..)?;
    Some((2..=count).map(|n| path.with_file_name(format!("{stem}-{n:05}-of-{count:05}{ending}"))).collect())
}

fn integer(source: &Source, header: &Header, key: &str) -> Result<Option<u64>, ModelError> {
    match header.metadata.get(key) {
        None => Ok(None),
        Some(Value::Int(i)) if *i >= 0 => {
            u64::try_from(*i).map(Some).map_err(|_| error(source, format!("`{key}` is {i}")))
        }
        Some(_) => Err(error(source, format!("`{key}` must be a whole number"))),
    }
}

fn error(source: &Source, reason: String) -> ModelError {
    ModelError::format(source.name(), "GGUF", reason)
}
