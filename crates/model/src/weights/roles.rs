//! Which stored tensors, and which parts of them, the layers of a configuration are made of.

use super::TensorStore;
use crate::family::{ExpertForm, ExpertNames, Form, Packing, QkNorm};
use crate::{Config, Experts, Family};
use std::ops::Range;

/// How one checkpoint holds the tensors of its model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) form: Form,
    /// Those of sparse layers, in families that have some.
    pub(crate) experts: Option<&'static ExpertNames>,
    /// Added to the weights of norms.
    pub(crate) norm_offset: f32,
}

impl Layout {
    /// As the family's Hugging Face files are.
    pub(crate) fn hugging_face(family: &'static Family) -> Self {
        let norm_offset = if family.norms_from_one { 1.0 } else { 0.0 };
        Self { norm_offset, ..Self::of(family, family.hugging_face) }
    }

    /// As the family's GGUF files are, whose norms are complete.
    pub(crate) fn gguf(family: &'static Family) -> Self {
        Self::of(family, family.gguf)
    }

    fn of(family: &'static Family, form: Form) -> Self {
        let experts = family.experts.and_then(|_| form.tensors.experts.first());
        Self { form, experts, norm_offset: 0.0 }
    }

    /// The same, where a file packs matrices otherwise than others of its kind.
    pub(crate) fn as_found(mut self, config: &Config, store: &dyn TensorStore) -> Self {
        let names = self.form.tensors;
        let has = |name: &str, end: &str, layer: usize| {
            !name.is_empty() && store.has(&format!("{}{end}", of_layer(name, layer)))
        };
        if self.form.qkv != Packing::Grouped {
            self.form.qkv = match [names.q, names.qkv].map(|name| has(name, ".weight", 0)) {
                [true, _] => Packing::Separate,
                [false, true] => Packing::Stacked,
                [false, false] => self.form.qkv,
            };
        }
        let is_dense = |layer: &usize| config.experts.as_ref().is_none_or(|e| !e.is_sparse(*layer));
        if let Some(layer) = (0..config.n_layers).find(is_dense) {
            self.form.gate_up = match [names.gate, names.gate_up].map(|name| has(name, ".weight", layer)) {
                [true, _] => false,
                [false, true] => true,
                [false, false] => self.form.gate_up,
            };
        }
        if let Some(layer) = (0..config.n_layers).find(|layer| !is_dense(layer)) {
            let is_there = |e: &&ExpertNames| match e.form {
                ExpertForm::Mxfp4 => has(e.down, "_blocks", layer),
                _ => [e.gate, e.down].iter().all(|name| has(&name.replace("{e}", "0"), e.ends[0], layer)),
            };
            self.experts = names.experts.iter().find(is_there).or(self.experts);
        }
        self
    }
}

/// The rows to take from a stored tensor, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pieces(Vec<Range<usize>>);

impl Pieces {
    pub(crate) fn all(rows: usize) -> Self {
        Self::range(0..rows)
    }

    pub(super) fn range(rows: Range<usize>) -> Self {
        Self(std::iter::once(rows).collect())
    }

    /// `n` rows, every `step`-th from `first` on.
    fn every(step: usize, first: usize, n: usize) -> Self {
        Self((0..n).map(|i| first + i * step).map(|row| row..row + 1).collect())
    }

    /// Brings the rows of heads in which the first `rotated` elements turn into the order in which element `i` turns with
    /// `i + head_dim / 2`. In files the pairs are `i` and `i + rotated / 2`, or neighbours: `2i` and `2i + 1`.
    pub(super) fn of_pairs(heads: usize, head_dim: usize, rotated: usize, neighbours: bool) -> Self {
        if rotated == head_dim && !neighbours {
            return Self::all(heads * head_dim);
        }
        let (pairs, still) = (rotated / 2, head_dim / 2 - rotated / 2);
        let head = |h: usize| {
            let at = h * head_dim;
            let turning = move |half: usize| {
                let row = move |i: usize| if neighbours { 2 * i + half } else { i + half * pairs };
                (0..pairs).map(row).map(move |row| at + row..at + row + 1)
            };
            let rest = at + 2 * pairs;
            let [low, high] = [rest..rest + still, rest + still..at + head_dim];
            turning(0).chain([low]).chain(turning(1)).chain([high]).filter(|rows| !rows.is_empty())
        };
        Self((0..heads).flat_map(head).collect())
    }

