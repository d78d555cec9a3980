//! llama.cpp's engine, with full attention over everything cached.

use crate::child::Setup;
use crate::engine::{Engine, version_of};
use crate::state;
use anyhow::{Context, Result, ensure};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::context::session::LlamaStateSeqFlags;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use serde_json::{Value, json};
use std::ffi::CStr;
use std::num::NonZeroU32;

/// The only sequence.
const SEQUENCE: i32 = 0;
/// Tokens handed over at once, and computed at once: llama.cpp's defaults.
const BATCH: usize = 2048;
const MICRO_BATCH: u32 = 512;

pub(crate) struct Llama {
    backend: &'static LlamaBackend,
    model: &'static LlamaModel,
    threads: i32,
    flash: bool,
    context: Option<LlamaContext<'static>>,
    len: usize,
}

impl Llama {
    pub(crate) fn new(setup: &Setup, flash: bool) -> Result<Self> {
        let mut backend = LlamaBackend::init()?;
        backend.void_logs();
        // One of each in a process that ends with them.
        let backend: &'static LlamaBackend = Box::leak(Box::new(backend));
        let model = LlamaModel::load_from_file(backend, &setup.model, &LlamaModelParams::default())
            .with_context(|| format!("llama.cpp cannot load {}", setup.model.display()))?;
        let threads = i32::try_from(setup.threads)?;
        Ok(Self { backend, model: Box::leak(Box::new(model)), threads, flash, context: None, len: 0 })
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.model.n_vocab() as usize
    }

    fn context(&mut self) -> Result<&mut LlamaContext<'static>> {
        self.context.as_mut().context("no sequence is open")
    }

    /// Feeds tokens; with `logits`, for the last one.
    fn feed(&mut self, tokens: &[u32], logits: bool) -> Result<()> {
        let mut batch = LlamaBatch::new(BATCH.min(tokens.len()), 1);
        let mut left = tokens.len();
        for tokens in tokens.chunks(BATCH) {
            left -= tokens.len();
            batch.clear();
            for (offset, &token) in tokens.iter().enumerate() {
                let wanted = logits && left == 0 && offset + 1 == tokens.len();
                batch.add(LlamaToken(token as i32), (self.len + offset) as i32, &[SEQUENCE], wanted)?;
            }
            self.context()?.decode(&mut batch)?;
            self.len += tokens.len();
        }
        self.context()?.synchronize();
        Ok(())
    }
}

impl Engine for Llama {
    fn facts(&self) -> Value {
        // SAFETY: returns a pointer to a static, null-terminated string.
        let system = unsafe { CStr::from_ptr(llama_cpp_sys_2::llama_print_system_info()) };
        json!({
            "llama-cpp-2": version_of("llama-cpp-2"), "llama-cpp-sys-2": version_of("llama-cpp-sys-2"),
            "system_info": system.to_string_lossy(), "threads": self.threads, "flash_attention": self.flash, "kv": "f16", "batch": BATCH, "micro_batch": MICRO_BATCH,
            "weights_bytes": self.model.size(),
        })
    }

    fn open(&mut self, capacity: usize) -> Result<()> {
        self.context = None;
        self.len = 0;
        let policy = if self.flash {
            llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED
        } else {
            llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED
        };
        let params = LlamaContextParams::default()
            .with_n_ctx(Some(NonZeroU32::new(u32::try_from(capacity)?).context("no capacity")?))
            .with_n_batch(BATCH as u32)
            .with_n_ubatch(MICRO_BATCH)
            .with_n_threads(self.threads)
            .with_n_threads_batch(self.threads)
            .with_flash_attention_policy(policy);
        self.context = Some(self.model.new_context(self.backend, params)?);
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.feed(tokens, true)
    }

    fn fill(&mut self, tokens: &[u32]) -> Result<()> {
        let (from, to) = (self.len, self.len + tokens.len());
        let context = self.context()?;
        let mut saved = vec![0; context.state_seq_get_size_ext(SEQUENCE, LlamaStateSeqFlags::empty())];
        // SAFETY: the buffer has the size asked for.
        let written = unsafe {
            context.state_seq_get_data_ext(saved.as_mut_ptr(), SEQUENCE, LlamaStateSeqFlags::empty())
        };
        ensure!(written == saved.len(), "llama.cpp saved {written} of {} bytes", saved.len());
        let longer = state::repeat(&saved, from, to)?;
        // SAFETY: the layout is that of a saved sequence of this context, and llama.cpp checks every length in it.
        let loaded =
            unsafe { context.state_seq_set_data_ext(&longer, SEQUENCE, LlamaStateSeqFlags::empty()) };
        ensure!(loaded, "llama.cpp does not take a sequence of {to} tokens");
        self.len = to;
        Ok(())
    }

    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        self.feed(tokens, false)
    }

    fn decode(&mut self, tokens: &[u32]) -> Result<()> {
        tokens.chunks(1).try_for_each(|token| self.feed(token, true))
    }

    fn rewind(&mut self, n: usize) -> Result<()> {
        let from = u32::try_from(n)?;
        self.context()?.kv_cache_seq_rm(SEQUENCE, Some(from), None)?;
        self.len = n;
        Ok(())
    }
}
