//! Running one case on one backend.

use crate::compare::{Findings, Votes};
use crate::probe::{NearTie, Probe};
use crate::{Case, blocks, methods};
use anyhow::{Context as _, ensure};
use reattention::methods::Selection;
use reattention::methods::{Step, StepKind, build};
use reattention::rope::{Clex, RopeConfig, RopeScaling};
use reattention::{Context, KvDtype, LayerTrace, ModelShape, Settings};
use reattention_kernels::{Backend, Position};
use reattention_model::{Logits, Model, ModelError, Scratch};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Logits of f32 against f32.
const LOGITS: f32 = 1e-3;
/// The same under CLEX, whose growing frequencies multiply a rounding difference by the position.
const CLEX_LOGITS: f32 = 2e-2;
/// Frequencies of CLEX, relative: the published solver works in f32.
const CLEX_FREQUENCIES: f32 = 1e-4;
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
    let model = match case.model(dir) {
        Ok(model) => model,
        Err(error) => match error.downcast_ref::<ModelError>() {
            Some(refusal @ ModelError::Unserved { .. }) => {
                return Ok(Outcome::Skipped(format!("refused by name: {refusal}")));
            }
            _ => return Err(error),
        },
    };
    let twin = match case.text("same_logits_as") {
        Ok(name) => Some(Case::read(dir, name)?),
        Err(_) => None,
    };
    let mut found = Findings::default();
    let probe = Arc::new(Probe::new(Arc::clone(backend)));
    let loose = case.text("count_tie_break").is_ok_and(|t| !t.starts_with("lowest"));
    if let Some(model) = case.gguf_model(dir)? {
        let twin = twin.as_ref();
        let of_file = Runner {
            case: &case,
            twin,
            model: &model,
            probe: &probe,
            method,
            settings: &settings,
            rope: None,
        };
        of_file.check(loose, &mut found)?;
        found.failures.iter_mut().for_each(|failure| *failure = format!("GGUF: {failure}"));
        found.notes.push("and from GGUF".into());
    }
    let rope = methods::rope(&case, &model.shape().rope)?;
    let twin = twin.as_ref();
    let runner =
        Runner { case: &case, twin, model: &model, probe: &probe, method, settings: &settings, rope };
    runner.check(loose, &mut found)?;
    if backend.device().is_some() && !loose {
        runner.on_device(backend, &mut found)?;
        found.notes.push("calls one by one, and the model on the device".into());
    }
    if !found.failures.is_empty() {
        return Ok(Outcome::Failed(found.failures));
    }
    let mut text = format!("max |Δlogit| {:.1e}", found.logits);
    if found.selections > 0 {
        text += &format!(", {} selections equal", found.selections);
    }
    if found.moved > 0 {
        text += &format!(", {} votes moved between near ties", found.moved);
    }
    for note in &found.notes {
        text += &format!(" ({note})");
    }
    Ok(Outcome::Passed(text))
}

