//! `reattn eval`: evaluation suites.

mod choice;
mod selection;
mod suites;

use crate::common::{MethodArgs, ModelArgs, OutputArgs, Seed, ThinkingArgs, distinct, tokens, whole};
use crate::failure::{Blame, Failure};
use anyhow::{Context, anyhow};
use choice::SuiteName;
use reattention::ModelShape;
use reattention::Settings;
use reattention_engine::Package;
use reattention_eval::EvalError;
use reattention_model::ChatTemplate;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Run evaluation suites.
///
/// Several suites, separated by commas, make one run with one table each; several methods stand side by side in them. With
/// --out every finished row is on disk at once: the same command, given again after it was stopped, goes on where it was.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to run; `selection` and what it compares stand alone.
    #[arg(value_enum, value_delimiter = ',', required = true, value_name = "SUITE,...")]
    suite: Vec<SuiteName>,
    /// Folder for the run: rows as they are finished, results, tables and figures.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of generated texts; -1 draws one and says which.
    #[arg(long, default_value = "1", value_name = "N")]
    seed: Seed,
    /// Texts read at the same time, each on its share of the threads; as many as threads and memory allow if left out. Memory
    /// by method can only be told with 1.
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    jobs: Option<usize>,
    /// Passages of evidence to keep with each answer.
    #[arg(long, default_value_t = 3, value_parser = whole, value_name = "N")]
    evidence: usize,
    /// Ask as of a base model, even if the model has a chat template.
    #[arg(long)]
    no_template: bool,
    #[command(flatten)]
    thinking: ThinkingArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    output: OutputArgs,
    // Last, since a heading holds for all that follow.
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    selection: selection::SelectionArgs,
}

/// Which texts, and how many. A suite takes those of these that mean something to it; one that no suite takes is refused.
#[derive(clap::Args)]
#[command(next_help_heading = "Texts")]
struct TextArgs {
    /// Text lengths: 512, 4k, 1m, ...
    #[arg(long, value_delimiter = ',', value_parser = tokens, value_name = "N,...")]
    lengths: Option<Vec<usize>>,
    /// Depths in per cent.
    #[arg(long, value_delimiter = ',', value_name = "D,...")]
    depths: Option<Vec<f64>>,
    /// Texts a length or task; rows a task of the user's files.
    #[arg(long, value_parser = at_least_one, value_name = "N")]
    samples: Option<usize>,
    /// Further near-identical facts in every text (needle).
    #[arg(long, value_parser = whole, value_name = "N")]
    distractors: Option<usize>,
    /// Facts that one question asks for (needle); several numbers ask each text in several ways: 1,3.
    #[arg(long, value_delimiter = ',', value_parser = at_least_one, value_name = "N,...")]
    keys: Option<Vec<usize>>,
    /// Tasks of the suite; all of them if left out.
    #[arg(long, value_delimiter = ',', value_name = "TASK,...")]
    tasks: Option<Vec<String>>,
    /// The user's copy of the benchmark, or texts to read.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Longest prompt in tokens: longer ones are cut as the suite defines it. Nothing is cut if left out.
    #[arg(long, value_parser = tokens, value_name = "N")]
    limit: Option<usize>,
    /// Tokens to read (perplexity): all of a file; 16 windows of generated prose.
    #[arg(long, value_parser = tokens, value_name = "N")]
    tokens: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let suites = distinct(&args.suite);
    check_flags(args, &suites)?;
    args.seed.tell(&args.output);
    if suites.contains(&SuiteName::Selection) {
        return selection::run(args);
    }
    suites::run(args, &suites)
}

impl Args {
    /// The chat template questions are asked in. Models that can think do not unless told to: the answers of every suite are
    /// short, and thinking would use their tokens up.
    fn template(&self, package: &Package) -> Result<Option<ChatTemplate>, Failure> {
        self.thinking.template(package, self.no_template, Some(false))
    }
}

/// Refuses flags that none of the suites takes.
fn check_flags(args: &Args, suites: &[SuiteName]) -> Result<(), Failure> {
    if suites.len() > 1 && suites.contains(&SuiteName::Selection) {
        return Err(Failure::Input(anyhow!("selection compares arms with a base arm; run it by itself")));
    }
    let texts = &args.texts;
    let mut given = vec![
        ("lengths", texts.lengths.is_some()),
        ("depths", texts.depths.is_some()),
        ("samples", texts.samples.is_some()),
        ("distractors", texts.distractors.is_some()),
        ("keys", texts.keys.is_some()),
        ("tasks", texts.tasks.is_some()),
        ("data", texts.data.is_some()),
        ("limit", texts.limit.is_some()),
        ("tokens", texts.tokens.is_some()),
    ];
    given.extend(args.selection.given());
    for (flag, is_given) in given {
        if is_given && !suites.iter().any(|s| s.takes().contains(&flag)) {
            let names: Vec<String> = suites.iter().map(|s| s.name()).collect();
            return Err(Failure::Input(anyhow!("--{flag}: {} does not take it", names.join(","))));
        }
    }
    if let Some(depth) = texts.depths.iter().flatten().find(|d| !(0.0..=100.0).contains(*d)) {
        return Err(Failure::Input(anyhow!("--depths: {depth} is not between 0 and 100 per cent")));
    }
    Ok(())
}

/// An arm as the user describes it: name, method, settings.
type Described = (String, String, Settings);

impl Args {
    /// An arm for each method.
    fn by_method(&self, shape: &ModelShape) -> Result<Vec<Described>, Failure> {
        Ok(self.method.each(shape)?.into_iter().map(|(method, s)| (method.clone(), method, s)).collect())
    }

    /// Makes the folder, if one is wanted, before hours are spent.
    fn check_out(&self) -> Result<(), Failure> {
        let Some(dir) = &self.out else { return Ok(()) };
        std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(dir.join(".writable"), ""))
            .and_then(|()| std::fs::remove_file(dir.join(".writable")))
            .with_context(|| format!("--out {}", dir.display()))
            .input()
    }

    fn model_name(&self) -> String {
        self.model.model.as_ref().map_or("built-in".into(), |m| m.display().to_string())
    }
}

/// A number of things of which one must be there.
fn at_least_one(text: &str) -> anyhow::Result<usize> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(anyhow!("`{text}` is not a number from 1")),
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string()).input()
}

/// What is refused is what the user asked for; everything else failed while running.
fn blame(error: EvalError) -> Failure {
    match error.is_refusal() {
        true => Failure::Input(error.into()),
        false => Failure::Run(error.into()),
    }
}
