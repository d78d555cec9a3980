//! `reattn ask`: a question about files.

mod inputs;
mod live;
mod notes;

use crate::common::{MethodArgs, ModelArgs, OutputArgs, ThinkingArgs, method_json, print, print_json};
use crate::common::{Seed, warn_of_window, whole};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use crate::terminal::plain;
use anyhow::anyhow;
use live::Live;
use reattention_engine::{
    Cancel, Engine, Finish, GenerateOptions, Generation, MemoryPlan, Prefilled, Prompt, Sampling, Session,
    peak_rss,
};
use serde_json::json;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

/// Answer a question about files.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files to read, in this order; - is standard input.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    context: Vec<OsString>,
    /// The question.
    question: Option<OsString>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens of the answer.
    #[arg(long, default_value_t = 256, value_parser = whole, value_name = "N")]
    max_new_tokens: usize,
    /// Text that ends the answer, repeatable; a line break for a model without chat template.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Passages of evidence to show; 0 for none.
    #[arg(long, default_value_t = 3, value_parser = whole, value_name = "N")]
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
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Choose among this many most likely tokens; 0 for all.
    #[arg(long, default_value_t = 0, value_parser = whole, value_name = "K")]
    top_k: usize,
    /// Choose among the most likely tokens that reach this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Choose among tokens at least this fraction as likely as the most likely one.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Makes tokens already seen less likely; 1 for none.
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    repetition_penalty: f32,
    /// Seed of the draws; -1 draws one and says which.
    #[arg(long, default_value = "0", value_name = "N")]
    seed: Seed,
}

impl SamplingArgs {
    fn sampling(&self, output: &OutputArgs) -> Result<Sampling, Failure> {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, seed } = *self;
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed: seed.value };
        // Flags are spelled with hyphens where parameters have underscores.
        sampling.validate().map_err(|e| anyhow!("--{}", hyphened(&e.to_string()))).input()?;
        if sampling.temperature > 0.0 || seed.is_drawn {
            output.say(seed);
        }
        Ok(sampling)
    }
}

/// A message with its first word, a parameter's name, as the flag has it.
fn hyphened(message: &str) -> String {
    let (name, rest) = message.split_once(' ').unwrap_or((message, ""));
    format!("{} {rest}", name.replace('_', "-"))
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    let (files, question) = inputs::files_and_question(args)?;
    let sources = files.iter().map(inputs::read).collect::<anyhow::Result<Vec<_>>>().input()?;
    let sampling = args.sampling.sampling(&args.output)?;
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
    warn_of_window(&args.output, method.spec().name, rope.is_some(), prompt.ids.len(), shape.window);

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
    // Only the built-in model is known so well.
    let notes = match args.model.model {
        None => notes::notes(&question, &sources, &answer),
        Some(_) => Vec::new(),
    };
    let told = Told { args, engine: &engine, session: &session, prompt: &prompt, plan: &plan, read, answer };
    if args.output.json {
        told.json(&notes)?;
    } else {
        print("")?;
        notes.iter().for_each(|note| args.output.say(format_args!("note: {note}")));
        told.details();
    }
    Ok(ExitCode::SUCCESS)
}

/// An answer and what there is to tell of it.
struct Told<'a> {
    args: &'a Args,
    engine: &'a Engine,
    session: &'a Session,
    prompt: &'a Prompt,
    plan: &'a MemoryPlan,
    read: Prefilled,
    answer: Generation,
}

impl Told<'_> {
    fn json(&self, notes: &[String]) -> Result<(), Failure> {
        let (read, answer, session) = (&self.read, &self.answer, self.session);
        let (prefill_s, decode_s) = (read.elapsed.as_secs_f64(), answer.elapsed.as_secs_f64());
        print_json(&json!({
            "answer": answer.text.trim(),
            "finish": finish_name(answer.finish),
            "tokens": {
                "context": self.prompt.context_tokens(),
                "prompt": self.prompt.ids.len(),
                "kept": session.kept(),
                "attended_max": session.attended_max(),
                "generated": answer.ids.len(),
            },
            "timing": {
                "load_s": self.engine.load_time().as_secs_f64(),
                "prefill_s": prefill_s,
                "prefill_tok_s": read.tokens as f64 / prefill_s.max(1e-9),
                "decode_s": decode_s,
                "decode_tok_s": answer.fed as f64 / decode_s.max(1e-9),
            },
            "method": method_json(session.method()),
            "seed": self.args.sampling.seed.value,
            "memory_plan": self.plan,
            "peak_rss_bytes": peak_rss(),
            "evidence": answer.evidence,
            "notes": notes,
        }))
    }

    /// The lines on stderr under an answer.
    fn details(&self) {
        let (read, answer, output) = (&self.read, &self.answer, &self.args.output);
        for e in &answer.evidence {
            output.say(format_args!(
                "evidence {:>3.0}%  {}:{}  {}",
                100.0 * e.weight,
                plain(&e.source),
                e.line,
                plain(&e.text)
            ));
        }
        output.say(format_args!(
            "{} tokens of context, {} in the prompt, at most {} attended at once, {} generated; read at {:.0} tokens/s, answered at {:.1} tokens/s",
            self.prompt.context_tokens(),
            read.tokens,
            self.session.attended_max(),
            answer.ids.len(),
            read.tokens as f64 / read.elapsed.as_secs_f64().max(1e-9),
            answer.fed as f64 / answer.elapsed.as_secs_f64().max(1e-9),
        ));
    }
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::StopToken => "stop_token",
        Finish::StopString => "stop_string",
        Finish::Cancelled => "cancelled",
    }
}
