//! Running one case on one backend.

use crate::compare::Findings;
use crate::{Case, methods};
use anyhow::{Context as _, ensure};
use reattention::methods::{Step, StepKind, build};
use reattention::{Context, KvDtype, LayerTrace, Settings};
use reattention_kernels::Backend;
use reattention_model::{Logits, Model, Scratch};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Logits of f32 against f32.
const LOGITS: f32 = 1e-3;
/// Two logits closer than this may change places.
const TIE: f32 = 2e-3;

/// How a case ended on one backend.
#[derive(Debug)]
pub enum Outcome {
    /// Equal within the tolerance; says what was compared.
    Passed(String),
    /// Not run; says why.
    Skipped(String),
    /// Not equal, or not runnable; says where.
    Failed(Vec<String>),
}

impl Outcome {
    /// 0 passed, 1 skipped, 2 failed.
    pub fn rank(&self) -> usize {
        match self {
            Self::Passed(_) => 0,
            Self::Skipped(_) => 1,
            Self::Failed(_) => 2,
        }
    }

    /// In one line.
    pub fn text(&self) -> String {
        match self {
            Self::Passed(text) | Self::Skipped(text) => text.clone(),
            Self::Failed(reasons) => {
                let more = reasons.len().saturating_sub(3);
                let shown = reasons[..reasons.len() - more].join("; ");
                if more > 0 { format!("{shown}; and {more} more") } else { shown }
            }
        }
    }

    /// As JSON.
    pub fn json(&self, backend: &str) -> Value {
        let (status, details) = match self {
            Self::Passed(text) => ("ok", vec![text.clone()]),
            Self::Skipped(text) => ("skipped", vec![text.clone()]),
            Self::Failed(reasons) => ("failed", reasons.clone()),
        };
        json!({ "backend": backend, "status": status, "details": details })
    }
}

/// Runs the case `name` of the golden folder `dir`.
pub fn run(dir: &Path, name: &str, backend: &Arc<dyn Backend>) -> Outcome {
    match attempt(dir, name, backend) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(vec![format!("{error:#}")]),
    }
}

fn attempt(dir: &Path, name: &str, backend: &Arc<dyn Backend>) -> anyhow::Result<Outcome> {
    let case = Case::read(dir, name)?;
    let Some((method, settings)) = methods::settings(&case)? else {
        return Ok(Outcome::Skipped(format!("method {} is not there yet", case.text("method")?)));
    };
    let model = case.model(dir)?;
    let mut found = Findings::default();
    frequencies(&case, &model, &mut found)?;
    let mut runner = Runner { case: &case, model: &model, backend, method, settings: &settings };
    let loose = case.text("count_tie_break").is_ok_and(|t| !t.starts_with("lowest"));
    runner.whole(loose, &mut found)?;
    if case.has("greedy_logits_nocache") {
        runner.without_cache(&mut found)?;
    }
    if !found.failures.is_empty() {
        return Ok(Outcome::Failed(found.failures));
    }
    let mut text = format!("max |Δlogit| {:.1e}", found.logits);
    if found.selections > 0 {
        text += &format!(", {} selections equal", found.selections);
    }
    for note in &found.notes {
        text += &format!(" ({note})");
    }
    Ok(Outcome::Passed(text))
}

fn frequencies(case: &Case, model: &Model, found: &mut Findings) -> anyhow::Result<()> {
    let prompt = case.ids("input_ids")?.len();
    let (inv_freq, multiplier) = model.shape().rope.frequencies(prompt);
    if case.has("inv_freq") {
        let (_, want) = case.floats("inv_freq")?;
        let relative: Vec<f32> = inv_freq.iter().zip(&want).map(|(a, b)| a / b).collect();
        found.numbers("inv_freq", &relative, &vec![1.0; want.len()], 1e-5);
    }
    if let Some(want) = case.manifest.get("rope_attention_scaling").and_then(Value::as_f64) {
        found.numbers("rope attention factor", &[multiplier], &[want as f32], 1e-6);
    }
    Ok(())
}

struct Runner<'a> {
    case: &'a Case,
    model: &'a Model,
    backend: &'a Arc<dyn Backend>,
    method: &'static str,
    settings: &'a Settings,
}

