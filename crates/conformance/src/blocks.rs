//! The memory blocks of InfLLM: which were put away, which tokens stand for them, and which came back into view.

use crate::Case;
use crate::compare::Findings;
use crate::run::Rows;
use anyhow::{Context as _, ensure};
use reattention::LayerTrace;

/// Compares the blocks of every execution block and layer. Traces without segments, of steps the published run does not
/// have, only tell what was put away before them.
///
/// # Errors
/// When the case lacks a tensor or parameter, or its tensors do not fit together.
pub(crate) fn compare(case: &Case, trace: &[LayerTrace], found: &mut Findings) -> anyhow::Result<()> {
    let number = |key: &str| {
        let value = case.param(key)?;
        value.as_u64().map(|v| v as usize).with_context(|| format!("parameter `{key}` is no count"))
    };
    let (global, size) = (number("n_init")?, number("block_size")?);
    let selected = Rows::read(case, "selected_blocks_index", "selected_blocks", 0)?;
    let representatives = Rows::read(case, "repr_index", "repr_offsets", 0)?;
    let (_, existing) = case.indices("num_blocks")?;
    ensure!(
        existing.len() == selected.index.len(),
        "`num_blocks` and `selected_blocks_index` differ in length"
    );

    let layers = trace.iter().map(|t| t.layer + 1).max().unwrap_or(0);
    let (mut calls, mut put_away) = (vec![0; layers], vec![0; layers]);
    for t in trace {
        for archived in &t.archived {
            let (block, layer) = (put_away[t.layer], t.layer);
            put_away[layer] += 1;
            let what = format!("block {block}, layer {layer}");
            let first = global + block * size;
            found.lists(&format!("{what}: tokens"), &[&archived.tokens], &[&(first..first + size)]);
            let offsets: Vec<usize> =
                archived.representatives.iter().flatten().map(|&t| t as usize - first).collect();
            found.lists(&format!("{what}: representatives"), &offsets, &representatives.get((block, layer)));
        }
        if t.segments.is_empty() {
            continue;
        }
        let call = (calls[t.layer], t.layer);
        calls[t.layer] += 1;
        let what = format!("execution block {}, layer {}", call.0, call.1);
        let Some(row) = selected.index.iter().position(|r| (r[0], r[1]) == call) else {
            found.failures.push(format!("{what} is not in the published run"));
            continue;
        };
        found.lists(&format!("{what}: number of blocks"), &[put_away[t.layer]], &[existing[row]]);
        let tokens = t.selections.iter().flat_map(|s| s.tokens.iter()).map(|&t| t as usize);
        let of_blocks =
            selected.get(call).into_iter().flat_map(|b| global + b * size..global + (b + 1) * size);
        found.lists(
            &format!("{what}: selected tokens"),
            &tokens.collect::<Vec<_>>(),
            &of_blocks.collect::<Vec<_>>(),
        );
        found.selections += 1;
    }
    found.lists(
        "execution blocks and blocks in all",
        &[calls.iter().sum::<usize>(), put_away.iter().sum()],
        &[selected.index.len(), representatives.index.len()],
    );
    Ok(())
}
