//! Which files a model is: what people name is a folder, a GGUF file under whatever name, or a cache of downloads.

use crate::ModelError;
use crate::hub::HubName;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A model's place, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A folder with config.json and safetensors.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

/// Finds the model that `path` names: a folder of Hugging Face's, a GGUF file (known by its content, so a blob without an
/// ending is one), a folder that holds a single GGUF file, a repository in a
/// cache of the hub, or the name of one in the user's cache (`ORG/NAME[:FILE]`). What exists as a path is not taken for a name.
///
/// # Errors
/// When there is none, or several, with what would do.
pub(crate) fn find(path: &Path) -> Result<Found, ModelError> {
    let no_model = |reason: String| Err(ModelError::NoModel { path: path.into(), reason });
    if path.is_file() {
        if begins(path, 4)? == b"GGUF" || has_ending(path, "gguf") {
            return Ok(Found::Gguf(path.into()));
        }
        return no_model(match has_ending(path, "safetensors") {
            true => "name the folder that it lies in, with config.json and tokenizer.json".into(),
            false => "it is neither a GGUF file nor a folder with config.json and safetensors".into(),
        });
    }
    if !path.is_dir() {
        return match path.to_str().and_then(HubName::parse) {
            Some(name) => name.find(),
            None => no_model("there is no such file or folder".into()),
        };
    }
    // Repositories of GGUF files often carry the config.json of the model that they were made of.
    if path.join("config.json").exists() && (holds(path, "safetensors") || ggufs(path)?.is_empty()) {
        return Ok(Found::Folder(path.into()));
    }
    if let Some(snapshot) = snapshot(path) {
        return find(&snapshot);
    }
    if path.join("adapter_config.json").exists() {
        return no_model(
            "this is a LoRA adapter (adapter_config.json); merge it into its base model first, for instance with peft's merge_and_unload, and name the result".into(),
        );
    }
    let mut models = ggufs(path)?;
    match (models.len(), models.pop()) {
        (1, Some(one)) => Ok(Found::Gguf(one)),
        (0, _) => no_model(match later_part(path)? {
            Some(part) => {
                format!("it holds {part} of a model in parts, but not the first part; download that too")
            }
            None => "there is neither config.json nor a .gguf file".into(),
        }),
        (n, last) => {
            models.extend(last);
            let names: Vec<_> =
                models.iter().filter_map(|m| m.file_name()).map(|n| n.to_string_lossy()).collect();
            no_model(format!("there are {n} models; name one of them: {}", names.join(", ")))
        }
    }
}

/// The text of a file of a model.
///
/// # Errors
/// When it cannot be read, or something else stands in its place (see [`stand_in`]).
pub(crate) fn read_text(path: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    match stand_in(text.as_bytes()) {
        Some(what) => Err(std::io::Error::other(what)),
        None => Ok(text),
    }
}

/// What stands where a file of a model belongs, if it is one of the things that downloads leave there, and the cure.
pub(crate) fn stand_in(bytes: &[u8]) -> Option<&'static str> {
    let head = &bytes[..bytes.len().min(512)];
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some(
            "this is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file",
        );
    }
    let text = String::from_utf8_lossy(head).trim_start().to_ascii_lowercase();
    (text.starts_with("<!doctype html") || text.starts_with("<html")).then_some(
        "this is a web page, not the file itself: the download saved the page about it; download the file from its `resolve` address",
    )
}

/// The first bytes of a file, fewer where it has no more.
pub(crate) fn begins(path: &Path, n: u64) -> Result<Vec<u8>, ModelError> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(ModelError::io(path))?;
    file.take(n).read_to_end(&mut head).map_err(ModelError::io(path))?;
    Ok(head)
}

/// The snapshot of a repository in a cache of the hub (`models--ORG--NAME` with `refs` and `snapshots`): that of `main`, or the
/// only one.
pub(crate) fn snapshot(path: &Path) -> Option<PathBuf> {
    let snapshots = path.join("snapshots");
    if let Ok(commit) = std::fs::read_to_string(path.join("refs").join("main")) {
        let commit = commit.trim();
        let of_main = snapshots.join(commit);
        if !commit.is_empty() && !commit.contains(['/', '\\']) && of_main.is_dir() {
            return Some(of_main);
        }
    }
    let mut all =
        std::fs::read_dir(&snapshots).ok()?.flatten().map(|entry| entry.path()).filter(|p| p.is_dir());
    let one = all.next()?;
    all.next().is_none().then_some(one)
}

