//! The decoder on a device that keeps weights, hidden states and, under a method that suits it, keys and values: token ids go
//! there, logits come back. Under other methods queries, keys and values of a step come to the host for attention.

use crate::decoder::{Logits, Model, Observer};
use crate::linear::Linear;
use crate::weights::{LayerWeights, Mlp, Weights};
use crate::{Config, Scratch};
use reattention::methods::{Step, StepKind};
use reattention::{Context, MethodError};
use reattention_kernels::{
    Activation, Backend, Device, DeviceError, DeviceMatrix, DeviceType, MatrixData, Tensor,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of logits that a device works out at once.
const HEAD_ROWS: usize = 32;

/// The weights of a model on the devices that compute with them.
#[derive(Debug, Default)]
pub(crate) struct Placed(Mutex<Vec<(u64, Arc<DeviceWeights>)>>);

/// The weights of a model on one device. Dense matrices keep their type, blocks of few bits become bfloat16.
#[derive(Debug)]
struct DeviceWeights {
    embed: DeviceMatrix,
    layers: Vec<DeviceLayer>,
    norm: Tensor,
    /// `None` where it is the embedding.
    lm_head: Option<DeviceLinear>,
}

#[derive(Debug)]
struct DeviceLayer {
    attn_norm: Tensor,
    q: DeviceLinear,
    k: DeviceLinear,
    v: DeviceLinear,
    o: DeviceLinear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    mlp_norm: Tensor,
    gate: DeviceLinear,
    up: DeviceLinear,
    down: DeviceLinear,
}

#[derive(Debug)]
struct DeviceLinear {
    matrix: DeviceMatrix,
    bias: Option<Tensor>,
}

/// Device memory that a step works in, for as many tokens as the longest step so far had.
#[derive(Debug)]
pub(crate) struct DeviceScratch {
    device: u64,
    tokens: usize,
    hidden: Tensor,
    normed: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    projected: Tensor,
    gate: Tensor,
    up: Tensor,
    /// `[HEAD_ROWS, hidden]`, twice: states picked out, and their norm.
    picked: Tensor,
    picked_normed: Tensor,
    logits: Tensor,
}

/// What the model has that the loop on a device does not compute, `None` where it computes everything.
fn unserved(config: &Config, weights: &Weights) -> Option<&'static str> {
    let any = |has: &dyn Fn(&LayerWeights) -> bool| weights.layers.iter().any(has);
    let parts: [(bool, &str); 8] = [
        (any(&|l| matches!(l.mlp, Mlp::Sparse(_))), "a mixture of experts"),
        (any(&|l| l.sinks.is_some()), "attention sinks"),
        (any(&|l| l.attn_post_norm.is_some() || l.mlp_post_norm.is_some()), "norms after attention and MLP"),
        (any(&|l| l.attn_norm.is_none() || l.mlp_norm.is_none()), "layers without a norm before them"),
        (config.activation != Activation::Silu, "an activation other than silu"),
        (
            config.embedding_scale != 1.0 || config.residual_scale != 1.0 || config.logit_scale != 1.0,
            "scaled embeddings, branches or logits",
        ),
        (config.attention_softcap.is_some(), "a soft cap of attention scores"),
        (config.logit_softcap.is_some(), "a soft cap of logits"),
    ];
    parts.into_iter().find(|(has, _)| *has).map(|(_, part)| part)
}

/// Device memory that steps of at most `tokens` tokens work in, in bytes, without what the device's kernels need besides.
pub fn device_scratch_bytes(config: &Config, tokens: usize) -> usize {
    Scratch::planned_bytes(config, tokens) + 4 * HEAD_ROWS * (2 * config.hidden + config.vocab_size)
}

