//! A context: the store, a method and a backend, as the layers of a model see them.

mod layers;
mod on_device;
#[cfg(test)]
mod sliding_tests;

use crate::ModelShape;
use crate::methods::{Appended, Archived, Entries, LayerCall, Method, Selection, Step, StepKind, settled};
use crate::rope::{RopeConfig, Ropes};
use crate::settings::MethodError;
use crate::slots::Slots;
use crate::store::{KvDtype, Store, TruncateError};
use layers::{LayerRopes, add_sinks, sliding_view};
use reattention_kernels::profile::Part;
use reattention_kernels::{Backend, KvView, LogitRule, Queries, Segment};
use std::ops::Range;
use std::sync::Arc;

/// The memory of one session: what was read so far, and how it is attended to.
#[derive(Debug)]
pub struct Context {
    shape: ModelShape,
    store: Store,
    slots: Slots,
    ropes: LayerRopes,
    method: Box<dyn Method>,
    backend: Arc<dyn Backend>,
    step: Option<Step>,
    /// What an ephemeral step lets each layer keep: the slots of each KV head.
    distilled: Vec<Vec<Vec<u32>>>,
    /// The model's last hidden state of the last token read; empty where it is not known or nobody wants it.
    last_state: Vec<f32>,
    /// The earliest point a roll-back must stay possible to.
    pinned: Option<Pin>,
    attended_max: usize,
    /// In steps in which a device chose: the most keys besides, and the most there could have been with those chosen.
    around_chosen: (usize, usize),
    trace: Option<Vec<LayerTrace>>,
    /// Entries of the trace that steps before the running one made.
    traced: usize,
    mass: Option<Vec<f32>>,
    /// What the running step adds to it, by token.
    mass_of_step: Vec<(usize, f32)>,
}

/// A point to come back to.
#[derive(Debug)]
struct Pin {
    /// Tokens read.
    tokens: usize,
    /// Slots that hold them, until the store is compacted.
    slots: usize,
    /// The last hidden state there.
    last_state: Vec<f32>,
    /// What was cached there, once the store has been compacted since.
    saved: Option<(Store, Slots)>,
}

/// What one layer of one step selected and looked at.
#[derive(Clone, Debug)]
pub struct LayerTrace {
    /// The layer.
    pub layer: usize,
    /// The tokens of the step.
    pub tokens: Range<usize>,
    /// One selection for the layer, or one a KV head.
    pub selections: Vec<Selection>,
    /// What was attended to: one list of segments for all KV heads, or one a KV head.
    pub segments: Vec<Vec<Segment>>,
    /// The tokens of the slots that the segments of each list speak of; empty while every slot is its token's index.
    pub slots: Vec<Vec<u32>>,
    /// The attention that the keys of each list of segments got, one number a key in the list's order, added up over the
    /// query heads that the list serves: each head gives 1 in all. Only of decode steps while [`Context::record_mass`]
    /// is on; empty otherwise.
    pub mass: Vec<Vec<f32>>,
    /// Blocks of tokens that the method put away before it made the view.
    pub archived: Vec<Archived>,
}

impl LayerTrace {
    /// Whether list `list` of the segments let the step's last token see token `token`.
    pub fn holds(&self, list: usize, token: usize) -> bool {
        let slot = match self.slots.get(list) {
            None => Some((token, self.tokens.end - 1)),
            // Heads keep what they choose, so tokens ascend but may be missing.
            Some(slots) => slots.binary_search(&(token as u32)).ok().map(|slot| (slot, slots.len() - 1)),
        };
        slot.is_some_and(|(slot, query)| {
            self.segments[list].iter().any(|s| s.keys.contains(slot) && s.band.sees(query, slot))
        })
    }
}

impl Context {
    /// An empty context. `rope` replaces the model's own frequencies.
    pub fn new(
        shape: &ModelShape,
        method: Box<dyn Method>,
        rope: Option<RopeConfig>,
        kv: KvDtype,
        backend: Arc<dyn Backend>,
    ) -> Self {
        let device = backend.device().filter(|_| method.suits_device());
        Self {
            shape: shape.clone(),
            store: device.map_or_else(|| Store::new(shape, kv), |device| Store::on(device, shape, kv)),
            slots: Slots::default(),
            ropes: LayerRopes::new(
                Ropes::new(rope.unwrap_or_else(|| shape.rope.clone()), shape.head_dim),
                shape,
            ),
            method: settled(method, backend.as_ref()),
            backend,
            step: None,
            distilled: Vec::new(),
            last_state: Vec::new(),
            pinned: None,
            attended_max: 0,
            around_chosen: (0, 0),
            trace: None,
            traced: 0,
            mass: None,
            mass_of_step: Vec::new(),
        }
    }

    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.slots.tokens(self.store.len())
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        self.method.as_ref()
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Tokens whose keys and values are still there, in memory or on disk; after a compaction, as many for each KV head.
    pub fn kept(&self) -> usize {
        self.store.held()
    }

