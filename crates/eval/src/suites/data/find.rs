//! Which files of a folder are a benchmark's.

use super::DataError;
use std::path::{Path, PathBuf};

/// Makes sure that a folder is one.
fn folder(dir: &Path) -> Result<(), DataError> {
    std::fs::read_dir(dir).map(drop).map_err(|source| DataError::Folder { dir: dir.to_path_buf(), source })
}

/// Files of tasks. A task has a file in each of several places (one a length, say), and in each place the first of its names that
/// is there counts; `names` gives the places of a task with their names, paths below `dir`. Each task in `chosen` must have a
/// file; without a choice those of `known` count that have one.
///
/// # Errors
/// When the folder cannot be read, a chosen task is unknown or has no file, or there is no file at all.
pub fn find<T: AsRef<str>, P>(
    suite: &'static str,
    dir: &Path,
    known: &[T],
    chosen: Option<&[String]>,
    names: impl Fn(&str) -> Vec<(P, Vec<PathBuf>)>,
) -> Result<Vec<(String, P, PathBuf)>, DataError> {
    folder(dir)?;
    let files = |task: &str| -> Vec<(String, P, PathBuf)> {
        let there = |names: Vec<PathBuf>| names.into_iter().map(|n| dir.join(n)).find(|path| path.is_file());
        let place = |(place, names)| Some((task.to_string(), place, there(names)?));
        names(task).into_iter().filter_map(place).collect()
    };
    let known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    let Some(chosen) = chosen else {
        let found: Vec<_> = known.iter().flat_map(|task| files(task)).collect();
        if found.is_empty() {
            let first = |task: &&str| names(task).into_iter().flat_map(|(_, names)| names).next();
            let expected = shown(known.iter().filter_map(first), ", ");
            return Err(DataError::Nothing { suite, dir: dir.to_path_buf(), expected, found: entries(dir) });
        }
        return Ok(found);
    };
    let mut found: Vec<(String, P, PathBuf)> = Vec::new();
    for task in chosen {
        if !known.contains(&task.as_str()) {
            return Err(DataError::UnknownTask { suite, task: task.clone(), known: known.join(", ") });
        }
        if found.iter().any(|f| f.0 == *task) {
            continue;
        }
        let of = files(task);
        if of.is_empty() {
            let expected = shown(names(task).into_iter().flat_map(|(_, names)| names), " or ");
            let (task, dir, found) = (task.clone(), dir.to_path_buf(), entries(dir));
            return Err(DataError::NoFile { task, dir, expected, found });
        }
        found.extend(of);
    }
    Ok(found)
}

/// The names of a task with one file: `{name}.jsonl` or `data/{name}.jsonl`.
pub fn jsonl(name: &str) -> Vec<((), Vec<PathBuf>)> {
    vec![((), vec![format!("{name}.jsonl").into(), format!("data/{name}.jsonl").into()])]
}

/// The length in tokens that a folder or a file is named by: `4096`, `128k`, `1M`; k is 1,024.
pub fn length(name: &str) -> Option<usize> {
    let (digits, unit) = match name.strip_suffix(['k', 'K', 'm', 'M']) {
        Some(digits) if name.ends_with(['k', 'K']) => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (name, 1),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse::<usize>().ok().filter(|_| plain)?.checked_mul(unit)
}

fn shown(paths: impl Iterator<Item = PathBuf>, between: &str) -> String {
    let names: Vec<String> = paths.map(|p| p.display().to_string()).collect();
    few(names, between)
}

/// What a folder has, for an error: names in order, those of folders with a slash.
fn entries(dir: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| format!("{}{}", e.file_name().to_string_lossy(), if e.path().is_dir() { "/" } else { "" }))
        .collect();
    names.sort();
    few(names, ", ")
}

/// At most 21 names, which is as many tasks as a benchmark has here.
fn few(names: Vec<String>, between: &str) -> String {
    const SHOWN: usize = 21;
    match names.len() {
        0 => "nothing".to_string(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(between), n - SHOWN),
        _ => names.join(between),
    }
}

