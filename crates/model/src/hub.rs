//! Models of the Hugging Face hub by name: found in the cache that its own tools keep, which `hf download ORG/NAME` fills.

use crate::ModelError;
use crate::files::{self, Found};
use std::path::{Component, Path, PathBuf};

/// A model's name on the hub, `ORG/NAME` or `ORG/NAME:FILE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HubName<'a> {
    /// `ORG/NAME`.
    repository: &'a str,
    /// A file of it, or what a GGUF file's name says of its quantisation, such as `Q4_K_M`.
    file: Option<&'a str>,
}

impl<'a> HubName<'a> {
    /// Reads a name; `None` for what can only be a path.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (repository, file) =
            text.split_once(':').map_or((text, None), |(repository, file)| (repository, Some(file)));
        let (organisation, name) = repository.split_once('/')?;
        let is_part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let is_file = [".gguf", ".safetensors", ".json", ".bin"].iter().any(|end| name.ends_with(end));
        let is_inside = |file: &str| {
            !file.is_empty()
                && !file.contains('\\')
                && Path::new(file).components().all(|c| matches!(c, Component::Normal(_)))
        };
        let is_name = is_part(organisation) && is_part(name) && !is_file && file.is_none_or(is_inside);
        is_name.then_some(Self { repository, file })
    }

    /// Finds the model in the cache that the environment names.
    ///
    /// # Errors
    /// When it is not there, with how to get it, or what is there is no single model.
    pub(crate) fn find(self) -> Result<Found, ModelError> {
        self.find_in(cache(|key| std::env::var_os(key).filter(|value| !value.is_empty())).as_deref())
    }

    fn find_in(self, cache: Option<&Path>) -> Result<Found, ModelError> {
        let named = self.file.map_or(self.repository.to_string(), |f| format!("{}:{f}", self.repository));
        let no_model = |reason: String| Err(ModelError::NoModel { path: named.clone().into(), reason });
        let get = self.download();
        let Some(cache) = cache else {
            return no_model(format!(
                "there is no such file or folder, and no cache of the Hugging Face hub (HF_HUB_CACHE, HF_HOME); download the model with `{get} --local-dir DIR` and give --model DIR"
            ));
        };
        let folder = cache.join(format!("models--{}", self.repository.replace('/', "--")));
        let Some(snapshot) = files::snapshot(&folder) else {
            return no_model(format!(
                "there is no such file or folder, and the cache of the Hugging Face hub in {} does not hold it; if it is a model of the hub, download it with `{get}` and name it again",
                cache.display()
            ));
        };
        let Some(file) = self.file else {
            return files::find(&snapshot);
        };
        let exact = snapshot.join(file);
        if exact.is_file() {
            return files::find(&exact);
        }
        let mut models = files::ggufs(&snapshot)?;
        for entry in std::fs::read_dir(&snapshot).map_err(ModelError::io(&snapshot))?.flatten() {
            if entry.path().is_dir() {
                models.extend(files::ggufs(&entry.path())?);
            }
        }
        models.sort();
        let inside = |path: &PathBuf| path.strip_prefix(&snapshot).unwrap_or(path).display().to_string();
        let mut chosen: Vec<_> = models.iter().filter(|path| has_quantisation(path, file)).collect();
        match (chosen.len(), chosen.pop()) {
            (1, Some(one)) => Ok(Found::Gguf(one.clone())),
            (0, _) => {
                let there = match &models[..] {
                    [] => "no GGUF file".to_string(),
                    some => some.iter().map(inside).collect::<Vec<_>>().join(", "),
                };
                no_model(format!(
                    "its cache {} holds {there}; download the file with `{get}`",
                    snapshot.display()
                ))
            }
            (_, last) => {
                let names: Vec<_> = chosen.into_iter().chain(last).map(inside).collect();
                no_model(format!("several files are called so; name one of them: {}", names.join(", ")))
            }
        }
    }

    /// The command that puts it into the cache.
    fn download(self) -> String {
        match self.file {
            None => format!("hf download {}", self.repository),
            Some(file) if file.contains('.') => format!("hf download {} {file}", self.repository),
            Some(tag) => format!("hf download {} --include \"*{tag}*.gguf\"", self.repository),
        }
    }
}