    /// Memory held by keys and values, those of a pinned state included, in bytes.
    pub fn kv_bytes(&self) -> usize {
        let saved = self.pinned.as_ref().and_then(|pin| pin.saved.as_ref());
        self.store.bytes() + saved.map_or(0, |(store, _)| store.bytes())
    }

    /// The tokens of the ephemeral step to feed before `step`, so that the method can make room for it
    /// ([`Method::catalyst`]).
    ///
    /// # Errors
    /// When it cannot.
    pub fn catalyst(&self, step: &Step) -> Result<Option<Arc<[u32]>>, MethodError> {
        if step.kind == StepKind::Ephemeral {
            return Ok(None);
        }
        self.method.catalyst(self.store.len(), step.tokens.len())
    }

    /// Tells the method the tokens of its catalyst ([`Method::catalyst_source`]).
    pub fn set_catalyst(&mut self, ids: &[u32]) {
        self.method.set_catalyst(ids);
    }

    /// Disk space taken by keys and values, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }

    /// The most keys any query has attended to.
    pub fn attended_max(&self) -> usize {
        let (around, most) = self.around_chosen;
        // A device that answered for its logits answers for this; should it not, the bound is true, too.
        let chosen = self.store.chosen_most().map_or(most, |n| if most > 0 { around + n } else { 0 });
        self.attended_max.max(chosen)
    }

    /// The steps in which the tokens `tokens` of a prompt are to be fed now; see [`Method::schedule`]. The method is told of
    /// the prompt, which some need to know before its first step, and frequencies that follow the length are those of
    /// `tokens.end` from now on, so that they do not depend on how the prompt is cut.
    pub fn schedule(&mut self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        self.ropes.each().for_each(|ropes| ropes.plan(tokens.end));
        let steps = self.method.schedule(tokens.clone(), question);
        self.method.expect(tokens, question);
        steps
    }

    /// Starts a step. Its tokens must follow those already read.
    ///
    /// # Panics
    /// If they do not.
    pub fn begin(&mut self, step: &Step) {
        assert_eq!(step.tokens.start, self.len(), "a step must start where the context ends");
        self.method.begin(step, &mut self.ropes.full);
        self.step = Some(step.clone());
        self.traced = self.trace.as_ref().map_or(0, Vec::len);
    }

