//! Every kernel beside the limit of the machine that bounds it, or beside its peers.

use super::Args;
use crate::common::{print, print_json};
use crate::failure::{Blame, Failure};
use anyhow::anyhow;
use reattention_cuda::bench::Sizes;
use reattention_kernels::bench::Record;
use reattention_kernels::{Backend, bench};
use reattention_model::candle_product;
use serde_json::json;
use std::process::ExitCode;

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let cpu = args.model.cpu()?;
    let cuda = args.model.cuda(args.model.threads()?)?;
    let name = cuda.as_ref().map_or_else(|| cpu.name(), Backend::name);
    if !args.output.json {
        print(format_args!("{name}\n"))?;
        print("| kernel | reached | limit | of the limit | goal |")?;
        print("|---|--:|--:|--:|--:|")?;
    }
    let mut broken = None;
    let mut done = |r: &Record| {
        if !args.output.json && broken.is_none() {
            broken = print(format_args!(
                "| {} | {:.1} {} | {:.1} | {:.2} | {:.2} |",
                r.name, r.value, r.unit, r.limit, r.of_limit, r.goal
            ))
            .err();
        }
    };
    let records = match &cuda {
        Some(cuda) => cuda.bench(Sizes::default(), args.rounds, &args.only, &mut done).running()?,
        None => bench::run(&cpu, args.rounds, &args.only, Some(&candle_product), done),
    };
    if let Some(failure) = broken {
        return Err(failure);
    }
    if records.is_empty() {
        return Err(Failure::Input(anyhow!("--only {}: no kernel has this in its name", args.only)));
    }
    if args.output.json {
        let rows: Vec<_> = records
            .iter()
            .map(|r| {
                json!({ "name": r.name, "value": r.value, "unit": r.unit, "limit": r.limit,
                        "of_limit": r.of_limit, "goal": r.goal })
            })
            .collect();
        print_json(&json!({ "backend": name, "threads": cpu.threads(), "kernels": rows }))?;
    }
    Ok(ExitCode::SUCCESS)
}