/// The texts of a folder in PG19's form: name (without `.txt`) and path of each `.txt` file in `dir`, or else in `dir/test`, by
/// name.
///
/// # Errors
/// When the folder cannot be read, or has no such file.
pub fn books(dir: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    folder(dir)?;
    for place in [dir.to_path_buf(), dir.join("test")] {
        let mut books: Vec<(String, PathBuf)> = std::fs::read_dir(&place)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "txt") && path.is_file())
            .map(|path| (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path))
            .collect();
        if !books.is_empty() {
            books.sort();
            return Ok(books);
        }
    }
    Err(DataError::Nothing {
        suite: "books",
        dir: dir.to_path_buf(),
        expected: "*.txt, test/*.txt".into(),
        found: entries(dir),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::folder_of;
    use super::*;

    fn look(dir: &Path, chosen: Option<&[&str]>) -> Result<Vec<String>, String> {
        let chosen: Option<Vec<String>> = chosen.map(|c| c.iter().map(|t| t.to_string()).collect());
        find("bench", dir, &["a", "b", "c"], chosen.as_deref(), jsonl)
            .map(|found| {
                found.into_iter().map(|f| f.2.strip_prefix(dir).unwrap().display().to_string()).collect()
            })
            .map_err(|e| e.to_string())
    }

    #[test]
    fn files_are_found_in_either_place() {
        let dir = folder_of(&[("a.jsonl", ""), ("data/a.jsonl", ""), ("data/c.jsonl", ""), ("x.txt", "")]);
        assert_eq!(look(dir.path(), None).unwrap(), ["a.jsonl", "data/c.jsonl"]);
        assert_eq!(look(dir.path(), Some(&["c", "c"])).unwrap(), ["data/c.jsonl"]);
        let error = look(dir.path(), Some(&["b"])).unwrap_err();
        assert!(error.contains("expected b.jsonl or data/b.jsonl; found a.jsonl, data/, x.txt"), "{error}");
        assert!(
            look(dir.path(), Some(&["z"])).unwrap_err().contains("bench has no task `z`; it has a, b, c")
        );
    }

    #[test]
    fn a_folder_of_something_else_is_refused_with_what_was_expected() {
        let dir = folder_of(&[]);
        let error = look(dir.path(), None).unwrap_err();
        assert!(error.contains("expected any of a.jsonl, b.jsonl, c.jsonl; found nothing"), "{error}");
        assert!(look(&dir.path().join("none"), None).unwrap_err().contains("the folder with"));
    }

    #[test]
    fn a_task_may_have_files_in_several_places() {
        let dir = folder_of(&[("4096/a.jsonl", ""), ("8k/a.jsonl", ""), ("8k/b.jsonl", "")]);
        let names = |task: &str| {
            let place = |folder: &str| (length(folder), vec![format!("{folder}/{task}.jsonl").into()]);
            vec![place("4096"), place("8k"), place("1m")]
        };
        let found = find("bench", dir.path(), &["a", "b"], None, names).unwrap();
        let found: Vec<_> = found.iter().map(|f| (f.0.as_str(), f.1)).collect();
        assert_eq!(found, [("a", Some(4096)), ("a", Some(8192)), ("b", Some(8192))]);
    }

    #[test]
    fn lengths_are_read_from_names() {
        let lengths = ["0k", "4096", "128K", "1M"].map(length);
        assert_eq!(lengths, [Some(0), Some(4096), Some(131_072), Some(1 << 20)]);
        for bad in ["", "k", "4kb", "-4k", "+4", "1.5k", "99999999999999999999m", "data"] {
            assert_eq!(length(bad), None, "{bad}");
        }
    }

    #[test]
    fn books_are_sorted() {
        let dir = folder_of(&[("test/20.txt", "b"), ("test/10.txt", "a"), ("metadata.csv", "")]);
        let found: Vec<String> = books(dir.path()).unwrap().into_iter().map(|b| b.0).collect();
        assert_eq!(found, ["10", "20"]);
        assert!(matches!(books(&dir.path().join("test/x")), Err(DataError::Folder { .. })));
        let none = folder_of(&[("a.csv", "")]);
        assert!(books(none.path()).unwrap_err().to_string().contains("found a.csv"));
    }
}
