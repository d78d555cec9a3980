//! The same on a device: queries, keys, values and what was selected never come to the host.

use super::{Context, LayerTrace, attended, sliding_view};
use crate::methods::{Awaited, LayerCall, Selection, StepKind};
use crate::settings::MethodError;
use reattention_kernels::{
    Chosen, ChosenSegment, Device, DeviceCache, DeviceError, DeviceQueries, DeviceView, KeySet, KvView,
    Pages, Position, Queries, Segment, Tensor,
};
use std::ops::Range;
use std::sync::Arc;

impl Context {
    /// The device that keeps keys and values, if one does: [`Context::attend_on_device`] then stands in for
    /// [`Context::attend`].
    pub fn device(&self) -> Option<&dyn Device> {
        self.backend.device().filter(|_| self.store.is_on_device())
    }

    /// [`Context::attend`] with everything on the device: `q` and `out` of `[q_len, n_heads, head_dim]`, `k` and `v` of
    /// `[q_len, n_kv_heads, head_dim]`. The queries may be overwritten.
    ///
    /// # Errors
    /// When the method refuses, or the device fails.
    ///
    /// # Panics
    /// Outside a step, or if no device keeps the keys and values.
    pub fn attend_on_device(
        &mut self,
        layer: usize,
        q: &mut Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &mut Tensor,
    ) -> Result<(), MethodError> {
        self.append_on_device(layer, k, v)?;
        let step = self.step.as_ref().expect("attend is called within a step");
        let (n_heads, head_dim, n_kv_heads) =
            (self.shape.n_heads, self.shape.head_dim, self.shape.n_kv_heads);
        let (q_len, cache) = (step.tokens.len(), self.store.device().expect("a device keeps the keys"));
        let len = cache.len(layer);
        let first = len - q_len;
        let attention = self.shape.layers[layer];
        let ropes = self.ropes.of(attention);
        ropes.begin_view();
        let rule = self.shape.logit_rule();
        // A method that suits a device looks at no element.
        let pages = Pages::Bf16 { keys: &[], values: &[] };
        let mut call = LayerCall {
            layer,
            step,
            q: Queries { data: &[], n_heads, q_len, head_dim, first },
            kv: KvView { pages, len, n_kv_heads, head_dim },
            ropes,
            rule,
            backend: self.backend.as_ref(),
        };
        let (view, awaited) = match attention.window {
            Some(window) => (sliding_view(step.tokens.clone(), window, call.ropes)?, None),
            None => self.method.device_view(&mut call)?,
        };
        let scale = call.ropes.logit_factor() * rule.scale;
        let chosen = match &awaited {
            Some(awaited) => Some(cache.search(
                layer,
                &DeviceQueries { data: q, n_heads, q_len, first },
                &awaited.search,
            )?),
            None => None,
        };
        let around = view.segments.iter().map(|s| attended(s, len - 1)).max().unwrap_or(0);
        match &chosen {
            Some(chosen) => self.around_chosen = self.around_chosen.max((around, around + chosen.most())),
            None => self.attended_max = self.attended_max.max(around),
        }
        if let Some(scales) = &view.scales {
            let device = self.backend.device().expect("a device keeps the keys");
            device.scale_rows(q, n_heads * head_dim, scales)?;
        }
        let segment = chosen.as_ref().zip(awaited.as_ref()).map(|(tokens, awaited)| ChosenSegment {
            tokens,
            index: awaited.index,
            moves: awaited.moves,
        });
        let records = self.mass.is_some() && step.kind == StepKind::Decode;
        let device_view = DeviceView { segments: &view.segments, chosen: segment };
        let queries = DeviceQueries { data: q, n_heads, q_len, first };
        cache.attend(layer, &queries, &device_view, scale, out, records)?;
        if let Some(trace) = &mut self.trace {
            let mut segments = view.segments;
            let mut selections = view.selections;
            if let Some((chosen, awaited)) = chosen.as_ref().zip(awaited) {
                selections = vec![found(cache, chosen, &awaited, &mut segments[0])?];
            }
            trace.push(LayerTrace {
                layer,
                tokens: step.tokens.clone(),
                selections,
                segments,
                slots: Vec::new(),
                mass: Vec::new(),
                archived: view.archived,
            });
        }
        Ok(())
    }

    /// Keys and values of tokens that one layer has cached, wherever they are, each `[n, n_kv_heads, head_dim]`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If some are not held.
    pub fn cached_rows(&mut self, layer: usize, tokens: Range<usize>) -> Result<[Vec<f32>; 2], MethodError> {
        if let Some(device) = self.store.device() {
            return Ok(device.read(layer, tokens)?);
        }
        let kv = self.store.view(layer);
        let (dim, width) = (kv.head_dim, kv.n_kv_heads * kv.head_dim);
        let mut sides = [0, 1].map(|_| vec![0.0; tokens.len() * width]);
        let [keys, values] = &mut sides;
        for (i, token) in tokens.enumerate() {
            for head in 0..kv.n_kv_heads {
                let at = i * width + head * dim;
                kv.copy_key(head, token, &mut keys[at..at + dim]);
                kv.copy_value(head, token, &mut values[at..at + dim]);
            }
        }
        Ok(sides)
    }

    /// [`Context::append`] with keys and values on the device.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// Outside a step, or if no device keeps the keys and values.
    pub fn append_on_device(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(), DeviceError> {
        let n = self.step.as_ref().expect("a layer appends within a step").tokens.len();
        let cache = self.store.device().expect("a device keeps the keys");
        cache.append(layer, n, k, v)
    }
}

/// What a search has found, for a trace, and the segments with it in its place.
fn found(
    cache: &dyn DeviceCache,
    chosen: &Chosen,
    awaited: &Awaited,
    segments: &mut [Segment],
) -> Result<Selection, MethodError> {
    let tokens: Arc<[u32]> = cache.chosen(chosen)?.into();
    segments[awaited.index].keys = KeySet::Gathered(Arc::clone(&tokens));
    if awaited.moves {
        let move_on = |position: &mut Position| {
            if let Position::Rank { offset } = position {
                *offset += tokens.len() as i64;
            }
        };
        segments.iter_mut().for_each(|s| move_on(&mut s.query_position));
        segments[awaited.index + 1..].iter_mut().for_each(|s| move_on(&mut s.key_position));
    }
    Ok(Selection { tokens, ..Selection::default() })
}