    /// The same from row `first` of the tensor on.
    fn shifted(self, first: usize) -> Self {
        Self(self.0.into_iter().map(|r| first + r.start..first + r.end).collect())
    }

    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// From the first row to the last.
    pub(crate) fn span(&self) -> Range<usize> {
        let start = self.0.iter().map(|r| r.start).min().unwrap_or(0);
        start..self.0.iter().map(|r| r.end).max().unwrap_or(start)
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }
}

/// A stored tensor that the model needs, and the part of it that one layer takes.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    /// As stored, outermost dimension first.
    pub(crate) shape: Vec<usize>,
    /// Elements of one of the rows that `part` counts; 1 for a vector.
    pub(crate) cols: usize,
    pub(crate) part: Part,
    /// Added to every element.
    pub(crate) offset: f32,
}

/// Which part of a stored tensor is taken, all but its last dimension being one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// These rows.
    Rows(Pieces),
    /// The transpose of `columns` of the rows `rows`: one output row a column.
    Columns { rows: Range<usize>, columns: Pieces },
    /// These rows, in 4-bit blocks and their scales, each a tensor of its own.
    Mxfp4(Pieces),
}

impl Slot {
    fn rows(name: String, shape: Vec<usize>, pieces: Pieces) -> Self {
        let cols = shape.last().copied().unwrap_or(1);
        Self { name, shape, cols, part: Part::Rows(pieces), offset: 0.0 }
    }

    fn vector(name: String, shape: Vec<usize>, pieces: Pieces) -> Self {
        Self { name, shape, cols: 1, part: Part::Rows(pieces), offset: 0.0 }
    }

    /// Rows and columns of what is taken.
    pub(crate) fn taken(&self) -> [usize; 2] {
        match &self.part {
            Part::Rows(pieces) | Part::Mxfp4(pieces) => [pieces.rows(), self.cols],
            Part::Columns { rows, columns } => [columns.rows(), rows.len()],
        }
    }

    /// A vector, held in f32 whatever it is stored in.
    pub(crate) fn is_vector(&self) -> bool {
        self.cols == 1
    }
}

/// One linear layer.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    pub(crate) weight: Slot,
    pub(crate) bias: Option<Slot>,
    /// Name that a bias would have.
    pub(crate) bias_name: String,
}

/// A gated MLP: gate, up, down.
pub(crate) type GatedRoles = [Role; 3];

/// A sparse layer, but for its experts.
pub(crate) struct SparseRoles {
    pub(crate) router: Role,
    /// The expert that every token passes, and its weight.
    pub(crate) shared: Option<(GatedRoles, Role)>,
}

/// The MLP of a layer.
#[allow(clippy::large_enum_variant, reason = "one at a time is made, and most are dense")]
pub(crate) enum MlpRoles {
    Dense(GatedRoles),
    Sparse(Box<SparseRoles>),
}

/// Names, shapes and parts of every tensor of a configuration.
pub(crate) struct Roles<'a> {
    pub(crate) config: &'a Config,
    pub(crate) layout: Layout,
}

