//! What is to be read, and what is asked.

use super::Args;
use crate::failure::{Blame, Failure};
use anyhow::{Context, anyhow};
use reattention_engine::{Source, read_from, read_text};
use std::ffi::OsString;
use std::path::Path;

/// `--context A B "QUESTION"` gives the question to `--context`; it is taken back from there.
pub(super) fn files_and_question(args: &Args) -> Result<(Vec<OsString>, String), Failure> {
    let mut files = args.context.clone();
    let question = match &args.question {
        Some(question) => question.clone(),
        None => match files.pop() {
            Some(last) if !files.is_empty() && last != "-" && !Path::new(&last).exists() => last,
            _ => {
                return Err(Failure::Input(anyhow!(
                    "no question; write it last: reattn ask --context FILE \"QUESTION\""
                )));
            }
        },
    };
    if files.is_empty() {
        return Err(Failure::Input(anyhow!("no --context; name the files to read (- for standard input)")));
    }
    let foreign = |of: OsString| {
        anyhow!(
            "the question `{}` is not UTF-8 text; only file names may be in another encoding",
            of.to_string_lossy()
        )
    };
    let question = question.into_string().map_err(foreign).input()?;
    if question.trim().is_empty() {
        return Err(Failure::Input(anyhow!("the question is empty")));
    }
    Ok((files, question))
}

/// A file as a source of the name that was given; what of it is no Unicode shows as U+FFFD.
pub(super) fn read(file: &OsString) -> anyhow::Result<Source> {
    let (path, name) = (Path::new(file), file.to_string_lossy().into_owned());
    let text = match file == "-" {
        true => read_from(std::io::stdin().lock(), Path::new("standard input")),
        false => read_text(path),
    }
    .context("--context")?;
    if text.trim().is_empty() {
        return Err(anyhow!("--context {name}: the file is empty"));
    }
    Ok(Source { name, text })
}
