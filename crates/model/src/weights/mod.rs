//! The weights of a model, checked against its configuration and read tensor by tensor.

pub(crate) mod clex;
pub(crate) mod gguf;
mod layer;
mod mxfp4;
mod roles;
pub(crate) mod safetensors;
mod source;
mod wrappers;

pub use layer::{GatedMlp, LayerWeights, Mlp, SparseMlp, Weights};
pub(crate) use roles::{Layout, MlpRoles, Part, Pieces, Role, Roles, Slot};
pub use safetensors::SafeTensors;
pub use source::Source;

use crate::linear::Linear;
use crate::{Config, ModelError};
use reattention_kernels::{BlockType, Buffer, Matrix, MatrixData};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// What loading will take, known from the headers alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightPlan {
    /// Bytes held after loading.
    pub bytes_resident: u64,
    /// Bytes needed on top for a moment while loading.
    pub bytes_scratch: u64,
    /// Parameters; tied ones count once.
    pub params: u64,
    /// Parameters that a token passes: of the experts of a sparse layer only as many as it is sent to.
    pub active_params: u64,
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
    /// Whether there is a tensor of this name, of whatever type.
    fn has(&self, name: &str) -> bool;
    /// The shape of a tensor of bytes, `None` when there is none.
    fn find_bytes(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }
    /// Rows `rows`, of `row_bytes` each, of a tensor of bytes.
    fn bytes(&self, name: &str, _row_bytes: usize, _rows: Range<usize>) -> Result<Vec<u8>, ModelError> {
        Err(ModelError::TensorMissing { file: self.name().into(), tensor: name.into(), help: String::new() })
    }
    /// Rows `pieces` of a matrix of `cols` columns, one after the other.
    fn matrix(&self, name: &str, cols: usize, pieces: &Pieces) -> Result<Arc<Matrix>, ModelError>;
    /// Elements `pieces` of a vector, one after the other, in f32.
    fn vector(&self, name: &str, pieces: &Pieces) -> Result<Vec<f32>, ModelError> {
        self.matrix(name, 1, pieces).map(|matrix| widen(&matrix))
    }
}

/// Checks that every tensor is there with the right shape and type, and adds up what loading takes.
pub(crate) fn plan(
    config: &Config,
    layout: Layout,
    store: &dyn TensorStore,
) -> Result<WeightPlan, ModelError> {
    let mut tally = Tally { store, plan: WeightPlan::default() };
    let roles = Roles { config, layout };
    tally.add(&roles.embed())?;
    for layer in 0..config.n_layers {
        roles.attention(layer).iter().try_for_each(|role| tally.linear(role))?;
        match roles.mlp(layer) {
            MlpRoles::Dense(mlp) => mlp.iter().try_for_each(|role| tally.linear(role))?,
            MlpRoles::Sparse(sparse) => {
                tally.linear(&sparse.router)?;
                let before = tally.plan.params;
                roles.experts(layer).flatten().try_for_each(|role| tally.linear(&role))?;
                let count = config.experts.as_ref().map_or(0, |e| e.count as u64);
                let of_one = (tally.plan.params - before) / count.max(1);
                let per_token = config.experts.as_ref().map_or(0, |e| e.per_token as u64);
                tally.plan.active_params -= of_one * count.saturating_sub(per_token);
                if let Some((mlp, weight)) = &sparse.shared {
                    mlp.iter().chain([weight]).try_for_each(|role| tally.linear(role))?;
                }
            }
        }
        let vectors = roles.norms(layer).into_iter().chain([roles.sinks(layer)]).flatten();
        vectors.into_iter().try_for_each(|slot| tally.add(&slot))?;
    }
    tally.add(&roles.norm())?;
    if let Some(head) = roles.lm_head() {
        tally.add(&head)?;
    }
    Ok(tally.plan)
}

struct Tally<'a> {
    store: &'a dyn TensorStore,
    plan: WeightPlan,
}

