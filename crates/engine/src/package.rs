//! A model with its tokenizer and template: opened first, loaded when its memory is planned.

use crate::endings::Endings;
use crate::memory::MemoryPlan;
use crate::prompt::{Prompt, PromptError, Source};
use crate::session::Session;
use reattention::methods::{Catalyst, Method};
use reattention::rope::RopeConfig;
use reattention::{KvDtype, ModelShape};
use reattention_kernels::Backend;
use reattention_model::{Bundle, ChatTemplate, Checkpoint, Config, Model, ModelError, Tokenizer, WeightPlan};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The needle model, compiled in.
const BUILT_IN: Bundle = Bundle {
    name: "built-in needle model",
    config: include_str!("../../../models/needle/config.json"),
    generation_config: Some(include_str!("../../../models/needle/generation_config.json")),
    tokenizer: include_str!("../../../models/needle/tokenizer.json"),
    tokenizer_config: Some(include_str!("../../../models/needle/tokenizer_config.json")),
    weights: include_bytes!("../../../models/needle/model.safetensors"),
};

/// A model whose headers are read and checked, but not its weights.
#[derive(Debug)]
pub struct Package {
    name: String,
    checkpoint: Checkpoint,
    weights: WeightPlan,
}

impl Package {
    /// The model compiled into the program: it finds facts, and does nothing else.
    ///
    /// # Errors
    /// Never, unless the program was built with broken model files.
    pub fn built_in() -> Result<Self, ModelError> {
        Self::new(BUILT_IN.name.into(), Checkpoint::from_bundle(&BUILT_IN)?)
    }

    /// The model at `path`: a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// When there is no model, or a file of it is not valid or not supported.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::new(path.display().to_string(), Checkpoint::open(path)?)
    }

    fn new(name: String, checkpoint: Checkpoint) -> Result<Self, ModelError> {
        let weights = checkpoint.plan()?;
        Ok(Self { name, checkpoint, weights })
    }

    /// Path, or the name of the built-in model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells this model from others: a hash of all its files.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String, ModelError> {
        self.checkpoint.fingerprint()
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    /// Its attention shape.
    pub fn shape(&self) -> ModelShape {
        self.config().shape()
    }

    /// What its weights will take.
    pub fn weights(&self) -> &WeightPlan {
        &self.weights
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// When it has none, or one that cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        self.checkpoint.tokenizer()
    }

    /// Its chat template, `None` for a model without one.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        self.checkpoint.chat_template()
    }

    /// What a session of `tokens` tokens will take; `known` bytes are already held for texts and the like.
    pub fn plan(
        &self,
        method: &dyn Method,
        kv: KvDtype,
        tokens: usize,
        known: usize,
        backend: &dyn Backend,
    ) -> MemoryPlan {
        let mut plan =
            MemoryPlan::new(self.config(), method, kv, self.weights.bytes_resident as usize, tokens, known);
        // Loading may take more for a moment than a short session does later.
        plan.total = plan.total.max((self.weights.bytes_resident + self.weights.bytes_scratch) as usize);
        match backend.device() {
            Some(device) => plan.on(device, self.weights.device_bytes() as usize, self.config(), method, kv),
            None => plan,
        }
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn load(&self) -> Result<Arc<Model>, ModelError> {
        Ok(Arc::new(Model::new(self.config().clone(), self.checkpoint.load()?)))
    }

    /// Reads everything needed to answer in text.
    ///
    /// # Errors
    /// As [`Package::load`] and [`Package::tokenizer`].
    pub fn engine(&self, tokenizer: Arc<Tokenizer>, backend: Arc<dyn Backend>) -> Result<Engine, ModelError> {
        let start = Instant::now();
        let template = self.template()?;
        let endings = Endings::of(self.config(), &tokenizer, template.as_ref());
        // Every session of the model then knows what ends its answers.
        let mut config = self.config().clone();
        config.eos_ids = endings.tokens;
        let model = Arc::new(Model::new(config, self.checkpoint.load()?));
        model.place(backend.as_ref())?;
        Ok(Engine {
            model,
            tokenizer,
            template: template.map(Arc::new),
            stop_texts: endings.texts,
            backend,
            load: start.elapsed(),
        })
    }
}

