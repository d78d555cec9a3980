//! Runs every case of a golden folder on every backend and says where it differs from the published code.
//!
//! `cargo run --release -p conformance -- DIR [--only PREFIX,...] [--backend NAME,...] [--json]`
//!
//! A golden folder holds `models/NAME/{config.json, model.safetensors}` and, for each case, `cases/CASE.json` (the
//! manifest: method, model, parameters, sequence) and `cases/CASE.safetensors` (inputs and expected outputs). A folder with
//! a `summary.json` instead holds scored predictions, `SUITE/TASK.jsonl`, and `--only` takes prefixes of these names. A folder of
//! real models holds `MODEL/{tokens, prompts, perplexity}.json`, and the models' files are given by `--model-file FILE`.

use anyhow::{Context as _, bail};
use clap::Parser;
use conformance::{Case, Outcome, real, run, scorers};
use cuda_emulator::{Emulator, facts};
use reattention_cuda::{Cuda, Offload};
use reattention_kernels::{Backend, Cpu, Reference};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Compare with the outputs of published implementations.
#[derive(Parser)]
struct Args {
    /// Folder with `cases/` and `models/`, or with `summary.json` and a folder for each suite.
    dir: PathBuf,
    /// Only cases whose name starts with one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Backends to run: reference, cpu, cuda, or cuda-emulated, which runs the same kernels on the CPU.
    #[arg(long, value_delimiter = ',', default_value = "reference,cpu")]
    backend: Vec<String>,
    /// A published model in GGUF, repeatable; which one it is its SHA-256 tells.
    #[arg(long, value_name = "FILE")]
    model_file: Vec<PathBuf>,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match check(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn check(args: &Args) -> anyhow::Result<bool> {
    if scorers::is_scorers(&args.dir) {
        return check_scorers(args);
    }
    let backends = args.backend.iter().map(|n| backend(n)).collect::<anyhow::Result<Vec<_>>>()?;
    if real::is_real(&args.dir) {
        let files = real::Files::new(&args.model_file)?;
        let mut models = real::Real::new(&files);
        let names = real::names(&args.dir);
        return check_cases(args, names, |name| models.run(&args.dir, name, &backends));
    }
    if !args.model_file.is_empty() {
        bail!("--model-file is for a folder of real models, which {} is not", args.dir.display());
    }
    let each = |name: &str| backends.iter().map(|b| (b.name(), run(&args.dir, name, b))).collect();
    check_cases(args, Case::names(&args.dir)?, each)
}

/// Runs every case that is asked for and prints how it ended on each backend.
fn check_cases(
    args: &Args,
    names: Vec<String>,
    mut run: impl FnMut(&str) -> Vec<(String, Outcome)>,
) -> anyhow::Result<bool> {
    let (mut counts, mut rows) = ([0; 3], Vec::new());
    for name in &wanted(args, names)? {
        let outcomes = run(name);
        let worst = outcomes.iter().map(|o| o.1.rank()).max().context("at least one backend is needed")?;
        counts[worst] += 1;
        if args.json {
            let results: Vec<_> = outcomes.iter().map(|(b, o)| o.json(b)).collect();
            rows.push(serde_json::json!({ "case": name, "status": STATUS[worst], "results": results }));
        } else {
            let details: Vec<String> = outcomes.iter().map(|(b, o)| format!("{b}: {}", o.text())).collect();
            println!("{:7} {name}  {}", STATUS[worst], details.join("  |  "));
        }
    }
    let [passed, skipped, failed] = counts;
    report(args, [passed, failed, skipped], "cases", &rows)
}

/// Scores published predictions; counts rows, and as failed also averages.
fn check_scorers(args: &Args) -> anyhow::Result<bool> {
    let (mut counts, mut tasks) = ([0; 3], Vec::new());
    for name in &wanted(args, scorers::names(&args.dir)?)? {
        let outcome = scorers::run(&args.dir, name)?;
        counts[0] += outcome.passed;
        counts[1] += outcome.failures.len();
        counts[2] += outcome.skipped;
        if args.json {
            tasks.push(outcome.json());
        } else {
            println!("{}", outcome.text());
        }
    }
    report(args, counts, "tasks", &tasks)
}

/// The names that `--only` asks for.
fn wanted(args: &Args, mut names: Vec<String>) -> anyhow::Result<Vec<String>> {
    names.retain(|n| args.only.is_empty() || args.only.iter().any(|p| n.starts_with(p.as_str())));
    if names.is_empty() {
        bail!("nothing in {} starts with {}", args.dir.display(), args.only.join(", "));
    }
    Ok(names)
}

/// Prints the counts, as JSON with everything. True if nothing failed.
fn report(
    args: &Args,
    [passed, failed, skipped]: [usize; 3],
    what: &str,
    rows: &[serde_json::Value],
) -> anyhow::Result<bool> {
    if args.json {
        let report =
            serde_json::json!({ "passed": passed, "failed": failed, "skipped": skipped, what: rows });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    Ok(failed == 0)
}

const STATUS: [&str; 3] = ["ok", "skipped", "FAILED"];

fn backend(name: &str) -> anyhow::Result<Arc<dyn Backend>> {
    let cpu = || Cpu::new(std::thread::available_parallelism().map_or(1, |n| n.get()));
    Ok(match name {
        "reference" => Arc::new(Reference),
        "cpu" => Arc::new(cpu()?),
        "cuda" => Arc::new(Cuda::open(0, cpu()?, Offload::Off)?),
        "cuda-emulated" => Arc::new(Cuda::on(Arc::new(Emulator::new(facts())?), cpu()?, Offload::Off)),
        other => bail!("unknown backend `{other}`; known are reference, cpu, cuda and cuda-emulated"),
    })
}
