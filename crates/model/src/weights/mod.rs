//! The weights of a model, checked against its configuration and read tensor by tensor.

pub(crate) mod clex;
pub(crate) mod gguf;
pub(crate) mod safetensors;
mod source;

pub use safetensors::SafeTensors;
pub use source::Source;

use crate::family::TensorNames;
use crate::linear::Linear;
use crate::{Config, ModelError};
use reattention_kernels::{BlockType, Matrix};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// All weights of a model.
#[derive(Debug)]
pub struct Weights {
    /// Token embedding `[vocab, hidden]`, looked up with [`Linear::copy_row`].
    pub embed: Linear,
    /// Decoder layers, from the first.
    pub layers: Vec<LayerWeights>,
    /// Norm after the last layer `[hidden]`.
    pub norm: Vec<f32>,
    /// Output head `[vocab, hidden]`; shares the embedding's memory when the two are tied.
    pub lm_head: Linear,
}

/// The weights of one decoder layer. Query and key rows are in half-split RoPE order: the first half of a head's rows
/// holds the cosine parts, whatever order the file had.
#[derive(Debug)]
pub struct LayerWeights {
    /// Norm before attention `[hidden]`.
    pub attn_norm: Vec<f32>,
    /// Query projection `[n_heads * head_dim, hidden]`.
    pub q: Linear,
    /// Key projection `[n_kv_heads * head_dim, hidden]`.
    pub k: Linear,
    /// Value projection `[n_kv_heads * head_dim, hidden]`.
    pub v: Linear,
    /// Output projection `[hidden, n_heads * head_dim]`.
    pub o: Linear,
    /// Norm of each query head `[head_dim]`, before RoPE, in families that have it.
    pub q_norm: Option<Vec<f32>>,
    /// Norm of each key head `[head_dim]`.
    pub k_norm: Option<Vec<f32>>,
    /// Norm before the MLP `[hidden]`.
    pub mlp_norm: Vec<f32>,
    /// Gate projection `[intermediate, hidden]`.
    pub gate: Linear,
    /// Up projection `[intermediate, hidden]`.
    pub up: Linear,
    /// Down projection `[hidden, intermediate]`.
    pub down: Linear,
}

#[cfg(test)]
mod tests;

impl Weights {
    /// Memory held, in bytes; tied matrices count once.
    pub fn bytes(&self) -> usize {
        let head =
            if Arc::ptr_eq(self.lm_head.weight(), self.embed.weight()) { 0 } else { self.lm_head.bytes() };
        let layers: usize = self.layers.iter().map(LayerWeights::bytes).sum();
        self.embed.bytes() + head + layers + size_of_val(&self.norm[..])
    }
}

impl LayerWeights {
    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let linear = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        let norms = [Some(&self.attn_norm), self.q_norm.as_ref(), self.k_norm.as_ref(), Some(&self.mlp_norm)];
        linear.iter().map(|l| l.bytes()).sum::<usize>()
            + norms.iter().flatten().map(|n| size_of_val(&n[..])).sum::<usize>()
    }
}

/// What loading will take, known from the headers alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightPlan {
    /// Bytes held after loading.
    pub bytes_resident: u64,
    /// Bytes needed on top for a moment while loading.
    pub bytes_scratch: u64,
    /// Parameters; tied ones count once.
    pub params: u64,
    /// Bytes held by stored element type: `bf16`, `q4_k`, ...
    pub bytes_by_type: BTreeMap<String, u64>,
}

impl WeightPlan {
    /// Bytes that a device takes for them: dense matrices as they are, blocks of few bits as bfloat16.
    pub fn device_bytes(&self) -> u64 {
        let width = |name: &str| match name {
            "f32" => Some(4),
            "f16" | "bf16" => Some(2),
            _ => None,
        };
        let dense = self.bytes_by_type.iter().filter_map(|(name, bytes)| Some((bytes, width(name)?)));
        let (bytes, elements) = dense.fold((0, 0), |(b, e), (bytes, width)| (b + bytes, e + bytes / width));
        bytes + 2 * self.params.saturating_sub(elements)
    }
}

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
    Quantised(BlockType),
}

