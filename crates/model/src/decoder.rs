//! The decoder: one forward pass for all families.

use crate::Config;
use crate::mlp::{self, MlpScratch};
use crate::on_device::{DeviceScratch, Placed};
use crate::weights::{LayerWeights, Weights};
use reattention::methods::{Step, StepKind};
use reattention::{Context, MethodError, ModelShape};
use reattention_kernels::Backend;
use reattention_kernels::profile::Part;
use std::sync::Arc;

/// A model: what it is, and its weights.
#[derive(Debug)]
pub struct Model {
    config: Config,
    shape: ModelShape,
    weights: Weights,
    pub(crate) placed: Placed,
}

/// For which tokens of a step logits are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Logits {
    /// For none.
    None,
    /// For the last one.
    Last,
    /// For all.
    All,
    /// For those at these offsets from the step's first token.
    At(Vec<usize>),
    /// Not the logits but what they say of the tokens that really follow: minus the natural logarithm of the
    /// probability of `targets[i]` after the step's `i`-th token. `[targets.len()]`, at most one a token.
    Loss(Vec<u32>),
}

/// Rows of logits held at once for [`Logits::Loss`].
const LOSS_ROWS: usize = 32;

/// Memory that a forward pass works in; kept between steps so that it is not allocated anew.
#[derive(Debug, Default)]
pub struct Scratch {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    mlp: MlpScratch,
    pub(crate) device: Option<Box<DeviceScratch>>,
}

impl Scratch {
    /// Bytes taken for steps of at most `tokens` tokens.
    pub fn planned_bytes(config: &Config, tokens: usize) -> usize {
        let shape = config.shape();
        let heads = shape.n_heads * shape.head_dim;
        let kv_heads = shape.n_kv_heads * shape.head_dim;
        4 * tokens * (3 * config.hidden + 2 * heads + 2 * kv_heads)
            + MlpScratch::planned_bytes(config, tokens)
    }
}

/// Bytes that losses are worked out in, where they are wanted.
pub fn loss_bytes(config: &Config) -> usize {
    4 * LOSS_ROWS * config.vocab_size
}

/// Sees the hidden states `[q_len, hidden]`: index 0 is the embedding, index `i` the output of block `i - 1`, and index
/// `n_layers + 1` the result of the final norm.
pub type Observer<'a> = &'a mut (dyn FnMut(usize, &[f32]) + Send);

impl Model {
    /// A model of loaded weights.
    pub fn new(config: Config, weights: Weights) -> Self {
        Self { shape: config.shape(), config, weights, placed: Placed::default() }
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its attention shape.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Its weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Feeds `tokens` as the step `step` of `context` and returns the logits wanted, `[wanted, vocab_size]` (or losses).
    ///
    /// # Errors
    /// When the method refuses the step; the context then holds the tokens it held before. Token ids must be below the
    /// vocabulary size.
    pub fn forward(
        &self,
        tokens: &[u32],
        step: &Step,
        context: &mut Context,
        scratch: &mut Scratch,
        want: &Logits,
        mut observe: Option<Observer>,
    ) -> Result<Vec<f32>, MethodError> {
        assert_eq!(tokens.len(), step.tokens.len(), "one token id for each token of the step");
        let backend = Arc::clone(context.backend());
        let mut logits = Ok(Vec::new());
        backend.install(&mut || {
            logits = self.make_room(step, context, scratch, backend.as_ref()).and_then(|()| {
                self.run(tokens, step, context, scratch, want, backend.as_ref(), observe.take())
            });
        });
        if logits.is_err() {
            context.abort();
        }
        logits
    }

    /// Feeds what a method that keeps a bounded store wants to see before a step that would not fit in it.
    fn make_room(
        &self,
        step: &Step,
        context: &mut Context,
        scratch: &mut Scratch,
        backend: &dyn Backend,
    ) -> Result<(), MethodError> {
        let Some(ids) = context.catalyst(step)? else { return Ok(()) };
        let vocab_size = self.config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(MethodError::Unsuited {
                method: context.method().spec().name,
                reason: format!("its catalyst's token {id} is not below the vocabulary of {vocab_size}"),
            });
        }
        let tokens = context.len()..context.len() + ids.len();
        let ephemeral = Step { tokens, kind: StepKind::Ephemeral };
        self.run(&ids, &ephemeral, context, scratch, &Logits::None, backend, None)?;
        Ok(())
    }

