//! Flags that several commands share, and what they stand for.

use crate::failure::{Blame, Failure};
use crate::terminal::{SafeWriter, escaped_json, shown};
use anyhow::{anyhow, bail};
use clap::ValueEnum;
use reattention::methods::{Method, build, specs};
use reattention::rope::RopeConfig;
use reattention::{KvDtype, MethodError, ModelShape, Settings};
use reattention_cuda::{Cuda, Offload};
use reattention_engine::{Engine, Package};
use reattention_kernels::profile::{AttendClock, Profiler};
use reattention_kernels::{Backend, Cpu, Reference};
use reattention_model::{ChatTemplate, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// The model, and what it runs on.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Hugging Face folder, GGUF file (of a model in parts the first), ORG/NAME or ORG/NAME:FILE in the Hugging Face cache; if left out
    /// the built-in model, which looks up numbers of five digits and nothing else.
    #[arg(long, value_name = "DIR|FILE|NAME")]
    pub(crate) model: Option<PathBuf>,
    /// Computing threads; all cores if left out.
    #[arg(long, value_parser = whole, value_name = "N")]
    threads: Option<usize>,
    /// What computes on the CPU: cpu is fast, reference plain and slow.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Where: cpu, cuda or cuda:N for the NVIDIA GPU of that number, or auto for the first one, and the CPU if there is none.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Place,
    /// With --device cuda, what lies in host memory: off, values (of the cache), or old (values, and the oldest keys once the
    /// GPU is full).
    #[arg(long, default_value = "off", value_name = "WHAT")]
    kv_offload: Offload,
    /// Type of cached keys and values: bf16 or f32.
    #[arg(long, default_value = "bf16", value_name = "TYPE")]
    pub(crate) kv: KvDtype,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendName {
    Cpu,
    Reference,
}

/// Where a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Cpu,
    Cuda(usize),
    /// The first GPU, or the CPU.
    Auto,
}

impl std::str::FromStr for Place {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("unknown device `{s}`; known are cpu, cuda, cuda:N and auto")),
        }
    }
}

/// The method and its parameters.
#[derive(clap::Args)]
pub(crate) struct MethodArgs {
    /// How the model reads; `reattn methods` lists them. Evaluations take several, separated by commas.
    #[arg(long, default_value = "reattention", value_delimiter = ',', value_name = "NAME")]
    pub(crate) method: Vec<String>,
    /// A parameter of the method, repeatable; `method.key=value` addresses one of several methods.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Rotary frequencies: none, linear, ntk, dynamic, yarn, llama3 or clex, as NAME[:key=value,...]; the model's own if left out.
    #[arg(long, value_name = "SPEC")]
    rope: Option<String>,
    /// Tokens fed at once; the same as --set chunk=N.
    #[arg(long, value_parser = whole, value_name = "N")]
    chunk: Option<usize>,
}

