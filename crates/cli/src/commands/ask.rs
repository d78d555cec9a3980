//! `reattn ask`: a question about files.

use crate::common::{MethodArgs, ModelArgs, OutputArgs, ThinkingArgs, method_json, print, print_json};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use crate::terminal::{plain, shown};
use anyhow::{Context, anyhow};
use reattention_engine::{
    Cancel, Finish, GenerateOptions, Generation, Sampling, Session, Source, decode, peak_rss, read_text,
};
use serde_json::json;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

/// Answer a question about files.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files to read, in this order; - is standard input.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    context: Vec<OsString>,
    /// The question.
    question: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens of the answer.
    #[arg(long, default_value_t = 256, value_name = "N", allow_negative_numbers = true)]
    max_new_tokens: usize,
    /// Text that ends the answer, repeatable; a line break for a model without chat template.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Passages of evidence to show; 0 for none.
    #[arg(long, default_value_t = 3, value_name = "N", allow_negative_numbers = true)]
    evidence: usize,
    /// Ask as of a base model, without the chat template.
    #[arg(long)]
    no_template: bool,
    #[command(flatten)]
    thinking: ThinkingArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// How tokens are chosen.
#[derive(clap::Args)]
struct SamplingArgs {
    /// 0 takes the most likely token every time.
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// Choose among this many most likely tokens; 0 for all.
    #[arg(long, default_value_t = 0, value_name = "K", allow_negative_numbers = true)]
    top_k: usize,
    /// Choose among the most likely tokens that reach this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    top_p: f32,
    /// Choose among tokens at least this fraction as likely as the most likely one.
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    min_p: f32,
    /// Makes tokens already seen less likely; 1 for none.
    #[arg(long, default_value_t = 1.0, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Seed of the draws; -1 draws one and says which.
    #[arg(long, default_value = "0", value_name = "N", value_parser = seed, allow_negative_numbers = true)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    let (files, question) = files_and_question(args)?;
    let sources = files.iter().map(|f| read(f)).collect::<anyhow::Result<Vec<_>>>().input()?;
    let sampling = Sampling {
        temperature: args.sampling.temperature,
        top_k: args.sampling.top_k,
        top_p: args.sampling.top_p,
        min_p: args.sampling.min_p,
        repetition_penalty: args.sampling.repetition_penalty,
        seed: args.sampling.seed,
    };
    sampling.validate().input()?;
    if sampling.temperature > 0.0 {
        args.output.say(format_args!("seed {}", sampling.seed));
    }
    if args.stop.iter().any(String::is_empty) {
        return Err(Failure::Input(anyhow!("--stop is empty: it would end every answer at once")));
    }

    // Everything that can be refused is refused before the weights are read.
    let package = args.model.open()?;
    let (shape, rope) = args.method.shape(&package)?;
    let method = args.method.single(&shape)?;
    let tokenizer = args.model.tokenizer(&package)?;
    let template = args.thinking.template(&package, args.no_template, None)?;
    let prompt =
        reattention_engine::Prompt::ask(&sources, &question, &tokenizer, template.as_ref()).input()?;
    let text_bytes = 3 * sources.iter().map(|s| s.text.len()).sum::<usize>();
    let backend = args.model.backend()?;
    let plan = package.plan(
        method.as_ref(),
        args.model.kv,
        prompt.ids.len().saturating_add(args.max_new_tokens),
        text_bytes,
        backend.as_ref(),
    );
    args.output.say(plan.line());
    plan.check().input()?;
    if method.spec().name == "full" && rope.is_none() && prompt.ids.len() > shape.window {
        args.output.say(format_args!(
            "warning: {} tokens exceed the model's window of {}; full attention breaks there (try --method reattention)",
            prompt.ids.len(),
            shape.window
        ));
    }