fn frequencies(
    case: &Case,
    shape: &ModelShape,
    rope: &RopeConfig,
    found: &mut Findings,
) -> anyhow::Result<()> {
    let prompt = case.ids("input_ids")?.len();
    let is_clex = matches!(rope.scaling, RopeScaling::Clex(_));
    if is_clex {
        found.loose_logits = CLEX_LOGITS;
    }
    let mut relative = |what: &str, got: &[f32], want: &[f32], tolerance: f32| {
        let ratios: Vec<f32> = got.iter().zip(want).map(|(a, b)| a / b).collect();
        found.numbers(what, &ratios, &vec![1.0; want.len()], tolerance);
    };
    if let RopeScaling::Clex(clex) = &rope.scaling {
        clex_frequencies(case, rope, clex, &mut relative)?;
    }
    // CLEX's case holds the plain frequencies.
    let length = if is_clex { 1 } else { prompt };
    let (inv_freq, multiplier) = rope.frequencies(length)?;
    // Where kinds of layers differ, each has frequencies of its own.
    let (sliding_freq, sliding_multiplier) = match &shape.sliding_rope {
        Some(sliding) => sliding.frequencies(length)?,
        None => (inv_freq.clone(), multiplier),
    };
    let kinds = [
        ("", &inv_freq, multiplier),
        (".full_attention", &inv_freq, multiplier),
        (".sliding_attention", &sliding_freq, sliding_multiplier),
    ];
    for (kind, inv_freq, _) in kinds {
        let name = format!("inv_freq{kind}");
        if case.has(&name) {
            let (_, want) = case.floats(&name)?;
            ensure!(
                want.len() == inv_freq.len(),
                "`{name}` has {} numbers, not {}",
                want.len(),
                inv_freq.len()
            );
            relative(&name, inv_freq, &want, 1e-5);
        }
    }
    for (kind, _, multiplier) in kinds {
        let name = format!("rope_attention_scaling{kind}");
        if let Some(want) = case.manifest.get(&name).and_then(Value::as_f64) {
            found.numbers(&name, &[multiplier], &[want as f32], 1e-6);
        }
    }
    Ok(())
}

/// The solution at every recorded `t`, and which of them each forward call takes; 0 stands for the plain frequencies.
fn clex_frequencies(
    case: &Case,
    rope: &RopeConfig,
    clex: &Clex,
    relative: &mut impl FnMut(&str, &[f32], &[f32], f32),
) -> anyhow::Result<()> {
    let (shape, want) = case.floats("scaled_inv_freq_by_t")?;
    ensure!(shape.len() == 2 && shape[1] > 0, "`scaled_inv_freq_by_t` is {shape:?}");
    for (i, want) in want.chunks_exact(shape[1]).enumerate() {
        relative(&format!("frequencies at t = {}", i + 1), clex.at(i + 1)?, want, CLEX_FREQUENCIES);
    }
    let prompt = case.ids("input_ids")?.len();
    for (call, t) in case.indices("t_of_each_call")?.1.into_iter().enumerate() {
        let ours = clex.t(prompt + call, rope.window)?;
        ensure!(ours == t.max(1), "call {call}: t is {ours} instead of {}", t.max(1));
    }
    Ok(())
}

struct Runner<'a> {
    case: &'a Case,
    /// The case whose logits must come out too.
    twin: Option<&'a Case>,
    model: &'a Model,
    probe: &'a Arc<Probe>,
    method: &'static str,
    settings: &'a Settings,
    rope: Option<RopeConfig>,
}

