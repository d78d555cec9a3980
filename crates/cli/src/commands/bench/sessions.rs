//! Prefill and decode speed of whole sessions, at every length of one reading.
//!
//! A session reads the longest text once. At each length it stops where a text of that length would have been fed
//! differently, reads that text's last few tokens as if nothing followed, decodes, and rolls back; so each length is fed
//! exactly as it would be alone, and the longest is not disturbed.

use super::Args;
use super::profile::Phases;
use crate::common::{method_json, print, print_json};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use reattention::methods::{Catalyst, Step, StepKind, build};
use reattention_engine::{
    MemoryPlan, Progress, Session, SessionError, argmax, give_catalyst, human, peak_rss,
};
use reattention_kernels::Backend;
use reattention_kernels::profile::{Profile, Profiler};
use reattention_model::Logits;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The stretch that the speed at the end of a prefill is taken over: so many tokens, but never fewer steps.
const END_TOKENS: usize = 2048;
const END_STEPS: usize = 4;

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let package = args.model.open()?;
    let (shape, rope) = args.method.shape(&package)?;
    let arms = args.method.each(&shape)?;
    let mut lengths = args.lengths.clone();
    lengths.sort_unstable();
    lengths.dedup();
    let (backend, profiler) = if args.profile {
        let profiler = args.model.profiler()?;
        (Arc::clone(&profiler) as Arc<dyn Backend>, Some(profiler))
    } else {
        (args.model.backend()?, None)
    };
    let mut plans = Vec::new();
    for (name, settings) in &arms {
        let method = build(name, settings, &shape).input()?;
        for &length in &lengths {
            let tokens = length.saturating_add(args.decode);
            let plan = package.plan(method.as_ref(), args.model.kv, tokens, 0, backend.as_ref());
            plan.check().input()?;
            plans.push(plan);
        }
    }
    let start = Instant::now();
    let model = package.load().input()?;
    model.place(backend.as_ref()).input()?;
    let load_s = start.elapsed().as_secs_f64();
    args.output.say(format_args!("{} loaded in {load_s:.1} s, {}", package.name(), backend.name()));
    if !args.output.json {
        print(
            "| method | tokens | prefill tokens/s | at the end | decode tokens/s | attended | peak memory | plan |",
        )?;
        print("|---|--:|--:|--:|--:|--:|--:|--:|")?;
    }
    let ids = random_ids(lengths.last().copied().unwrap_or(0), package.config().vocab_size, args.seed.value);
    let (mut rows, mut parts, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    let mut bar = Bar::new(args.output.quiet);
    for ((name, settings), plans) in arms.iter().zip(plans.chunks(lengths.len().max(1))) {
        let mut method = build(name, settings, &shape).input()?;
        if matches!(method.catalyst_source(), Some(Catalyst::Text(_))) {
            let (tokenizer, template) = (package.tokenizer().input()?, package.template().input()?);
            give_catalyst(method.as_mut(), &tokenizer, template.as_ref()).input()?;
        }
        let session =
            Session::new(Arc::clone(&model), method, rope.clone(), args.model.kv, Arc::clone(&backend));
        let mut reading = Reading::new(session, &ids, profiler.as_deref());
        reading.fill = args.fill.then_some(args.seed.value);
        reset_peak();
        for (&length, plan) in lengths.iter().zip(plans) {
            args.output.say(format_args!("{name}: {}", plan.line()));
            let label = format!("{name} at {length}");
            let mark = reading.mark(length, args.decode, |p| bar.show(&label, p)).running()?;
            bar.clear();
            if !args.output.json {
                print(mark.row(name, plan))?;
            }
            let method = method_json(reading.session.method());
            rows.push(mark.json(&method, plan));
            if let Some(phases) = &mark.phases {
                parts.extend(phases.json(&json!({ "method": name, "length": length })));
            }
            tables.extend(mark.phases.map(|phases| (format!("{name} at {length}"), phases)));
        }
    }
    if args.output.json {
        let mut report = json!({
            "model": package.name(), "backend": backend.name(), "threads": backend.threads(), "load_s": load_s,
            "kv": args.model.kv.to_string(), "rows": rows,
        });
        if args.profile {
            report["profile"] = Value::Array(parts);
        }
        print_json(&report)?;
    } else {
        tables.iter().try_for_each(|(title, phases)| phases.print(title))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One session on its way through the longest text.
struct Reading<'a> {
    session: Session,
    ids: &'a [u32],
    profiler: Option<&'a Profiler>,
    /// Seed of a cache made up between the first and the last tokens before each length.
    fill: Option<u64>,
    /// How the longest text is fed, and how long each step fed so far took.
    steps: Vec<Step>,
    times: Vec<Duration>,
    /// What those steps were spent on.
    spent: Profile,
}

/// What was measured at one length.
struct Mark {
    length: usize,
    /// Unknown if part of it was made up.
    prefill: Option<Duration>,
    /// Tokens of the stretch before the end, and its time.
    end: (usize, Duration),
    decode: Duration,
    generated: Vec<u32>,
    attended_max: usize,
    kv_bytes: usize,
    disk_bytes: u64,
    peak: Option<usize>,
    phases: Option<Phases>,
}

impl<'a> Reading<'a> {
    fn new(session: Session, ids: &'a [u32], profiler: Option<&'a Profiler>) -> Self {
        let steps = session.method().schedule(0..ids.len(), None);
        Self { session, ids, profiler, fill: None, steps, times: Vec::new(), spent: Profile::default() }
    }

    /// Measures at `length`, which is not below any length measured before, and decodes `decode` tokens.
    fn mark(
        &mut self,
        length: usize,
        decode: usize,
        mut progress: impl FnMut(Progress),
    ) -> Result<Mark, SessionError> {
        let own = self.session.schedule(0..length, None);
        let shared = shared(&own, &self.steps);
        let start = Instant::now();
        self.take();
        while self.times.len() < shared {
            self.fill_from(&own[self.times.len()..shared], length)?;
            let i = self.times.len();
            let time = self.feed(&own[i], &Logits::None)?.0;
            self.times.push(time);
            progress(Progress::since(start, own[i].tokens.end, length));
        }
        self.spent += self.take();

        let kept = self.session.len();
        self.session.pin()?;
        let mut times = self.times[..shared].to_vec();
        let mut logits = Vec::new();
        for (i, step) in own.iter().enumerate().skip(shared) {
            let want = if i + 1 == own.len() { Logits::Last } else { Logits::None };
            let (time, given) = self.feed(step, &want)?;
            times.push(time);
            logits = given;
        }
        let mut prefill_spent = self.spent;
        prefill_spent += self.take();

        let start = Instant::now();
        let mut generated = Vec::with_capacity(decode);
        while generated.len() < decode {
            let token = argmax(&logits);
            logits = self.session.feed_step(&[token], StepKind::Decode, &Logits::Last)?;
            generated.push(token);
        }
        let decode = start.elapsed();
        let phases = self.profiler.map(|p| Phases { prefill: prefill_spent, decode: p.take() });
        let mark = Mark {
            length,
            prefill: self.fill.is_none().then(|| times.iter().sum()),
            end: end(&own, &times, if shared > 0 { shared } else { own.len() }),
            decode,
            generated,
            attended_max: self.session.attended_max(),
            kv_bytes: self.session.kv_bytes(),
            disk_bytes: self.session.disk_bytes(),
            peak: peak_rss(),
            phases,
        };
        self.session.truncate(kept)?;
        self.session.unpin();
        Ok(mark)
    }

    /// Makes up the tokens of those of `steps` that stand between what must be read at the start and before `length`.
    fn fill_from(&mut self, steps: &[Step], length: usize) -> Result<(), SessionError> {
        let (Some(seed), Some(first)) = (self.fill, steps.first()) else { return Ok(()) };
        let read_from = length.saturating_sub(END_TOKENS + first.tokens.len());
        let filled = steps.iter().take_while(|s| s.tokens.end <= read_from).count().min(steps.len() - 1);
        if first.tokens.start < END_TOKENS || filled == 0 {
            return Ok(());
        }
        let tokens = first.tokens.start..steps[filled - 1].tokens.end;
        self.session.fill(&self.ids[tokens.clone()], seed ^ tokens.start as u64)?;
        self.times.resize(self.times.len() + filled, Duration::ZERO);
        Ok(())
    }

    fn feed(&mut self, step: &Step, want: &Logits) -> Result<(Duration, Vec<f32>), SessionError> {
        let start = Instant::now();
        let logits = self.session.feed_step(&self.ids[step.tokens.clone()], step.kind, want)?;
        self.session.wait()?;
        Ok((start.elapsed(), logits))
    }

    fn take(&self) -> Profile {
        self.profiler.map(Profiler::take).unwrap_or_default()
    }
}

/// Steps at the start of a text of its own that are fed alike in the longest text; the last, whose logits are wanted, is
/// always its own.
fn shared(own: &[Step], longest: &[Step]) -> usize {
    let alike = own.iter().zip(longest).take_while(|(a, b)| a == b).count();
    alike.min(own.len().saturating_sub(1))
}

/// Tokens and time of the last steps before step `to`.
fn end(steps: &[Step], times: &[Duration], to: usize) -> (usize, Duration) {
    let (mut tokens, mut time) = (0, Duration::ZERO);
    for (i, (step, t)) in steps[..to].iter().zip(times).rev().enumerate() {
        if i >= END_STEPS && tokens >= END_TOKENS {
            break;
        }
        tokens += step.tokens.len();
        time += *t;
    }
    (tokens, time)
}

impl Mark {
    /// Tokens a second: prefill, its end, decode.
    fn rates(&self) -> (Option<f64>, f64, f64) {
        let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        (
            self.prefill.map(|time| rate(self.length, time)),
            rate(self.end.0, self.end.1),
            rate(self.generated.len(), self.decode),
        )
    }

    fn row(&self, name: &str, plan: &MemoryPlan) -> String {
        let (prefill, end, decode) = self.rates();
        let prefill = prefill.map_or("-".into(), |rate| format!("{rate:.1}"));
        format!(
            "| {name} | {} | {prefill} | {end:.1} | {decode:.2} | {} | {} | {} |",
            self.length,
            self.attended_max,
            self.peak.map_or("-".into(), human),
            human(plan.total)
        )
    }

    fn json(&self, method: &Value, plan: &MemoryPlan) -> Value {
        let (prefill, end, decode) = self.rates();
        json!({
            "method": method, "length": self.length, "decode": self.generated.len(),
            "prefill_s": self.prefill.map(|time| time.as_secs_f64()), "prefill_tok_s": prefill,
            "end_tokens": self.end.0, "end_tok_s": end,
            "decode_s": self.decode.as_secs_f64(), "decode_tok_s": decode,
            "attended_max": self.attended_max, "kv_bytes": self.kv_bytes, "disk_bytes": self.disk_bytes,
            "peak_rss_bytes": self.peak, "memory_plan": plan,
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use reattention::{KvDtype, Settings};
    use reattention_engine::{Cancel, Engine, GenerateOptions, Package, Prompt};
    use reattention_kernels::Cpu;

    fn session(engine: &Engine, method: &str, settings: &[&str]) -> Session {
        let settings = Settings::parse(settings).unwrap();
        let method = build(method, &settings, engine.model().shape()).unwrap();
        engine.session(method, None, KvDtype::Bf16)
    }

    /// Lengths on and off the chunk, within full attention and beyond it, under methods that keep all, that release, that distil,
    /// and that feed differently by length.
    #[test]
    fn every_length_gives_what_it_gives_alone() {
        let package = Package::built_in().unwrap();
        let backend = Arc::new(Cpu::new(2).unwrap());
        let engine = package.engine(Arc::new(package.tokenizer().unwrap()), backend).unwrap();
        let lengths = [100, 1024, 1100, 2500, 2500 + 64];
        let ids = random_ids(2564, package.config().vocab_size, 3);
        let arms: [(&str, &[&str]); 7] = [
            ("reattention", &[]),
            ("reattention", &["prefill=window"]),
            ("reattention", &["reference=published", "local=256", "chunk=64"]),
            ("streaming-llm", &[]),
            ("full", &["reference=true"]),
            ("infinipot", &[]),
            ("infllm", &["cold=disk"]),
        ];
        for (name, settings) in arms {
            let mut reading = Reading::new(session(&engine, name, settings), &ids, None);
            for length in lengths {
                let mark = reading.mark(length, 12, |_| {}).unwrap();
                let mut alone = session(&engine, name, settings);
                let prompt = Prompt::from_ids(ids[..length].to_vec());
                alone.prefill(&prompt, &Cancel::default(), |_| {}).unwrap();
                let options =
                    GenerateOptions { max_new_tokens: 12, ignore_end: true, ..GenerateOptions::default() };
                let answer = alone.generate(&options, None, &Cancel::default(), |_| {}).unwrap();
                assert_eq!(mark.generated, answer.ids, "{name} {settings:?} at {length}");
                assert!(mark.end.0 <= length && Some(mark.end.1) <= mark.prefill);
            }
        }
    }

    #[test]
    fn a_filled_text_is_as_long_and_its_end_is_read() {
        let package = Package::built_in().unwrap();
        let engine =
            package.engine(Arc::new(package.tokenizer().unwrap()), Arc::new(Cpu::new(2).unwrap())).unwrap();
        let ids = random_ids(30_000, package.config().vocab_size, 3);
        let mut reading = Reading::new(session(&engine, "reattention", &[]), &ids, None);
        reading.fill = Some(1);
        for length in [1000, 9000, 30_000] {
            let mark = reading.mark(length, 2, |_| {}).unwrap();
            let expected = if length > 2048 { 2048..2048 + 128 } else { 900..1001 };
            assert!(expected.contains(&mark.end.0), "{} tokens before {length} were read", mark.end.0);
            assert_eq!((mark.prefill, mark.generated.len()), (None, 2));
            assert!(reading.session.len() <= length && reading.session.len() > length - 128);
        }
    }

    #[test]
    fn the_end_is_the_last_steps_before_a_mark() {
        let method = build("full", &Settings::parse(&["chunk=512"]).unwrap(), &shape()).unwrap();
        let (own, longest) = (method.schedule(0..4000, None), method.schedule(0..9000, None));
        assert_eq!(shared(&own, &longest), 7);
        assert_eq!(shared(&longest, &longest), longest.len() - 1);
        let times: Vec<Duration> = (0..own.len() as u64).map(Duration::from_secs).collect();
        assert_eq!(end(&own, &times, 7), (4 * 512, Duration::from_secs(3 + 4 + 5 + 6)));
        assert_eq!(end(&own, &times, 2), (1024, Duration::from_secs(1)));
    }

    fn shape() -> reattention::ModelShape {
        Package::built_in().unwrap().shape()
    }
}
