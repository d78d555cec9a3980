//! What tells one model from another: a hash of its files.

use crate::ModelError;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// XXH3 (128 bits, hexadecimal) of the files that make up a model: `path` if it is a file; of a folder all weights and JSON
/// files, in order of their names, each after its name and length. Every byte is read.
pub(crate) fn of_path(path: &Path) -> Result<String, ModelError> {
    if !path.is_dir() {
        let mut hash = Xxh3::new();
        add_file(&mut hash, path)?;
        return Ok(hex(&hash));
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(ModelError::io(path))? {
        let file = entry.map_err(ModelError::io(path))?.path();
        if file.extension().is_some_and(|e| e == "safetensors" || e == "json" || e == "jinja") {
            files.push(file);
        }
    }
    files.sort();
    of_files(files)
}

/// XXH3 of these files in their order, each after its name and length.
pub(crate) fn of_files(files: impl IntoIterator<Item = PathBuf>) -> Result<String, ModelError> {
    let mut hash = Xxh3::new();
    for file in files {
        let length = std::fs::metadata(&file).map_err(ModelError::io(&file))?.len();
        add_head(&mut hash, &file.file_name().unwrap_or_default().to_string_lossy(), length);
        add_file(&mut hash, &file)?;
    }
    Ok(hex(&hash))
}

/// The same of files in memory, each with its name.
pub(crate) fn of_texts(files: &[(&str, &[u8])]) -> String {
    let mut hash = Xxh3::new();
    for (name, bytes) in files {
        add_head(&mut hash, name, bytes.len() as u64);
        hash.update(bytes);
    }
    hex(&hash)
}

fn add_head(hash: &mut Xxh3, name: &str, length: u64) {
    hash.update(name.as_bytes());
    hash.update(&[0]);
    hash.update(&length.to_le_bytes());
}

fn add_file(hash: &mut Xxh3, path: &Path) -> Result<(), ModelError> {
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(ModelError::io(path))? {
            0 => return Ok(()),
            n => hash.update(&piece[..n]),
        }
    }
}

fn hex(hash: &Xxh3) -> String {
    format!("{:032x}", hash.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_every_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("model.safetensors", "weights");
        let first = of_path(dir.path()).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(first, of_texts(&[("config.json", b"{}"), ("model.safetensors", b"weights")]));
        write("notes.txt", "not a part of the model");
        assert_eq!(of_path(dir.path()).unwrap(), first);
        write("model.safetensors", "weighty");
        assert_ne!(of_path(dir.path()).unwrap(), first);
        assert!(of_path(&dir.path().join("none.gguf")).is_err());
    }
}