/// Puts the text of a method's catalyst, if it has one, into tokens: as a question of the model's own form.
///
/// # Errors
/// When template or tokenizer fails.
pub fn give_catalyst(
    method: &mut dyn Method,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<(), PromptError> {
    if let Some(Catalyst::Text(text)) = method.catalyst_source() {
        let ids = Prompt::question(text, tokenizer, template)?.ids;
        method.set_catalyst(&ids);
    }
    Ok(())
}

/// A loaded model with its tokenizer and template, on a backend. Sessions are made from it.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    /// Texts that end a turn of the template.
    stop_texts: Vec<String>,
    backend: Arc<dyn Backend>,
    load: Duration,
}

impl Engine {
    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Time that loading took.
    pub fn load_time(&self) -> Duration {
        self.load
    }

    /// Leaves the chat template aside: questions are asked as of a base model.
    pub fn without_template(mut self) -> Self {
        self.template = None;
        self
    }

    /// Asks questions in this form of the model's chat template, for instance with thinking off
    /// ([`ChatTemplate::with_thinking`]), or, without one, as of a base model.
    pub fn with_template(mut self, template: Option<ChatTemplate>) -> Self {
        self.template = template.map(Arc::new);
        self
    }

    /// The same loaded model on another backend.
    pub fn on(&self, backend: Arc<dyn Backend>) -> Self {
        let (model, tokenizer) = (Arc::clone(&self.model), Arc::clone(&self.tokenizer));
        let (template, stop_texts) = (self.template.clone(), self.stop_texts.clone());
        Self { model, tokenizer, template, stop_texts, backend, load: self.load }
    }

    /// The chat template, if questions are asked in one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_deref()
    }

    /// Whether questions are asked in a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// A new session under a method. `rope` replaces the model's own frequencies.
    pub fn session(&self, mut method: Box<dyn Method>, rope: Option<RopeConfig>, kv: KvDtype) -> Session {
        // A method whose catalyst cannot be put into tokens says so as soon as it needs it.
        let _ = give_catalyst(method.as_mut(), &self.tokenizer, self.template.as_deref());
        Session::new(Arc::clone(&self.model), method, rope, kv, Arc::clone(&self.backend))
    }

    /// A question about sources, in the model's own form.
    ///
    /// # Errors
    /// When template or tokenizer fails.
    pub fn ask(&self, sources: &[Source], question: &str) -> Result<Prompt, PromptError> {
        Prompt::ask(sources, question, &self.tokenizer, self.template.as_deref())
    }

    /// The sources alone, to ask several questions of them with [`Engine::question`].
    ///
    /// # Errors
    /// When template or tokenizer fails.
    pub fn context(&self, sources: &[Source]) -> Result<Prompt, PromptError> {
        Prompt::context(sources, &self.tokenizer, self.template.as_deref())
    }

    /// A question about what [`Engine::context`] has put before it.
    ///
    /// # Errors
    /// When template or tokenizer fails.
    pub fn question(&self, question: &str) -> Result<Prompt, PromptError> {
        Prompt::question(question, &self.tokenizer, self.template.as_deref())
    }

    /// Texts that end an answer besides the stop tokens: a line break for a model without chat template, which would
    /// otherwise go on to ask itself the next question; with a template, what it closes a turn with, if the vocabulary has
    /// no such token and the model spells it.
    pub fn stop_strings(&self) -> Vec<String> {
        if self.template.is_none() { vec!["\n".into()] } else { self.stop_texts.clone() }
    }

    /// Tokens that end an answer: those of the model's configuration, of its tokenizer and of its template, and the known
    /// names of such tokens. A session of this engine stops at them by itself.
    pub fn stop_tokens(&self) -> Vec<u32> {
        self.model.config().eos_ids.clone()
    }
}