/// The models among the GGUF files of a folder, by name. Later parts of one in parts, and projectors of pictures, are none.
pub(crate) fn ggufs(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(ModelError::io(dir))? {
        let path = entry.map_err(ModelError::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let is_first = part_of(&name).is_none_or(|(number, _)| number == 1);
        if path.is_file() && has_ending(&path, "gguf") && is_first && !name.contains("mmproj") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a folder holds a file of this ending.
fn holds(dir: &Path, ending: &str) -> bool {
    std::fs::read_dir(dir)
        .is_ok_and(|entries| entries.flatten().any(|entry| has_ending(&entry.path(), ending)))
}

/// The name of a later part in a folder.
fn later_part(dir: &Path) -> Result<Option<String>, ModelError> {
    let entries = std::fs::read_dir(dir).map_err(ModelError::io(dir))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| part_of(&name.to_ascii_lowercase()).is_some()).min())
}

/// Number and count of a part of a model in parts, from 1: llama.cpp names them `NAME-00001-of-00003.gguf`. `name` in small
/// letters.
pub(crate) fn part_of(name: &str) -> Option<(u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(number) || !digits(count) {
        return None;
    }
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&number).then_some((number, count))
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(path: &Path) -> String {
        find(path).unwrap_err().to_string()
    }

    #[test]
    fn a_model_is_found_under_the_names_people_have_for_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str, bytes: &[u8]| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let dir = |path: &str| root.path().join(path);
        let blob = at("blobs/sha256-0123abcd", b"GGUF\x03\0\0\0");
        assert_eq!(find(&blob).unwrap(), Found::Gguf(blob));

        let one = at("studio/model.gguf", b"GGUF");
        at("studio/mmproj-model.gguf", b"GGUF");
        at("studio/README.md", b"");
        assert_eq!(find(&dir("studio")).unwrap(), Found::Gguf(one));
        at("studio/other.GGUF", b"GGUF");
        assert!(reason(&dir("studio")).contains("2 models; name one of them: model.gguf, other.GGUF"));

        let first = at("parts/m-00001-of-00002.gguf", b"GGUF");
        at("parts/m-00002-of-00002.gguf", b"GGUF");
        assert_eq!(find(&dir("parts")).unwrap(), Found::Gguf(first));

        let cache = "hub/models--me--tiny";
        at(&format!("{cache}/snapshots/abc/config.json"), b"{}");
        assert_eq!(find(&dir(cache)).unwrap(), Found::Folder(dir(&format!("{cache}/snapshots/abc"))));
        at(&format!("{cache}/snapshots/def/config.json"), b"{}");
        at(&format!("{cache}/refs/main"), b"def\n");
        assert_eq!(find(&dir(cache)).unwrap(), Found::Folder(dir(&format!("{cache}/snapshots/def"))));
    }

    #[test]
    fn what_is_no_model_is_told_what_would_do() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("adapter_config.json"), "{}").unwrap();
        assert!(reason(root.path()).contains("LoRA adapter"));
        std::fs::write(root.path().join("notes.txt"), "hello").unwrap();
        assert!(reason(&root.path().join("notes.txt")).contains("neither a GGUF file"));
        let named = reason(Path::new("Qwen/Qwen2.5-0.5B-Instruct"));
        assert!(named.contains("hf download Qwen/Qwen2.5-0.5B-Instruct"), "{named}");
        assert!(!reason(Path::new("/no/such/model")).contains("hf download"));
    }

    #[test]
    fn pointers_and_pages_are_named_for_what_they_are() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        assert!(stand_in(pointer).unwrap().contains("git lfs pull"));
        assert!(stand_in(b"\n<!DOCTYPE html>\n<html>").unwrap().contains("web page"));
        assert_eq!(stand_in(b"{\"model_type\": \"llama\"}"), None);
        assert_eq!(stand_in(b""), None);
    }
}
