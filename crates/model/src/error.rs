//! What can be wrong with a model.

use reattention::rope::RopeError;
use reattention_kernels::DeviceError;
use std::path::{Path, PathBuf};

/// A model that cannot be read, understood or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        error: std::io::Error,
    },
    /// A device does not take the weights.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The path holds no model.
    #[error("{path} holds no model: {reason}", path = path.display())]
    NoModel {
        /// The file or folder.
        path: PathBuf,
        /// What was looked for, and what would do.
        reason: String,
    },
    /// The architecture is none of the known ones.
    #[error("{file}: architecture `{found}` is not supported; known are {known}")]
    UnknownArchitecture {
        /// The configuration.
        file: String,
        /// Its architecture.
        found: String,
        /// The supported ones.
        known: String,
    },
    /// The architecture is known, but has parts that this engine does not compute.
    #[error("{file}: {name} (`{found}`) cannot be served: {reason}; known are {known}")]
    Unserved {
        /// The configuration.
        file: String,
        /// The name people know it by.
        name: &'static str,
        /// The name in the file.
        found: String,
        /// What stands in the way.
        reason: &'static str,
        /// The supported ones.
        known: String,
    },
    /// A value of the configuration is missing, malformed or out of range.
    #[error("{file}: `{key}` {reason}")]
    Config {
        /// The configuration.
        file: String,
        /// The key.
        key: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// The model asks for something that this engine does not compute.
    #[error("{file}: {what} is not supported{help}")]
    Unsupported {
        /// The configuration.
        file: String,
        /// The feature.
        what: String,
        /// What to do instead, with its separator; may be empty.
        help: String,
    },
    /// The rotary embedding of the model makes no sense.
    #[error("{file}: {error}")]
    Rope {
        /// The configuration.
        file: String,
        /// What is wrong.
        error: RopeError,
    },
    /// A file does not follow its format.
    #[error("{file} is not a valid {format} file: {reason}")]
    Format {
        /// The file.
        file: String,
        /// `safetensors`, `GGUF`, ...
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A tensor the architecture needs is not there.
    #[error("{file}: tensor `{tensor}` is missing{help}")]
    TensorMissing {
        /// The file or folder searched.
        file: String,
        /// The tensor.
        tensor: String,
        /// What may be the cause, with its separator; may be empty.
        help: String,
    },
    /// A tensor does not have the shape that the configuration implies.
    #[error(
        "{file}: tensor `{tensor}` has shape {found:?}, the configuration implies {expected:?}; \
         are configuration and weights from the same model?"
    )]
    TensorShape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Shape the configuration implies, outermost dimension first.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// A tensor has an element type that cannot be used.
    #[error("{file}: tensor `{tensor}` has type {found}; supported are {supported}")]
    TensorType {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
        /// Usable types, and how to get them.
        supported: &'static str,
    },
    /// Two shards hold the same tensor.
    #[error("tensor `{tensor}` is in {first} and in {second}; keep one of the two")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// The tokenizer cannot be read or used.
    #[error("tokenizer {file}: {reason}")]
    Tokenizer {
        /// Where it comes from.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The chat template is missing, malformed or refused the messages.
    #[error("chat template: {reason}")]
    Template {
        /// What is wrong.
        reason: String,
    },
    /// A model could not be written.
    #[error("cannot write a model: {reason}")]
    Write {
        /// What is wrong.
        reason: String,
    },
}

impl ModelError {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |error| Self::Io { path: path.to_path_buf(), error }
    }

    /// The refusal of an architecture: `id` is what tables know it by, `found` what the file calls it.
    pub(crate) fn architecture(file: &str, id: &str, found: &str, known: &[&str]) -> Self {
        let (file, known) = (file.into(), known.join(", "));
        let found = found.chars().take(80).collect();
        match crate::family::unserved(id) {
            Some((name, reason)) => Self::Unserved { file, name, found, reason, known },
            None => Self::UnknownArchitecture { file, found, known },
        }
    }

    pub(crate) fn config(file: &str, key: &str, reason: impl Into<String>) -> Self {
        Self::Config { file: file.into(), key: key.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(file: &str, what: impl Into<String>, help: &str) -> Self {
        let help = if help.is_empty() { String::new() } else { format!("; {help}") };
        Self::Unsupported { file: file.into(), what: what.into(), help }
    }

    pub(crate) fn format(file: &str, format: &'static str, reason: impl Into<String>) -> Self {
        Self::Format { file: file.into(), format, reason: reason.into() }
    }
}
