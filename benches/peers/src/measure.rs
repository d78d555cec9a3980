//! What is measured, and in which order.

use crate::child::{Kind, Remote, Request, Setup};
use crate::report::{Engine, Machine, Part, Row, Run, Start};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// Settings of a run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model both engines run.
    #[arg(long, value_name = "FILE.gguf")]
    model: PathBuf,
    /// Tokens in the cache before tokens are read and decoded; the cache is filled with made-up keys and values.
    #[arg(long, value_delimiter = ',', value_parser = crate::tokens, default_value = "8k", value_name = "N,...")]
    depths: Vec<usize>,
    /// Whole prompts that both engines read, and after which tokens are read and decoded too.
    #[arg(long, value_delimiter = ',', value_parser = crate::tokens, value_name = "N,...")]
    whole: Vec<usize>,
    /// Whole prompts that only our engine reads.
    #[arg(long, value_delimiter = ',', value_parser = crate::tokens, value_name = "N,...")]
    whole_ours: Vec<usize>,
    /// Measure nothing at a depth, only whole prompts.
    #[arg(long, conflicts_with = "depths")]
    no_depths: bool,
    /// Tokens to read at each depth.
    #[arg(long, value_parser = crate::tokens, default_value = "512", value_name = "N")]
    read: usize,
    /// Tokens to decode at each depth.
    #[arg(long, value_parser = crate::tokens, default_value = "16", value_name = "N")]
    decode: usize,
    /// Times each is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..100), value_name = "N")]
    rounds: u32,
    /// Computing threads of each engine.
    #[arg(long, default_value_t = 2, value_name = "N")]
    threads: usize,
    /// llama.cpp with flash attention, without, or both (the faster one counts).
    #[arg(long, value_enum, default_value = "both")]
    flash_attention: Flash,
    /// Our method.
    #[arg(long, default_value = "reattention", value_name = "NAME")]
    method: String,
    /// A parameter of our method, repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Type of our keys and values: bf16 or f32.
    #[arg(long, default_value = "bf16", value_name = "TYPE")]
    kv: String,
    /// Print one JSON object; the table then goes to stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Flash {
    Both,
    On,
    Off,
}

/// Tokens really read before a cache is filled: what the made-up keys and values imitate.
const READ_FIRST: usize = 1024;

pub(crate) fn run(args: &Args) -> Result<Run> {
    for depth in &args.depths {
        ensure!(
            *depth > READ_FIRST,
            "--depths {depth}: must be above {READ_FIRST}, the tokens really read first"
        );
    }
    let mut peers = kinds(args).into_iter().map(|kind| start(args, kind)).collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for &tokens in &args.whole {
        whole(args, &mut peers, tokens, &mut rows)?;
    }
    for &tokens in &args.whole_ours {
        whole(args, &mut peers[..1], tokens, &mut rows)?;
    }
    for &depth in args.depths.iter().filter(|_| !args.no_depths) {
        for peer in &mut peers {
            peer.ask(Request::Open(capacity(args, depth)))?;
            peer.ask(Request::Prefill(READ_FIRST))?;
            let seconds = peer.ask(Request::Fill(depth - READ_FIRST))?;
            eprintln!("{:?}: filled to {depth} in {seconds:.1} s", peer.kind);
        }
        at_depth(args, &mut peers, depth, Start::Filled, &mut rows)?;
    }
    let bytes = std::fs::metadata(&args.model).context("the model file has gone")?.len();
    Ok(Run {
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        model: args.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        model_bytes: bytes,
        machine: Machine::this(),
        threads: args.threads,
        engines: peers.iter().map(|p| Engine { engine: p.kind, facts: p.facts.clone() }).collect(),
        rows,
    })
}

/// Ours first: what only ours does relies on it.
fn kinds(args: &Args) -> Vec<Kind> {
    let mut kinds = vec![Kind::Ours];
    if args.flash_attention != Flash::Off {
        kinds.push(Kind::LlamaFlash);
    }
    if args.flash_attention != Flash::On {
        kinds.push(Kind::LlamaPlain);
    }
    kinds
}

fn start(args: &Args, engine: Kind) -> Result<Remote> {
    Remote::start(&Setup {
        engine,
        model: args.model.clone(),
        threads: args.threads,
        method: args.method.clone(),
        settings: args.set.clone(),
        kv: args.kv.clone(),
    })
}

fn capacity(args: &Args, depth: usize) -> usize {
    depth + args.read.max(args.decode)
}

/// Each peer reads a whole prompt, once; then follows what is measured at that depth.
fn whole(args: &Args, peers: &mut [Remote], tokens: usize, rows: &mut Vec<Row>) -> Result<()> {
    for peer in peers.iter_mut() {
        peer.ask(Request::Open(capacity(args, tokens)))?;
        let seconds = peer.ask(Request::Prefill(tokens))?;
        eprintln!("{:?}: {tokens} tokens read in {seconds:.1} s", peer.kind);
        rows.push(Row {
            engine: peer.kind,
            start: Start::Empty,
            depth: tokens,
            part: Part::Whole,
            tokens,
            seconds: vec![seconds],
        });
    }
    at_depth(args, peers, tokens, Start::Read, rows)
}

/// Rounds of reading and decoding after what is cached, the peers taking turns.
fn at_depth(
    args: &Args,
    peers: &mut [Remote],
    depth: usize,
    start: Start,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let parts = [(Part::Prefill, args.read), (Part::Decode, args.decode)];
    let mut seconds = vec![[const { Vec::new() }; 2]; peers.len()];
    for peer in peers.iter_mut() {
        // The first step after a fill may have to catch up (memory, structures of a selector).
        peer.ask(Request::Decode(1))?;
        peer.ask(Request::Rewind(depth))?;
    }
    for round in 0..args.rounds {
        for (peer, seconds) in peers.iter_mut().zip(&mut seconds) {
            for ((part, tokens), seconds) in parts.iter().zip(seconds) {
                let request =
                    if *part == Part::Decode { Request::Decode(*tokens) } else { Request::Read(*tokens) };
                seconds.push(peer.ask(request)?);
                peer.ask(Request::Rewind(depth))?;
                let rate = *tokens as f64 / seconds[seconds.len() - 1];
                eprintln!("{:?}: at {depth}, round {}: {part:?} {rate:.2} tokens/s", peer.kind, round + 1);
            }
        }
    }
    for (peer, seconds) in peers.iter().zip(seconds) {
        for ((part, tokens), seconds) in parts.into_iter().zip(seconds) {
            rows.push(Row { engine: peer.kind, start, depth, part, tokens, seconds });
        }
    }
    Ok(())
}