impl Runner<'_> {
    /// Frequencies, prompt and continuation.
    fn check(&self, loose: bool, found: &mut Findings) -> anyhow::Result<()> {
        let shape = self.model.shape();
        frequencies(self.case, shape, self.rope.as_ref().unwrap_or(&shape.rope), found)?;
        self.whole(loose, found)?;
        if self.case.has("greedy_logits_nocache") {
            self.without_cache(found)?;
        }
        Ok(())
    }

    fn context(&self) -> anyhow::Result<Context> {
        let shape = self.model.shape();
        let method = build(self.method, self.settings, shape)?;
        let backend: Arc<dyn Backend> = Arc::clone(self.probe) as _;
        Ok(Context::new(shape, method, self.rope.clone(), KvDtype::F32, backend))
    }

    /// Prompt and greedy continuation. With `loose` ties the case is only comparable up to the first selection.
    fn whole(&self, loose: bool, found: &mut Findings) -> anyhow::Result<()> {
        let (case, prompt) = (self.case, self.case.ids("input_ids")?);
        let mut context = self.context()?;
        context.trace(true);
        let steps = context.schedule(0..prompt.len(), None);
        let mut got = PromptLogits::default();
        let mut scratch = Scratch::default();
        let layers = self.model.shape().n_layers;
        let mut hidden: Vec<Vec<f32>> = vec![Vec::new(); layers + 2];
        for step in &steps {
            let mut observe = |index: usize, states: &[f32]| hidden[index].extend_from_slice(states);
            let ids = &prompt[step.tokens.clone()];
            let logits = self.model.forward(
                ids,
                step,
                &mut context,
                &mut scratch,
                &Logits::All,
                Some(&mut observe),
            )?;
            got.0.extend(logits);
        }
        let vocab = self.model.config().vocab_size;
        let selecting =
            if loose { self.loose_votes(context.trace(true), &steps, found)? } else { usize::MAX };
        let own = [("logit_positions", "logits"), ("prefill_logit_positions", "prefill_logits")];
        let twins = self.twin.into_iter().flat_map(|twin| own.map(|names| (twin, names)));
        for (case, (positions, logits)) in own.map(|names| (case, names)).into_iter().chain(twins) {
            if case.has(logits) {
                let (_, positions) = case.indices(positions)?;
                let (_, want) = case.floats(logits)?;
                for (row, &position) in positions.iter().enumerate() {
                    if !loose || position < selecting {
                        let want = &want[row * vocab..(row + 1) * vocab];
                        found.logits(
                            &format!("{logits} at {position}"),
                            got.row(position, vocab)?,
                            want,
                            LOGITS,
                        );
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
                let want =
                    want.get(row * vocab..(row + 1) * vocab).context("more chunks than chunk_last_logits")?;
                let got = got.row(step.tokens.end - 1, vocab)?;
                found.logits(&format!("last logits of chunk {row}"), got, want, LOGITS);
            }
        }
        let last = got.row(prompt.len() - 1, vocab)?.to_vec();
        self.greedy(&mut context, prompt.len(), last, steps, found)
    }

    /// Prompt and greedy continuation once more, with the whole model on the device: what does not leave it cannot be compared,
    /// but the logits can.
    fn on_device(&self, backend: &Arc<dyn Backend>, found: &mut Findings) -> anyhow::Result<()> {
        let (case, vocab, shape) = (self.case, self.model.config().vocab_size, self.model.shape());
        let prompt = case.ids("input_ids")?;
        let method = build(self.method, self.settings, shape)?;
        let mut context = Context::new(shape, method, self.rope.clone(), KvDtype::F32, Arc::clone(backend));
        let (mut scratch, mut got) = (Scratch::default(), PromptLogits::default());
        for step in &context.schedule(0..prompt.len(), None) {
            let ids = &prompt[step.tokens.clone()];
            got.0.extend(self.model.forward(ids, step, &mut context, &mut scratch, &Logits::All, None)?);
        }
        if case.has("logits") {
            let (_, positions) = case.indices("logit_positions")?;
            let (_, want) = case.floats("logits")?;
            for (row, &position) in positions.iter().enumerate() {
                let want = &want[row * vocab..(row + 1) * vocab];
                let what = format!("on the device: logits at {position}");
                found.logits(&what, got.row(position, vocab)?, want, LOGITS);
            }
        }
        let ids = case.ids("greedy_ids")?;
        let (_, want) = case.floats("greedy_logits")?;
        let mut logits = got.row(prompt.len() - 1, vocab)?.to_vec();
        for (g, &id) in ids.iter().enumerate() {
            let what = format!("on the device: greedy step {g}");
            check_greedy(&what, &logits, id, &want[g * vocab..(g + 1) * vocab], found);
            if g + 1 < ids.len() {
                let step = Step { tokens: prompt.len() + g..prompt.len() + g + 1, kind: StepKind::Decode };
                logits = self.model.forward(&[id], &step, &mut context, &mut scratch, &Logits::Last, None)?;
            }
        }
        Ok(())
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
        // Past LongRoPE's border the published cache mixes keys rotated by both lists; ours holds keys before rotation, so
        // only what is computed anew (`without_cache`) can be compared there.
        let border = match self.model.shape().rope.scaling {
            RopeScaling::LongRope { original_window, .. } if prompt <= original_window => original_window,
            _ => usize::MAX,
        };
        for (g, &id) in ids.iter().enumerate() {
            if prompt + g > border {
                found
                    .notes
                    .push(format!("cached steps compared up to LongRoPE's border, {g} of {}", ids.len()));
                break;
            }
            check_greedy(&format!("greedy step {g}"), &logits, id, &want[g * vocab..(g + 1) * vocab], found);
            if g + 1 < ids.len() {
                let step = Step { tokens: prompt + g..prompt + g + 1, kind: StepKind::Decode };
                logits = self.model.forward(&[id], &step, context, &mut scratch, &Logits::Last, None)?;
                steps.push(step);
            }
        }
        let mut trace = context.trace(true);
        compare_measured(case, context, found)?;
        compare_steps(case, &steps, &trace, found)?;
        compare_positions(case, &steps, &trace, found)?;
        compare_selections(case, &steps, &trace, &self.probe.take(), found)?;
        if case.has("selected_blocks_index") {
            // A block that is complete is put away before the next step looks for blocks.
            if let Some(&id) = ids.last() {
                let end = context.len();
                let step = Step { tokens: end..end + 1, kind: StepKind::Decode };
                self.model.forward(&[id], &step, context, &mut scratch, &Logits::None, None)?;
                let after = context.trace(false).into_iter();
                trace.extend(after.map(|t| LayerTrace { segments: Vec::new(), ..t }));
            }
            blocks::compare(case, &trace, found)?;
        }
        Ok(())
    }

    /// Where ties are unspecified only the votes of layer 0 are comparable, which no earlier choice has touched. Returns
    /// the first token of the first step that selects.
    fn loose_votes(
        &self,
        trace: Vec<LayerTrace>,
        steps: &[Step],
        found: &mut Findings,
    ) -> anyhow::Result<usize> {
        let golden = Golden::read(self.case)?;
        let selecting = trace.iter().filter(|t| !t.selections.is_empty());
        let first = selecting.clone().map(|t| t.tokens.start).min().unwrap_or(usize::MAX);
        for (t, ties) in selecting.zip(self.probe.take()).filter(|(t, _)| t.layer == 0) {
            let (what, row) = golden.row(t, steps)?;
            let (got, want) = (votes(&t.selections[0]), golden.votes(row));
            found.votes(&format!("{what}: votes"), &got, &want, &ties);
            let sorted = |centres: &[usize]| {
                let mut of: Vec<i64> = centres.iter().map(|c| want.get(c).copied().unwrap_or(0)).collect();
                of.sort_unstable();
                of
            };
            let ours: Vec<usize> = t.selections[0].centres.iter().map(|c| *c as usize).collect();
            found.lists(
                &format!("{what}: votes of the centres"),
                &sorted(&ours),
                &sorted(&golden.centers.get(row)),
            );
            found.selections += 1;
        }
        Ok(first)
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
            let logits = self.model.forward(
                &ids,
                &step,
                &mut context,
                &mut Scratch::default(),
                &Logits::Last,
                None,
            )?;
            let what = format!("step {g} without cache");
            check_greedy(&what, &logits, id, &want[g * vocab..(g + 1) * vocab], found);
            ids.push(id);
        }
        Ok(())
    }
}

