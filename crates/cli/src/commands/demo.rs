//! `reattn demo`: hides facts in a long generated text, finds them again, and shows where it looked.

use crate::common::{MethodArgs, ModelArgs, OutputArgs, Seed, method_json, print, print_json, tokens, whole};
use crate::failure::{Blame, Failure};
use crate::progress::Bar;
use anyhow::anyhow;
use reattention_engine::{Cancel, GenerateOptions, Source, human, peak_rss};
use reattention_eval::text::DocumentPlan;
use serde_json::json;
use std::process::ExitCode;

/// Hide facts in a long text and find them again.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Length of the text: 128k, 1m, ...
    #[arg(long, default_value = "128k", value_parser = tokens, value_name = "N")]
    tokens: usize,
    /// Facts to hide and ask for, spread over the text.
    #[arg(long, default_value_t = 5, value_parser = whole, value_name = "N")]
    facts: usize,
    /// Further facts of the same form that nobody asks for.
    #[arg(long, default_value_t = 15, value_parser = whole, value_name = "N")]
    distractors: usize,
    /// Seed of the text; -1 draws one and says which.
    #[arg(long, default_value = "1", value_name = "N")]
    seed: Seed,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.output.start();
    args.seed.tell(&args.output);
    let package = args.model.open()?;
    let (shape, rope) = args.method.shape(&package)?;
    let method = args.method.single(&shape)?;
    let tokenizer = args.model.tokenizer(&package)?;

    if args.facts == 0 {
        return Err(Failure::Input(anyhow!("--facts must be at least 1")));
    }
    if !method.splits() {
        return Err(Failure::Input(anyhow!(
            "the demo reads its text once and asks several questions, which {} cannot with these settings; use ask or eval",
            method.spec().name
        )));
    }
    // Six bytes a token, three copies: more than English takes.
    let backend = args.model.backend()?;
    let plan =
        package.plan(method.as_ref(), args.model.kv, args.tokens + 256, 18 * args.tokens, backend.as_ref());
    args.output.say(plan.line());
    plan.check().input()?;
    // A tokenizer that fails on plain English fails on the prompt too, with its own message.
    let count = |text: &str| tokenizer.encode_text(text).map_or(0, |e| e.ids.len());
    let depth = |i: usize| (i as f64 + 0.5) / args.facts.max(1) as f64;
    let document = DocumentPlan::new(args.seed.value, args.tokens)
        .depths((0..args.facts).map(depth))
        .distractors(args.distractors)
        .paragraphs(true)
        .build(count)
        .input()?;
    let (words, window) = (document.text.split_whitespace().count(), shape.window);
    if !args.output.json {
        print(format_args!(
            "A text of {} tokens ({words} words), {:.0} times the model's window of {window}; {} facts hidden among {} that look alike.",
            document.tokens,
            document.tokens as f64 / window as f64,
            document.facts.len(),
            document.distractors.len(),
        ))?;
    }

    let engine = args.model.load(&package, tokenizer, backend)?;
    let mut session = engine.session(method, rope, args.model.kv);
    let source = [Source { name: "generated text".into(), text: document.text.clone() }];
    let options = GenerateOptions {
        max_new_tokens: 32,
        stop_tokens: engine.stop_tokens(),
        stop_strings: engine.stop_strings(),
        evidence: 1,
        ..GenerateOptions::default()
    };
    let (cancel, mut bar) = (Cancel::default(), Bar::new(args.output.quiet));
    let (mut found, mut rows) = (0, Vec::new());
    let (mut generated, mut fed, mut decode_s, mut question_tokens, mut question_s) = (0, 0, 0.0, 0, 0.0);
    let mut reading = None;
    for placed in &document.facts {
        let fact = &placed.fact;
        let question = engine.question(&fact.question()).input()?;
        if reading.is_none() {
            let context = engine.context(&source).input()?;
            reading = Some(session.prefill(&context, &cancel, |p| bar.show("reading", p)).running()?);
            bar.clear();
            session.pin().running()?;
        }
        let read = session.len();
        session.gather_evidence();
        let asked = session.prefill(&question, &cancel, |_| {}).running()?;
        let answer =
            session.generate(&options, Some(engine.tokenizer().as_ref()), &cancel, |_| {}).running()?;
        session.truncate(read).running()?;
        let right = fact.is_answered_by(&answer.text);
        found += usize::from(right);
        generated += answer.ids.len();
        fed += answer.fed;
        decode_s += answer.elapsed.as_secs_f64();
        question_tokens += asked.tokens;
        question_s += asked.elapsed.as_secs_f64();
        if !args.output.json {
            print(format_args!(
                "\nQ  {}   (hidden at {:.0}% of the text)",
                fact.question(),
                100.0 * placed.depth
            ))?;
            print(format_args!("A {}   {}", answer.text, if right { "right" } else { "WRONG" }))?;
            for e in &answer.evidence {
                print(format_args!(
                    "   looked at line {} ({:.0}% of its attention to the text): {}",
                    e.line,
                    100.0 * e.weight,
                    e.text
                ))?;
            }
        }
        rows.push(json!({
            "question": fact.question(), "expected": fact.value, "answer": answer.text.trim(), "correct": right,
            "depth": placed.depth, "evidence": answer.evidence,
        }));
    }
    let (prefill_tokens, prefill_s) = reading.map_or((0, 0.0), |r| (r.tokens, r.elapsed.as_secs_f64()));
    let prefill_rate = prefill_tokens as f64 / prefill_s.max(1e-9);
    let decode_rate = fed as f64 / decode_s.max(1e-9);
    if args.output.json {
        print_json(&json!({
            "found": found, "of": document.facts.len(), "rows": rows,
            "tokens": { "context": document.tokens, "prompt": prefill_tokens + question_tokens,
                        "kept": session.kept(), "attended_max": session.attended_max(), "generated": generated },
            "timing": { "load_s": engine.load_time().as_secs_f64(), "prefill_s": prefill_s, "prefill_tok_s": prefill_rate,
                        "questions_s": question_s, "decode_s": decode_s, "decode_tok_s": decode_rate },
            "method": method_json(session.method()), "memory_plan": plan, "peak_rss_bytes": peak_rss(),
        }))?;
    } else {
        print(format_args!(
            "\n{}: read {prefill_tokens} tokens in {prefill_s:.1} s ({prefill_rate:.0} tokens/s), answered at {decode_rate:.0} tokens/s; no query attended to more than {} tokens; peak memory {}",
            session.method().spec().name,
            session.attended_max(),
            peak_rss().map_or("unknown".into(), human),
        ))?;
        print(format_args!("found {found} of {}", document.facts.len()))?;
    }
    Ok(if found == document.facts.len() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