    /// Attention of one layer of the running step: appends raw keys and values `[q_len, n_kv_heads, head_dim]`, asks the
    /// method for a view, and attends to it with the raw queries `q: [q_len, n_heads, head_dim]`, into `out` alike. A layer
    /// with a sliding window sees that, whatever the method. `sinks: [n_heads]` are logits of keys without values, one a
    /// head, that take part in the softmax (gpt-oss).
    ///
    /// # Errors
    /// When the method refuses, the disk does not take what it keeps there, or the device of the backend fails. The step must
    /// then be ended by [`Context::abort`].
    ///
    /// # Panics
    /// Outside a step: between [`Context::begin`] and [`Context::finish`] is where a layer may call.
    pub fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        sinks: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), MethodError> {
        if layer == 0 {
            // Before the step: what it appends is not part of the context yet.
            let cold = self.method.cold(self.len());
            self.store.freeze(cold)?;
        }
        self.append(layer, k, v)?;
        let step = self.step.as_ref().expect("attend is called within a step");
        let backend = self.backend.as_ref();
        backend.mark(Part::Selection);
        let kv = self.store.view(layer);
        let queries = Queries {
            data: q,
            n_heads: self.shape.n_heads,
            q_len: step.tokens.len(),
            head_dim: self.shape.head_dim,
            first: kv.len - step.tokens.len(),
        };
        let attention = self.shape.layers[layer];
        let ropes = self.ropes.of(attention);
        ropes.begin_view();
        let rule = self.shape.logit_rule();
        let mut call = LayerCall { layer, step, q: queries, kv, ropes, rule, backend };
        let view = match attention.window {
            Some(window) => sliding_view(step.tokens.clone(), window, call.ropes)?,
            None => self.method.view(&mut call)?,
        };
        let attended = view.segments.iter().map(|s| attended(s, kv.len - 1)).max().unwrap_or(0);
        self.attended_max = self.attended_max.max(attended);
        let factor = call.ropes.logit_factor();
        let rule = LogitRule { scale: factor * rule.scale, ..rule };
        let scaled = view.scales.as_deref().map(|scales| scaled(q, scales));
        let turned = view.queries.as_deref().or(scaled.as_deref());
        let queries = Queries { data: turned.unwrap_or(q), ..queries };
        let is_ephemeral = step.kind == StepKind::Ephemeral;
        let is_recorded = self.mass.is_some() && step.kind == StepKind::Decode;
        let wants_lse = is_ephemeral || is_recorded || !view.watched.is_empty() || sinks.is_some();
        let mut lse = vec![0.0; if wants_lse { queries.q_len * queries.n_heads } else { 0 }];
        let wanted = wants_lse.then_some(lse.as_mut_slice());
        backend.attend(&queries, &kv, &view.segments, rule, out, wanted)?;
        if let Some(sinks) = sinks {
            add_sinks(sinks, out, &mut lse);
        }
        if !view.watched.is_empty() {
            let watched: Vec<Vec<Segment>> =
                view.segments.iter().map(|list| list[view.watched.clone()].to_vec()).collect();
            let mass = backend.key_mass(&queries, &kv, &watched, rule, &lse)?;
            self.method.watch(&mut call, mass);
        }
        view.cooled.iter().for_each(|tokens| self.store.cool(layer, tokens.clone()));
        if is_ephemeral {
            let mass = backend.key_mass(&queries, &kv, &view.segments, rule, &lse)?;
            let heads = 0..if self.method.wants_losses() { self.shape.n_kv_heads } else { 0 };
            let slots = self.store.len();
            let losses: Vec<_> = heads.map(|head| self.slots.losses(layer, head, slots)).collect();
            let mass = mass_of_slots(&mass, &view.segments, slots);
            if let Some(kept) = self.method.distil(&Entries { layer, slots, mass: &mass, losses: &losses }) {
                self.store.check_kept(layer, &kept).map_err(|reason| MethodError::Contradiction {
                    method: self.method.spec().name,
                    reason,
                })?;
                self.distilled.push(kept);
            }
            return Ok(());
        }
        let slots = &self.slots;
        assert!(
            !slots.is_compacted() || view.segments.len() == self.shape.n_kv_heads,
            "KV heads that keep different tokens have a list of segments each"
        );
        let mut mass_by_list = Vec::new();
        if is_recorded {
            let by_head = backend.key_mass(&queries, &kv, &view.segments, rule, &lse)?;
            mass_by_list = mass_of_lists(&by_head, view.segments.len());
            for (head, (list, of_list)) in view.segments.iter().zip(&mass_by_list).enumerate() {
                let keys = list.iter().flat_map(|s| (0..s.keys.len()).map(|rank| s.keys.token(rank)));
                self.mass_of_step
                    .extend(keys.zip(of_list).map(|(slot, m)| (slots.token(layer, head, slot), *m)));
            }
        }
        if let Some(trace) = &mut self.trace {
            let tokens = |head| (0..kv.len).map(|slot| slots.token(layer, head, slot) as u32).collect();
            let lists = 0..if slots.is_compacted() { view.segments.len() } else { 0 };
            trace.push(LayerTrace {
                layer,
                tokens: step.tokens.clone(),
                selections: view.selections,
                segments: view.segments,
                slots: lists.map(tokens).collect(),
                mass: mass_by_list,
                archived: view.archived,
            });
        }
        Ok(())
    }

    /// The part of [`Context::attend`] that later steps build on: appends raw keys and values to one layer. Enough where
    /// nobody wants the layer's output and [`Context::may_skip_view`].
    ///
    /// # Errors
    /// When the device of the backend fails; as [`Context::attend`].
    ///
    /// # Panics
    /// Outside a step.
    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<(), MethodError> {
        let step = self.step.as_ref().expect("a layer appends within a step");
        self.backend.mark(Part::Append);
        self.store.append(layer, k, v);
        self.backend.mark(Part::Index);
        let (kv, backend) = (self.store.view(layer), self.backend.as_ref());
        // Nobody looks for keys where the window decides.
        if self.shape.layers[layer].window.is_none() {
            self.method.learn(&Appended { layer, step, kv, backend })?;
        }
        Ok(())
    }

    /// Raw keys and values that one layer has cached.
    pub fn cached(&self, layer: usize) -> KvView<'_> {
        self.store.view(layer)
    }

    /// Whether a view that nobody attends to need not be made: nothing later, and no trace, would miss it.
    pub fn may_skip_view(&self) -> bool {
        let is_ephemeral = self.step.as_ref().is_some_and(|s| s.kind == StepKind::Ephemeral);
        self.method.is_view_stateless() && self.trace.is_none() && !is_ephemeral && !self.wants_losses()
    }

    /// Ends the step: its tokens are part of the context, and what no later step needs is released. An ephemeral step is
    /// forgotten, and the store compacted to what the method has distilled.
    pub fn finish(&mut self) {
        let step = self.step.take();
        if step.is_some_and(|s| s.kind == StepKind::Ephemeral) {
            self.forget();
            self.compact();
            return;
        }
        self.store.commit();
        self.last_state.clear();
        let len = self.len();
        if let Some(mass) = self.mass.as_mut().filter(|_| !self.mass_of_step.is_empty()) {
            mass.resize(mass.len().max(len), 0.0);
            self.mass_of_step.drain(..).for_each(|(token, m)| mass[token] += m);
        }
        let needed = self.pinned.as_ref().map_or(len, |p| p.tokens.min(len));
        self.release(needed);
    }

    /// Whether the method wants to know the loss of every token read ([`Method::wants_losses`]).
    pub fn wants_losses(&self) -> bool {
        self.method.wants_losses()
    }

    /// The state given to [`Context::note_losses`] for the last token read, from which the loss of the next one follows;
    /// empty where it is not known: before the first token, and after a roll-back to a point that was not pinned.
    pub fn last_state(&self) -> &[f32] {
        &self.last_state
    }

    /// Takes note of the losses of the last tokens read, and of the model's last hidden state of the last of them. Tokens
    /// before them whose losses were never told are taken for unpredicted.
    pub fn note_losses(&mut self, losses: &[f32], last_state: &[f32]) {
        self.slots.note(self.store.len() - losses.len(), losses);
        self.last_state = last_state.to_vec();
    }

    /// Drops what an unfinished step has appended and what was announced and not read ([`Context::schedule`]), so that the
    /// context stands where it stood before, and goes on as if no more had ever been meant to come.
    pub fn abort(&mut self) {
        let was_running = self.step.take().is_some();
        self.distilled.clear();
        self.mass_of_step.clear();
        if let Some(trace) = self.trace.as_mut().filter(|_| was_running) {
            trace.truncate(self.traced);
        }
        self.forget();
        let n = self.len();
        self.ropes.each().for_each(|ropes| ropes.truncate(n));
    }

    /// Drops what was appended after the last token read.
    fn forget(&mut self) {
        self.store.abort();
        self.method.truncate(self.len());
    }

    /// Keeps of the store what was distilled, if anything was.
    fn compact(&mut self) {
        let kept = std::mem::take(&mut self.distilled);
        if kept.is_empty() {
            return;
        }
        if let Some(pin) = self.pinned.as_mut().filter(|p| p.saved.is_none()) {
            let mut saved = (self.store.copy(pin.slots), self.slots.clone());
            saved.1.truncate(saved.0.len());
            pin.saved = Some(saved);
        }
        self.slots.compact(&kept, self.store.len());
        self.store.compact(&kept);
    }

    /// Rolls back to the first `n` tokens.
    ///
    /// # Errors
    /// When the method has released or compacted tokens needed to go on from there, or no longer knows its state of then;
    /// [`Context::pin`] prevents that.
    pub fn truncate(&mut self, n: usize) -> Result<(), TruncateError> {
        if n < self.len() {
            if !self.method.returns_to(n) {
                return Err(TruncateError::Forgotten { to: n, method: self.method.spec().name });
            }
            self.roll_back(n)?;
        }
        self.method.truncate(n);
        self.ropes.each().for_each(|ropes| ropes.truncate(n));
        Ok(())
    }

    /// Rolls the store and what is known of its slots back to the first `n` tokens.
    fn roll_back(&mut self, n: usize) -> Result<(), TruncateError> {
        let slots = match self.slots.slots(n) {
            Some(slots) => slots,
            None => {
                let saved = self.pinned.as_mut().and_then(|pin| {
                    let (_, slots) = pin.saved.as_ref().filter(|_| n <= pin.tokens)?;
                    Some((slots.slots(n)?, pin.saved.take()?))
                });
                let floor = self.slots.read();
                let (slots, saved) = saved.ok_or(TruncateError::Released { to: n, floor })?;
                (self.store, self.slots) = saved;
                slots
            }
        };
        self.store.truncate(slots)?;
        self.slots.truncate(slots);
        self.last_state.clear();
        match &mut self.pinned {
            Some(pin) if pin.tokens == n => self.last_state.clone_from(&pin.last_state),
            // The point that was pinned is gone: what can still be returned to is this one.
            Some(pin) if pin.tokens > n => {
                (pin.tokens, pin.slots, pin.last_state) = (n, slots, Vec::new());
            }
            _ => {}
        }
        Ok(())
    }

    /// Keeps whatever is needed to roll back to the current length; `unpin` ends it.
    pub fn pin(&mut self) {
        let (tokens, slots) = (self.len(), self.store.len());
        self.pinned = Some(Pin { tokens, slots, last_state: self.last_state.clone(), saved: None });
        self.method.pin(self.len());
    }

    /// Ends [`Context::pin`].
    pub fn unpin(&mut self) {
        self.pinned = None;
        self.method.unpin();
    }

    /// Records the selections of the following steps, or stops; returns those recorded so far.
    pub fn trace(&mut self, on: bool) -> Vec<LayerTrace> {
        std::mem::replace(&mut self.trace, on.then(Vec::new)).unwrap_or_default()
    }

    /// Adds up how much attention the tokens of following decode steps pay to each token (over layers and heads), or
    /// stops; returns what was added up so far, by token index.
    ///
    /// # Errors
    /// When a device that has added it up does not tell; it is forgotten then.
    pub fn record_mass(&mut self, on: bool) -> Result<Vec<f32>, MethodError> {
        let recorded = std::mem::replace(&mut self.mass, on.then(Vec::new)).unwrap_or_default();
        match self.store.device() {
            Some(device) => Ok(device.take_mass()?),
            None => Ok(recorded),
        }
    }
}

