//! Parameters, schedules and refusals of `reattention`.

use super::*;
use crate::tests::tiny_shape;

fn build(pairs: &[&str], window: usize) -> Result<ReAttention, MethodError> {
    ReAttention::new(&Settings::parse(pairs).unwrap(), &ModelShape { window, ..tiny_shape() })
}

/// Settings of the paper follow from the window: LLaMA3-8B, then LLaMA3.1, Mistral-v0.3, Qwen2.5, InternLM2.5.
#[test]
fn defaults_are_the_published_settings() {
    let of = |window| {
        let m = build(&[], window).unwrap();
        (m.global, m.local, m.span, m.top_k, m.clip, m.chunk)
    };
    assert_eq!(of(8192), (32, 4096, 32, 4, Some(127), 512));
    assert_eq!(of(32_768), (32, 8192, 32, 4, Some(256), 512));
    assert_eq!(of(131_072), (32, 8192, 32, 4, Some(256), 512));
    assert_eq!(of(512), (16, 128, 16, 4, Some(23), 64));
    for window in [4, 16, 100, 512, 1000, 1024, 4096, 10_000, 20_000] {
        let m = build(&[], window).unwrap();
        assert!(m.global + m.local + m.clip.unwrap() * m.span <= window, "window {window}: {m:?}");
    }
}

/// Check values of the published driver: prompts of `n` tokens and their first block, chunks and selecting steps.
#[test]
fn published_schedule_has_the_published_blocks() {
    let a = build(&["reference=published"], 8192).unwrap();
    for (n, first, steps, last_chunk) in [
        (100_000, 4127, 190, 128),
        (4128, 4127, 2, 4127),
        (4129, 4000, 3, 128),
        (4200, 4071, 3, 128),
        (131_072, 4095, 250, 512),
    ] {
        let schedule = a.schedule(0..n, None);
        assert_eq!(schedule[0].tokens, 0..first, "{n}");
        let chunk = &schedule[schedule.len() - 2];
        assert_eq!((schedule.len(), chunk.tokens.len()), (steps, last_chunk), "{n}");
        assert_eq!(schedule.last().unwrap(), &Step { tokens: n - 1..n, kind: StepKind::Decode });
    }
    assert_eq!(a.local_of(99_871), 4095);
    assert_eq!(a.local_of(100_000), 3968);
    assert_eq!(a.local_of(100_001), 3969);
    assert_eq!(a.local_of(4129), 3969);
    let b = build(&["reference=published"], 131_072).unwrap();
    assert_eq!(b.schedule(0..1_000_000, None)[0].tokens.end, 8127);
    assert_eq!(b.local_of(1_000_000), 8096);
}

#[test]
fn the_question_stands_alone_unless_told_otherwise() {
    let kinds = |m: &ReAttention, question| {
        m.schedule(0..400, question).iter().map(|s| (s.tokens.clone(), s.kind)).collect::<Vec<_>>()
    };
    let alone = kinds(&build(&[], 512).unwrap(), Some(330));
    let tail = [
        (272..330, StepKind::Prefill),
        (330..394, StepKind::Question),
        (394..399, StepKind::Question),
        (399..400, StepKind::Decode),
    ];
    assert_eq!(alone[alone.len() - 4..], tail);
    // 144 = global + local: the first selecting chunk starts there.
    assert!(alone.contains(&(128..144, StepKind::Prefill)) && alone.contains(&(144..208, StepKind::Prefill)));
    let together = kinds(&build(&["question_alone=false"], 512).unwrap(), Some(330));
    assert!(together.contains(&(336..399, StepKind::Prefill)));
    let context_only = kinds(&build(&["question_alone=false"], 512).unwrap(), Some(400));
    assert_eq!(context_only.last().unwrap(), &(336..400, StepKind::Prefill));
}

#[test]
fn contradictions_are_refused() {
    for (bad, says) in [
        (vec!["chunk=129"], "chunk=129 must not exceed 128"),
        (vec!["span=0"], "span=0"),
        (vec!["top_k=0"], "top_k=0"),
        (vec!["clip=0"], "clip=0"),
        (vec!["clip=24"], "exceeds the model's window of 512"),
        (vec!["local=600"], "exceeds the model's window"),
        (vec!["share=heads"], "layer or kv_head"),
        (vec!["vote=loud"], "vote=loud must be count, margin or softmax"),
        (vec!["vote=margin", "top_k=1"], "vote=margin needs a second key"),
        (vec!["vote=softmax", "reference=published", "local=256"], "the published code counts votes"),
        (vec!["selector=magic"], "selector=magic must be clusters, exact, low_bit, boxes or halving"),
        (vec!["probes=0"], "probes=0"),
        (vec!["probes=1000000000"], "must be an integer from 1 to 16384"),
        (vec!["spread_weight=nan"], "spread_weight=NaN"),
        (vec!["spread_weight=-1"], "spread_weight=-1"),
        (vec!["candidates=1000000000"], "must be an integer from top_k to 1024"),
        (vec!["prefill_probes=0"], "prefill_probes=0"),
        (vec!["bits=3"], "bits=3 must be 8, 4 or 2"),
        (vec!["candidates=3"], "candidates=3 must be an integer from top_k to 1024"),
        (vec!["reuse=0"], "reuse=0 must be"),
        (vec!["reuse=1.5"], "reuse=1.5 must be"),
        (vec!["reference=published"], "must not exceed 0"),
        (
            vec!["reference=published-exact", "local=256", "chunk=64", "clip=1", "selector=boxes"],
            "selector=boxes does not exist in the published code",
        ),
        (vec!["top_k=four"], "top_k=four"),
        (vec!["span=18446744073709551615"], "span=18446744073709551615"),
        (vec!["clip=none", "local=900"], "exceeds the model's window of 512"),
        (vec!["prefill=window", "question_alone=false"], "never let the question select"),
    ] {
        let error = build(&bad, 512).unwrap_err().to_string();
        assert!(error.contains(says), "{bad:?}: {error}");
    }
}