/// Whether a model thinks before it answers.
#[derive(clap::Args)]
pub(crate) struct ThinkingArgs {
    /// Whether a model that can think before it answers does so; as its chat template has it if left out, but off in evaluations,
    /// whose answers are short.
    #[arg(long, value_enum, value_name = "on|off")]
    thinking: Option<Switch>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl ThinkingArgs {
    /// The package's chat template, `None` with `--no-template`; `default` holds where the flag is left out.
    pub(crate) fn template(
        &self,
        package: &Package,
        no_template: bool,
        default: Option<bool>,
    ) -> Result<Option<ChatTemplate>, Failure> {
        let template = package.template().input()?.filter(|_| !no_template);
        if self.thinking == Some(Switch::On) && !template.as_ref().is_some_and(ChatTemplate::can_think) {
            return Err(Failure::Input(anyhow!(
                "--thinking on: {} has no switch for thinking in its chat template; leave the flag out",
                package.name()
            )));
        }
        let thinking = self.thinking.map(|s| s == Switch::On).or(default);
        Ok(template.map(|t| t.with_thinking(thinking)))
    }
}

/// What is printed.
#[derive(clap::Args)]
pub(crate) struct OutputArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Only the result and errors.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Log what happens (-vv for more).
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl ModelArgs {
    /// Opens the model: headers only.
    pub(crate) fn open(&self) -> Result<Package, Failure> {
        match &self.model {
            Some(path) => Package::open(path).input(),
            None => Package::built_in().input(),
        }
    }

    /// The backend asked for.
    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>, Failure> {
        self.backend_of(self.threads()?)
    }

    /// The backend asked for, on so many threads.
    pub(crate) fn backend_of(&self, threads: usize) -> Result<Arc<dyn Backend>, Failure> {
        if self.device != Place::Cpu && self.backend == BackendName::Reference {
            return Err(Failure::Input(anyhow!(
                "--backend reference computes on the CPU; leave --device out"
            )));
        }
        if self.device == Place::Cpu && self.kv_offload != Offload::Off {
            return Err(Failure::Input(anyhow!(
                "--kv-offload is for --device cuda: on the CPU all is in host memory"
            )));
        }
        Ok(match self.backend {
            BackendName::Reference => Arc::new(Reference),
            BackendName::Cpu => match self.cuda(threads)? {
                Some(cuda) => Arc::new(cuda),
                None => Arc::new(Cpu::new(threads).input()?),
            },
        })
    }

    /// The GPU asked for; `None` where the CPU was, or stands in for one that is not there.
    pub(crate) fn cuda(&self, threads: usize) -> Result<Option<Cuda>, Failure> {
        let open = |index| Ok(Cuda::open(index, Cpu::new(threads).input()?, self.kv_offload));
        match self.device {
            Place::Cpu => Ok(None),
            Place::Cuda(index) => open(index)?.input().map(Some),
            Place::Auto => {
                Ok(open(0)?.inspect_err(|error| complain(format_args!("computing on the CPU: {error}"))).ok())
            }
        }
    }

    /// The backend asked for, measured part by part.
    pub(crate) fn profiler(&self) -> Result<Arc<Profiler>, Failure> {
        if self.device != Place::Cpu {
            return Err(Failure::Input(anyhow!("--profile measures the CPU; leave --device out")));
        }
        Ok(Arc::new(match self.backend {
            BackendName::Cpu => {
                let clock = Arc::new(AttendClock::default());
                Profiler::new(Arc::new(self.cpu()?.with_clock(Arc::clone(&clock))), Some(clock))
            }
            BackendName::Reference => Profiler::new(Arc::new(Reference), None),
        }))
    }

    /// The fast backend on the threads asked for.
    pub(crate) fn cpu(&self) -> Result<Cpu, Failure> {
        Cpu::new(self.threads()?).input()
    }

    /// Threads asked for.
    pub(crate) fn threads(&self) -> Result<usize, Failure> {
        match self.threads {
            Some(0) => Err(Failure::Input(anyhow!("--threads must be at least 1"))),
            Some(n) if n > 1024 => Err(Failure::Input(anyhow!("--threads {n}: at most 1024 make sense"))),
            Some(n) => Ok(n),
            None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get())),
        }
    }

    /// The model's tokenizer, on the threads asked for.
    pub(crate) fn tokenizer(&self, package: &Package) -> Result<Arc<Tokenizer>, Failure> {
        Ok(Arc::new(package.tokenizer().input()?.with_threads(self.threads()?)))
    }

    /// Loads the model with its tokenizer.
    pub(crate) fn load(
        &self,
        package: &Package,
        tokenizer: Arc<Tokenizer>,
        backend: Arc<dyn Backend>,
    ) -> Result<Engine, Failure> {
        tracing::info!(model = package.name(), backend = backend.name(), "loading");
        package.engine(tokenizer, backend).input()
    }
}

impl MethodArgs {
    /// The one method of a command that takes one.
    pub(crate) fn single(&self, shape: &ModelShape) -> Result<Box<dyn Method>, Failure> {
        match self.each(shape)?.as_slice() {
            [(name, settings)] => build(name, settings, shape).input(),
            _ => Err(Failure::Input(anyhow!("this command takes one --method"))),
        }
    }

    /// Every method with the settings meant for it; all of them are checked. Of `all` methods those that do not suit the
    /// model are left out, and named on stderr.
    pub(crate) fn each(&self, shape: &ModelShape) -> Result<Vec<(String, Settings)>, Failure> {
        let is_all = self.method == ["all"];
        let names: Vec<String> =
            if is_all { specs().map(|s| s.name.to_string()).collect() } else { distinct(&self.method) };
        let pairs = self.pairs();
        let mut arms = Vec::new();
        let mut used = vec![false; pairs.len()];
        for name in &names {
            let mut settings = Vec::new();
            for (pair, used) in pairs.iter().zip(&mut used) {
                let key = pair.split('=').next().unwrap_or_default();
                let (of, key) = key.split_once('.').map_or((None, key), |(m, k)| (Some(m), k));
                let has = specs().any(|s| s.name == name && s.params.iter().any(|p| p.name == key));
                // With one method everything is handed to it, so that it can say what it does not know.
                if of.map_or(has || names.len() == 1, |m| m == name) {
                    settings.push(of.map_or(pair.clone(), |m| pair[m.len() + 1..].to_string()));
                    *used = true;
                }
            }
            let settings = Settings::parse(&settings).input()?;
            match build(name, &settings, shape) {
                Err(reason @ MethodError::Unsuited { .. }) if is_all => complain(reason),
                built => {
                    built.input()?;
                    arms.push((name.clone(), settings));
                }
            }
        }
        if let Some(unused) = used.iter().position(|u| !u) {
            return Err(Failure::Input(anyhow!(
                "--set {}: none of {} has it",
                pairs[unused],
                names.join(", ")
            )));
        }
        Ok(arms)
    }

    /// All settings, as `key=value`.
    pub(crate) fn pairs(&self) -> Vec<String> {
        self.set.iter().cloned().chain(self.chunk.map(|c| format!("chunk={c}"))).collect()
    }

    /// The frequencies asked for, as they were written.
    pub(crate) fn rope(&self) -> Option<&str> {
        self.rope.as_deref()
    }

