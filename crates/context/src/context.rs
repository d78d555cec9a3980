//! A context: the store, a method and a backend, as the layers of a model see them.

use crate::ModelShape;
use crate::methods::{Appended, LayerCall, Method, Selection, Step, StepKind};
use crate::rope::{RopeConfig, Ropes};
use crate::settings::MethodError;
use crate::store::{KvDtype, Store, TruncateError};
use reattention_kernels::profile::Part;
use reattention_kernels::{Backend, KvView, Queries, Segment};
use std::ops::Range;
use std::sync::Arc;

/// The memory of one session: what was read so far, and how it is attended to.
#[derive(Debug)]
pub struct Context {
    shape: ModelShape,
    store: Store,
    ropes: Ropes,
    method: Box<dyn Method>,
    backend: Arc<dyn Backend>,
    step: Option<Step>,
    /// The earliest token a roll-back must stay possible to.
    pinned: Option<usize>,
    attended_max: usize,
    trace: Option<Vec<LayerTrace>>,
    mass: Option<Vec<f32>>,
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
    /// The attention that the keys of each list of segments got, one number a key in the list's order, added up over the
    /// query heads that the list serves: each head gives 1 in all. Only of decode steps while [`Context::record_mass`]
    /// is on; empty otherwise.
    pub mass: Vec<Vec<f32>>,
}

impl LayerTrace {
    /// Whether list `list` of the segments let the step's last token see token `token`.
    pub fn holds(&self, list: usize, token: usize) -> bool {
        let query = self.tokens.end - 1;
        self.segments[list].iter().any(|s| s.keys.contains(token) && s.band.sees(query, token))
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
        Self {
            shape: shape.clone(),
            store: Store::new(shape, kv),
            ropes: Ropes::new(rope.unwrap_or_else(|| shape.rope.clone())),
            method,
            backend,
            step: None,
            pinned: None,
            attended_max: 0,
            trace: None,
            mass: None,
        }
    }

    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        self.method.as_ref()
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Tokens whose keys and values are still in memory.
    pub fn kept(&self) -> usize {
        self.store.held()
    }

    /// Memory held by keys and values, in bytes.
    pub fn kv_bytes(&self) -> usize {
        self.store.bytes()
    }

    /// The most keys any query has attended to.
    pub fn attended_max(&self) -> usize {
        self.attended_max
    }

    /// The steps in which the tokens `tokens` of a prompt are to be fed now; see [`Method::schedule`]. The method is told of
    /// the prompt, which some need to know before its first step, and frequencies that follow the length are those of
    /// `tokens.end` from now on, so that they do not depend on how the prompt is cut.
    pub fn schedule(&mut self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        self.ropes.plan(tokens.end);
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
        self.method.begin(step, &mut self.ropes);
        self.step = Some(step.clone());
    }

    /// Attention of one layer of the running step: appends raw keys and values `[q_len, n_kv_heads, head_dim]`, asks the
    /// method for a view, and attends to it with the raw queries `q: [q_len, n_heads, head_dim]`, into `out` alike.
    ///
    /// # Errors
    /// When the method refuses.
    ///
    /// # Panics
    /// Outside a step: between [`Context::begin`] and [`Context::finish`] is where a layer may call.
    pub fn attend(
        &mut self,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
    ) -> Result<(), MethodError> {
        self.append(layer, k, v);
        let step = self.step.as_ref().expect("attend is called within a step");
        let backend = self.backend.as_ref();
        backend.mark(Part::Selection);
        let kv = self.store.view(layer);
        let queries = Queries {
            data: q,
            n_heads: self.shape.n_heads,
            q_len: step.tokens.len(),
            head_dim: self.shape.head_dim,
            first: step.tokens.start,
        };
        self.ropes.begin_view();
        let mut call = LayerCall { layer, step, q: queries, kv, ropes: &mut self.ropes, backend };
        let view = self.method.view(&mut call)?;
        let attended = view.segments.iter().map(|s| attended(s, step.tokens.end - 1)).max().unwrap_or(0);
        self.attended_max = self.attended_max.max(attended);
        let scale = call.ropes.logit_factor() / (self.shape.head_dim as f32).sqrt();
        let queries = Queries { data: view.queries.as_deref().unwrap_or(q), ..queries };
        let is_recorded = self.mass.is_some() && step.kind == StepKind::Decode;
        let mut lse =
            vec![
                0.0;
                if is_recorded || !view.watched.is_empty() { queries.q_len * queries.n_heads } else { 0 }
            ];
        let wanted = (!lse.is_empty()).then_some(lse.as_mut_slice());
        backend.attend(&queries, &kv, &view.segments, scale, out, wanted);
        if !view.watched.is_empty() {
            let watched: Vec<Vec<Segment>> =
                view.segments.iter().map(|list| list[view.watched.clone()].to_vec()).collect();
            let mass = backend.key_mass(&queries, &kv, &watched, scale, &lse);
            self.method.watch(&mut call, &mass);
        }
        let mut mass_by_list = Vec::new();
        if let Some(mass) = self.mass.as_mut().filter(|_| is_recorded) {
            let by_head = backend.key_mass(&queries, &kv, &view.segments, scale, &lse);
            mass_by_list = mass_of_lists(&by_head, view.segments.len());
            mass.resize(mass.len().max(kv.len), 0.0);
            for (list, of_list) in view.segments.iter().zip(&mass_by_list) {
                let tokens = list.iter().flat_map(|s| (0..s.keys.len()).map(|rank| s.keys.token(rank)));
                tokens.zip(of_list).for_each(|(t, m)| mass[t] += m);
            }
        }
        if let Some(trace) = &mut self.trace {
            trace.push(LayerTrace {
                layer,
                tokens: step.tokens.clone(),
                selections: view.selections,
                segments: view.segments,
                mass: mass_by_list,
            });
        }
        Ok(())
    }