    let engine = args.model.load(&package, tokenizer, backend)?;
    let (has_template, engine) = (template.is_some(), engine.with_template(template));
    let mut session = engine.session(method, rope, args.model.kv);
    let mut stop_strings = args.stop.clone();
    if stop_strings.is_empty() || has_template {
        stop_strings.extend(engine.stop_strings());
    }
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling,
        stop_tokens: engine.stop_tokens(),
        stop_strings,
        evidence: args.evidence,
        ..GenerateOptions::default()
    };
    if options.evidence > 0 {
        session.gather_evidence();
    }
    let mut bar = Bar::new(args.output.quiet);
    let read = session.prefill(&prompt, &Cancel::default(), |p| bar.show("reading", p)).running()?;
    bar.clear();
    let mut live = Live::new(std::io::stdout(), std::io::stdout().is_terminal());
    live.is_off = args.output.json;
    let cancel = Cancel::default();
    let answer = session
        .generate(&options, Some(engine.tokenizer().as_ref()), &cancel, |text| live.write(text, &cancel))
        .running()?;
    if let Some(error) = live.broken {
        return Err(Failure::Run(error.into()));
    }
    let notes = notes(args, &question, &answer);
    let prefill_s = read.elapsed.as_secs_f64();
    let decode_s = answer.elapsed.as_secs_f64();
    if args.output.json {
        print_json(&json!({
            "answer": answer.text.trim(),
            "finish": finish_name(answer.finish),
            "tokens": {
                "context": prompt.context_tokens(),
                "prompt": prompt.ids.len(),
                "kept": session.kept(),
                "attended_max": session.attended_max(),
                "generated": answer.ids.len(),
            },
            "timing": {
                "load_s": engine.load_time().as_secs_f64(),
                "prefill_s": prefill_s,
                "prefill_tok_s": read.tokens as f64 / prefill_s.max(1e-9),
                "decode_s": decode_s,
                "decode_tok_s": answer.fed as f64 / decode_s.max(1e-9),
            },
            "method": method_json(session.method()),
            "memory_plan": plan,
            "peak_rss_bytes": peak_rss(),
            "evidence": answer.evidence,
            "notes": notes,
        }))?;
    } else {
        print("")?;
        notes.iter().for_each(|note| args.output.say(note));
        show_details(args, &session, &answer, prompt.context_tokens(), read.tokens, prefill_s);
    }
    Ok(ExitCode::SUCCESS)
}

/// The answer on stdout as it comes.
struct Live<W> {
    out: W,
    is_terminal: bool,
    is_off: bool,
    has_started: bool,
    broken: Option<std::io::Error>,
}

impl<W: Write> Live<W> {
    fn new(out: W, is_terminal: bool) -> Self {
        Self { out, is_terminal, is_off: false, has_started: false, broken: None }
    }

    /// Writes a piece of the answer. Once nobody takes it any more, `cancel` ends the work.
    fn write(&mut self, text: &str, cancel: &Cancel) {
        if self.is_off || self.broken.is_some() {
            return;
        }
        let text = if self.has_started { text } else { text.trim_start() };
        self.has_started |= !text.is_empty();
        // Escapes are made of whole characters, so pieces of an answer need not wait for one another.
        let written = match self.is_terminal {
            true => self.out.write_all(shown(text).as_bytes()),
            false => self.out.write_all(text.as_bytes()),
        };
        if let Err(error) = written.and_then(|()| self.out.flush()) {
            self.broken = Some(error);
            cancel.cancel();
        }
    }
}

/// Digits of the numbers that the built-in model knows (its card, models/needle).
const BUILT_IN_DIGITS: usize = 5;

/// What the reader of an answer must know: the built-in model answers everything with five digits, also what it was not
/// trained on.
fn notes(args: &Args, question: &str, answer: &Generation) -> Vec<String> {
    let mut notes = Vec::new();
    if args.model.model.is_some() {
        return notes;
    }
    let asks_for_fact =
        question.trim().strip_prefix("What is the ").is_some_and(|rest| rest.contains(" of "));
    if !asks_for_fact {
        notes.push("note: the built-in model only looks up facts asked for as \"What is the ATTRIBUTE of NAME?\"; a real model (--model) answers other questions".to_string());
    }
    let numbers = |text: &str| -> Vec<String> {
        let runs = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
        runs.map(str::to_string).collect()
    };
    let told = answer.evidence.first().map(|e| numbers(&e.text)).unwrap_or_default();
    let answered = numbers(&answer.text);
    let other = told.iter().find(|n| n.len() != BUILT_IN_DIGITS);
    if let Some(number) = other.filter(|_| !told.iter().any(|n| answered.contains(n))) {
        notes.push(format!(
            "note: the built-in model knows numbers of {BUILT_IN_DIGITS} digits only, and the passage it read has {number}; read it there, or name a real model with --model"
        ));
    } else if !answer.evidence.is_empty() && !told.iter().any(|n| answered.contains(n)) {
        notes.push("note: the answer is not in the passage that it was read from; the built-in model answers with digits even where the text has none".to_string());
    }
    notes
}

