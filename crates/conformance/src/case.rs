//! A golden case: its manifest and its tensors.

use anyhow::{Context, bail, ensure};
use reattention_model::{Checkpoint, Config, Model};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use std::path::Path;

/// One run of a published implementation.
#[derive(Debug)]
pub struct Case {
    /// The manifest.
    pub manifest: Map<String, Value>,
    bytes: Vec<u8>,
}

impl Case {
    /// The names of all cases below `dir`, in order.
    ///
    /// # Errors
    /// When there is no readable folder `dir/cases`.
    pub fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
        let cases = dir.join("cases");
        let mut names = Vec::new();
        for entry in
            std::fs::read_dir(&cases).with_context(|| format!("no golden folder: {}", cases.display()))?
        {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json") {
                names.extend(path.file_stem().and_then(|s| s.to_str()).map(str::to_string));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads a case.
    ///
    /// # Errors
    /// When a file is missing or not what it should be.
    pub fn read(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let read = |extension: &str| {
            let path = dir.join("cases").join(format!("{name}.{extension}"));
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let Value::Object(manifest) = serde_json::from_slice(&read("json")?)? else {
            bail!("{name}.json is no object")
        };
        Ok(Self { manifest, bytes: read("safetensors")? })
    }

    /// A text of the manifest.
    ///
    /// # Errors
    /// When it is missing.
    pub fn text(&self, key: &str) -> anyhow::Result<&str> {
        self.manifest
            .get(key)
            .and_then(Value::as_str)
            .with_context(|| format!("the manifest has no text `{key}`"))
    }

    /// A hyper-parameter.
    ///
    /// # Errors
    /// When it is missing.
    pub fn param(&self, key: &str) -> anyhow::Result<&Value> {
        let params = self.manifest.get("params").and_then(Value::as_object);
        params.and_then(|p| p.get(key)).with_context(|| format!("the manifest has no parameter `{key}`"))
    }

    /// The model with the case's overrides, of which a null removes its key.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn model(&self, dir: &Path) -> anyhow::Result<Model> {
        let folder = dir.join("models").join(self.text("model")?);
        let file = folder.join("config.json");
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let mut config: Map<String, Value> = serde_json::from_str(&text)?;
        if let Some(overrides) = self.manifest.get("config_overrides").and_then(Value::as_object) {
            config.extend(overrides.clone());
            config.retain(|key, value| !value.is_null() || !overrides.contains_key(key));
        }
        let config = Config::from_json(&serde_json::to_string(&config)?, &file.display().to_string())?;
        let config = self.with_clex_weights(config)?;
        let checkpoint = Checkpoint::open(&folder)?.with_config(config.clone());
        Ok(Model::new(config, checkpoint.load()?))
    }

    /// The GGUF form of the model, in cases that hold for it too; it needs no overrides.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn gguf_model(&self, dir: &Path) -> anyhow::Result<Option<Model>> {
        let Ok(file) = self.text("gguf") else { return Ok(None) };
        let checkpoint = Checkpoint::open(&dir.join(file))?;
        Ok(Some(Model::new(checkpoint.config().clone(), checkpoint.load()?)))
    }

    /// CLEX's trained weights are part of a case, not of its model.
    fn with_clex_weights(&self, mut config: Config) -> anyhow::Result<Config> {
        if self.has("ode_up_proj") {
            let (_, up) = self.floats("ode_up_proj")?;
            let (_, down) = self.floats("ode_down_proj")?;
            config.rope = config.rope.with_clex_weights(&up, &down)?;
            if self.param("log_scale")? == &Value::Bool(true) {
                config.rope = config.rope.with_spec("clex:log_scale=published")?;
            }
        }
        Ok(config)
    }

    /// Whether the case holds a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors().is_ok_and(|t| t.tensor(name).is_ok())
    }

    /// A tensor of f32 with its shape.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn floats(&self, name: &str) -> anyhow::Result<(Vec<usize>, Vec<f32>)> {
        self.numbers(name, Dtype::F32, f32::from_le_bytes)
    }

    /// A tensor of indices with its shape.
    ///
    /// # Errors
    /// When it is missing, of another type, or negative.
    pub fn indices(&self, name: &str) -> anyhow::Result<(Vec<usize>, Vec<usize>)> {
        let (shape, values) = self.integers(name)?;
        let values: Result<Vec<usize>, _> = values.into_iter().map(usize::try_from).collect();
        Ok((shape, values.with_context(|| format!("`{name}` has negative entries"))?))
    }

    /// A tensor of integers with its shape.
    ///
    /// # Errors
    /// When it is missing or of another type.
    pub fn integers(&self, name: &str) -> anyhow::Result<(Vec<usize>, Vec<i32>)> {
        self.numbers(name, Dtype::I32, i32::from_le_bytes)
    }

    /// Token ids.
    ///
    /// # Errors
    /// As [`Case::indices`].
    pub fn ids(&self, name: &str) -> anyhow::Result<Vec<u32>> {
        Ok(self.indices(name)?.1.into_iter().map(|i| i as u32).collect())
    }

    fn numbers<T>(
        &self,
        name: &str,
        dtype: Dtype,
        read: fn([u8; 4]) -> T,
    ) -> anyhow::Result<(Vec<usize>, Vec<T>)> {
        let tensors = self.tensors()?;
        let tensor = tensors.tensor(name).with_context(|| format!("the case has no tensor `{name}`"))?;
        ensure!(tensor.dtype() == dtype, "`{name}` is {:?} instead of {dtype:?}", tensor.dtype());
        let values = tensor.data().chunks_exact(4).map(|b| read([b[0], b[1], b[2], b[3]])).collect();
        Ok((tensor.shape().to_vec(), values))
    }

    fn tensors(&self) -> anyhow::Result<SafeTensors<'_>> {
        Ok(SafeTensors::deserialize(&self.bytes)?)
    }
}