impl Runner<'_> {
    fn context(&self) -> anyhow::Result<Context> {
        let shape = self.model.shape();
        let method = build(self.method, self.settings, shape)?;
        Ok(Context::new(shape, method, None, KvDtype::F32, Arc::clone(self.backend)))
    }

    /// Prompt and greedy continuation. With `loose` ties the case is only comparable up to the first selection.
    fn whole(&mut self, loose: bool, found: &mut Findings) -> anyhow::Result<()> {
        let (case, prompt) = (self.case, self.case.ids("input_ids")?);
        let mut context = self.context()?;
        context.trace(true);
        let steps = context.method().schedule(0..prompt.len(), None);
        let mut got = Prompt::default();
        let mut scratch = Scratch::default();
        let layers = self.model.shape().n_layers;
        let mut hidden: Vec<Vec<f32>> = vec![Vec::new(); layers + 2];
        for step in &steps {
            let mut observe = |index: usize, states: &[f32]| hidden[index].extend_from_slice(states);
            let ids = &prompt[step.tokens.clone()];
            let logits =
                self.model.forward(ids, step, &mut context, &mut scratch, &Logits::All, Some(&mut observe))?;
            got.push(step, logits);
        }
        let vocab = self.model.config().vocab_size;
        let selecting = context_trace_start(&mut context, &steps, found, case, loose)?;
        for (positions, logits) in [("logit_positions", "logits"), ("prefill_logit_positions", "prefill_logits")] {
            if case.has(logits) {
                let (_, positions) = case.indices(positions)?;
                let (_, want) = case.floats(logits)?;
                for (row, &position) in positions.iter().enumerate() {
                    if !loose || position < selecting {
                        let want = &want[row * vocab..(row + 1) * vocab];
                        found.logits(&format!("{logits} at {position}"), got.row(position, vocab)?, want, LOGITS);
                    }
                }
            }
        }
        if case.has("hidden_states") {
            // The published list ends with the normed state in place of the last block's output.
            hidden.remove(layers);
            let (_, want) = case.floats("hidden_states")?;
            found.numbers("hidden_states", &hidden.concat(), &want, LOGITS);
        }
        if loose {
            found.notes.push("ties unspecified: compared up to the first selection, and its votes".into());
            return Ok(());
        }
        if case.has("chunk_last_logits") {
            let (_, want) = case.floats("chunk_last_logits")?;
            let chunks = steps.iter().filter(|s| s.kind == StepKind::Prefill);
            for (row, step) in chunks.enumerate() {
                let want = want.get(row * vocab..(row + 1) * vocab).context("more chunks than chunk_last_logits")?;
                let got = got.row(step.tokens.end - 1, vocab)?;
                found.logits(&format!("last logits of chunk {row}"), got, want, LOGITS);
            }
        }
        let last = got.row(prompt.len() - 1, vocab)?.to_vec();
        self.greedy(&mut context, prompt.len(), last, steps, found)
    }

    /// The greedy continuation, fed with the published ids, and then everything recorded along the way.
    fn greedy(
        &self,
        context: &mut Context,
        prompt: usize,
        mut logits: Vec<f32>,
        mut steps: Vec<Step>,
        found: &mut Findings,
    ) -> anyhow::Result<()> {
        let (case, vocab) = (self.case, self.model.config().vocab_size);
        let ids = case.ids("greedy_ids")?;
        let (_, want) = case.floats("greedy_logits")?;
        let mut scratch = Scratch::default();
        for (g, &id) in ids.iter().enumerate() {
            check_greedy(&format!("greedy step {g}"), &logits, id, &want[g * vocab..(g + 1) * vocab], found);
            if g + 1 < ids.len() {
                let step = Step { tokens: prompt + g..prompt + g + 1, kind: StepKind::Decode };
                logits = self.model.forward(&[id], &step, context, &mut scratch, &Logits::Last, None)?;
                steps.push(step);
            }
        }
        let trace = context.trace(false);
        compare_steps(case, &steps, &trace, found)?;
        compare_selections(case, &steps, &trace, found)
    }

    /// Everything computed anew for each generated token, as a model without cache does.
    fn without_cache(&self, found: &mut Findings) -> anyhow::Result<()> {
        let (case, vocab) = (self.case, self.model.config().vocab_size);
        let mut ids = case.ids("input_ids")?;
        let greedy = case.ids("greedy_ids_nocache")?;
        let (_, want) = case.floats("greedy_logits_nocache")?;
        for (g, &id) in greedy.iter().enumerate() {
            let step = Step { tokens: 0..ids.len(), kind: StepKind::Prefill };
            let mut context = self.context()?;
            let logits =
                self.model.forward(&ids, &step, &mut context, &mut Scratch::default(), &Logits::Last, None)?;
            let what = format!("step {g} without cache");
            check_greedy(&what, &logits, id, &want[g * vocab..(g + 1) * vocab], found);
            ids.push(id);
        }
        Ok(())
    }
}