impl Tally<'_> {
    fn add(&mut self, slot: &Slot) -> Result<(), ModelError> {
        let [rows, cols] = slot.taken();
        let elements = rows as u64 * cols as u64;
        let (name, bytes, scratch) = match &slot.part {
            Part::Mxfp4(pieces) => {
                mxfp4::check(self.store, slot)?;
                mxfp4::name_bytes_scratch(pieces, slot.cols)
            }
            part => {
                let element = check(self.store, slot)?.element;
                // Vectors are held in f32 whatever they are stored in.
                let (name, bytes) = match slot.is_vector() {
                    true => ("f32".to_string(), elements * 4),
                    false => element.name_and_bytes(elements),
                };
                let scratch = match part {
                    Part::Columns { rows, .. } => {
                        element.name_and_bytes(rows.len() as u64 * slot.cols as u64).1
                    }
                    _ => 0,
                };
                (name, bytes, scratch)
            }
        };
        self.plan.bytes_scratch = self.plan.bytes_scratch.max(scratch);
        self.plan.params += elements;
        self.plan.active_params += elements;
        self.plan.bytes_resident += bytes;
        *self.plan.bytes_by_type.entry(name).or_default() += bytes;
        Ok(())
    }

    fn linear(&mut self, role: &Role) -> Result<(), ModelError> {
        self.add(&role.weight)?;
        match &role.bias {
            Some(bias) => self.add(bias),
            None => refuse_bias(self.store, role),
        }
    }
}

/// Reads everything; peak memory is what [`plan`] announces.
pub(crate) fn load(config: &Config, layout: Layout, store: &dyn TensorStore) -> Result<Weights, ModelError> {
    plan(config, layout, store)?;
    let roles = Roles { config, layout };
    let vector = |slot: Option<Slot>| slot.map(|slot| vector(store, &slot)).transpose();
    let linear = |role: &Role| -> Result<Linear, ModelError> {
        Ok(Linear::new(matrix(store, &role.weight)?, vector(role.bias.clone())?))
    };
    let gated = |[gate, up, down]: &[Role; 3]| -> Result<GatedMlp, ModelError> {
        Ok(GatedMlp { gate: linear(gate)?, up: linear(up)?, down: linear(down)? })
    };
    let mlp = |layer| -> Result<Mlp, ModelError> {
        Ok(match roles.mlp(layer) {
            MlpRoles::Dense(mlp) => Mlp::Dense(gated(&mlp)?),
            MlpRoles::Sparse(sparse) => Mlp::Sparse(SparseMlp {
                router: linear(&sparse.router)?,
                experts: roles.experts(layer).map(|mlp| gated(&mlp)).collect::<Result<_, _>>()?,
                shared: match &sparse.shared {
                    Some((mlp, weight)) => Some((gated(mlp)?, linear(weight)?)),
                    None => None,
                },
            }),
        })
    };
    let embed = matrix(store, &roles.embed())?;
    let mut layers = Vec::with_capacity(config.n_layers);
    for layer in 0..config.n_layers {
        let [q, k, v, o] = roles.attention(layer);
        let [attn_norm, attn_post_norm, mlp_norm, mlp_post_norm, q_norm, k_norm] = roles.norms(layer);
        layers.push(LayerWeights {
            attn_norm: vector(attn_norm)?,
            q: linear(&q)?,
            k: linear(&k)?,
            v: linear(&v)?,
            o: linear(&o)?,
            q_norm: vector(q_norm)?,
            k_norm: vector(k_norm)?,
            sinks: vector(roles.sinks(layer))?,
            attn_post_norm: vector(attn_post_norm)?,
            mlp_norm: vector(mlp_norm)?,
            mlp: mlp(layer)?,
            mlp_post_norm: vector(mlp_post_norm)?,
        });
    }
    let norm = vector(Some(roles.norm()))?.unwrap_or_default();
    let lm_head = match roles.lm_head() {
        Some(slot) => matrix(store, &slot)?,
        None => embed.clone(),
    };
    Ok(Weights { embed: Linear::new(embed, None), layers, norm, lm_head: Linear::new(lm_head, None) })
}

