//! The trained weights of a CLEX layer: read when a model is opened, since its frequencies are made of them.

use super::{Part, Pieces, Slot, TensorStore, check, widen};
use crate::{Config, ModelError};
use reattention::rope::RopeScaling;

/// `ode_up_proj [dim / 2, param_factor · dim]` and `ode_down_proj`, its shape reversed; nothing for other models. The stored
/// `inv_freq` beside them is left alone: it may be rounded to bf16.
pub(crate) fn slots(config: &Config) -> Vec<Slot> {
    let RopeScaling::Clex(clex) = &config.rope.scaling else { return Vec::new() };
    let (pairs, hidden) = (config.rope.dim / 2, config.rope.dim * clex.settings().param_factor);
    let slot = |name: &str, rows: usize, cols: usize| Slot {
        name: format!("model.clex_layer.proj_func.{name}"),
        shape: vec![rows, cols],
        cols,
        part: Part::Rows(Pieces::all(rows)),
        offset: 0.0,
    };
    vec![slot("ode_up_proj", pairs, hidden), slot("ode_down_proj", hidden, pairs)]
}

/// The configuration with its CLEX layer solved, if it has one.
pub(crate) fn solved(mut config: Config, store: &dyn TensorStore) -> Result<Config, ModelError> {
    let weights = slots(&config).iter().map(|slot| read(slot, store)).collect::<Result<Vec<_>, _>>()?;
    if let [up, down] = &weights[..] {
        config.rope = config
            .rope
            .with_clex_weights(up, down)
            .map_err(|error| ModelError::Rope { file: store.name().into(), error })?;
    }
    Ok(config)
}

fn read(slot: &Slot, store: &dyn TensorStore) -> Result<Vec<f32>, ModelError> {
    check(store, slot)?;
    super::matrix(store, slot).map(|matrix| widen(&matrix))
}