/// Logits of a prompt's tokens, step by step.
#[derive(Default)]
struct Prompt {
    logits: Vec<f32>,
}

impl Prompt {
    fn push(&mut self, _step: &Step, logits: Vec<f32>) {
        self.logits.extend(logits);
    }

    fn row(&self, position: usize, vocab: usize) -> anyhow::Result<&[f32]> {
        self.logits.get(position * vocab..(position + 1) * vocab).with_context(|| format!("no logits at {position}"))
    }
}

fn check_greedy(what: &str, logits: &[f32], id: u32, want: &[f32], found: &mut Findings) {
    found.logits(what, logits, want, LOGITS);
    let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
    if best as u32 != id && logits[best] - logits[id as usize] > TIE {
        found.failures.push(format!("{what}: token {best} instead of {id}"));
    }
}

/// The first token of the first step that selects; under `loose` ties its votes in layer 0 are compared, which no earlier
/// choice has touched.
fn context_trace_start(
    context: &mut Context,
    steps: &[Step],
    found: &mut Findings,
    case: &Case,
    loose: bool,
) -> anyhow::Result<usize> {
    if !loose {
        return Ok(usize::MAX);
    }
    let trace = context.trace(true);
    let first = trace.iter().find(|t| !t.selections.is_empty()).map_or(usize::MAX, |t| t.tokens.start);
    let free: Vec<LayerTrace> = trace.into_iter().filter(|t| t.layer == 0 && !t.selections.is_empty()).collect();
    let rows = Rows::read(case, "candidates")?;
    let (_, counts) = case.indices("candidate_counts")?;
    let (_, centers) = case.indices("centers")?;
    let global = case.param("global_size")?.as_u64().unwrap_or(0) as usize;
    let center_rows = Rows::read(case, "centers")?;
    for t in &free {
        let step = steps.iter().position(|s| s.tokens == t.tokens).context("a traced step is scheduled")?;
        let (what, ours) = (format!("step {step}, layer 0"), &t.selections[0]);
        let range = rows.of(step, 0).with_context(|| format!("{what}: no candidates recorded"))?;
        let candidates: Vec<usize> = ours.candidates.iter().map(|c| *c as usize - global).collect();
        let votes: Vec<usize> = ours.votes.iter().map(|v| *v as usize).collect();
        found.lists(&format!("{what}: candidates"), &candidates, &rows.values[range.clone()]);
        found.lists(&format!("{what}: votes"), &votes, &counts[range]);
        let of = |center: usize| candidates.iter().position(|c| *c == center).map_or(0, |i| votes[i]);
        let range = center_rows.of(step, 0).with_context(|| format!("{what}: no centres recorded"))?;
        let mut want: Vec<usize> = centers[range].iter().map(|c| of(*c)).collect();
        let mut got: Vec<usize> = ours.centres.iter().map(|c| of(*c as usize - global)).collect();
        want.sort_unstable();
        got.sort_unstable();
        found.lists(&format!("{what}: votes of the centres"), &got, &want);
        found.selections += 1;
    }
    Ok(first)
}