impl Model {
    /// Copies the weights to the device of `backend`, if it is one that keeps them, before the first step needs them.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn place(&self, backend: &dyn Backend) -> Result<(), DeviceError> {
        backend.device().map_or(Ok(()), |device| self.placed(device).map(|_| ()))
    }

    fn placed(&self, device: &dyn Device) -> Result<Arc<DeviceWeights>, DeviceError> {
        let mut placed = self.placed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, weights)) = placed.iter().find(|(id, _)| *id == device.id()) {
            return Ok(Arc::clone(weights));
        }
        if let Some(part) = unserved(self.config(), self.weights()) {
            let family = self.config().family.name;
            let reason = format!("it does not compute {part}, which `{family}` has; --device cpu does");
            return Err(DeviceError { device: device.name(), reason });
        }
        let weights = Arc::new(DeviceWeights::new(self.weights(), device)?);
        placed.push((device.id(), Arc::clone(&weights)));
        Ok(weights)
    }

    /// As the pass on the host, on the device of the context's backend.
    pub(crate) fn pass_on_device(
        &self,
        tokens: &[u32],
        step: &Step,
        context: &mut Context,
        scratch: &mut Scratch,
        want: &Logits,
        device: &dyn Device,
        mut observe: Option<Observer>,
    ) -> Result<Vec<f32>, MethodError> {
        let weights = self.placed(device)?;
        let (n, hidden, eps) = (tokens.len(), self.config().hidden, self.config().rms_eps);
        let s = scratch.on_device(device, self.config(), n)?;
        device.embed(&weights.embed, tokens, &mut s.hidden)?;
        context.begin(step);
        for (index, layer) in weights.layers.iter().enumerate() {
            if let Some(observe) = observe.as_deref_mut() {
                observe(index, &device.read(&s.hidden, 0..n * hidden)?);
            }
            device.rms_norm(&s.hidden, n, &layer.attn_norm, eps, &mut s.normed)?;
            layer.k.forward(device, &s.normed, n, &mut s.k)?;
            layer.v.forward(device, &s.normed, n, &mut s.v)?;
            if let Some(norm) = &layer.k_norm {
                device.rms_norm_within(&mut s.k, n * layer.k.matrix.rows() / norm.len(), norm, eps)?;
            }
            // What the last layer gives out only becomes logits: without them, its keys and values are all that stays.
            let is_last = index + 1 == self.shape().n_layers;
            if is_last && *want == Logits::None && observe.is_none() && context.may_skip_view() {
                match context.device() {
                    Some(_) => context.append_on_device(index, &s.k, &s.v)?,
                    None => {
                        let (k, v) = (rows(device, &s.k, n, s.tokens)?, rows(device, &s.v, n, s.tokens)?);
                        context.append(index, &k, &v)?;
                    }
                }
                break;
            }
            layer.q.forward(device, &s.normed, n, &mut s.q)?;
            if let Some(norm) = &layer.q_norm {
                device.rms_norm_within(&mut s.q, n * layer.q.matrix.rows() / norm.len(), norm, eps)?;
            }
            match context.device() {
                Some(_) => context.attend_on_device(index, &mut s.q, &s.k, &s.v, &mut s.attended)?,
                None => {
                    let (q, k, v) = (
                        rows(device, &s.q, n, s.tokens)?,
                        rows(device, &s.k, n, s.tokens)?,
                        rows(device, &s.v, n, s.tokens)?,
                    );
                    let mut out = vec![0.0; q.len()];
                    context.attend(index, &q, &k, &v, None, &mut out)?;
                    device.write(&mut s.attended, &out)?;
                }
            }
            layer.o.forward(device, &s.attended, n, &mut s.projected)?;
            device.add(&mut s.hidden, &s.projected, n * hidden)?;
            device.rms_norm(&s.hidden, n, &layer.mlp_norm, eps, &mut s.normed)?;
            layer.gate.forward(device, &s.normed, n, &mut s.gate)?;
            layer.up.forward(device, &s.normed, n, &mut s.up)?;
            device.silu_mul(&mut s.gate, &s.up, n * self.config().intermediate)?;
            layer.down.forward(device, &s.gate, n, &mut s.projected)?;
            device.add(&mut s.hidden, &s.projected, n * hidden)?;
        }
        if let Some(observe) = observe {
            observe(self.shape().n_layers, &device.read(&s.hidden, 0..n * hidden)?);
            device.rms_norm(&s.hidden, n, &weights.norm, eps, &mut s.normed)?;
            observe(self.shape().n_layers + 1, &device.read(&s.normed, 0..n * hidden)?);
        }
        let logits = self.logits_on_device(device, &weights, s, n, want)?;
        let wants_losses = context.wants_losses() && step.kind != StepKind::Ephemeral;
        let mut noted = None;
        if wants_losses {
            let before = context.last_state();
            let states = device.read(&s.hidden, 0..n * hidden)?;
            // The first token was predicted from the state before it, if there is one.
            let from = [before, &states[..(n - 1) * hidden]].concat();
            let targets = &tokens[n - from.len() / hidden..];
            let mut losses = Vec::with_capacity(targets.len());
            for (states, targets) in from.chunks(HEAD_ROWS * hidden).zip(targets.chunks(HEAD_ROWS)) {
                device.write(&mut s.picked, states)?;
                self.head(device, &weights, s, targets.len())?;
                losses.extend(device.losses(&s.logits, self.weights().lm_head.rows(), targets)?);
            }
            noted = Some((losses, states));
        }
        // From here on nothing can fail: the step is part of the context, or, with any error above, no part of it.
        context.finish();
        if let Some((losses, states)) = noted {
            context.note_losses(&losses, &states[(n - 1) * hidden..]);
        }
        Ok(logits)
    }

    /// Logits of the `rows` states picked out.
    fn head(
        &self,
        device: &dyn Device,
        weights: &DeviceWeights,
        s: &mut DeviceScratch,
        rows: usize,
    ) -> Result<(), DeviceError> {
        device.rms_norm(&s.picked, rows, &weights.norm, self.config().rms_eps, &mut s.picked_normed)?;
        match &weights.lm_head {
            Some(head) => head.forward(device, &s.picked_normed, rows, &mut s.logits),
            None => device.linear(&s.picked_normed, rows, &weights.embed, None, &mut s.logits),
        }
    }

    /// The logits wanted (or losses), a few rows at a time.
    fn logits_on_device(
        &self,
        device: &dyn Device,
        weights: &DeviceWeights,
        s: &mut DeviceScratch,
        n: usize,
        want: &Logits,
    ) -> Result<Vec<f32>, DeviceError> {
        let rows: Vec<u32> = match want {
            Logits::None => Vec::new(),
            Logits::Last => vec![n as u32 - 1],
            Logits::All => (0..n as u32).collect(),
            Logits::At(offsets) => offsets.iter().map(|&o| o as u32).collect(),
            Logits::Loss(targets) => (0..targets.len() as u32).collect(),
        };
        let vocab = self.weights().lm_head.rows();
        let mut out = Vec::new();
        for (block, rows) in rows.chunks(HEAD_ROWS).enumerate() {
            device.pick(&s.hidden, self.config().hidden, rows, &mut s.picked)?;
            self.head(device, weights, s, rows.len())?;
            match want {
                Logits::Loss(targets) => {
                    let targets = &targets[block * HEAD_ROWS..][..rows.len()];
                    out.extend(device.losses(&s.logits, vocab, targets)?);
                }
                _ => out.extend(device.read(&s.logits, 0..rows.len() * vocab)?),
            }
        }
        Ok(out)
    }
}

