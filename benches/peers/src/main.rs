//! Our engine beside llama.cpp's: the same file, the same threads, the same tokens, in turns.
//!
//! See README.md beside this package for what is compared and how.

mod child;
mod engine;
mod llama;
mod measure;
mod ours;
mod report;
mod state;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use report::Run;
use std::path::PathBuf;

/// Measure our engine against llama.cpp's.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, and print a table.
    Run(measure::Args),
    /// Print the table of runs that were kept as JSON.
    Table {
        /// What `run --json` has printed.
        #[arg(required = true)]
        runs: Vec<PathBuf>,
    },
    /// Serve one engine on stdin and stdout; what `run` starts.
    #[command(hide = true)]
    Serve,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Run(args) => {
            let run = measure::run(&args)?;
            let table = report::table(std::slice::from_ref(&run));
            if args.json {
                eprint!("{table}");
                println!("{}", serde_json::to_string_pretty(&run)?);
            } else {
                print!("{table}");
            }
            Ok(())
        }
        Command::Table { runs } => {
            let read = |path: &PathBuf| -> Result<Run> {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
                serde_json::from_str(&text)
                    .with_context(|| format!("{} is not what `run --json` prints", path.display()))
            };
            print!("{}", report::table(&runs.iter().map(read).collect::<Result<Vec<_>>>()?));
            Ok(())
        }
        Command::Serve => child::serve(),
    }
}

/// A number of tokens: 512, 4k (4,096).
fn tokens(text: &str) -> Result<usize> {
    let lower = text.trim().to_lowercase();
    let (digits, unit) = lower.strip_suffix('k').map_or((lower.as_str(), 1), |digits| (digits, 1 << 10));
    match digits.parse::<usize>() {
        Ok(n) if (1..1 << 20).contains(&n) => Ok(n * unit),
        _ => bail!("`{text}` is not a number of tokens; write 512 or 4k"),
    }
}