    /// The model as methods are to see it, with the frequencies asked for, and these, if any were.
    pub(crate) fn shape(&self, package: &Package) -> Result<(ModelShape, Option<RopeConfig>), Failure> {
        let shape = package.shape();
        let rope = self.rope.as_deref().map(|spec| shape.rope.with_spec(spec)).transpose().input()?;
        Ok((rope.clone().map_or(shape.clone(), |r| shape.with_rope(r)), rope))
    }
}

impl OutputArgs {
    /// Starts logging to stderr as asked.
    pub(crate) fn start(&self) {
        let level = match self.verbose {
            0 => tracing::Level::WARN,
            1 => tracing::Level::INFO,
            _ => tracing::Level::DEBUG,
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(|| SafeWriter(std::io::stderr()))
            // Colours would be escaped with everything else that steers a terminal.
            .with_ansi(false)
            .without_time()
            .init();
    }

    /// Says something on stderr unless quiet.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            complain(text);
        }
    }
}

/// Writes a line to stderr; one that nobody can read is no reason to stop. Whatever it quotes, it steers no terminal.
pub(crate) fn complain(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", shown(&text.to_string()));
}

/// Writes a line to stdout; to a terminal nothing that would steer it.
pub(crate) fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match out.is_terminal() {
        true => writeln!(out, "{}", shown(&text.to_string())),
        false => writeln!(out, "{text}"),
    }
    .running()
}

/// Writes an object to stdout as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(escaped_json(&serde_json::to_string_pretty(value).running()?))
}

/// Says that a text is longer than what the model was trained for, where the method does nothing about it.
pub(crate) fn warn_of_window(
    output: &OutputArgs,
    method: &str,
    has_rope: bool,
    tokens: usize,
    window: usize,
) {
    if method == "full" && !has_rope && tokens > window {
        output.say(format_args!(
            "warning: {tokens} tokens exceed the model's window of {window}; full attention breaks there (try --method reattention)"
        ));
    }
}

/// A whole number of things.
pub(crate) fn whole(text: &str) -> anyhow::Result<usize> {
    text.parse().map_err(|_| anyhow!("`{text}` is not a whole number from 0 to {}", usize::MAX))
}

/// A seed, given or drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed {
    /// The seed.
    pub(crate) value: u64,
    /// Whether it was drawn, for `-1`.
    pub(crate) is_drawn: bool,
}

impl Seed {
    /// Says which one was drawn.
    pub(crate) fn tell(self, output: &OutputArgs) {
        if self.is_drawn {
            output.say(self);
        }
    }
}

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}{}", self.value, if self.is_drawn { " (drawn)" } else { "" })
    }
}

impl std::str::FromStr for Seed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-1" {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let value =
                now.map_or(0, |d| d.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(32);
            return Ok(Self { value, is_drawn: true });
        }
        let wrong =
            |_| format!("`{text}` is not a seed; it is a whole number from 0, or -1 for one drawn now");
        Ok(Self { value: text.parse().map_err(wrong)?, is_drawn: false })
    }
}

/// A method as JSON: `{name, params}`, numbers and truths as such.
pub(crate) fn method_json(method: &dyn Method) -> Value {
    let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    let params: Map<String, Value> =
        method.params().into_iter().map(|(k, v)| (k.to_string(), value(v))).collect();
    serde_json::json!({ "name": method.spec().name, "params": params })
}

/// Values without repetition, in their order.
pub(crate) fn distinct<T: PartialEq + Clone>(values: &[T]) -> Vec<T> {
    let mut seen: Vec<T> = Vec::new();
    values.iter().for_each(|v| {
        if !seen.contains(v) {
            seen.push(v.clone())
        }
    });
    seen
}

/// A number of tokens: 512, 4k (4,096), 1m (1,048,576).
pub(crate) fn tokens(text: &str) -> anyhow::Result<usize> {
    let lower = text.trim().to_lowercase();
    let (digits, unit) = match lower.strip_suffix(['k', 'm']) {
        Some(digits) => (digits, if lower.ends_with('k') { 1 << 10 } else { 1 << 20 }),
        None => (lower.as_str(), 1),
    };
    match digits.parse::<f64>() {
        Ok(n) if n * f64::from(unit) >= 1.0 && n < 1e9 && (n * f64::from(unit)).fract() == 0.0 => {
            Ok((n * f64::from(unit)) as usize)
        }
        _ => bail!("`{text}` is not a number of tokens; write 512, 4k or 1m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_below_zero_is_drawn() {
        let seed = |text: &str| text.parse::<Seed>();
        assert!(seed("7").is_ok_and(|s| s.value == 7 && !s.is_drawn));
        assert!(seed("-1").is_ok_and(|s| s.is_drawn) && seed("-2").is_err() && seed("x").is_err());
    }

    #[test]
    fn token_counts_are_read() {
        assert_eq!(tokens("512").unwrap(), 512);
        assert_eq!(tokens("128K").unwrap(), 131_072);
        assert_eq!(tokens("1.5m").unwrap(), 1_572_864);
        for bad in ["", "k", "0", "-1", "1.3", "nan", "1e300m", "4g"] {
            assert!(tokens(bad).is_err(), "{bad} was accepted");
        }
    }
}
