//! Model files, told apart by what they hold.

use anyhow::Context as _;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Model files with their hashes.
#[derive(Debug, Default)]
pub struct Files {
    files: Vec<(String, PathBuf)>,
}

impl Files {
    /// Reads and hashes the files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn new(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let files = paths.iter().map(|p| Ok((sha256(p)?, p.clone()))).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { files })
    }

    /// The file with this SHA-256, in lower-case hexadecimal digits.
    pub fn with_hash(&self, hash: &str) -> Option<&Path> {
        self.files.iter().find(|(h, _)| h == hash).map(|(_, path)| path.as_path())
    }

    /// Files with their hashes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.files.iter().map(|(hash, path)| (hash.as_str(), path.as_path()))
    }
}

/// SHA-256 of a file, in lower-case hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).with_context(|| path.display().to_string())?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