impl DeviceWeights {
    fn new(weights: &Weights, device: &dyn Device) -> Result<Self, DeviceError> {
        let is_tied =
            Arc::ptr_eq(weights.lm_head.weight(), weights.embed.weight()) && weights.lm_head.bias().is_none();
        let layer = |l: &LayerWeights| -> Result<DeviceLayer, DeviceError> {
            let (Mlp::Dense(mlp), Some(attn_norm), Some(mlp_norm)) = (&l.mlp, &l.attn_norm, &l.mlp_norm)
            else {
                unreachable!("such models were refused");
            };
            let linear = |l| DeviceLinear::new(l, device);
            let norm = |weight: &Option<Vec<f32>>| weight.as_ref().map(|w| upload(device, w)).transpose();
            Ok(DeviceLayer {
                attn_norm: upload(device, attn_norm)?,
                q: linear(&l.q)?,
                k: linear(&l.k)?,
                v: linear(&l.v)?,
                o: linear(&l.o)?,
                q_norm: norm(&l.q_norm)?,
                k_norm: norm(&l.k_norm)?,
                mlp_norm: upload(device, mlp_norm)?,
                gate: linear(&mlp.gate)?,
                up: linear(&mlp.up)?,
                down: linear(&mlp.down)?,
            })
        };
        Ok(Self {
            embed: matrix(&weights.embed, device)?,
            layers: weights.layers.iter().map(layer).collect::<Result<_, _>>()?,
            norm: upload(device, &weights.norm)?,
            lm_head: if is_tied { None } else { Some(DeviceLinear::new(&weights.lm_head, device)?) },
        })
    }
}

