//! The name and parameters of `reattention`, as people see them.

use crate::settings::{MethodSpec, ParamSpec};

pub(in crate::methods) const SPEC: MethodSpec = MethodSpec {
    name: "reattention",
    paper: "ReAttention: Training-Free Infinite Context with Finite Attention Scope (arXiv 2407.15176)",
    summary: "picks the few thousand cached tokens that matter by raw q·k over all of them, then attends at contiguous positions",
    cost: "selection per token: O(n/16384) plus a constant by default (O(n/128) for answers), O(n) with selector=exact, none in the context with prefill=window; attention O(1); memory O(n), clusters add up to 10 %",
    suits: "all models",
    params: &[
        ParamSpec {
            name: "global",
            default: "32; window/32 below 1,024",
            range: "an integer of at least 0",
            doc: "first tokens, always attended",
        },
        ParamSpec {
            name: "local",
            default: "8192 from a window of 16,416, 4096 from 8,192, else window/4",
            range: "an integer of at least 1",
            doc: "last tokens, always attended; the running chunk counts among them",
        },
        ParamSpec {
            name: "span",
            default: "32; window/32 below 1,024",
            range: "an integer of at least 1",
            doc: "tokens fetched around each voted key",
        },
        ParamSpec {
            name: "top_k",
            default: "4",
            range: "an integer of at least 1 (0, no selection, only with reference)",
            doc: "keys each query and head votes for (published mid_size)",
        },
        ParamSpec {
            name: "clip",
            default: "as many spans as the window holds: 256, 127, ...",
            range: "an integer of at least 1, or none",
            doc: "most voted keys that are kept, per layer (published recall_clip)",
        },
        ParamSpec {
            name: "chunk",
            default: "512, at most local/2",
            range: "an integer of at least 1",
            doc: "tokens fed at once in prefill; they share one selection; at most local, better at most half of it",
        },
        ParamSpec {
            name: "question_alone",
            default: "true",
            range: "true or false",
            doc: "feed the question as a chunk of its own, so that it votes alone; false is published",
        },
        ParamSpec {
            name: "prefill",
            default: "select",
            range: "select or window",
            doc: "select: every chunk selects (published); window: context chunks see global and local only, so that prefill is linear, and only question and answer select",
        },
        ParamSpec {
            name: "share",
            default: "layer",
            range: "layer or kv_head",
            doc: "layer: one selection for all heads of a layer (published); kv_head: one for each KV head",
        },
        ParamSpec {
            name: "selector",
            default: "clusters; exact with prefill=window or reference",
            range: "clusters, exact, low_bit, boxes or halving",
            doc: "how the best keys are found: exact scores every key; clusters looks into the most promising groups of near keys; low_bit scores every key by a copy in few bits; boxes looks into the blocks of 8 neighbours whose bound is best; halving walks down from chunks of 256 neighbours by a key that stands for each",
        },
        ParamSpec {
            name: "exact_below",
            default: "16384",
            range: "an integer of at least 0",
            doc: "up to as many keys every selector scores all in context chunks; questions and answers do up to twice as many",
        },
        ParamSpec {
            name: "probes",
            default: "64; 512 with selector=boxes or halving",
            range: "an integer from 1 to 16384",
            doc: "selector=clusters, boxes or halving: groups a query of the question or the answer looks into",
        },
        ParamSpec {
            name: "prefill_probes",
            default: "12; 16 with selector=boxes or halving",
            range: "an integer from 1 to 16384",
            doc: "selector=clusters, boxes or halving: groups a query of the context looks into",
        },
        ParamSpec {
            name: "voters",
            default: "4; 1 with selector=exact",
            range: "an integer of at least 1",
            doc: "beyond exact_below keys, one token in so many of a context chunk votes",
        },
        ParamSpec {
            name: "vote",
            default: "margin; count with reference or top_k=1",
            range: "count, margin or softmax",
            doc: "what a vote weighs: one (published), the key's lead over the last of its query and head's top_k in logits, or its share of a softmax over them",
        },
        ParamSpec {
            name: "spread_weight",
            default: "2",
            range: "a finite number of at least 0",
            doc: "selector=clusters: how much more a wide group promises than its centre",
        },
        ParamSpec {
            name: "bits",
            default: "4",
            range: "8, 4 or 2",
            doc: "selector=low_bit: bits of an element of a key's copy",
        },
        ParamSpec {
            name: "candidates",
            default: "128 * top_k; 4 * top_k with selector=low_bit",
            range: "an integer from top_k to 1024",
            doc: "selector=clusters (questions and answers) and low_bit: keys of each query and head that few bits name, to be scored as they are",
        },
        ParamSpec {
            name: "reuse",
            default: "off",
            range: "a number above 0 and up to 1, or off",
            doc: "an answer token takes the last search's keys while the cosine of its query with that search's is at least this",
        },
        ParamSpec {
            name: "positions",
            default: "contiguous",
            range: "contiguous or original",
            doc: "contiguous: slot rank in the view (published pe_original false); original: the tokens' own positions, an ablation that leaves the window",
        },
        ParamSpec {
            name: "reference",
            default: "off",
            range: "off, published or published-exact",
            doc: "published: as the released code (decode pairs head h with KV head h mod n_kv_heads, local is shortened so that the middle is a multiple of 128, one candidate per 128-key tile at top_k 4, first block whole); published-exact: the same with an exact top-k",
        },
    ],
};
