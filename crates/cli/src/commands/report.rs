//! `reattn report`: a run of evaluations as a page, figures and Markdown.

use crate::common::{OutputArgs, print, print_json};
use crate::failure::Failure;
use anyhow::anyhow;
use reattention_eval::report::{ReportError, Written, write};
use reattention_eval::run::MANIFEST;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show a run of `reattn eval` as one HTML page, with its figures and tables.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the run, as `reattn eval --out DIR` leaves it; a run that is not finished is reported as far as it is.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    if !args.dir.join(MANIFEST).is_file() {
        let what = if args.dir.is_dir() {
            "this folder holds no run of evaluations (no run.json)"
        } else {
            "there is no such folder"
        };
        return Err(Failure::Input(anyhow!(
            "{}: {what}; name one that `reattn eval SUITE --out DIR` has written",
            args.dir.display()
        )));
    }
    let written = write(&args.dir).map_err(|error| match error {
        ReportError::Run(_) => Failure::Input(error.into()),
        _ => Failure::Run(error.into()),
    })?;
    if args.output.json {
        print_json(&written)?;
    } else {
        print(written.page.display())?;
        describe(args, &written);
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(args: &Args, written: &Written) {
    let rows = match written.total {
        Some(total) if total > written.rows => format!("{} of {total} rows, unfinished", written.rows),
        _ => format!("{} rows", written.rows),
    };
    args.output.say(format_args!(
        "{rows}, {} of them on the page ({:.1} MiB); {} figures; tables in {}",
        written.browsable,
        written.page_bytes as f64 / f64::from(1 << 20),
        written.figures.len(),
        written.markdown.display()
    ));
}
