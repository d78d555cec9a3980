//! `reattn methods`: every method and every source of rotary frequencies, with paper, parameters and cost.

use crate::common::{OutputArgs, print, print_json};
use crate::failure::Failure;
use reattention::{ParamSpec, methods, rope};
use serde_json::{Value, json};
use std::process::ExitCode;

/// List the methods and the sources of rotary frequencies.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    if args.output.json {
        let params = |params: &[ParamSpec]| -> Vec<Value> {
            let one = |p: &ParamSpec| json!({ "name": p.name, "default": p.default, "range": p.range, "doc": p.doc });
            params.iter().map(one).collect()
        };
        let methods: Vec<_> = methods::specs()
            .map(|s| {
                json!({
                    "name": s.name, "paper": s.paper, "summary": s.summary, "cost": s.cost, "suits": s.suits,
                    "params": params(s.params),
                })
            })
            .collect();
        let ropes: Vec<_> = rope::specs()
            .map(|s| {
                json!({
                    "name": s.name, "paper": s.paper, "summary": s.summary, "suits": s.suits, "params": params(s.params),
                })
            })
            .collect();
        print_json(&json!({ "methods": methods, "ropes": ropes }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let print_params = |params: &[ParamSpec]| -> Result<(), Failure> {
        for p in params {
            print(format_args!("    {:<15} {}\n{:20}default {}; {}", p.name, p.doc, "", p.default, p.range))?;
        }
        print("")
    };
    for s in methods::specs() {
        print(format_args!(
            "{}\n  {}\n  paper: {}\n  cost:  {}\n  suits: {}",
            s.name, s.summary, s.paper, s.cost, s.suits
        ))?;
        print_params(s.params)?;
    }
    print(
        "Rotary frequencies, for any of them: --rope NAME[:key=value,...]; the model's own if left out.\n",
    )?;
    for s in rope::specs() {
        print(format_args!("{}\n  {}\n  paper: {}\n  suits: {}", s.name, s.summary, s.paper, s.suits))?;
        print_params(s.params)?;
    }
    Ok(ExitCode::SUCCESS)
}
