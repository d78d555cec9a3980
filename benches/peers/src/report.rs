//! Raw measurements, and the table made of them.

use crate::child::Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Everything one run has measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Arguments of the program.
    pub(crate) command: String,
    /// Name of the model's file.
    pub(crate) model: String,
    pub(crate) model_bytes: u64,
    pub(crate) machine: Machine,
    pub(crate) threads: usize,
    pub(crate) engines: Vec<Engine>,
    pub(crate) rows: Vec<Row>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
}

/// What an engine says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Engine {
    pub(crate) engine: Kind,
    pub(crate) facts: Value,
}

/// One engine's times for one thing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) engine: Kind,
    pub(crate) start: Start,
    /// Tokens cached before, or, for whole prompts, read.
    pub(crate) depth: usize,
    pub(crate) part: Part,
    /// Tokens read or decoded in each round.
    pub(crate) tokens: usize,
    /// Time of each round.
    pub(crate) seconds: Vec<f64>,
}

/// How the cache came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Start {
    /// It was empty.
    Empty,
    /// A whole prompt was read.
    Read,
    /// It was filled with made-up keys and values.
    Filled,
}

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// A whole prompt, up to the logits of its last token.
    Whole,
    /// Tokens from the midst of a prompt.
    Prefill,
    /// Tokens one by one.
    Decode,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let read = |path: &str, key: &str| -> Option<String> {
            let text = std::fs::read_to_string(path).ok()?;
            Some(text.lines().find(|l| l.starts_with(key))?.split_once(':')?.1.trim().to_string())
        };
        let memory = read("/proc/meminfo", "MemTotal");
        let kib = memory.and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
        Self {
            cpu: read("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            memory_bytes: kib.unwrap_or(0) * 1024,
        }
    }
}

impl Run {
    /// What our engine says of itself.
    fn ours(&self) -> &Value {
        let ours = self.engines.iter().find(|e| e.engine == Kind::Ours);
        ours.map_or(&Value::Null, |e| &e.facts)
    }
}

impl Row {
    /// Tokens a second, median over the rounds.
    fn rate(&self) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let (low, high) = (seconds[(seconds.len() - 1) / 2], seconds[seconds.len() / 2]);
        self.tokens as f64 / ((low + high) / 2.0)
    }
}

/// What is to be reached of ours / llama.cpp, for prefill and decode at a depth.
const GOALS: [(usize, f64, f64); 3] = [(8192, 1.0, 1.0), (32_768, 1.5, 2.0), (131_072, 3.0, 5.0)];

/// The runs as Markdown, those of one model and one of our methods together: facts, rates side by side, and whether filled
/// caches cost what read ones do.
pub(crate) fn table(runs: &[Run]) -> String {
    let mut out = String::new();
    let mut left: Vec<&Run> = runs.iter().collect();
    while let Some(first) = left.first().copied() {
        let alike = |run: &&Run| (&run.model, run.ours()) == (&first.model, first.ours());
        let (group, rest) = left.into_iter().partition::<Vec<_>, _>(alike);
        left = rest;
        facts(&mut out, &group);
        rates(&mut out, &group);
        checks(&mut out, &group);
    }
    out
}

fn facts(out: &mut String, runs: &[&Run]) {
    let Some(first) = runs.first() else { return };
    let Machine { cpu, cores, memory_bytes } = &first.machine;
    let gib = *memory_bytes as f64 / f64::from(1 << 30);
    let ours = first.ours();
    let params = ours["method"]["params"].as_object().into_iter().flatten();
    let params: Vec<String> = params.map(|(name, value)| format!("{name}={}", text(value))).collect();
    let _ = writeln!(
        out,
        "{} ({} MiB): {cpu}, {cores} cores, {gib:.0} GiB; {} threads each.",
        first.model,
        first.model_bytes >> 20,
        first.threads
    );
    let _ = writeln!(
        out,
        "Ours: reattention {}, {}, KV {}, weights {}; {} {}.",
        text(&ours["version"]),
        text(&ours["backend"]),
        text(&ours["kv"]),
        text(&ours["weight_bytes_by_type"]),
        text(&ours["method"]["name"]),
        params.join(" ")
    );
    if let Some(peer) = runs.iter().flat_map(|r| &r.engines).find(|e| e.engine != Kind::Ours) {
        let _ = writeln!(
            out,
            "Peer: llama.cpp through llama-cpp-2 {} (llama-cpp-sys-2 {}), full attention, KV {}, micro-batches of {}; {}.",
            text(&peer.facts["llama-cpp-2"]),
            text(&peer.facts["llama-cpp-sys-2"]),
            text(&peer.facts["kv"]),
            text(&peer.facts["micro_batch"]),
            text(&peer.facts["system_info"]).trim().trim_end_matches('|').trim()
        );
    }
    for run in runs {
        let _ = writeln!(out, "Command: reattention-peers {}", run.command);
    }
    let _ = writeln!(out);
}

/// A fact as it reads: text without quotation marks.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// The measurements of several runs.
struct Rows<'a>(Vec<&'a Row>);