/// Logits of all tokens of a prompt.
#[derive(Default)]
struct PromptLogits(Vec<f32>);

impl PromptLogits {
    fn row(&self, position: usize, vocab: usize) -> anyhow::Result<&[f32]> {
        self.0
            .get(position * vocab..(position + 1) * vocab)
            .with_context(|| format!("no logits at {position}"))
    }
}

fn check_greedy(what: &str, logits: &[f32], id: u32, want: &[f32], found: &mut Findings) {
    found.logits(what, logits, want, LOGITS);
    let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
    if best as u32 != id && logits[best] - logits[id as usize] > TIE {
        found.failures.push(format!("{what}: token {best} instead of {id}"));
    }
}

/// What the method has measured in each layer.
fn compare_measured(case: &Case, context: &Context, found: &mut Findings) -> anyhow::Result<()> {
    if !case.has("head_order") {
        return Ok(());
    }
    for (row, layer) in methods::apply_layers(case)?.into_iter().enumerate() {
        for (name, ours) in context.method().measured(layer) {
            let (shape, want) = case.indices(name)?;
            ensure!(shape.len() == 2 && shape[0] > row, "`{name}` is {shape:?}");
            let want = &want[row * shape[1]..(row + 1) * shape[1]];
            found.lists(&format!("{name} of layer {layer}"), &ours, want);
        }
    }
    Ok(())
}

