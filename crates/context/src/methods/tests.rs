//! What holds for whatever is a method.

use super::*;
use crate::tests::tiny_shape;
use crate::{Context, KvDtype};
use reattention_kernels::{Band, KeySet, PAGE, Position, Reference};

const SPEC: MethodSpec =
    MethodSpec { name: "made-up", paper: "", summary: "", cost: "", suits: "", params: &[] };

/// A method that distils as it is told, and may have given away what it would keep.
#[derive(Debug, Default)]
struct MadeUp {
    released: Option<Range<usize>>,
    on_disk: usize,
    kept: Vec<u32>,
}

impl Method for MadeUp {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn schedule(&self, tokens: Range<usize>, _question: Option<usize>) -> Vec<Step> {
        vec![Step { tokens, kind: StepKind::Prefill }]
    }

    fn view(&mut self, call: &mut LayerCall) -> Result<View, MethodError> {
        let rope = call.ropes.for_positions(call.kv.len)?;
        let own = Position::Index { offset: 0 };
        let segment = Segment {
            keys: KeySet::Range(call.kv.len - 1..call.kv.len),
            band: Band::CAUSAL,
            key_position: own,
            query_position: own,
            key_rope: Arc::clone(&rope),
            query_rope: rope,
        };
        Ok(View::new(vec![vec![segment]; call.kv.n_kv_heads]))
    }

    fn distil(&mut self, _entries: &Entries) -> Option<Vec<Vec<u32>>> {
        Some(vec![self.kept.clone(); 2])
    }

    fn distils(&self) -> bool {
        true
    }

    fn release(&self, _len: usize) -> Option<Range<usize>> {
        self.released.clone()
    }

    fn on_disk(&self, _n: usize) -> usize {
        self.on_disk
    }

    fn largest_step(&self) -> usize {
        1
    }
}

#[test]
fn a_method_that_gives_away_what_it_would_distil_is_refused() {
    assert!(consistent(Box::new(MadeUp::default())).is_ok());
    for unfit in [
        MadeUp { released: Some(0..PAGE), ..MadeUp::default() },
        MadeUp { on_disk: PAGE, ..MadeUp::default() },
    ] {
        let error = consistent(Box::new(unfit)).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains("at hand"), "{error}");
    }
}

/// What no store can keep is an error of the step, which leaves nothing behind, and not the end of the process.
#[test]
fn slots_that_cannot_be_kept_are_refused_by_name() {
    let shape = tiny_shape();
    let n = PAGE + 10;
    let step = |context: &mut Context, tokens: Range<usize>, kind| -> Result<(), MethodError> {
        context.begin(&Step { tokens: tokens.clone(), kind });
        for layer in 0..shape.n_layers {
            let vectors = |heads: usize| vec![0.5; tokens.len() * heads * shape.head_dim];
            let (q, kv) = (vectors(shape.n_heads), vectors(shape.n_kv_heads));
            let mut out = q.clone();
            context.attend(layer, &q, &kv, &kv, None, &mut out)?;
        }
        context.finish();
        Ok(())
    };
    for (kept, says) in [
        (vec![3, 2], "ascend"),
        (vec![7, n as u32], "held"),
        (vec![7, PAGE as u32 + 1], "held"),
        (vec![0, 5], ""),
    ] {
        // Built without a check, as somebody's own method may be; the first page is given away, or the last but one.
        let released = (says == "held").then_some(0..PAGE);
        let method = Box::new(MadeUp { released, kept: kept.clone(), ..MadeUp::default() });
        let mut context = Context::new(&shape, method, None, KvDtype::F32, Arc::new(Reference));
        step(&mut context, 0..n, StepKind::Prefill).unwrap();
        match step(&mut context, n..n + 2, StepKind::Ephemeral) {
            Ok(()) => assert!(says.is_empty() && context.kept() == 2, "{kept:?} was kept"),
            Err(error) => {
                assert!(!says.is_empty() && error.to_string().contains(says), "{kept:?}: {error}");
                context.abort();
            }
        }
        assert_eq!(context.len(), n);
        step(&mut context, n..n + 1, StepKind::Decode).unwrap();
    }
}
