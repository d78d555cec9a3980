//! `reattn methods`: every method, its paper, parameters and cost.

use crate::common::{OutputArgs, print, print_json};
use crate::failure::Failure;
use reattention::methods::specs;
use serde_json::json;
use std::process::ExitCode;

/// List the methods.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    if args.output.json {
        let methods: Vec<_> = specs()
            .map(|s| {
                let params: Vec<_> = s
                    .params
                    .iter()
                    .map(|p| json!({ "name": p.name, "default": p.default, "range": p.range, "doc": p.doc }))
                    .collect();
                json!({
                    "name": s.name, "paper": s.paper, "summary": s.summary, "cost": s.cost, "suits": s.suits,
                    "params": params,
                })
            })
            .collect();
        print_json(&json!({ "methods": methods }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for s in specs() {
        print(format_args!(
            "{}\n  {}\n  paper: {}\n  cost:  {}\n  suits: {}",
            s.name, s.summary, s.paper, s.cost, s.suits
        ))?;
        for p in s.params {
            print(format_args!("    {:<15} {}\n{:20}default {}; {}", p.name, p.doc, "", p.default, p.range))?;
        }
        print("")?;
    }
    Ok(ExitCode::SUCCESS)
}
