//! `reattn`: ask questions of texts longer than the model's window.
//!
//! stdout carries the answer or JSON only; progress, plans and logs go to stderr. Exit codes: 0 done, 1 failed while
//! running, 2 bad usage or bad input.

mod commands;
mod common;
mod failure;
mod progress;
mod terminal;

use clap::{Parser, Subcommand};
use commands::{ask, bench, demo, eval, inspect, methods, report, score};
use std::process::ExitCode;

/// Read far more text than the model was trained for, on the machine at hand, without training.
#[derive(Parser)]
#[command(name = "reattn", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer a question about files.
    Ask(ask::Args),
    /// Hide facts in a long generated text and find them again.
    Demo(demo::Args),
    /// List the methods with their parameters.
    Methods(methods::Args),
    /// Show what a model is and what it needs, without loading it.
    Inspect(inspect::Args),
    /// Run an evaluation suite.
    Eval(eval::Args),
    /// Show a run of evaluations as a page, with its figures and tables.
    Report(report::Args),
    /// Score existing predictions as a published benchmark does, without a model.
    Score(score::Args),
    /// Measure speed by context length, or the kernels against the machine's limits.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Ask(args) => ask::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Methods(args) => methods::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    result.unwrap_or_else(|failure| failure.report())
}