/// Kind, start and end of every forward call, and whether it selected.
fn compare_steps(case: &Case, steps: &[Step], trace: &[LayerTrace], found: &mut Findings) -> anyhow::Result<()> {
    if !case.has("steps") {
        return Ok(());
    }
    let (shape, want) = case.integers("steps")?;
    ensure!(shape.len() == 2 && shape[1] >= 3, "`steps` is {shape:?}");
    let selects = case.has("selected_index");
    let row = |s: &Step| {
        let used = trace.iter().any(|t| t.tokens == s.tokens && !t.selections.is_empty());
        let mut row = vec![usize::from(s.kind == StepKind::Decode), s.tokens.start, s.tokens.end];
        row.extend(selects.then_some(usize::from(used)));
        row.into_iter().map(|x| x as i32).collect()
    };
    let got: Vec<Vec<i32>> = steps.iter().map(row).collect();
    let want: Vec<Vec<i32>> = want.chunks(shape[1]).map(|r| r[..3 + usize::from(selects)].to_vec()).collect();
    found.lists("steps (kind, start, end, selects)", &got, &want);
    Ok(())
}

/// Candidates, their votes, centres and selected positions of every step and layer.
fn compare_selections(case: &Case, steps: &[Step], trace: &[LayerTrace], found: &mut Findings) -> anyhow::Result<()> {
    if !case.has("selected_index") {
        return Ok(());
    }
    let global = case.param("global_size")?.as_u64().unwrap_or(0) as usize;
    let (_, counts) = case.indices("candidate_counts")?;
    let [selected, centers, candidates] =
        [("selected", "selected_positions"), ("centers", "centers"), ("candidates", "candidates")]
            .map(|(index, values)| Rows::read_as(case, index, values));
    let (selected, centers, candidates) = (selected?, centers?, candidates?);
    let mut seen = 0;
    for t in trace.iter().filter(|t| !t.selections.is_empty()) {
        let step = steps.iter().position(|s| s.tokens == t.tokens).context("a traced step is scheduled")?;
        let (ours, what) = (&t.selections[0], format!("step {step}, layer {}", t.layer));
        let relative = |tokens: &[u32]| tokens.iter().map(|t| *t as usize - global).collect::<Vec<_>>();
        let absolute: Vec<usize> = ours.tokens.iter().map(|t| *t as usize).collect();
        let votes: Vec<usize> = ours.votes.iter().map(|v| *v as usize).collect();
        let range = candidates.of(step, t.layer).with_context(|| format!("{what}: nothing was recorded"))?;
        found.lists(&format!("{what}: candidates"), &relative(&ours.candidates), &candidates.values[range.clone()]);
        found.lists(&format!("{what}: votes"), &votes, &counts[range]);
        for (name, rows, got) in
            [("centres", &centers, relative(&ours.centres)), ("selected positions", &selected, absolute)]
        {
            let range = rows.of(step, t.layer).with_context(|| format!("{what}: no {name} recorded"))?;
            found.lists(&format!("{what}: {name}"), &got, &rows.values[range]);
        }
        seen += 1;
    }
    if seen != selected.index.len() {
        found.failures.push(format!("{seen} selections instead of {}", selected.index.len()));
    }
    found.selections += seen;
    Ok(())
}

/// Ragged rows: (step, layer) and where the row lies in the flat values.
struct Rows {
    index: Vec<[usize; 4]>,
    values: Vec<usize>,
}

impl Rows {
    fn read(case: &Case, name: &str) -> anyhow::Result<Self> {
        Self::read_as(case, name, name)
    }

    fn read_as(case: &Case, index: &str, values: &str) -> anyhow::Result<Self> {
        let (shape, index) = case.indices(&format!("{index}_index"))?;
        ensure!(shape.len() == 2 && shape[1] == 4, "an index of {values} is {shape:?}");
        let (_, values) = case.indices(values)?;
        let index: Vec<[usize; 4]> = index.chunks_exact(4).map(|r| [r[0], r[1], r[2], r[3]]).collect();
        ensure!(index.iter().all(|r| r[2] + r[3] <= values.len()), "a row lies outside its values");
        Ok(Self { index, values })
    }

    fn of(&self, step: usize, layer: usize) -> Option<std::ops::Range<usize>> {
        self.index.iter().find(|r| r[0] == step && r[1] == layer).map(|r| r[2]..r[2] + r[3])
    }
}