/// A tensor found in a checkpoint.
pub(crate) struct Stored {
    pub(crate) file: String,
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    pub(crate) element: Element,
}

/// A checkpoint's tensors by full name. `matrix` and `vector` are only asked for tensors whose shape was checked.
pub(crate) trait TensorStore: std::fmt::Debug + Send + Sync {
    /// Name of the whole, for messages.
    fn name(&self) -> &str;
    /// The tensor's description, `None` when it is not there, an error when its type cannot be used.
    fn find(&self, name: &str) -> Result<Option<Stored>, ModelError>;
    /// Rows `pieces` of a matrix of `cols` columns, one after the other.
    fn matrix(&self, name: &str, cols: usize, pieces: &Pieces) -> Result<Arc<Matrix>, ModelError>;
    /// Elements `pieces` of a vector, one after the other, in f32.
    fn vector(&self, name: &str, pieces: &Pieces) -> Result<Vec<f32>, ModelError> {
        self.matrix(name, 1, pieces).map(|matrix| widen(&matrix))
    }
}

/// The rows to take from a stored tensor, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pieces(Vec<Range<usize>>);

impl Pieces {
    fn all(rows: usize) -> Self {
        Self(std::iter::once(0..rows).collect())
    }

    /// Undoes the interleaved RoPE layout: rows `0, 2, 4, ...` of each head, then rows `1, 3, 5, ...`.
    fn half_split(heads: usize, head_dim: usize) -> Self {
        let head = |h: usize| {
            let row = move |parity: usize| (0..head_dim / 2).map(move |i| h * head_dim + 2 * i + parity);
            row(0).chain(row(1))
        };
        Self((0..heads).flat_map(head).map(|r| r..r + 1).collect())
    }

    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }
}

/// How a file format lays out the tensors of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) names: &'static TensorNames,
    /// Query, key and value in one matrix.
    pub(crate) packed_qkv: bool,
    /// Query and key rows interleave the two halves of RoPE.
    pub(crate) interleaved: bool,
}

/// A stored tensor that the model needs, and the part of it that one layer takes.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) pieces: Pieces,
}

/// Checks that every tensor is there with the right shape and type, and adds up what loading takes.
pub(crate) fn plan(
    config: &Config,
    layout: Layout,
    store: &dyn TensorStore,
) -> Result<WeightPlan, ModelError> {
    let mut plan =
        WeightPlan { bytes_resident: 0, bytes_scratch: 0, params: 0, bytes_by_type: BTreeMap::new() };
    let mut add = |slot: &Slot| -> Result<(), ModelError> {
        let stored = check(store, slot)?;
        let elements: u64 =
            slot.shape[1..].iter().map(|&d| d as u64).product::<u64>() * slot.pieces.rows() as u64;
        // Vectors are held in f32 whatever they are stored in.
        let (name, bytes) = match slot.shape.len() {
            1 => ("f32".to_string(), elements * 4),
            _ => stored.element.name_and_bytes(elements),
        };
        plan.params += elements;
        plan.bytes_resident += bytes;
        *plan.bytes_by_type.entry(name).or_default() += bytes;
        Ok(())
    };
    let roles = Roles { config, layout };
    add(&roles.embed())?;
    for layer in 0..config.n_layers {
        for role in roles.linears(layer) {
            add(&role.slot(".weight"))?;
            match role.bias {
                true => add(&role.slot(".bias"))?,
                false => refuse_bias(store, &role)?,
            }
        }
        roles.norms(layer).iter().try_for_each(&mut add)?;
    }
    add(&roles.norm())?;
    if let Some(head) = roles.lm_head() {
        add(&head)?;
    }
    Ok(plan)
}

