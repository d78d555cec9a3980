//! `reattn bench`: speed by context length, on random tokens.

use crate::common::{MethodArgs, ModelArgs, OutputArgs, method_json, print, print_json, tokens};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use anyhow::anyhow;
use reattention::methods::build;
use reattention_engine::{Cancel, GenerateOptions, Prompt, Session, human, peak_rss};
use reattention_kernels::{Backend, bench};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;

/// Measure speed by context length.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Context lengths: 4k, 32k, ...
    #[arg(long, value_delimiter = ',', value_parser = tokens, default_value = "4k,16k", value_name = "N,...")]
    lengths: Vec<usize>,
    /// Tokens to generate after each.
    #[arg(long, default_value_t = 64, value_name = "N")]
    decode: usize,
    /// Seed of the random tokens.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Measure the kernels against this machine's limits instead.
    #[arg(long)]
    kernels: bool,
    /// With --kernels: runs of each; the median counts.
    #[arg(long, default_value_t = 5, value_name = "N")]
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
    if args.kernels { kernels(args) } else { sessions(args) }
}

fn sessions(args: &Args) -> Result<ExitCode, Failure> {
    let package = args.model.open()?;
    let shape = package.shape();
    let arms = args.method.each(&shape)?;
    let rope = args.method.rope(&shape)?;
    let mut plans = Vec::new();
    for (name, settings) in &arms {
        for &length in &args.lengths {
            let method = build(name, settings, &shape).input()?;
            let plan = package.plan(method.as_ref(), args.model.kv, length.saturating_add(args.decode), 0);
            plan.check().input()?;
            plans.push(plan);
        }
    }
    let backend = args.model.backend()?;
    let start = std::time::Instant::now();
    let model = package.load().input()?;
    let load_s = start.elapsed().as_secs_f64();
    args.output.say(format_args!("{} loaded in {load_s:.1} s, {}", package.name(), backend.name()));
    let (mut rows, mut plans) = (Vec::new(), plans.into_iter());
    let mut bar = Bar::new(args.output.quiet);
    if !args.output.json {
        print("| method | tokens | prefill tokens/s | decode tokens/s | attended | peak memory | plan |")?;
        print("|---|--:|--:|--:|--:|--:|--:|")?;
    }
    for (name, settings) in &arms {
        for &length in &args.lengths {
            let Some(plan) = plans.next() else { break };
            args.output.say(format_args!("{name}: {}", plan.line()));
            let method = build(name, settings, &shape).input()?;
            let mut session =
                Session::new(Arc::clone(&model), method, rope.clone(), args.model.kv, Arc::clone(&backend));
            reset_peak();
            let prompt = Prompt::from_ids(random_ids(length, package.config().vocab_size, args.seed));
            let label = format!("{name} at {length}");
            let read = session.prefill(&prompt, &Cancel::default(), |p| bar.show(&label, p)).running()?;
            let options = GenerateOptions { max_new_tokens: args.decode, ..GenerateOptions::default() };
            let answer = session.generate(&options, None, &Cancel::default(), |_| {}).running()?;
            bar.clear();
            let (prefill_s, decode_s) = (read.elapsed.as_secs_f64(), answer.elapsed.as_secs_f64());
            let (prefill, decode) = (length as f64 / prefill_s, answer.fed as f64 / decode_s.max(1e-9));
            let peak = peak_rss();
            if !args.output.json {
                print(format_args!(
                    "| {name} | {length} | {prefill:.1} | {decode:.2} | {} | {} | {} |",
                    session.attended_max(),
                    peak.map_or("-".into(), human),
                    human(plan.total)
                ))?;
            }
            rows.push(json!({
                "method": method_json(session.method()), "length": length, "decode": answer.ids.len(),
                "prefill_s": prefill_s, "prefill_tok_s": prefill, "decode_s": decode_s, "decode_tok_s": decode,
                "attended_max": session.attended_max(), "kv_bytes": session.kv_bytes(),
                "peak_rss_bytes": peak, "memory_plan": plan,
            }));
        }
    }
    if args.output.json {
        print_json(&json!({
            "model": package.name(), "backend": backend.name(), "threads": backend.threads(), "load_s": load_s,
            "kv": args.model.kv.to_string(), "rows": rows,
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the measurement of peak memory anew; where the system cannot, peaks only grow.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Token ids drawn evenly, without special meaning.
fn random_ids(n: usize, vocab_size: usize, seed: u64) -> Vec<u32> {
    let mut rng = reattention_eval::text::Rng::new(seed);
    (0..n).map(|_| rng.below(vocab_size) as u32).collect()
}

/// Every kernel beside the limit of the machine that bounds it.
fn kernels(args: &Args) -> Result<ExitCode, Failure> {
    let cpu = args.model.cpu()?;
    if !args.output.json {
        print(format_args!("{}\n", cpu.name()))?;
        print("| kernel | reached | limit | of the limit | goal |")?;
        print("|---|--:|--:|--:|--:|")?;
    }
    let mut broken = None;
    let records = bench::run(&cpu, args.rounds, &args.only, |r| {
        if !args.output.json && broken.is_none() {
            broken = print(format_args!(
                "| {} | {:.1} {} | {:.1} | {:.2} | {:.2} |",
                r.name, r.value, r.unit, r.limit, r.of_limit, r.goal
            ))
            .err();
        }
    });
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
        print_json(&json!({ "backend": cpu.name(), "threads": cpu.threads(), "kernels": rows }))?;
    }
    Ok(ExitCode::SUCCESS)
}