/// A seed; -1 stands for one drawn now.
fn seed(text: &str) -> Result<u64, String> {
    if text == "-1" {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        return Ok(now.map_or(0, |d| d.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(32));
    }
    text.parse()
        .map_err(|_| format!("`{text}` is not a seed; it is a whole number from 0, or -1 for one drawn now"))
}

/// The lines on stderr under an answer.
fn show_details(
    args: &Args,
    session: &Session,
    answer: &Generation,
    context: usize,
    prompt: usize,
    prefill_s: f64,
) {
    for e in &answer.evidence {
        args.output.say(format_args!(
            "evidence {:>3.0}%  {}:{}  {}",
            100.0 * e.weight,
            plain(&e.source),
            e.line,
            plain(&e.text)
        ));
    }
    args.output.say(format_args!(
        "{context} tokens of context, {prompt} in the prompt, at most {} attended at once, {} generated; read at {:.0} tokens/s, answered at {:.1} tokens/s",
        session.attended_max(),
        answer.ids.len(),
        prompt as f64 / prefill_s.max(1e-9),
        answer.fed as f64 / answer.elapsed.as_secs_f64().max(1e-9),
    ));
}

/// `--context A B "QUESTION"` gives the question to `--context`; it is taken back from there.
fn files_and_question(args: &Args) -> Result<(Vec<OsString>, String), Failure> {
    let mut files = args.context.clone();
    let question = match &args.question {
        Some(question) => question.clone(),
        None => match files.pop() {
            Some(last) if !files.is_empty() && last != "-" && !Path::new(&last).exists() => {
                last.into_string().map_err(|_| Failure::Input(anyhow!("the question is not UTF-8 text")))?
            }
            _ => {
                return Err(Failure::Input(anyhow!(
                    "no question; write it last: reattn ask --context FILE \"QUESTION\""
                )));
            }
        },
    };
    if files.is_empty() {
        return Err(Failure::Input(anyhow!("no --context; name the files to read (- for standard input)")));
    }
    if question.trim().is_empty() {
        return Err(Failure::Input(anyhow!("the question is empty")));
    }
    Ok((files, question))
}

fn read(file: &OsString) -> anyhow::Result<Source> {
    let name = file.to_string_lossy().into_owned();
    let text = if file == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
        decode(bytes, "standard input")
    } else {
        read_text(Path::new(file))
    }
    .context("--context")?;
    if text.trim().is_empty() {
        return Err(anyhow!("--context {name}: the file is empty"));
    }
    Ok(Source { name, text })
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::StopToken => "stop_token",
        Finish::StopString => "stop_string",
        Finish::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one piece, as a pipe whose reader leaves.
    struct Leaves(Vec<u8>);

    impl Write for Leaves {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if !self.0.is_empty() {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.0.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_that_nobody_takes_is_cancelled() {
        let (mut live, cancel) = (Live::new(Leaves(Vec::new()), false), Cancel::default());
        live.write(" one", &cancel);
        assert!(!cancel.is_cancelled() && live.out.0 == b"one");
        live.write(" two", &cancel);
        assert!(cancel.is_cancelled());
        assert_eq!(live.broken.unwrap().kind(), std::io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_terminal_gets_no_escapes_and_a_file_all_bytes() {
        for (is_terminal, wanted) in [(true, "a\\u{1b}[31mb"), (false, "a\u{1b}[31mb")] {
            let (mut out, cancel) = (Vec::new(), Cancel::default());
            let mut live = Live::new(&mut out, is_terminal);
            live.write("a\u{1b}", &cancel);
            live.write("[31mb", &cancel);
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        }
    }

    #[test]
    fn a_seed_below_zero_is_drawn() {
        assert_eq!(seed("7"), Ok(7));
        assert!(seed("-1").is_ok() && seed("-2").is_err() && seed("x").is_err());
    }
}