impl Roles<'_> {
    /// Query, key, value, output.
    pub(crate) fn attention(&self, layer: usize) -> [Role; 4] {
        let (c, form) = (self.config, self.layout.form);
        let (q_rows, kv_rows, group) =
            (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_heads / c.n_kv_heads);
        let turned = |heads| self.of_pairs(heads);
        let (q, k, v) = (turned(c.n_heads), turned(c.n_kv_heads), Pieces::all(kv_rows));
        let part = |name, rows, pieces| linear(name, layer, [rows, c.hidden], pieces, c.qkv_bias);
        let names = form.tensors;
        let all = q_rows + 2 * kv_rows;
        let [q, k, v] = match form.qkv {
            Packing::Separate => {
                [part(names.q, q_rows, q), part(names.k, kv_rows, k), part(names.v, kv_rows, v)]
            }
            Packing::Stacked => {
                [q, k.shifted(q_rows), v.shifted(q_rows + kv_rows)].map(|p| part(names.qkv, all, p))
            }
            Packing::Grouped => [(0, group), (group, 1), (group + 1, 1)].map(|(first, heads)| {
                let of_group = |g: usize| (g * (group + 2) + first) * c.head_dim;
                let rows = |g| of_group(g)..of_group(g) + heads * c.head_dim;
                part(names.qkv, all, Pieces((0..c.n_kv_heads).map(rows).collect()))
            }),
        };
        let o = linear(names.o, layer, [c.hidden, q_rows], Pieces::all(c.hidden), c.o_bias);
        [q, k, v, o]
    }

    fn of_pairs(&self, heads: usize) -> Pieces {
        let c = self.config;
        Pieces::of_pairs(heads, c.head_dim, c.rope.dim, self.layout.form.neighbours)
    }

    /// The MLP of a layer.
    pub(crate) fn mlp(&self, layer: usize) -> MlpRoles {
        match (&self.config.experts, self.layout.experts) {
            (Some(experts), Some(names)) if experts.is_sparse(layer) => {
                MlpRoles::Sparse(Box::new(self.sparse(layer, experts, names)))
            }
            _ => MlpRoles::Dense(self.dense(layer)),
        }
    }

    fn dense(&self, layer: usize) -> GatedRoles {
        let (c, names) = (self.config, self.layout.form.tensors);
        let up_shape = [c.intermediate, c.hidden];
        let [gate, up] = match self.layout.form.gate_up {
            true => [0, 1].map(|half| {
                let rows = Pieces::all(c.intermediate).shifted(half * c.intermediate);
                linear(names.gate_up, layer, [2 * c.intermediate, c.hidden], rows, c.mlp_bias)
            }),
            false => [names.gate, names.up]
                .map(|name| linear(name, layer, up_shape, Pieces::all(c.intermediate), c.mlp_bias)),
        };
        let down = linear(names.down, layer, [c.hidden, c.intermediate], Pieces::all(c.hidden), c.mlp_bias);
        [gate, up, down]
    }

    fn sparse(&self, layer: usize, experts: &Experts, names: &ExpertNames) -> SparseRoles {
        let hidden = self.config.hidden;
        let router =
            linear(names.router, layer, [experts.count, hidden], Pieces::all(experts.count), experts.biases);
        let shared = experts.shared.map(|width| {
            let [gate, up, down, weight] = self.layout.form.tensors.shared;
            let whole = |name, rows, cols| linear(name, layer, [rows, cols], Pieces::all(rows), false);
            let mlp = [whole(gate, width, hidden), whole(up, width, hidden), whole(down, hidden, width)];
            (mlp, whole(weight, 1, hidden))
        });
        SparseRoles { router, shared }
    }

    /// The experts of a sparse layer, made as they are asked for: there may be many.
    pub(crate) fn experts(&self, layer: usize) -> impl Iterator<Item = GatedRoles> {
        let rules = self.config.experts.as_ref().zip(self.layout.experts);
        let count = rules.map_or(0, |(experts, _)| experts.count);
        (0..count).filter_map(move |expert| {
            rules.map(|(experts, names)| self.expert(layer, expert, experts, names))
        })
    }

    fn expert(&self, layer: usize, expert: usize, experts: &Experts, names: &ExpertNames) -> GatedRoles {
        let (hidden, width) = (self.config.hidden, experts.intermediate);
        let is_fused = names.up.is_empty();
        let role = |which: usize| {
            let is_down = which == 2;
            let name = match which {
                0 => names.gate,
                1 if is_fused => names.gate,
                1 => names.up,
                _ => names.down,
            };
            let base = of_layer(name, layer).replace("{e}", &expert.to_string());
            let (rows, cols) = if is_down { (hidden, width) } else { (width, hidden) };
            // Rows that the tensor has for one expert, and which of them are this matrix's.
            let (all, mine) = match names.form {
                _ if is_down || !is_fused => (rows, Pieces::all(rows)),
                ExpertForm::Single | ExpertForm::Stacked => {
                    (2 * rows, Pieces::all(rows).shifted(which * rows))
                }
                ExpertForm::Transposed | ExpertForm::Mxfp4 => (2 * rows, Pieces::every(2, which, rows)),
            };
            let name = format!("{base}{}", names.ends[0]);
            let stacked = || mine.clone().shifted(expert * all);
            let weight = match names.form {
                ExpertForm::Single => Slot::rows(name, vec![all, cols], mine.clone()),
                ExpertForm::Stacked => Slot::rows(name, vec![experts.count, all, cols], stacked()),
                ExpertForm::Transposed => {
                    let part =
                        Part::Columns { rows: expert * cols..(expert + 1) * cols, columns: mine.clone() };
                    Slot { part, ..Slot::rows(name, vec![experts.count, cols, all], Pieces::all(0)) }
                }
                ExpertForm::Mxfp4 => Slot {
                    part: Part::Mxfp4(stacked()),
                    ..Slot::rows(name, vec![experts.count, all, cols], Pieces::all(0))
                },
            };
            let bias_name = format!("{base}{}", names.ends[1]);
            let bias = experts.biases.then(|| match names.form {
                ExpertForm::Single => Slot::vector(bias_name.clone(), vec![all], mine.clone()),
                _ => Slot::vector(bias_name.clone(), vec![experts.count, all], stacked()),
            });
            Role { weight, bias, bias_name }
        };
        [role(0), role(1), role(2)]
    }

    /// Norms of a layer, where the family has them: before and after attention, before and after the MLP, of query and key.
    pub(crate) fn norms(&self, layer: usize) -> [Option<Slot>; 6] {
        let (c, names) = (self.config, self.layout.form.tensors);
        let of = |name: &str, pieces: Pieces| {
            (!name.is_empty()).then(|| self.norm_named(&of_layer(name, layer), pieces))
        };
        let [q, k] = [(names.q_norm, c.n_heads), (names.k_norm, c.n_kv_heads)].map(|(name, heads)| {
            // In the order of the rows that they norm.
            match c.family.qk_norm {
                QkNorm::None => None,
                QkNorm::Head => of(name, self.of_pairs(1)),
                QkNorm::Projection => of(name, self.of_pairs(heads)),
            }
        });
        let of = |name| of(name, Pieces::all(c.hidden));
        [of(names.attn_norm), of(names.attn_post_norm), of(names.mlp_norm), of(names.mlp_post_norm), q, k]
    }

    /// The sinks of a layer's query heads.
    pub(crate) fn sinks(&self, layer: usize) -> Option<Slot> {
        let (name, n) = (self.layout.form.tensors.sinks, self.config.n_heads);
        self.config.family.sinks.then(|| Slot::vector(of_layer(name, layer), vec![n], Pieces::all(n)))
    }

    pub(crate) fn embed(&self) -> Slot {
        self.table(self.layout.form.tensors.embed)
    }

    pub(crate) fn norm(&self) -> Slot {
        self.norm_named(self.layout.form.tensors.norm, Pieces::all(self.config.hidden))
    }

    pub(crate) fn lm_head(&self) -> Option<Slot> {
        (!self.config.tie_embeddings).then(|| self.table(self.layout.form.tensors.lm_head))
    }

    fn norm_named(&self, name: &str, pieces: Pieces) -> Slot {
        let offset = self.layout.norm_offset;
        Slot { offset, ..Slot::vector(format!("{name}.weight"), vec![pieces.rows()], pieces) }
    }

    fn table(&self, name: &str) -> Slot {
        let (rows, cols) = (self.config.vocab_size, self.config.hidden);
        Slot::rows(format!("{name}.weight"), vec![rows, cols], Pieces::all(rows))
    }
}

/// The rows `pieces` of the matrix `name`, and of its bias.
fn linear(name: &str, layer: usize, shape: [usize; 2], pieces: Pieces, bias: bool) -> Role {
    let base = of_layer(name, layer);
    let bias_name = format!("{base}.bias");
    let bias = bias.then(|| Slot::vector(bias_name.clone(), vec![shape[0]], pieces.clone()));
    Role { weight: Slot::rows(format!("{base}.weight"), shape.to_vec(), pieces), bias, bias_name }
}

fn of_layer(name: &str, layer: usize) -> String {
    name.replace("{}", &layer.to_string())
}