/// The matrix of a slot that was checked.
fn matrix(store: &dyn TensorStore, slot: &Slot) -> Result<Arc<Matrix>, ModelError> {
    match &slot.part {
        Part::Rows(pieces) => store.matrix(&slot.name, slot.cols, pieces),
        Part::Mxfp4(pieces) => mxfp4::matrix(store, slot, pieces),
        Part::Columns { rows, columns } => {
            let pieces = Pieces::range(rows.clone());
            transposed(&*store.matrix(&slot.name, slot.cols, &pieces)?, columns)
                .map(Arc::new)
                .ok_or_else(|| ModelError::format(store.name(), "tensor", "blocks cannot be transposed"))
        }
    }
}

/// The columns `columns` of a matrix as rows; `None` for blocks.
fn transposed(matrix: &Matrix, columns: &Pieces) -> Option<Matrix> {
    fn turn<T: bytemuck::Pod>(data: &[T], cols: usize, columns: &Pieces) -> Buffer<T> {
        let rows = data.len() / cols.max(1);
        let mut out = Buffer::<T>::zeroed(columns.rows() * rows);
        let columns = columns.ranges().iter().cloned().flatten();
        for (out, column) in out.chunks_exact_mut(rows.max(1)).zip(columns) {
            out.iter_mut().zip(data[column..].iter().step_by(cols)).for_each(|(o, x)| *o = *x);
        }
        out
    }
    let cols = matrix.cols();
    let data = match matrix.data() {
        MatrixData::F32(d) => MatrixData::F32(turn(d, cols, columns)),
        MatrixData::F16(d) => MatrixData::F16(turn(d, cols, columns)),
        MatrixData::Bf16(d) => MatrixData::Bf16(turn(d, cols, columns)),
        MatrixData::Blocks(..) => return None,
    };
    Matrix::new(columns.rows(), matrix.rows(), data).ok()
}

/// The vector of a slot that was checked.
fn vector(store: &dyn TensorStore, slot: &Slot) -> Result<Vec<f32>, ModelError> {
    let Part::Rows(pieces) = &slot.part else { return Ok(Vec::new()) };
    // In one piece: elements that take turns would be as many reads.
    let span = pieces.span();
    let whole = store.vector(&slot.name, &Pieces::range(span.clone()))?;
    let mut vector: Vec<f32> = pieces
        .ranges()
        .iter()
        .flat_map(|r| &whole[r.start - span.start..r.end - span.start])
        .copied()
        .collect();
    if slot.offset != 0.0 {
        vector.iter_mut().for_each(|x| *x += slot.offset);
    }
    Ok(vector)
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
                "; a base model (such as LlamaModel) has no output head: set `tie_word_embeddings` if the head is the embedding, otherwise take the checkpoint with a head (such as LlamaForCausalLM)"
            }
            _ => "; are configuration and weights from the same model, and is the download complete?",
        }
        .into(),
    })?;
    // A row may be written as a vector.
    let cut = |shape: &[usize]| shape.iter().copied().skip_while(|&d| d == 1).collect::<Vec<_>>();
    if cut(&stored.shape) != cut(&slot.shape) {
        return Err(ModelError::TensorShape {
            file: stored.file,
            tensor: slot.name.clone(),
            expected: slot.shape.clone(),
            found: stored.shape,
        });
    }
    if let (Element::Quantised(kind), true) = (stored.element, slot.is_vector()) {
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
    let name = &role.bias_name;
    match store.find(name)? {
        None => Ok(()),
        Some(stored) => Err(ModelError::unsupported(
            &stored.file,
            format!("the bias `{name}`, which the configuration does not announce,"),
            "set `attention_bias` or `mlp_bias` if the model was trained with it",
        )),
    }
}
