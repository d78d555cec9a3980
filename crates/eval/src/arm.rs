//! What is compared: a method with its settings.

use reattention::methods::{Method, build, settled};
use reattention::rope::RopeConfig;
use reattention::{KvDtype, MethodError, Settings};
use reattention_engine::{Engine, PromptError, Session, SessionError};
use reattention_model::ModelError;

/// A method with its settings, one column of a comparison.
#[derive(Clone, Debug)]
pub struct Arm {
    /// What rows and tables call it: the method, where each method stands for one arm.
    pub name: String,
    /// Name of the method.
    pub method: String,
    /// Its settings.
    pub settings: Settings,
    /// Replaces the model's own frequencies.
    pub rope: Option<RopeConfig>,
    /// Type of cached keys and values.
    pub kv: KvDtype,
}

impl Arm {
    /// The method for a model.
    ///
    /// # Errors
    /// When the method refuses its settings or the model.
    pub fn build(&self, engine: &Engine) -> Result<Box<dyn Method>, MethodError> {
        let shape = engine.model().shape();
        let method = match &self.rope {
            Some(rope) => build(&self.method, &self.settings, &shape.clone().with_rope(rope.clone())),
            None => build(&self.method, &self.settings, shape),
        };
        Ok(settled(method?, engine.backend().as_ref()))
    }

    /// A fresh session.
    ///
    /// # Errors
    /// As [`Arm::build`].
    pub fn session(&self, engine: &Engine) -> Result<Session, MethodError> {
        Ok(engine.session(self.build(engine)?, self.rope.clone(), self.kv))
    }
}

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The method refused.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The prompt could not be made.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The tokenizer failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The text could not be made.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
    /// A benchmark's text could not be generated.
    #[error(transparent)]
    Generate(#[from] crate::suites::generate::GenerateError),
    /// Several questions are asked of a text read once, and the method would read it anew with each.
    #[error(
        "arm `{arm}` reads text and question as one, so questions cannot be asked of a text read once; set question_alone=true and reference=off (reattention), or a catalyst other than question (infinipot)"
    )]
    Whole {
        /// The arm.
        arm: String,
    },
    /// The run's folder cannot be used.
    #[error(transparent)]
    Journal(#[from] crate::run::JournalError),
    /// A file to read cannot be read as text.
    #[error(transparent)]
    File(#[from] reattention_engine::TextError),
    /// A benchmark's files cannot be used.
    #[error(transparent)]
    Data(#[from] crate::suites::data::DataError),
    /// Two rows that a journal cannot tell apart.
    #[error("{suite}: two rows of {task} have the id `{id}`; give each an id of its own")]
    Twins {
        /// The suite.
        suite: String,
        /// The task.
        task: String,
        /// What both are called.
        id: String,
    },
    /// A rule for too long prompts met a text with several questions.
    #[error("a text with several questions cannot be cut in the middle")]
    CutsOneQuestion,
    /// There is too little text.
    #[error("the text has {tokens} tokens; at least {needed} are needed")]
    TooShort {
        /// Tokens it has.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
    },
}

impl EvalError {
    /// Whether the evaluation was asked for something that cannot be done, by anyone and at any time; otherwise something
    /// failed on the way, and the same may succeed when the run is resumed.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Method(error) => error.is_refusal(),
            Self::Session(error) => error.is_refusal(),
            Self::Journal(error) => !matches!(error, crate::run::JournalError::File { .. }),
            _ => true,
        }
    }
}