/// Kind, start and end of every forward call, and whether it selected.
fn compare_steps(
    case: &Case,
    steps: &[Step],
    trace: &[LayerTrace],
    found: &mut Findings,
) -> anyhow::Result<()> {
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
    let mut got: Vec<Vec<i32>> = steps.iter().map(row).collect();
    let want: Vec<Vec<i32>> = want.chunks(shape[1]).map(|r| r[..3 + usize::from(selects)].to_vec()).collect();
    if case.has("selected_blocks_index") {
        got = one_call_each(&got, &want);
    }
    found.lists("steps (kind, start, end, selects)", &got, &want);
    Ok(())
}

/// Where queries and keys of every forward call stand, in the first layer.
fn compare_positions(
    case: &Case,
    steps: &[Step],
    trace: &[LayerTrace],
    found: &mut Findings,
) -> anyhow::Result<()> {
    if !case.has("query_positions") {
        return Ok(());
    }
    let first: Vec<&LayerTrace> = trace.iter().filter(|t| t.layer == 0).collect();
    ensure!(first.len() == steps.len(), "{} views of {} calls", first.len(), steps.len());
    for (name, index) in
        [("query_positions", "query_positions_index"), ("key_positions", "key_positions_index")]
    {
        let rows = Rows::read(case, index, name, 0)?;
        found.lists(&format!("calls of {name}"), &[steps.len()], &[rows.index.len()]);
        for (call, t) in first.iter().enumerate() {
            let segments = &t.segments[0];
            let at = |p: Position, token: usize, rank: usize| usize::try_from(p.at(token, rank)).ok();
            let got: Option<Vec<usize>> = if name == "query_positions" {
                let own = segments.last().context("a view has segments")?;
                t.tokens.clone().enumerate().map(|(rank, i)| at(own.query_position, i, rank)).collect()
            } else {
                let keys = segments.iter().flat_map(|s| {
                    (0..s.keys.len()).map(move |rank| at(s.key_position, s.keys.token(rank), rank))
                });
                keys.collect()
            };
            found.lists(&format!("{name} of call {call}"), &got.unwrap_or_default(), &rows.get((call, 0)));
        }
    }
    Ok(())
}

/// Steps of execution blocks put together to the forward calls that the published code splits into them.
fn one_call_each(steps: &[Vec<i32>], calls: &[Vec<i32>]) -> Vec<Vec<i32>> {
    let mut steps = steps.iter().peekable();
    let mut together = Vec::new();
    for call in calls {
        let Some(mut row) = steps.next().cloned() else { break };
        while let Some(next) = steps.next_if(|s| s[0] == row[0] && s[1] == row[2] && s[2] <= call[2]) {
            row[2] = next[2];
        }
        together.push(row);
    }
    together.extend(steps.cloned());
    together
}

