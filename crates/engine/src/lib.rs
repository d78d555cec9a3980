//! Sessions over a model and a long-context method.
//!
//! A [`Package`] is a model whose headers are read, so that a [`MemoryPlan`] can be made before anything large is loaded;
//! an [`Engine`] is the loaded model; a [`Session`] reads prompts and answers under one method, reports progress, counts
//! tokens honestly, and shows [`Evidence`]: the passages an answer looked at.
//!
//! ```
//! use reattention::{KvDtype, Settings, methods};
//! use reattention_engine::{Cancel, GenerateOptions, Package, Source};
//! use reattention_kernels::Cpu;
//! use std::sync::Arc;
//!
//! let package = Package::built_in()?;
//! let engine = package.engine(Arc::new(package.tokenizer()?), Arc::new(Cpu::new(2)?))?;
//! let method = methods::build("reattention", &Settings::new(), engine.model().shape())?;
//! let mut session = engine.session(method, None, KvDtype::Bf16);
//!
//! let note = Source { name: "note".into(), text: "Rain fell. The secret code of Mara Velten is 48271. Wind blew.".into() };
//! let prompt = engine.ask(&[note], "What is the secret code of Mara Velten?")?;
//! let options = GenerateOptions { evidence: 1, ..Default::default() };
//! session.gather_evidence();
//! session.prefill(&prompt, &Cancel::default(), |_| {})?;
//! let answer = session.generate(&options, Some(engine.tokenizer().as_ref()), &Cancel::default(), |_| {})?;
//! assert!(answer.text.contains("48271"));
//! assert_eq!(answer.evidence[0].text, "The secret code of Mara Velten is 48271.");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;

mod draws;
mod endings;
mod evidence;
mod fill;
mod limits;
mod memory;
mod package;
mod progress;
mod prompt;
mod sampler;
mod session;
mod stops;
mod text;

pub use evidence::Evidence;
pub use limits::{MemoryLimit, available, memory_limit};
pub use memory::{DevicePlan, MemoryPlan, OutOfMemory, human, peak_rss, reset_peak_rss};
pub use package::{Engine, Package, give_catalyst};
pub use progress::{Cancel, Progress};
pub use prompt::{Prompt, PromptError, Source};
pub use sampler::{Sampler, Sampling, SamplingError, argmax};
pub use session::{Finish, GenerateOptions, Generation, Prefilled, Session, SessionError};
pub use text::{TextError, decode, read_from, read_text};

/// Whoever embeds it moves sessions between threads and shares engines.
const _: fn() = || {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    is_send::<Session>();
    is_shared::<Engine>();
};