    /// The part of [`Context::attend`] that later steps build on: appends raw keys and values to one layer. Enough where
    /// nobody wants the layer's output and [`Context::may_skip_view`].
    ///
    /// # Panics
    /// Outside a step.
    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let step = self.step.as_ref().expect("a layer appends within a step");
        self.backend.mark(Part::Append);
        self.store.append(layer, k, v);
        self.backend.mark(Part::Index);
        let (kv, backend) = (self.store.view(layer), self.backend.as_ref());
        self.method.learn(&Appended { layer, step, kv, backend });
    }

    /// Raw keys and values that one layer has cached.
    pub fn cached(&self, layer: usize) -> KvView<'_> {
        self.store.view(layer)
    }

    /// Whether a view that nobody attends to need not be made: nothing later, and no trace, would miss it.
    pub fn may_skip_view(&self) -> bool {
        self.method.is_view_stateless() && self.trace.is_none()
    }

    /// Ends the step: its tokens are part of the context, and what no later step needs is released.
    pub fn finish(&mut self) {
        self.step = None;
        self.store.commit();
        let len = self.len();
        let needed = self.pinned.map_or(len, |p| p.min(len));
        if let Some(range) = self.method.release(needed) {
            self.store.release(range, needed);
        }
    }

    /// Drops what an unfinished step has appended, so that the context stands where it stood before.
    pub fn abort(&mut self) {
        if self.step.take().is_some() {
            let len = self.len();
            self.store.truncate(len).expect("the committed length is never below the floor");
            self.method.truncate(len);
        }
    }

    /// Rolls back to the first `n` tokens.
    ///
    /// # Errors
    /// When the method has released tokens needed to go on from there; [`Context::pin`] prevents that.
    pub fn truncate(&mut self, n: usize) -> Result<(), TruncateError> {
        self.store.truncate(n)?;
        self.method.truncate(n);
        self.ropes.truncate(n);
        Ok(())
    }

    /// Keeps whatever is needed to roll back to the current length; `unpin` ends it.
    pub fn pin(&mut self) {
        self.pinned = Some(self.len());
    }

    /// Ends [`Context::pin`].
    pub fn unpin(&mut self) {
        self.pinned = None;
    }

    /// Records the selections of the following steps, or stops; returns those recorded so far.
    pub fn trace(&mut self, on: bool) -> Vec<LayerTrace> {
        std::mem::replace(&mut self.trace, on.then(Vec::new)).unwrap_or_default()
    }

    /// Adds up how much attention the tokens of following decode steps pay to each token (over layers and heads), or
    /// stops; returns what was added up so far, by token index.
    pub fn record_mass(&mut self, on: bool) -> Vec<f32> {
        std::mem::replace(&mut self.mass, on.then(Vec::new)).unwrap_or_default()
    }
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

/// Keys of a list of segments that the query of token index `query` sees.
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
