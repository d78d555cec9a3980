//! Engines in processes of their own, so that neither's threads and memory disturb the other: requests and replies are
//! lines of JSON.

use crate::engine::{Engine, token_at};
use crate::llama::Llama;
use crate::ours::Ours;
use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Which engine, and how it is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) engine: Kind,
    pub(crate) model: PathBuf,
    pub(crate) threads: usize,
    /// Our method, its settings and the type of keys and values.
    pub(crate) method: String,
    pub(crate) settings: Vec<String>,
    pub(crate) kv: String,
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Ours.
    Ours,
    /// llama.cpp with flash attention.
    LlamaFlash,
    /// llama.cpp without.
    LlamaPlain,
}

/// What a child is asked to do; see [`Engine`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Open(usize),
    Prefill(usize),
    Fill(usize),
    Read(usize),
    Decode(usize),
    Rewind(usize),
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Done { seconds: f64 },
    Facts { facts: Value },
    Failed { error: String },
}

/// Time for the threads of one engine to fall asleep before the other starts.
const PAUSE: Duration = Duration::from_millis(100);

/// An engine in a process of its own. It ends when this is dropped.
pub(crate) struct Remote {
    pub(crate) kind: Kind,
    pub(crate) facts: Value,
    child: Child,
    /// `None` once it was told to end.
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Remote {
    pub(crate) fn start(setup: &Setup) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a process for an engine")?;
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a process was started without pipes");
        };
        let mut remote = Self {
            kind: setup.engine,
            facts: Value::Null,
            child,
            requests: Some(requests),
            replies: BufReader::new(replies),
        };
        match remote.exchange(setup)? {
            Reply::Facts { facts } => remote.facts = facts,
            _ => bail!("{:?} did not introduce itself", setup.engine),
        }
        Ok(remote)
    }

    /// Has the engine do something; returns the seconds it took.
    pub(crate) fn ask(&mut self, request: Request) -> Result<f64> {
        std::thread::sleep(PAUSE);
        match self.exchange(&request)? {
            Reply::Done { seconds } => Ok(seconds),
            _ => bail!("{:?} answered {request:?} with something else", self.kind),
        }
    }

    fn exchange(&mut self, message: &impl Serialize) -> Result<Reply> {
        let died = || anyhow!("the process of {:?} has died", self.kind);
        let pipe = self.requests.as_mut().with_context(died)?;
        writeln!(pipe, "{}", serde_json::to_string(message)?)?;
        let mut line = String::new();
        if self.replies.read_line(&mut line)? == 0 {
            return Err(died());
        }
        match serde_json::from_str(&line)? {
            Reply::Failed { error } => Err(anyhow!("{:?}: {error}", self.kind)),
            reply => Ok(reply),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The child ends at the end of its input.
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// Serves one engine on stdin and stdout until stdin ends.
pub(crate) fn serve() -> Result<()> {
    let mut lines = std::io::stdin().lines();
    let Some(setup) = lines.next() else { bail!("`serve` is what `run` starts; use `run`") };
    let setup: Setup = serde_json::from_str(&setup?)?;
    let opened: Result<(Box<dyn Engine>, usize)> = match setup.engine {
        Kind::Ours => Ours::new(&setup).map(|e| (e.vocab_size(), e)).map(|(n, e)| (Box::new(e) as _, n)),
        kind => Llama::new(&setup, kind == Kind::LlamaFlash)
            .map(|e| (e.vocab_size(), e))
            .map(|(n, e)| (Box::new(e) as _, n)),
    };
    let (mut engine, vocab_size) = match opened {
        Ok(opened) => opened,
        Err(error) => return reply(&Reply::Failed { error: format!("{error:#}") }),
    };
    reply(&Reply::Facts { facts: engine.facts() })?;
    for line in lines {
        let request = serde_json::from_str(&line?)?;
        reply(&match perform(engine.as_mut(), vocab_size, request) {
            Ok(seconds) => Reply::Done { seconds },
            Err(error) => Reply::Failed { error: format!("{request:?}: {error:#}") },
        })?;
    }
    Ok(())
}

fn reply(reply: &Reply) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(reply)?)?;
    Ok(out.flush()?)
}

fn perform(engine: &mut dyn Engine, vocab_size: usize, request: Request) -> Result<f64> {
    let at = engine.len();
    let next = |n: usize| -> Vec<u32> { (at..at + n).map(|p| token_at(p, vocab_size)).collect() };
    let tokens = match request {
        Request::Prefill(n) | Request::Fill(n) | Request::Read(n) | Request::Decode(n) => next(n),
        Request::Open(_) | Request::Rewind(_) => Vec::new(),
    };
    let start = Instant::now();
    match request {
        Request::Open(capacity) => engine.open(capacity)?,
        Request::Prefill(_) => engine.prefill(&tokens)?,
        Request::Fill(_) => engine.fill(&tokens)?,
        Request::Read(_) => engine.read(&tokens)?,
        Request::Decode(_) => engine.decode(&tokens)?,
        Request::Rewind(n) => engine.rewind(n)?,
    }
    Ok(start.elapsed().as_secs_f64())
}
