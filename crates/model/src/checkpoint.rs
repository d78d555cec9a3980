//! A model on disk or in memory: open it, plan its memory, load it.

use crate::files::{self, Found};
use crate::fingerprint;
use crate::weights::gguf::Gguf;
use crate::weights::{self, Layout, SafeTensors, Source, TensorStore, WeightPlan, Weights};
use crate::{ChatTemplate, Config, ModelError, Tokenizer};
use std::path::{Path, PathBuf};

/// An opened model: configuration and headers are read and checked, weights are not.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    files: Files,
    /// Folder or file it was opened at.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Files {
    HuggingFace(SafeTensors, Texts),
    Gguf(Gguf),
}

/// Where tokenizer and chat template are.
#[derive(Debug)]
enum Texts {
    Dir(PathBuf),
    Bundle(Bundle),
}

/// A model whose files are in memory, for instance compiled into the program with `include_bytes!`.
#[derive(Clone, Copy, Debug)]
pub struct Bundle {
    /// Name for messages.
    pub name: &'static str,
    /// Text of config.json.
    pub config: &'static str,
    /// Text of generation_config.json.
    pub generation_config: Option<&'static str>,
    /// Text of tokenizer.json.
    pub tokenizer: &'static str,
    /// Text of tokenizer_config.json.
    pub tokenizer_config: Option<&'static str>,
    /// Bytes of model.safetensors.
    pub weights: &'static [u8],
}

/// Opens the model at `path` and loads its weights.
///
/// # Errors
/// As [`Checkpoint::open`] and [`Checkpoint::load`].
pub fn load(path: &Path) -> Result<(Config, Weights), ModelError> {
    let checkpoint = Checkpoint::open(path)?;
    let weights = checkpoint.load()?;
    Ok((checkpoint.config, weights))
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a GGUF file (by its content, whatever its name), a folder that holds one, or a
    /// repository in a cache of the hub. Only headers are read, and what frequencies are made of.
    ///
    /// # Errors
    /// When there is no model, or a file of it is not valid or not supported.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        match files::find(path)? {
            Found::Folder(dir) => {
                let config = Config::from_dir(&dir)?;
                let store = SafeTensors::open(&dir)?;
                let config = weights::clex::solved(config, &store)?;
                let files = Files::HuggingFace(store, Texts::Dir(dir.clone()));
                Ok(Self { config, files, path: Some(dir) })
            }
            Found::Gguf(file) => {
                Ok(Self { path: Some(file.clone()), ..Self::from_gguf(Gguf::open(&file)?)? })
            }
        }
    }

    fn from_gguf(gguf: Gguf) -> Result<Self, ModelError> {
        Ok(Self { config: gguf.config()?, files: Files::Gguf(gguf), path: None })
    }

    /// Opens a model in memory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bundle(bundle: &Bundle) -> Result<Self, ModelError> {
        let file = |name: &str| format!("{}/{name}", bundle.name);
        let mut config = Config::from_json(bundle.config, &file("config.json"))?;
        if let Some(text) = bundle.generation_config {
            config = config.with_generation_config(text, &file("generation_config.json"))?;
        }
        let source = Source::memory(file("model.safetensors"), bundle.weights);
        let store = SafeTensors::from_sources(Path::new(bundle.name), vec![source])?;
        let config = weights::clex::solved(config, &store)?;
        Ok(Self { config, files: Files::HuggingFace(store, Texts::Bundle(*bundle)), path: None })
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What tells this model from others: a hash of all its files, which are read for it. Empty for a GGUF file that was never
    /// on disk.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, ModelError> {
        match (&self.path, &self.files) {
            (Some(_), Files::Gguf(gguf)) if gguf.files().count() > 1 => {
                fingerprint::of_files(gguf.files().map(PathBuf::from))
            }
            (Some(path), _) => fingerprint::of_path(path),
            (None, Files::HuggingFace(_, Texts::Bundle(b))) => Ok(fingerprint::of_texts(&[
                ("config.json", b.config.as_bytes()),
                ("model.safetensors", b.weights),
                ("tokenizer.json", b.tokenizer.as_bytes()),
            ])),
            _ => Ok(String::new()),
        }
    }

    /// Replaces the configuration, for instance to run the weights with another rotary scaling. A CLEX layer in it must have been
    /// given its weights ([`reattention::rope::RopeConfig::with_clex_weights`]).
    pub fn with_config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// What loading will take. Also checks that every tensor is there with the right shape and type.
    ///
    /// # Errors
    /// Names the first tensor that is missing or does not fit.
    pub fn plan(&self) -> Result<WeightPlan, ModelError> {
        weights::plan(&self.config, self.layout(), self.store())
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// As [`Checkpoint::plan`], or when a file cannot be read.
    pub fn load(&self) -> Result<Weights, ModelError> {
        weights::load(&self.config, self.layout(), self.store())
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// When it has none, or one that cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match &self.files {
            Files::Gguf(gguf) => gguf.tokenizer(),
            Files::HuggingFace(_, Texts::Dir(dir)) => Tokenizer::from_dir(dir),
            Files::HuggingFace(_, Texts::Bundle(b)) => {
                Tokenizer::from_json(b.tokenizer, b.tokenizer_config, b.name)
            }
        }
    }

    /// Its chat template, `None` for a model without one.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        match &self.files {
            Files::Gguf(gguf) => gguf.chat_template(),
            Files::HuggingFace(_, Texts::Dir(dir)) => ChatTemplate::from_dir(dir),
            Files::HuggingFace(_, Texts::Bundle(b)) => ChatTemplate::from_texts(b.tokenizer_config, None),
        }
    }

    fn store(&self) -> &dyn TensorStore {
        match &self.files {
            Files::HuggingFace(store, _) => store,
            Files::Gguf(gguf) => gguf,
        }
    }

    fn layout(&self) -> Layout {
        let family = self.config.family;
        let layout = match &self.files {
            Files::HuggingFace(..) => Layout::hugging_face(family),
            Files::Gguf(_) => Layout::gguf(family),
        };
        layout.as_found(&self.config, self.store())
    }
}
