//! `reattn score`: scores predictions that exist, without a model.

use crate::common::{OutputArgs, complain, print, print_json};
use crate::failure::{Blame, Failure};
use crate::terminal::plain;
use anyhow::{Context, anyhow};
use reattention_eval::scorers::file::{Report, score_file};
use reattention_eval::scorers::{Scorer, Suite};
use serde_json::json;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

/// Score a file of predictions as a published benchmark does.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Predictions, one JSON object a line, as the suite's own scripts write them.
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// infinitebench, longbench, longbench-v2, leval, ruler, babilong or needlebench.
    #[arg(long)]
    suite: Suite,
    /// Task of the suite, such as narrativeqa, narrativeqa_e, passkey, coursera, niah_single_1, qa1 or needlebench.
    #[arg(long)]
    task: String,
    /// Name of the model, where the lines give none; InfiniteBench's math_calc drops the first number of `gpt4`.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    model_name: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    let scorer = Scorer::new(args.suite, &args.task).input()?;
    let path = args.file.display();
    let expected = || format!("{path}: a file of predictions is expected, one JSON object a line");
    if args.file.is_dir() {
        return Err(Failure::Input(anyhow!("{}; this is a folder", expected())));
    }
    let file = std::fs::File::open(&args.file).with_context(expected).input()?;
    let report = score_file(&scorer, &args.model_name, BufReader::new(file))
        .with_context(|| path.to_string())
        .running()?;
    for problem in report.problems.iter().take(SHOWN) {
        complain(format_args!("{path}:{}: {}", problem.line, plain(&problem.problem)));
    }
    if report.problems.len() > SHOWN {
        complain(format_args!("{path}: {} more lines have no score", report.problems.len() - SHOWN));
    }
    let noted = report.rows.iter().filter_map(|row| Some((row, row.score.note?)));
    for (row, note) in noted.clone().take(SHOWN) {
        args.output.say(format_args!("{path}:{}: scored 0: {note}", row.line));
    }
    if noted.clone().count() > SHOWN {
        args.output.say(format_args!("{path}: {} more lines scored 0 so", noted.count() - SHOWN));
    }
    if args.output.json {
        print_json(&json!({
            "suite": args.suite, "task": args.task, "file": path.to_string(), "summary": report.summary,
            "rows": report.rows, "problems": report.problems,
        }))?;
    } else {
        table(args, &report)?;
    }
    // The rest is scored, but who asked must learn that it is the rest.
    Ok(if report.problems.is_empty() && !report.rows.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// Problems shown on a terminal; JSON has all.
const SHOWN: usize = 20;

fn table(args: &Args, report: &Report) -> Result<(), Failure> {
    let summary = &report.summary;
    if summary.rows == 0 {
        return print(format_args!("{} {}  no row could be scored", args.suite, args.task));
    }
    print(format_args!("{} {}  {:.2}  ({} rows)", args.suite, args.task, summary.percent, summary.rows))?;
    for part in summary.parts.iter().chain(&summary.groups) {
        print(format_args!("  {:12} {:.2}  ({} rows)", part.name, part.percent, part.rows))?;
    }
    Ok(())
}
