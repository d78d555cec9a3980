//! `reattn`: ask questions of texts longer than the model's window.
//!
//! stdout carries the answer or JSON only; progress, plans and logs go to stderr. Exit codes: 0 done, 1 failed while
//! running, 2 bad usage or bad input.

mod commands;
mod common;
mod failure;
mod progress;
mod terminal;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
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
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
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
    Eval(Box<eval::Args>),
    /// Show a run of evaluations as a page, with its figures and tables.
    Report(report::Args),
    /// Score existing predictions as a published benchmark does, without a model.
    Score(score::Args),
    /// Measure speed by context length, or the kernels against the machine's limits.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // What it quotes of the arguments may steer a terminal.
            common::complain(error.render().to_string().trim_end());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        // Help and version.
        Err(text) => {
            let _ = text.print();
            return ExitCode::SUCCESS;
        }
    };
    let result = match cli.command {
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

/// The arguments. A flag that takes one value takes `-1` as one, so that what is wrong with it can be said.
fn parse() -> Result<Cli, clap::Error> {
    let mut command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| {
            let takes_one =
                arg.get_long().is_some() && arg.get_action().takes_values() && arg.get_num_args().is_none();
            if takes_one { arg.allow_negative_numbers(true) } else { arg }
        })
    });
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}
