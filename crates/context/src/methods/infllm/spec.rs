//! Name, paper and parameters of `infllm`.

use crate::settings::{MethodSpec, ParamSpec};

pub(in crate::methods) const SPEC: MethodSpec = MethodSpec {
    name: "infllm",
    paper: "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context Memory (arXiv 2402.04617)",
    summary: "a local window and the blocks of far tokens whose representative keys answer the queries best, all at one distance",
    cost: "time O(n²/block) in prefill, a block of queries scoring once for all, and O(n/block) per answer token; memory O(n), or under cold=disk O(n/block) and the disk O(n)",
    suits: "all models; far tokens lose their order, since all stand at the same distance",
    params: &[
        ParamSpec {
            name: "local",
            default: "half the window, at most 4096",
            range: "an integer of at least 1",
            doc: "last tokens visible at their true distances, the query itself included; far tokens stand at distance local - 1",
        },
        ParamSpec {
            name: "global",
            default: "local / 32",
            range: "an integer of at least 0",
            doc: "first tokens that stay visible to all that have left them behind (n_init)",
        },
        ParamSpec {
            name: "block",
            default: "local / 32",
            range: "an integer of at least 1",
            doc: "tokens of a memory block (block_size)",
        },
        ParamSpec {
            name: "top_k",
            default: "16",
            range: "an integer of at least 0",
            doc: "memory blocks brought back into view for each execution block and layer (topk)",
        },
        ParamSpec {
            name: "repr",
            default: "4, at most block",
            range: "an integer of 1 to block",
            doc: "tokens of a block, those that got the most attention while they were local, whose mean key stands for it; each query head has its own (repr_topk)",
        },
        ParamSpec {
            name: "exc_block",
            default: "local / 8",
            range: "an integer of 1 to local",
            doc: "tokens fed at once, which share one choice of blocks by the mean of their queries (exc_block_size)",
        },
        ParamSpec {
            name: "chunk",
            default: "exc_block",
            range: "an integer of at least 1",
            doc: "tokens after which execution blocks start anew, as the published code's forward calls make them (chunk_size)",
        },
        ParamSpec {
            name: "cold",
            default: "memory",
            range: "memory or disk",
            doc: "where blocks lie: in memory, or in an unnamed temporary file (in the folder that TMPDIR names), from which those that are looked at are read back",
        },
        ParamSpec {
            name: "hot",
            default: "twice top_k",
            range: "an integer of at least top_k",
            doc: "blocks of each layer that stay in memory under cold=disk, the last ones used (max_cached_block)",
        },
        ParamSpec {
            name: "reference",
            default: "false",
            range: "true or false",
            doc: "the published code: tokens that are on their way into a block are seen twice by queries that still have them in their local window, and a question is not fed apart",
        },
    ],
};