    /// On the device of the backend, if it has one, or on the host.
    fn run(
        &self,
        tokens: &[u32],
        step: &Step,
        context: &mut Context,
        scratch: &mut Scratch,
        want: &Logits,
        backend: &dyn Backend,
        observe: Option<Observer>,
    ) -> Result<Vec<f32>, MethodError> {
        match backend.device() {
            Some(device) => self.pass_on_device(tokens, step, context, scratch, want, device, observe),
            None => self.pass(tokens, step, context, scratch, want, backend, observe),
        }
    }

    fn pass(
        &self,
        tokens: &[u32],
        step: &Step,
        context: &mut Context,
        scratch: &mut Scratch,
        want: &Logits,
        backend: &dyn Backend,
        mut observe: Option<Observer>,
    ) -> Result<Vec<f32>, MethodError> {
        let (n, hidden) = (tokens.len(), self.config.hidden);
        scratch.resize(&self.config, &self.shape, n);
        for (row, &token) in scratch.hidden.chunks_exact_mut(hidden).zip(tokens) {
            self.weights.embed.copy_row(token as usize, row);
        }
        scale(self.config.embedding_scale, &mut scratch.hidden);
        context.begin(step);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            if let Some(observe) = observe.as_deref_mut() {
                observe(index, &scratch.hidden);
            }
            // What the last layer gives out only becomes logits: without them, its keys and values are all that stays.
            let is_last = index + 1 == self.shape.n_layers;
            if is_last && *want == Logits::None && observe.is_none() && context.may_skip_view() {
                self.keys_and_values(layer, n, scratch, backend);
                context.append(index, &scratch.k, &scratch.v)?;
                break;
            }
            self.attention(index, layer, n, context, scratch, backend)?;
            self.mlp(layer, n, scratch, backend);
        }
        backend.mark(Part::Other);
        let wants_losses = context.wants_losses() && step.kind != StepKind::Ephemeral;
        let before = if wants_losses { context.last_state().to_vec() } else { Vec::new() };
        context.finish();
        if wants_losses {
            let Scratch { hidden: states, normed, .. } = &mut *scratch;
            // The first token was predicted from the state before it, if there is one.
            let mut losses = self.losses(&tokens[..before.len() / hidden], &before, normed, backend);
            losses.extend(self.losses(&tokens[1..], states, normed, backend));
            context.note_losses(&losses, &states[(n - 1) * hidden..]);
        }
        if let Some(observe) = observe {
            observe(self.shape.n_layers, &scratch.hidden);
            backend.rms_norm(&scratch.hidden, &self.weights.norm, self.config.rms_eps, &mut scratch.normed);
            observe(self.shape.n_layers + 1, &scratch.normed);
        }
        let rows: Vec<usize> = match want {
            Logits::None => Vec::new(),
            Logits::Last => vec![n - 1],
            Logits::All => (0..n).collect(),
            Logits::At(offsets) => offsets.clone(),
            Logits::Loss(targets) => {
                return Ok(self.losses(targets, &scratch.hidden, &mut scratch.normed, backend));
            }
        };
        let wanted: Vec<f32> =
            rows.iter().flat_map(|&r| scratch.hidden[r * hidden..(r + 1) * hidden].iter().copied()).collect();
        let mut logits = vec![0.0; rows.len() * self.weights.lm_head.rows()];
        if !rows.is_empty() {
            self.head_on_host(&wanted, rows.len(), &mut scratch.normed[..wanted.len()], &mut logits, backend);
        }
        Ok(logits)
    }

    /// Logits of `rows` hidden states. `normed` is memory to work in, as long as the states.
    fn head_on_host(
        &self,
        states: &[f32],
        rows: usize,
        normed: &mut [f32],
        logits: &mut [f32],
        backend: &dyn Backend,
    ) {
        backend.rms_norm(states, &self.weights.norm, self.config.rms_eps, normed);
        backend.mark(Part::Head);
        self.weights.lm_head.forward(backend, normed, rows, logits);
        scale(self.config.logit_scale, logits);
        if let Some(cap) = self.config.logit_softcap {
            logits.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
        }
        backend.mark(Part::Other);
    }

    /// Losses of `targets` after the first of the hidden states `states`, a few rows at a time: the logits of a whole step
    /// with a large vocabulary would outweigh everything else. `normed` is memory to work in, for as many rows.
    fn losses(&self, targets: &[u32], states: &[f32], normed: &mut [f32], backend: &dyn Backend) -> Vec<f32> {
        let (hidden, vocab) = (self.config.hidden, self.weights.lm_head.rows());
        let mut logits = vec![0.0; LOSS_ROWS.min(targets.len()) * vocab];
        let mut losses = Vec::with_capacity(targets.len());
        for (block, targets) in targets.chunks(LOSS_ROWS).enumerate() {
            let states = &states[block * LOSS_ROWS * hidden..][..targets.len() * hidden];
            let logits = &mut logits[..targets.len() * vocab];
            self.head_on_host(states, targets.len(), &mut normed[..states.len()], logits, backend);
            for (row, &target) in logits.chunks_exact(vocab).zip(targets) {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|l| f64::from(l - max).exp()).sum();
                losses.push((sum.ln() - f64::from(row[target as usize] - max)) as f32);
            }
        }
        losses
    }

    /// `hidden += o(attend(q, k, v))` of the normed hidden states.
    fn attention(
        &self,
        index: usize,
        layer: &LayerWeights,
        n: usize,
        context: &mut Context,
        s: &mut Scratch,
        backend: &dyn Backend,
    ) -> Result<(), MethodError> {
        self.keys_and_values(layer, n, s, backend);
        backend.mark(Part::Projections);
        layer.q.forward(backend, &s.normed, n, &mut s.q);
        self.norm_within(&layer.q_norm, &mut s.q, &mut s.attended, backend);
        context.attend(index, &s.q, &s.k, &s.v, layer.sinks.as_deref(), &mut s.attended)?;
        backend.mark(Part::Projections);
        layer.o.forward(backend, &s.attended, n, &mut s.projected);
        self.add(&layer.attn_post_norm, s, backend);
        Ok(())
    }

    /// Raw keys and values of the hidden states, whose normed form is left in `normed`.
    fn keys_and_values(&self, layer: &LayerWeights, n: usize, s: &mut Scratch, backend: &dyn Backend) {
        self.norm_or_copy(&layer.attn_norm, &s.hidden, &mut s.normed, backend);
        backend.mark(Part::Projections);
        layer.k.forward(backend, &s.normed, n, &mut s.k);
        layer.v.forward(backend, &s.normed, n, &mut s.v);
        self.norm_within(&layer.k_norm, &mut s.k, &mut s.attended, backend);
    }

    /// `hidden += mlp(x)` of the normed hidden states `x`.
    fn mlp(&self, layer: &LayerWeights, n: usize, s: &mut Scratch, backend: &dyn Backend) {
        self.norm_or_copy(&layer.mlp_norm, &s.hidden, &mut s.normed, backend);
        backend.mark(Part::Mlp);
        mlp::forward(&layer.mlp, &self.config, backend, &s.normed, n, &mut s.projected, &mut s.mlp);
        self.add(&layer.mlp_post_norm, s, backend);
    }

    fn norm_or_copy(&self, weight: &Option<Vec<f32>>, x: &[f32], y: &mut [f32], backend: &dyn Backend) {
        match weight {
            Some(weight) => backend.rms_norm(x, weight, self.config.rms_eps, y),
            None => y.copy_from_slice(x),
        }
    }

    /// Norms each run of `rows` as long as the weight: a head's vector, or all heads of a token. `free` is memory that holds
    /// nothing yet.
    fn norm_within(
        &self,
        weight: &Option<Vec<f32>>,
        rows: &mut [f32],
        free: &mut [f32],
        backend: &dyn Backend,
    ) {
        if let Some(weight) = weight {
            let raw = &mut free[..rows.len()];
            raw.copy_from_slice(rows);
            backend.rms_norm(raw, weight, self.config.rms_eps, rows);
        }
    }

    /// Adds what a branch gave, `projected`, to the hidden states, after its norm where there is one.
    fn add(&self, norm: &Option<Vec<f32>>, s: &mut Scratch, backend: &dyn Backend) {
        let given = match norm {
            None => &s.projected,
            Some(weight) => {
                backend.rms_norm(&s.projected, weight, self.config.rms_eps, &mut s.normed);
                &s.normed
            }
        };
        backend.mark(Part::Elementwise);
        let by = self.config.residual_scale;
        s.hidden.iter_mut().zip(given).for_each(|(h, y)| *h += by * y);
    }
}

fn scale(by: f32, values: &mut [f32]) {
    if by != 1.0 {
        values.iter_mut().for_each(|x| *x *= by);
    }
}

impl Scratch {
    fn resize(&mut self, config: &Config, shape: &ModelShape, n: usize) {
        let heads = n * shape.n_heads * shape.head_dim;
        let kv_heads = n * shape.n_kv_heads * shape.head_dim;
        for (buffer, len) in [
            (&mut self.hidden, n * config.hidden),
            (&mut self.normed, n * config.hidden),
            (&mut self.q, heads),
            (&mut self.k, kv_heads),
            (&mut self.v, kv_heads),
            (&mut self.attended, heads),
            (&mut self.projected, n * config.hidden),
        ] {
            buffer.resize(len, 0.0);
        }
        self.mlp.resize(config, n);
    }
}