/// Whether a GGUF file's name ends in this quantisation: `qwen2.5-0.5b-q4_k_m.gguf` in `Q4_K_M`, not in `K_M`.
fn has_quantisation(path: &Path, tag: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let stem = match files::part_of(&name) {
        Some(_) => stem.get(..stem.len() - "-00001-of-00002".len()).unwrap_or(stem),
        None => stem,
    };
    let before = stem.strip_suffix(&tag.to_ascii_lowercase());
    before.is_some_and(|before| before.is_empty() || before.ends_with(['-', '.']))
}

/// The cache that the hub's own tools use: HF_HUB_CACHE, else `hub` in HF_HOME, else in the user's cache folder.
fn cache(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let folder = |key: &str| variable(key).map(PathBuf::from);
    let user = || {
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME").or(folder("USERPROFILE"))?.join(".cache")))
    };
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(folder("HF_HOME").or_else(|| Some(user()?.join("huggingface")))?.join("hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let name = |repository, file| Some(HubName { repository, file });
        assert_eq!(HubName::parse("Qwen/Qwen2.5-0.5B"), name("Qwen/Qwen2.5-0.5B", None));
        assert_eq!(HubName::parse("a/b-GGUF:Q4_K_M"), name("a/b-GGUF", Some("Q4_K_M")));
        assert_eq!(HubName::parse("a/b:sub/c.gguf"), name("a/b", Some("sub/c.gguf")));
        for path in
            ["model", "/a/b", "./b", "../b", "a/b/c", "a/b.gguf", "a/", "a/b:", "a/b:../c", "a/b:/c", "a b/c"]
        {
            assert_eq!(HubName::parse(path), None, "{path}");
        }
    }

    #[test]
    fn the_cache_is_where_the_hubs_tools_keep_it() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> =
                set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            cache(move |key| set.iter().find(|(k, _)| k == key).map(|(_, v)| v.into()))
        };
        let home = ("HOME", "/u");
        assert_eq!(of(&[home]), Some("/u/.cache/huggingface/hub".into()));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/hub".into()));
        assert_eq!(of(&[home, ("HF_HOME", "/h")]), Some("/h/hub".into()));
        assert_eq!(of(&[home, ("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn files_are_chosen_by_name_or_quantisation() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = root.path().join("models--me--tiny/snapshots/abc");
        std::fs::create_dir_all(snapshot.join("Q8_0")).unwrap();
        for file in [
            "t-Q4_K_M.gguf",
            "t-Q4_K.gguf",
            "Q8_0/t-q8_0-00001-of-00002.gguf",
            "Q8_0/t-q8_0-00002-of-00002.gguf",
        ] {
            std::fs::write(snapshot.join(file), b"GGUF").unwrap();
        }
        let find = |name| HubName::parse(name).unwrap().find_in(Some(root.path()));
        let at = |file: &str| Found::Gguf(snapshot.join(file));
        assert_eq!(find("me/tiny:q4_k_m").unwrap(), at("t-Q4_K_M.gguf"));
        assert_eq!(find("me/tiny:Q4_K").unwrap(), at("t-Q4_K.gguf"));
        assert_eq!(find("me/tiny:Q8_0").unwrap(), at("Q8_0/t-q8_0-00001-of-00002.gguf"));
        assert_eq!(find("me/tiny:t-Q4_K.gguf").unwrap(), at("t-Q4_K.gguf"));
        let error = |name| find(name).unwrap_err().to_string();
        assert!(
            error("me/tiny:Q6_K").contains("t-Q4_K.gguf") && error("me/tiny:Q6_K").contains("*Q6_K*.gguf")
        );
        assert!(error("me/tiny").contains("name one of them"), "{}", error("me/tiny"));
        assert!(error("me/other").contains("hf download me/other`"), "{}", error("me/other"));
        assert!(
            HubName::parse("a/b").unwrap().find_in(None).unwrap_err().to_string().contains("hf download a/b")
        );
    }
}