/// Votes, centres and selected positions of every step and layer.
fn compare_selections(
    case: &Case,
    steps: &[Step],
    trace: &[LayerTrace],
    ties: &[Vec<NearTie>],
    found: &mut Findings,
) -> anyhow::Result<()> {
    if !case.has("selected_index") {
        return Ok(());
    }
    let golden = Golden::read(case)?;
    let selecting: Vec<&LayerTrace> = trace.iter().filter(|t| !t.selections.is_empty()).collect();
    ensure!(selecting.len() == ties.len(), "{} selections, {} searches", selecting.len(), ties.len());
    for (t, ties) in selecting.iter().zip(ties) {
        let (what, row) = golden.row(t, steps)?;
        let ours = &t.selections[0];
        let as_usize = |tokens: &[u32]| tokens.iter().map(|t| *t as usize).collect::<Vec<_>>();
        found.votes(&format!("{what}: votes"), &votes(ours), &golden.votes(row), ties);
        found.lists(&format!("{what}: centres"), &as_usize(&ours.centres), &golden.centers.get(row));
        found.lists(&format!("{what}: selected"), &as_usize(&ours.tokens), &golden.selected.get(row));
    }
    if selecting.len() != golden.selected.index.len() {
        found.failures.push(format!(
            "{} selections instead of {}",
            selecting.len(),
            golden.selected.index.len()
        ));
    }
    found.selections += selecting.len();
    Ok(())
}

fn votes(selection: &Selection) -> Votes {
    selection
        .candidates
        .iter()
        .map(|c| *c as usize)
        .zip(selection.votes.iter().map(|v| i64::from(*v)))
        .collect()
}

/// What the published code selected, as token indices.
struct Golden {
    candidates: Rows,
    counts: Rows,
    centers: Rows,
    selected: Rows,
}

impl Golden {
    fn read(case: &Case) -> anyhow::Result<Self> {
        // Candidates and centres are recorded relative to the middle, selected positions are not.
        let global = case.param("global_size")?.as_u64().context("global_size is a number")? as usize;
        Ok(Self {
            candidates: Rows::read(case, "candidates_index", "candidates", global)?,
            counts: Rows::read(case, "candidates_index", "candidate_counts", 0)?,
            centers: Rows::read(case, "centers_index", "centers", global)?,
            selected: Rows::read(case, "selected_index", "selected_positions", 0)?,
        })
    }

    /// The name and the (step, layer) of a traced selection.
    fn row(&self, t: &LayerTrace, steps: &[Step]) -> anyhow::Result<(String, (usize, usize))> {
        let step = steps.iter().position(|s| s.tokens == t.tokens).context("a traced step is scheduled")?;
        Ok((format!("step {step}, layer {}", t.layer), (step, t.layer)))
    }

    fn votes(&self, row: (usize, usize)) -> Votes {
        let counts = self.counts.get(row).into_iter().map(|c| c as i64);
        self.candidates.get(row).into_iter().zip(counts).collect()
    }
}

/// Ragged rows: (step, layer, offset, length) into flat values.
pub(crate) struct Rows {
    pub(crate) index: Vec<[usize; 4]>,
    values: Vec<usize>,
}

impl Rows {
    pub(crate) fn read(case: &Case, index: &str, values: &str, offset: usize) -> anyhow::Result<Self> {
        let (shape, index) = case.indices(index)?;
        ensure!(shape.len() == 2 && shape[1] == 4, "the index of {values} is {shape:?}");
        let values: Vec<usize> = case.indices(values)?.1.into_iter().map(|v| v + offset).collect();
        let index: Vec<[usize; 4]> = index.chunks_exact(4).map(|r| [r[0], r[1], r[2], r[3]]).collect();
        ensure!(index.iter().all(|r| r[2] + r[3] <= values.len()), "a row lies outside its values");
        Ok(Self { index, values })
    }

    /// One row; nothing if it was not recorded.
    pub(crate) fn get(&self, (step, layer): (usize, usize)) -> Vec<usize> {
        let row = self.index.iter().find(|r| r[0] == step && r[1] == layer);
        row.map_or(Vec::new(), |r| self.values[r[2]..r[2] + r[3]].to_vec())
    }
}