impl DeviceLinear {
    fn new(linear: &Linear, device: &dyn Device) -> Result<Self, DeviceError> {
        let bias = linear.bias().map(|bias| upload(device, bias)).transpose()?;
        Ok(Self { matrix: matrix(linear, device)?, bias })
    }

    fn forward(
        &self,
        device: &dyn Device,
        x: &Tensor,
        rows: usize,
        y: &mut Tensor,
    ) -> Result<(), DeviceError> {
        device.linear(x, rows, &self.matrix, self.bias.as_ref(), y)
    }
}

fn matrix(linear: &Linear, device: &dyn Device) -> Result<DeviceMatrix, DeviceError> {
    device.matrix(linear.rows(), linear.cols(), dtype(linear), &|row, out| linear.copy_row(row, out))
}

fn dtype(linear: &Linear) -> DeviceType {
    match linear.weight().data() {
        MatrixData::F32(_) => DeviceType::F32,
        MatrixData::F16(_) => DeviceType::F16,
        MatrixData::Bf16(_) | MatrixData::Blocks(..) => DeviceType::Bf16,
    }
}

fn upload(device: &dyn Device, data: &[f32]) -> Result<Tensor, DeviceError> {
    let mut tensor = device.tensor(data.len())?;
    device.write(&mut tensor, data)?;
    Ok(tensor)
}

/// The rows of a step of `n` tokens in `tensor`, out of room for `of` tokens.
fn rows(device: &dyn Device, tensor: &Tensor, n: usize, of: usize) -> Result<Vec<f32>, DeviceError> {
    device.read(tensor, 0..tensor.len() / of * n)
}

impl Scratch {
    fn on_device(
        &mut self,
        device: &dyn Device,
        config: &Config,
        tokens: usize,
    ) -> Result<&mut DeviceScratch, DeviceError> {
        let fits = |s: &DeviceScratch| s.device == device.id() && s.tokens >= tokens;
        if !self.device.as_deref().is_some_and(fits) {
            // Given back first: the new one may need the room.
            self.device = None;
            self.device = Some(Box::new(DeviceScratch::new(device, config, tokens)?));
        }
        Ok(self.device.as_deref_mut().expect("made above"))
    }
}

impl DeviceScratch {
    fn new(device: &dyn Device, config: &Config, n: usize) -> Result<Self, DeviceError> {
        let shape = config.shape();
        let (heads, kv_heads) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let tensor = |len: usize| device.tensor(len);
        Ok(Self {
            device: device.id(),
            tokens: n,
            hidden: tensor(n * config.hidden)?,
            normed: tensor(n * config.hidden)?,
            q: tensor(n * heads)?,
            k: tensor(n * kv_heads)?,
            v: tensor(n * kv_heads)?,
            attended: tensor(n * heads)?,
            projected: tensor(n * config.hidden)?,
            gate: tensor(n * config.intermediate)?,
            up: tensor(n * config.intermediate)?,
            picked: tensor(HEAD_ROWS * config.hidden)?,
            picked_normed: tensor(HEAD_ROWS * config.hidden)?,
            logits: tensor(HEAD_ROWS * config.vocab_size)?,
        })
    }
}
