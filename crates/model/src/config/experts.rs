//! The sparse layers of a mixture of experts.

use super::Fields;
use crate::{Family, ModelError};
use std::sync::Arc;

/// Layers whose MLP is a choice among experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a sparse layer.
    pub count: usize,
    /// Experts that a token passes.
    pub per_token: usize,
    /// Width of an expert.
    pub intermediate: usize,
    /// Width of the expert that every token passes, where there is one.
    pub shared: Option<usize>,
    /// The weights of the chosen experts are made to add up to one.
    pub renormalises: bool,
    /// Router and experts have biases.
    pub biases: bool,
    /// Whether each layer is sparse; the others have a plain MLP.
    pub sparse: Arc<[bool]>,
}

/// Experts that a file may claim at most, and how wide they may be.
const MOST: u64 = 1 << 14;
const WIDEST: u64 = 1 << 18;

/// Reads them, or refuses them where the family has none.
pub(super) fn parse(
    fields: &Fields,
    family: &Family,
    n_layers: usize,
) -> Result<Option<Experts>, ModelError> {
    let Some(rules) = family.experts else {
        for key in ["num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"] {
            if fields.number(key)?.is_some_and(|n| n > 1.0) {
                let what = format!("mixture of experts ({key}) in a `{}` model", family.name);
                return Err(ModelError::unsupported(fields.file, what, "use a dense model"));
            }
        }
        return Ok(None);
    };
    let size =
        |key: &str, most| fields.optional_size(key, most)?.ok_or_else(|| fields.error(key, "is missing"));
    let count = size(rules.count, MOST)?;
    let per_token = size("num_experts_per_tok", MOST)?;
    if per_token > count {
        let reason = format!("is {per_token}, but there are {count} experts ({})", rules.count);
        return Err(fields.error("num_experts_per_tok", reason));
    }
    Ok(Some(Experts {
        count,
        per_token,
        intermediate: size(rules.intermediate, WIDEST)?,
        shared: match rules.shared {
            true => Some(size("shared_expert_intermediate_size", WIDEST)?),
            false => None,
        },
        renormalises: rules.renormalises || fields.boolean("norm_topk_prob")? == Some(true),
        biases: rules.biases,
        sparse: sparse(fields, n_layers)?.into(),
    }))
}

/// A layer is sparse if `mlp_only_layers` does not name it and `decoder_sparse_step` divides its number, counted from 1.
fn sparse(fields: &Fields, n_layers: usize) -> Result<Vec<bool>, ModelError> {
    let step = fields.optional_size("decoder_sparse_step", 1 << 12)?.unwrap_or(1);
    let mut sparse: Vec<bool> = (1..=n_layers).map(|layer| layer.is_multiple_of(step)).collect();
    for dense in fields.list("mlp_only_layers")?.unwrap_or_default() {
        let layer = dense.as_u64().and_then(|layer| usize::try_from(layer).ok());
        let layer = layer.ok_or_else(|| fields.error("mlp_only_layers", "must hold numbers of layers"))?;
        if let Some(sparse) = sparse.get_mut(layer) {
            *sparse = false;
        }
    }
    Ok(sparse)
}

impl Experts {
    /// Whether layer `layer` is sparse.
    pub fn is_sparse(&self, layer: usize) -> bool {
        self.sparse.get(layer).copied().unwrap_or(false)
    }
}
