//! Our engine.

use crate::child::Setup;
use crate::engine::{Engine, version_of};
use anyhow::{Context, Result, anyhow};
use reattention::methods::{StepKind, build};
use reattention::{KvDtype, Settings};
use reattention_engine::{Cancel, Package, Prompt, Session};
use reattention_kernels::{Backend, Cpu};
use reattention_model::{Logits, Model};
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub(crate) struct Ours {
    model: Arc<Model>,
    backend: Arc<dyn Backend>,
    method: String,
    settings: Settings,
    kv: KvDtype,
    session: Session,
    weights: Value,
}

impl Ours {
    pub(crate) fn new(setup: &Setup) -> Result<Self> {
        let package = Package::open(&setup.model)?;
        let backend: Arc<dyn Backend> = Arc::new(Cpu::new(setup.threads)?);
        let kv = setup.kv.parse().map_err(|e: String| anyhow!("--kv: {e}"))?;
        let settings = Settings::parse(&setup.settings)?;
        let method = build(&setup.method, &settings, &package.shape())?;
        let model = package.load()?;
        let session = Session::new(Arc::clone(&model), method, None, kv, Arc::clone(&backend));
        let weights = json!(package.weights().bytes_by_type);
        Ok(Self { model, backend, method: setup.method.clone(), settings, kv, session, weights })
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }
}

impl Engine for Ours {
    fn facts(&self) -> Value {
        let params: Map<String, Value> =
            self.session.method().params().into_iter().map(|(k, v)| (k.to_string(), v.into())).collect();
        json!({
            "version": version_of("reattention"), "backend": self.backend.name(), "threads": self.backend.threads(),
            "method": { "name": self.method, "params": params }, "kv": self.kv.to_string(),
            "weight_bytes_by_type": self.weights,
        })
    }

    fn open(&mut self, _capacity: usize) -> Result<()> {
        let method = build(&self.method, &self.settings, self.model.shape())?;
        self.session =
            Session::new(Arc::clone(&self.model), method, None, self.kv, Arc::clone(&self.backend));
        Ok(())
    }

    fn len(&self) -> usize {
        self.session.len()
    }

    fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.session.prefill(&Prompt::from_ids(tokens.to_vec()), &Cancel::default(), |_| {})?;
        Ok(())
    }

    fn fill(&mut self, tokens: &[u32]) -> Result<()> {
        self.session.fill(tokens, 1)?;
        Ok(())
    }

    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        // A schedule ends with the prompt's last token, on its own; the one here stands for it and is left out.
        let start = self.session.len();
        let mut steps = self.session.schedule(start..start + tokens.len() + 1, None);
        steps.pop().context("the method feeds nothing")?;
        for step in steps {
            let tokens = tokens
                .get(step.tokens.start - start..step.tokens.end - start)
                .with_context(|| format!("{} does not feed the last token apart", self.method))?;
            self.session.feed_step(tokens, step.kind, &Logits::None)?;
        }
        Ok(())
    }

    fn decode(&mut self, tokens: &[u32]) -> Result<()> {
        for token in tokens {
            self.session.feed_step(&[*token], StepKind::Decode, &Logits::Last)?;
        }
        Ok(())
    }

    fn rewind(&mut self, n: usize) -> Result<()> {
        Ok(self.session.truncate(n)?)
    }
}
