//! `reattn ask`: a question about files.

use crate::common::{MethodArgs, ModelArgs, OutputArgs, method_json, plain, print, print_json};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use anyhow::{Context, anyhow};
use reattention_engine::{Cancel, Finish, GenerateOptions, Generation, Sampling, Session, Source, peak_rss};
use serde_json::json;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Answer a question about files.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files to read, in this order; - is standard input.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    context: Vec<String>,
    /// The question.
    question: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens of the answer.
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_new_tokens: usize,
    /// Text that ends the answer, repeatable; a line break for a model without chat template.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Passages of evidence to show; 0 for none.
    #[arg(long, default_value_t = 3, value_name = "N")]
    evidence: usize,
    /// Ask as of a base model, without the chat template.
    #[arg(long)]
    no_template: bool,
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
    #[arg(long, default_value_t = 0, value_name = "K")]
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
    /// Seed of the draws.
    #[arg(long, default_value_t = 0, value_name = "N")]
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
    if args.stop.iter().any(String::is_empty) {
        return Err(Failure::Input(anyhow!("--stop is empty: it would end every answer at once")));
    }

    // Everything that can be refused is refused before the weights are read.
    let package = args.model.open()?;
    let (shape, rope) = args.method.shape(&package)?;
    let method = args.method.single(&shape)?;
    let tokenizer = Arc::new(package.tokenizer().input()?);
    let template = package.template().input()?.filter(|_| !args.no_template);
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
    let mut session = engine.session(method, rope, args.model.kv);
    let stop_strings = match &args.stop[..] {
        [] if template.is_none() => vec!["\n".into()],
        given => given.to_vec(),
    };
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling,
        stop_tokens: engine.stop_tokens(),
        stop_strings,
        evidence: args.evidence,
    };
    if options.evidence > 0 {
        session.gather_evidence();
    }
    let mut bar = Bar::new(args.output.quiet);
    let read = session.prefill(&prompt, &Cancel::default(), |p| bar.show("reading", p)).running()?;
    bar.clear();
    let live = !args.output.json;
    let mut broken = None;
    let mut started = false;
    let answer = session
        .generate(&options, Some(engine.tokenizer().as_ref()), &Cancel::default(), |text| {
            if live && broken.is_none() {
                let text = if started { text } else { text.trim_start() };
                started |= !text.is_empty();
                let mut out = std::io::stdout();
                broken = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
            }
        })
        .running()?;
    if let Some(error) = broken {
        return Err(Failure::Run(error.into()));
    }
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
        }))?;
    } else {
        print("")?;
        show_details(args, &session, &answer, prompt.context_tokens(), read.tokens, prefill_s);
    }
    Ok(ExitCode::SUCCESS)
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
            e.source,
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
fn files_and_question(args: &Args) -> Result<(Vec<String>, String), Failure> {
    let mut files = args.context.clone();
    let question = match &args.question {
        Some(question) => question.clone(),
        None => match files.pop() {
            Some(last) if !files.is_empty() && last != "-" && !Path::new(&last).exists() => last,
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

fn read(file: &str) -> anyhow::Result<Source> {
    let bytes = if file == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
        bytes
    } else {
        std::fs::read(file).with_context(|| format!("--context {file}"))?
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        anyhow!("--context {file}: not UTF-8 text (byte {}); convert it first", e.utf8_error().valid_up_to())
    })?;
    if text.trim().is_empty() {
        return Err(anyhow!("--context {file}: the file is empty"));
    }
    Ok(Source { name: file.to_string(), text })
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::StopToken => "stop_token",
        Finish::StopString => "stop_string",
        Finish::Cancelled => "cancelled",
    }
}