/// Reads everything; peak memory is what [`plan`] announces.
pub(crate) fn load(config: &Config, layout: Layout, store: &dyn TensorStore) -> Result<Weights, ModelError> {
    plan(config, layout, store)?;
    let roles = Roles { config, layout };
    let matrix = |slot: &Slot| store.matrix(&slot.name, slot.shape[1], &slot.pieces);
    let vector = |slot: &Slot| store.vector(&slot.name, &slot.pieces);
    let linear = |role: &Role| -> Result<Linear, ModelError> {
        let weight = matrix(&role.slot(".weight"))?;
        let bias = if role.bias { Some(vector(&role.slot(".bias"))?) } else { None };
        Ok(Linear::new(weight, bias))
    };
    let embed = matrix(&roles.embed())?;
    let mut layers = Vec::with_capacity(config.n_layers);
    for layer in 0..config.n_layers {
        let [q, k, v, o, gate, up, down] = roles.linears(layer);
        let mut norms = roles.norms(layer).into_iter();
        let mut norm = || norms.next().map(|slot| vector(&slot)).transpose();
        let (attn_norm, mlp_norm) = (norm()?.unwrap_or_default(), norm()?.unwrap_or_default());
        layers.push(LayerWeights {
            attn_norm,
            q: linear(&q)?,
            k: linear(&k)?,
            v: linear(&v)?,
            o: linear(&o)?,
            q_norm: norm()?,
            k_norm: norm()?,
            mlp_norm,
            gate: linear(&gate)?,
            up: linear(&up)?,
            down: linear(&down)?,
        });
    }
    let norm = vector(&roles.norm())?;
    let lm_head = match roles.lm_head() {
        Some(slot) => matrix(&slot)?,
        None => embed.clone(),
    };
    Ok(Weights { embed: Linear::new(embed, None), layers, norm, lm_head: Linear::new(lm_head, None) })
}

/// Names, shapes and rows of every tensor of a configuration.
pub(crate) struct Roles<'a> {
    pub(crate) config: &'a Config,
    pub(crate) layout: Layout,
}

/// One linear layer: which tensor and which of its rows.
pub(crate) struct Role {
    base: String,
    shape: [usize; 2],
    pieces: Pieces,
    pub(crate) bias: bool,
}

impl Role {
    pub(crate) fn slot(&self, end: &str) -> Slot {
        let shape = if end == ".bias" { vec![self.shape[0]] } else { self.shape.to_vec() };
        Slot { name: format!("{}{end}", self.base), shape, pieces: self.pieces.clone() }
    }
}

impl Roles<'_> {
    /// Query, key, value, output, gate, up, down.
    pub(crate) fn linears(&self, layer: usize) -> [Role; 7] {
        let (c, names) = (self.config, self.layout.names);
        let (q_rows, kv_rows, group) =
            (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_heads / c.n_kv_heads);
        let role = |name: &str, shape: [usize; 2], pieces: Pieces, bias| Role {
            base: name.replace("{}", &layer.to_string()),
            shape,
            pieces,
            bias,
        };
        let whole = |name, shape: [usize; 2], bias| role(name, shape, Pieces::all(shape[0]), bias);
        let [q, k, v] = if self.layout.packed_qkv {
            // Per KV head: the rows of its query heads, of the key, of the value.
            let part = |first: usize, heads: usize| {
                let of_group = move |g: usize| (g * (group + 2) + first) * c.head_dim;
                let pieces =
                    (0..c.n_kv_heads).map(|g| of_group(g)..of_group(g) + heads * c.head_dim).collect();
                role(names.qkv, [q_rows + 2 * kv_rows, c.hidden], Pieces(pieces), c.qkv_bias)
            };
            [part(0, group), part(group, 1), part(group + 1, 1)]
        } else {
            let rotated = |name, heads: usize| {
                let rows = heads * c.head_dim;
                let pieces = match self.layout.interleaved {
                    true => Pieces::half_split(heads, c.head_dim),
                    false => Pieces::all(rows),
                };
                role(name, [rows, c.hidden], pieces, c.qkv_bias)
            };
            let v = whole(names.v, [kv_rows, c.hidden], c.qkv_bias);
            [rotated(names.q, c.n_heads), rotated(names.k, c.n_kv_heads), v]
        };
        let o = whole(names.o, [c.hidden, q_rows], c.o_bias);
        let gate = whole(names.gate, [c.intermediate, c.hidden], c.mlp_bias);
        let up = whole(names.up, [c.intermediate, c.hidden], c.mlp_bias);
        let down = whole(names.down, [c.hidden, c.intermediate], c.mlp_bias);
        [q, k, v, o, gate, up, down]
    }

    /// Norms before attention and MLP, then of query and key where the family has them.
    pub(crate) fn norms(&self, layer: usize) -> Vec<Slot> {
        let (c, names) = (self.config, self.layout.names);
        let vector = |name: &str, len| Slot {
            name: format!("{}.weight", name.replace("{}", &layer.to_string())),
            shape: vec![len],
            pieces: Pieces::all(len),
        };
        let mut slots = vec![vector(names.attn_norm, c.hidden), vector(names.mlp_norm, c.hidden)];
        if c.family.qk_norm {
            slots.extend([vector(names.q_norm, c.head_dim), vector(names.k_norm, c.head_dim)]);
        }
        slots
    }

    pub(crate) fn embed(&self) -> Slot {
        self.table(self.layout.names.embed)
    }

    pub(crate) fn norm(&self) -> Slot {
        let hidden = self.config.hidden;
        let name = format!("{}.weight", self.layout.names.norm);
        Slot { name, shape: vec![hidden], pieces: Pieces::all(hidden) }
    }

    pub(crate) fn lm_head(&self) -> Option<Slot> {
        (!self.config.tie_embeddings).then(|| self.table(self.layout.names.lm_head))
    }

    fn table(&self, name: &str) -> Slot {
        let (rows, cols) = (self.config.vocab_size, self.config.hidden);
        Slot { name: format!("{name}.weight"), shape: vec![rows, cols], pieces: Pieces::all(rows) }
    }
}

