//! Parameters as people write them (`--set key=value`), and the errors of methods.

use crate::rope::RopeError;
use reattention_kernels::{ColdError, DeviceError};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Why a method does not do what is asked: it refuses, or what it runs on fails ([`MethodError::is_refusal`]).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// No method has this name.
    #[error("unknown method `{name}`; known are {known}")]
    UnknownMethod {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// The method has no such parameter.
    #[error("method `{method}` has no parameter `{name}`; it has {known}")]
    UnknownParameter {
        /// The method.
        method: &'static str,
        /// The parameter given.
        name: String,
        /// All its parameters.
        known: String,
    },
    /// A setting is not of the form `key=value`.
    #[error("`{0}` is not of the form key=value")]
    NotKeyValue(String),
    /// A value cannot be read or is out of range.
    #[error("method `{method}`: {name}={value} must be {expected}")]
    BadValue {
        /// The method.
        method: &'static str,
        /// The parameter.
        name: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// Parameters that do not go together.
    #[error("method `{method}`: {reason}")]
    Contradiction {
        /// The method.
        method: &'static str,
        /// Which, and what would do.
        reason: String,
    },
    /// The method cannot serve this model.
    #[error("method `{method}` does not suit this model: {reason}")]
    Unsuited {
        /// The method.
        method: &'static str,
        /// Why, and what would do.
        reason: String,
    },
    /// There are no frequencies for what the method asks.
    #[error(transparent)]
    Rope(#[from] RopeError),
    /// Keys and values that the method keeps on disk do not go there.
    #[error(transparent)]
    Disk(#[from] ColdError),
    /// The device that computes fails.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl MethodError {
    /// Whether the method refuses: asked the same again, on any machine, it would do so again. Otherwise the disk or the
    /// device failed, which says nothing of the method, and the same may succeed another time.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::UnknownMethod { .. }
            | Self::UnknownParameter { .. }
            | Self::NotKeyValue(_)
            | Self::BadValue { .. }
            | Self::Contradiction { .. }
            | Self::Unsuited { .. }
            | Self::Rope(_) => true,
            Self::Disk(_) | Self::Device(_) => false,
        }
    }
}

/// Settings of a method by name, not yet understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// No settings: every default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `key=value` texts; a later one replaces an earlier one.
    ///
    /// # Errors
    /// When a text has no `=`.
    pub fn parse<S: AsRef<str>>(pairs: &[S]) -> Result<Self, MethodError> {
        let mut settings = Self::default();
        for pair in pairs {
            let pair = pair.as_ref();
            let (key, value) =
                pair.split_once('=').ok_or_else(|| MethodError::NotKeyValue(pair.to_string()))?;
            settings.0.insert(key.trim().to_string(), value.trim().to_string());
        }
        Ok(settings)
    }

    /// Adds or replaces one setting.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.0.insert(key.to_string(), value.to_string());
        self
    }

    /// Whether `key` is set.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Takes the values of one method out of the settings.
    pub(crate) fn reader(&self, spec: &'static MethodSpec) -> Reader<'_> {
        Reader { spec, values: &self.0 }
    }
}

/// A method as `reattn methods` shows it.
#[derive(Debug)]
pub struct MethodSpec {
    /// Its name on the command line.
    pub name: &'static str,
    /// Title and arXiv number of the paper.
    pub paper: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// What it costs as the context grows to `n` tokens.
    pub cost: &'static str,
    /// Models it suits.
    pub suits: &'static str,
    /// Its parameters.
    pub params: &'static [ParamSpec],
}

/// A parameter of a method.
#[derive(Debug)]
pub struct ParamSpec {
    /// Its name, the same in flags, JSON, documents and code.
    pub name: &'static str,
    /// The default, in words where it depends on the model.
    pub default: &'static str,
    /// What is allowed.
    pub range: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// Largest count a setting may have: 2^30, beyond any context.
const LARGEST: usize = 1 << 30;

/// Reads the settings of one method and finds those it does not have.
pub(crate) struct Reader<'a> {
    spec: &'static MethodSpec,
    values: &'a BTreeMap<String, String>,
}

impl Reader<'_> {
    /// Refuses settings the method does not have.
    pub(crate) fn check_names(&self) -> Result<(), MethodError> {
        match self.values.keys().find(|k| !self.spec.params.iter().any(|p| p.name == **k)) {
            None => Ok(()),
            Some(name) => Err(MethodError::UnknownParameter {
                method: self.spec.name,
                name: name.clone(),
                known: self.spec.params.iter().map(|p| p.name).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The value of `name`, or `default`.
    pub(crate) fn value<T: FromStr>(&self, name: &'static str, default: T) -> Result<T, MethodError> {
        match self.values.get(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| self.bad(name, text)),
        }
    }

    /// The number `name` of tokens or the like, or `default`. Numbers no context can reach are refused, so that sums of
    /// a few of them cannot overflow.
    pub(crate) fn count(&self, name: &'static str, default: usize) -> Result<usize, MethodError> {
        let value = self.value(name, default)?;
        if value > LARGEST { Err(self.bad(name, value)) } else { Ok(value) }
    }

    /// The value of `name` with `none` (or -1) for no limit, or `default`.
    pub(crate) fn limit(&self, name: &'static str, default: usize) -> Result<Option<usize>, MethodError> {
        match self.values.get(name).map(String::as_str) {
            None => Ok(Some(default)),
            Some("none" | "-1") => Ok(None),
            Some(_) => self.count(name, default).map(Some),
        }
    }

    /// Which of `choices` the value of `name` is, or the first.
    pub(crate) fn choice<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Result<T, MethodError> {
        match self.values.get(name) {
            None => Ok(choices[0].1),
            Some(text) => {
                choices.iter().find(|c| c.0 == text).map(|c| c.1).ok_or_else(|| self.bad(name, text))
            }
        }
    }

    /// Whether the parameter was set.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The error of a value out of range.
    pub(crate) fn bad(&self, name: &'static str, value: impl ToString) -> MethodError {
        let expected = self.spec.params.iter().find(|p| p.name == name).map_or("something else", |p| p.range);
        MethodError::BadValue {
            method: self.spec.name,
            name,
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// The error of parameters that do not go together.
    pub(crate) fn contradiction(&self, reason: impl Into<String>) -> MethodError {
        MethodError::Contradiction { method: self.spec.name, reason: reason.into() }
    }

    /// The error of a model that the method cannot serve.
    pub(crate) fn unsuited(&self, reason: impl Into<String>) -> MethodError {
        MethodError::Unsuited { method: self.spec.name, reason: reason.into() }
    }
}
