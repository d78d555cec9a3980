//! `reattn bench`: speed by context length, on random tokens, and where the time goes.

mod kernels;
mod profile;
mod sessions;

use crate::common::{MethodArgs, ModelArgs, OutputArgs, Seed, tokens, whole};
use crate::failure::Failure;
use std::process::ExitCode;

/// Measure speed by context length.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Context lengths: 4k, 32k, ... All are measured in one reading of the longest.
    #[arg(long, value_delimiter = ',', value_parser = tokens, default_value = "4k,16k", value_name = "N,...")]
    lengths: Vec<usize>,
    /// Tokens to generate after each.
    #[arg(long, default_value_t = 64, value_parser = whole, value_name = "N")]
    decode: usize,
    /// Seed of the random tokens; -1 draws one and says which.
    #[arg(long, default_value = "1", value_name = "N")]
    seed: Seed,
    /// Read only the first and the last tokens before each length, and make up the cache between: speed at a depth, without
    /// the hours it takes to get there. The rate of the whole prefill is left out.
    #[arg(long, conflicts_with = "kernels")]
    fill: bool,
    /// Show what the time was spent on, part by part.
    #[arg(long, conflicts_with = "kernels")]
    profile: bool,
    /// Measure the kernels against this machine's limits instead, and products with quantised weights against the faster
    /// of candle's (on CANDLE_NUM_THREADS threads) and those with bf16 weights.
    #[arg(long)]
    kernels: bool,
    /// With --kernels: runs of each; the median counts.
    #[arg(long, default_value_t = 5, value_parser = whole, value_name = "N")]
    rounds: usize,
    /// With --kernels: only those whose name contains this.
    #[arg(long, default_value = "", value_name = "TEXT")]
    only: String,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    args.seed.tell(&args.output);
    if args.kernels { kernels::run(args) } else { sessions::run(args) }
}