impl Rows<'_> {
    fn of(&self, engine: Kind, start: Start, depth: usize, part: Part) -> Option<&Row> {
        let is = |r: &&&Row| (r.engine, r.start, r.depth, r.part) == (engine, start, depth, part);
        self.0.iter().find(is).copied()
    }

    fn rate(&self, engine: Kind, start: Start, depth: usize, part: Part) -> Option<f64> {
        self.of(engine, start, depth, part).map(Row::rate)
    }

    /// Depths with this start, ascending.
    fn depths(&self, start: Start) -> BTreeSet<usize> {
        self.0.iter().filter(|r| r.start == start).map(|r| r.depth).collect()
    }
}

const PEERS: [Kind; 2] = [Kind::LlamaFlash, Kind::LlamaPlain];

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Ours => "ours",
        Kind::LlamaFlash => "llama.cpp, flash attention",
        Kind::LlamaPlain => "llama.cpp, plain attention",
    }
}

fn rates(out: &mut String, runs: &[&Run]) {
    let rows = Rows(runs.iter().flat_map(|r| &r.rows).collect());
    let _ = writeln!(
        out,
        "| measured | ours, tokens/s | llama.cpp, flash attention | llama.cpp, plain | ours / better | goal |"
    );
    let _ = writeln!(out, "|---|--:|--:|--:|--:|--:|");
    let mut line = |label: String, start: Start, depth: usize, part: Part, goal: Option<f64>| {
        let rate = |kind| rows.rate(kind, start, depth, part);
        let ours = rate(Kind::Ours);
        let best = PEERS.into_iter().filter_map(rate).reduce(f64::max);
        let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.1}"));
        let ratio = ours.zip(best).map_or("-".into(), |(o, b)| format!("{:.2}", o / b));
        let goal = goal.map_or("-".into(), |g| format!("{g:.1}"));
        let [flash, plain] = PEERS.map(rate).map(number);
        let _ = writeln!(out, "| {label} | {} | {flash} | {plain} | {ratio} | {goal} |", number(ours));
    };
    for depth in rows.depths(Start::Empty) {
        line(format!("whole prompt of {depth}"), Start::Empty, depth, Part::Whole, None);
    }
    for (part, what) in [(Part::Prefill, "prefill"), (Part::Decode, "decode")] {
        for depth in rows.depths(Start::Filled) {
            let goals = GOALS.iter().find(|g| g.0 == depth);
            let goal = goals.map(|g| if part == Part::Prefill { g.1 } else { g.2 });
            line(format!("{what} at {depth}"), Start::Filled, depth, part, goal);
        }
    }
    let _ = writeln!(out);
}

/// Depths at which a prompt was read and a cache filled: the rates must agree.
fn checks(out: &mut String, runs: &[&Run]) {
    let rows = Rows(runs.iter().flat_map(|r| &r.rows).collect());
    let mut lines = String::new();
    for &depth in rows.depths(Start::Read).intersection(&rows.depths(Start::Filled)) {
        for kind in [Kind::Ours].into_iter().chain(PEERS) {
            for (part, what) in [(Part::Prefill, "prefill"), (Part::Decode, "decode")] {
                let rate = |start| rows.rate(kind, start, depth, part);
                if let (Some(read), Some(filled)) = (rate(Start::Read), rate(Start::Filled)) {
                    let ratio = filled / read;
                    let _ = writeln!(
                        lines,
                        "| {}, {what} at {depth} | {read:.1} | {filled:.1} | {ratio:.3} |",
                        name(kind)
                    );
                }
            }
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(out, "| check | after reading, tokens/s | after filling | filled / read |");
        let _ = writeln!(out, "|---|--:|--:|--:|\n{lines}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(engine: Kind, start: Start, seconds: &[f64]) -> Row {
        Row { engine, start, depth: 8192, part: Part::Prefill, tokens: 100, seconds: seconds.to_vec() }
    }

    fn run(rows: Vec<Row>) -> Run {
        Run {
            command: "run".into(),
            model: "m.gguf".into(),
            model_bytes: 1 << 20,
            machine: Machine { cpu: "cpu".into(), cores: 2, memory_bytes: 1 << 30 },
            threads: 2,
            engines: Vec::new(),
            rows,
        }
    }

    #[test]
    fn medians_are_compared_with_the_better_peer_across_runs() {
        let ours =
            run(vec![row(Kind::Ours, Start::Filled, &[1.0, 0.5, 9.0]), row(Kind::Ours, Start::Read, &[0.8])]);
        let peer = run(vec![
            row(Kind::LlamaFlash, Start::Filled, &[4.0, 1.0]),
            row(Kind::LlamaPlain, Start::Filled, &[2.0]),
        ]);
        let table = table(&[ours, peer]);
        assert!(table.contains("| prefill at 8192 | 100.0 | 40.0 | 50.0 | 2.00 | 1.0 |"), "{table}");
        assert!(table.contains("| ours, prefill at 8192 | 125.0 | 100.0 | 0.800 |"), "{table}");
    }
}