impl Element {
    /// As reports spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Quantised(kind) => kind.name(),
        }
    }

    /// Elements and bytes of what cannot be cut further.
    fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Quantised(kind) => (kind.len(), kind.bytes()),
        }
    }

    /// Bytes of a row of `cols` elements; `None` when they are no whole number of blocks, or too many to count.
    pub(crate) fn row_bytes(self, cols: usize) -> Option<usize> {
        let (elements, bytes) = self.unit();
        cols.is_multiple_of(elements).then(|| (cols / elements).checked_mul(bytes)).flatten()
    }

    fn name_and_bytes(self, elements: u64) -> (String, u64) {
        let (unit, bytes) = self.unit();
        (self.name().into(), elements / unit as u64 * bytes as u64)
    }
}

fn widen(matrix: &Matrix) -> Vec<f32> {
    let mut all = vec![0.0; matrix.rows() * matrix.cols()];
    all.chunks_exact_mut(matrix.cols().max(1)).enumerate().for_each(|(row, out)| matrix.copy_row(row, out));
    all
}

fn check(store: &dyn TensorStore, slot: &Slot) -> Result<Stored, ModelError> {
    let stored = store.find(&slot.name)?.ok_or_else(|| ModelError::TensorMissing {
        file: store.name().into(),
        tensor: slot.name.clone(),
        help: match &slot.name[..] {
            "lm_head.weight" | "output.weight" => {
                "; if the output head is the embedding, set `tie_word_embeddings`"
            }
            _ => "; are configuration and weights from the same model, and is the download complete?",
        }
        .into(),
    })?;
    if stored.shape != slot.shape {
        return Err(ModelError::TensorShape {
            file: stored.file,
            tensor: slot.name.clone(),
            expected: slot.shape.clone(),
            found: stored.shape,
        });
    }
    if let (Element::Quantised(kind), 1) = (stored.element, slot.shape.len()) {
        return Err(ModelError::TensorType {
            file: stored.file,
            tensor: slot.name.clone(),
            found: kind.name().to_uppercase(),
            supported: "F32, F16 and BF16 for a vector",
        });
    }
    Ok(stored)
}

/// A bias that the configuration does not announce would silently be left out.
fn refuse_bias(store: &dyn TensorStore, role: &Role) -> Result<(), ModelError> {
    let name = format!("{}.bias", role.base);
    match store.find(&name)? {
        None => Ok(()),
        Some(stored) => Err(ModelError::unsupported(
            &stored.file,
            format!("the bias `{name}`, which the configuration does not announce,"),
            "set `attention_bias` or `mlp_bias` if the model was trained with it",
        )),
    }
}