/// The queries `q: [scales.len(), _]`, those of each token multiplied with its scale.
fn scaled(q: &[f32], scales: &[f32]) -> Vec<f32> {
    let rows = q.chunks_exact(q.len() / scales.len());
    rows.zip(scales).flat_map(|(row, scale)| row.iter().map(move |x| x * scale)).collect()
}

/// The attention that the keys of each list of segments get; see [`LayerTrace::mass`].
fn mass_of_lists(by_head: &[Vec<f32>], lists: usize) -> Vec<Vec<f32>> {
    let sum = |heads: &[Vec<f32>]| {
        let mut total = heads[0].clone();
        heads[1..].iter().for_each(|h| total.iter_mut().zip(h).for_each(|(t, m)| *t += m));
        total
    };
    by_head.chunks(by_head.len() / lists).map(sum).collect()
}

/// The attention that slots below `slots` get from each query head, of what the keys of its list of segments get.
fn mass_of_slots(by_head: &[Vec<f32>], views: &[Vec<Segment>], slots: usize) -> Vec<Vec<f32>> {
    let of_head = |(head, mass): (usize, &Vec<f32>)| {
        let mut by_slot = vec![0.0; slots];
        let list = &views[head * views.len() / by_head.len()];
        let keys = list.iter().flat_map(|s| (0..s.keys.len()).map(|rank| s.keys.token(rank)));
        keys.zip(mass).filter(|(slot, _)| *slot < slots).for_each(|(slot, m)| by_slot[slot] += m);
        by_slot
    };
    by_head.iter().enumerate().map(of_head).collect()
}

/// Keys of a list of segments that the query in slot `query` sees.
fn attended(segments: &[Segment], query: usize) -> usize {
    segments
        .iter()
        .map(|s| {
            let visible = |rank: &usize| s.band.sees(query, s.keys.token(*rank));
            // Distances fall with the rank, so the visible keys are consecutive.
            let (mut low, mut high) = (0, s.keys.len());
            while low < high && !visible(&low) {
                low += 1;
            }
            while high > low && !visible(&(high - 1)) {
                high -= 1;
            }
            high - low
        })
        .sum()
}
