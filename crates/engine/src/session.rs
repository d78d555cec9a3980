//! A session: one model reading and answering under one method.

use crate::evidence::{Evidence, passages};
use crate::progress::{Cancel, Meter, Progress};
use crate::prompt::Prompt;
use crate::sampler::{Sampler, Sampling};
use reattention::methods::{Catalyst, Method, Step, StepKind};
use reattention::rope::RopeConfig;
use reattention::{Context, KvDtype, LayerTrace, MethodError, Origin, SourceMap, TruncateError};
use reattention_kernels::Backend;
use reattention_model::{Logits, Model, Scratch, Tokenizer};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a session could not go on. It stands as it stood before the step that failed, but for
/// [`SessionError::NotANumber`], after which it is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There is nothing to read.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// Generation was asked for before a prompt was read to its end.
    #[error("no prompt was read to its end, so there is nothing to continue; prefill one first")]
    NothingRead,
    /// A token id the model does not have.
    #[error(
        "token {token} is not below the model's vocabulary of {vocab_size}; tokenizer and model do not belong together"
    )]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The model's output is no number: its weights are damaged, or too large for the arithmetic.
    #[error(
        "the model gives no numbers after token {token}; its weights are damaged or not what the configuration says"
    )]
    NotANumber {
        /// Tokens read until then.
        token: usize,
    },
    /// The caller cancelled. The session holds what was read until then.
    #[error("cancelled after {done} of {total} tokens; the session holds what was read")]
    Cancelled {
        /// Tokens fed.
        done: usize,
        /// Tokens to feed.
        total: usize,
    },
    /// There is nothing that a made-up cache could imitate ([`Session::fill`]).
    #[error(
        "a made-up cache imitates tokens that were read, and this session has read none or released some; fill a session that has just read a few hundred"
    )]
    NothingToImitate,
    /// A made-up cache would have to be distilled, which takes a model that reads ([`Session::fill`]).
    #[error(
        "method `{0}` distils what it has read as it goes, so there is no deeper cache to make up; read instead"
    )]
    CannotFill(&'static str),
    /// The method refused.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The context cannot be rolled back that far.
    #[error(transparent)]
    Truncate(#[from] TruncateError),
}

/// One model reading and answering under one method. Sessions share nothing but the model and the backend.
#[derive(Debug)]
pub struct Session {
    pub(crate) model: Arc<Model>,
    pub(crate) context: Context,
    scratch: Scratch,
    /// Tokens in the context.
    pub(crate) ids: Vec<u32>,
    /// Generated tokens that were not fed yet: the last one of an answer.
    pending: Vec<u32>,
    pub(crate) sources: SourceMap,
    texts: Vec<String>,
    /// Logits after the last token, `[vocab_size]`; empty before the first.
    pub(crate) logits: Vec<f32>,
}

/// What a prefill did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prefilled {
    /// Tokens fed.
    pub tokens: usize,
    /// Time taken.
    pub elapsed: Duration,
}

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the answer and are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the answer and are not part of it.
    pub stop_strings: Vec<String>,
    /// Passages of evidence wanted; 0 saves the work of gathering it.
    pub evidence: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            evidence: 0,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// As many tokens as asked for.
    Length,
    /// A stop token.
    StopToken,
    /// A stop string.
    StopString,
    /// The caller cancelled.
    Cancelled,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its tokens, without a stop token.
    pub ids: Vec<u32>,
    /// Its text, without a stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens fed while answering: one less than were generated, unless a stop token was waited for.
    pub fed: usize,
    /// Time taken.
    pub elapsed: Duration,
    /// The passages its tokens looked at most.
    pub evidence: Vec<Evidence>,
}

impl Session {
    /// An empty session. `rope` replaces the model's own frequencies.
    pub fn new(
        model: Arc<Model>,
        method: Box<dyn Method>,
        rope: Option<RopeConfig>,
        kv: KvDtype,
        backend: Arc<dyn Backend>,
    ) -> Self {
        Self {
            context: Context::new(model.shape(), method, rope, kv, backend),
            model,
            scratch: Scratch::default(),
            ids: Vec::new(),
            pending: Vec::new(),
            sources: SourceMap::default(),
            texts: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// Tokens read and generated so far, a generated one not fed yet included.
    pub fn len(&self) -> usize {
        self.ids.len() + self.pending.len()
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        self.context.method()
    }

    /// Logits after the last token read, `[vocab_size]`; empty before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The most keys any query has attended to.
    pub fn attended_max(&self) -> usize {
        self.context.attended_max()
    }

    /// Tokens whose keys and values are still there, in memory or on disk.
    pub fn kept(&self) -> usize {
        self.context.kept()
    }

    /// Memory held by keys and values, in bytes.
    pub fn kv_bytes(&self) -> usize {
        self.context.kv_bytes()
    }

    /// Disk space taken by keys and values, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.context.disk_bytes()
    }

    /// Reads a prompt after what was read before. `progress` is called after every step.
    ///
    /// # Errors
    /// When the prompt is empty or holds unknown tokens (nothing is read then), the caller cancels, or the method
    /// refuses (what was read until then stays).
    pub fn prefill(
        &mut self,
        prompt: &Prompt,
        cancel: &Cancel,
        mut progress: impl FnMut(Progress),
    ) -> Result<Prefilled, SessionError> {
        if prompt.ids.is_empty() {
            return Err(SessionError::EmptyPrompt);
        }
        self.check(&prompt.ids)?;
        // The last token of an answer is fed as every answer token is, before what follows it.
        self.feed_pending()?;
        // Should this prefill end early, there is nothing to continue from.
        self.logits.clear();
        let first_source = self.texts.len() as u32;
        for (name, text) in &prompt.sources {
            self.sources.add_source(name.clone());
            self.texts.push(text.clone());
        }
        let is_asked = self.context.method().catalyst_source() == Some(Catalyst::Question);
        let question =
            prompt.question.and_then(|q| prompt.ids.get(q..)).filter(|q| is_asked && !q.is_empty());
        if let Some(question) = question {
            self.context.set_catalyst(question);
        }
        let (base, total) = (self.ids.len(), prompt.ids.len());
        let steps = self.context.schedule(base..base + total, prompt.question.map(|q| base + q));
        let mut meter = Meter::new(total);
        let start = Instant::now();
        for (i, step) in steps.iter().enumerate() {
            let tokens = step.tokens.start - base..step.tokens.end - base;
            if cancel.is_cancelled() {
                return Err(SessionError::Cancelled { done: tokens.start, total });
            }
            let want = if i + 1 == steps.len() { Logits::Last } else { Logits::None };
            let logits = self.feed(&prompt.ids[tokens.clone()], step, &want)?;
            for token in tokens.clone() {
                let origin = prompt.origins.get(token).copied().flatten();
                self.sources.push(origin.map(|o| Origin { source: o.source + first_source, ..o }));
            }
            if !logits.is_empty() {
                self.logits = logits;
            }
            progress(meter.at(tokens.end));
        }
        Ok(Prefilled { tokens: total, elapsed: start.elapsed() })
    }

    /// Continues after what was read, token by token. `on_text` is called with each complete piece of text; it needs a
    /// tokenizer, as stop strings do.
    ///
    /// # Errors
    /// When nothing was read yet, or the method refuses.
    pub fn generate(
        &mut self,
        options: &GenerateOptions,
        tokenizer: Option<&Tokenizer>,
        cancel: &Cancel,
        mut on_text: impl FnMut(&str),
    ) -> Result<Generation, SessionError> {
        if self.logits.is_empty() {
            return Err(SessionError::NothingRead);
        }
        let start = Instant::now();
        let mut sampler = Sampler::new(options.sampling.clone());
        let mut stream = tokenizer.map(Tokenizer::decode_stream);
        let (mut ids, mut text, mut shown) = (Vec::new(), String::new(), 0);
        let mut finish = Finish::Length;
        let before = self.ids.len();
        while ids.len() < options.max_new_tokens {
            if cancel.is_cancelled() {
                finish = Finish::Cancelled;
                break;
            }
            self.feed_pending()?;
            let token = sampler.sample(&self.logits, &self.ids);
            if options.stop_tokens.contains(&token) {
                finish = Finish::StopToken;
                break;
            }
            ids.push(token);
            self.pending.push(token);
            if let Some(stream) = &mut stream {
                text.push_str(&stream.push(token));
                if let Some(at) = options.stop_strings.iter().filter_map(|s| text.find(s.as_str())).min() {
                    text.truncate(at);
                    finish = Finish::StopString;
                    break;
                }
                // Text that may turn into a stop string is held back.
                let safe = text.len() - held_back(&text, &options.stop_strings);
                if safe > shown {
                    on_text(&text[shown..safe]);
                    shown = safe;
                }
            }
        }
        if let Some(stream) = stream.filter(|_| finish != Finish::StopString) {
            text.push_str(&stream.finish());
        }
        if text.len() > shown {
            on_text(&text[shown..]);
        }
        let elapsed = start.elapsed();
        let evidence = if options.evidence > 0 {
            let mass = self.context.record_mass(false)?;
            passages(&mass, &self.sources, &self.texts, options.evidence)
        } else {
            Vec::new()
        };
        Ok(Generation { ids, text, finish, fed: self.ids.len() - before, elapsed, evidence })
    }

    /// Gathers evidence from now on: call it before the prefill whose last token already looks for the answer.
    pub fn gather_evidence(&mut self) {
        // What was recorded before is not wanted, and gone also where it cannot be read.
        drop(self.context.record_mass(true));
    }

    /// Records what the method selects from now on, or stops; returns what was recorded. With
    /// [`Session::gather_evidence`] it holds the attention each key got in decode steps, too.
    pub fn trace(&mut self, on: bool) -> Vec<LayerTrace> {
        self.context.trace(on)
    }

    /// Rolls back to the first `n` tokens, so that another question can be asked of the same context.
    ///
    /// # Errors
    /// When the method has released tokens it would need; [`Session::pin`] prevents that.
    pub fn truncate(&mut self, n: usize) -> Result<(), SessionError> {
        self.context.truncate(n.min(self.ids.len()))?;
        self.ids.truncate(n);
        self.pending.clear();
        self.sources.truncate(n);
        self.logits.clear();
        Ok(())
    }

    /// Waits for a device to do what was asked of it, so that it can be timed; the host is never behind.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(&self) -> Result<(), SessionError> {
        let device = self.context.backend().device();
        Ok(device.map_or(Ok(()), |device| device.wait()).map_err(MethodError::from)?)
    }

    /// Keeps whatever a roll-back to the current length needs.
    pub fn pin(&mut self) {
        self.context.pin();
    }

    /// Ends [`Session::pin`].
    pub fn unpin(&mut self) {
        self.context.unpin();
    }

    /// The steps in which the tokens `tokens` of a prompt are to be fed now, for evaluations that feed them themselves; see
    /// [`Context::schedule`].
    pub fn schedule(&mut self, tokens: Range<usize>, question: Option<usize>) -> Vec<Step> {
        self.context.schedule(tokens, question)
    }

    /// Feeds tokens as one step of the caller's making and returns the logits wanted; for evaluations.
    ///
    /// # Errors
    /// When a token is unknown or the method refuses.
    pub fn feed_step(
        &mut self,
        tokens: &[u32],
        kind: StepKind,
        want: &Logits,
    ) -> Result<Vec<f32>, SessionError> {
        if tokens.is_empty() {
            return Err(SessionError::EmptyPrompt);
        }
        self.check(tokens)?;
        if let Logits::Loss(targets) = want {
            self.check(targets)?;
        }
        self.feed_pending()?;
        self.logits.clear();
        self.feed_unsourced(tokens, kind, want)
    }

    fn feed_unsourced(
        &mut self,
        tokens: &[u32],
        kind: StepKind,
        want: &Logits,
    ) -> Result<Vec<f32>, SessionError> {
        let start = self.ids.len();
        let logits = self.feed(tokens, &Step { tokens: start..start + tokens.len(), kind }, want)?;
        tokens.iter().for_each(|_| self.sources.push(None));
        Ok(logits)
    }

    fn feed(&mut self, tokens: &[u32], step: &Step, want: &Logits) -> Result<Vec<f32>, SessionError> {
        let logits = self.model.forward(tokens, step, &mut self.context, &mut self.scratch, want, None)?;
        self.ids.extend_from_slice(tokens);
        if logits.iter().any(|l| l.is_nan()) {
            return Err(SessionError::NotANumber { token: step.tokens.end });
        }
        Ok(logits)
    }

    pub(crate) fn feed_pending(&mut self) -> Result<(), SessionError> {
        if let Some(token) = self.pending.pop() {
            match self.feed_unsourced(&[token], StepKind::Decode, &Logits::Last) {
                Ok(logits) => self.logits = logits,
                Err(error) => {
                    self.pending.push(token);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check(&self, tokens: &[u32]) -> Result<(), SessionError> {
        let vocab_size = self.model.config().vocab_size;
        match tokens.iter().find(|t| **t as usize >= vocab_size) {
            Some(&token) => Err(SessionError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }
}

/// Bytes at the end of `text` that could be the beginning of a stop string.
fn held_back(text: &str, stops: &[String]) -> usize {
    let longest = |stop: &String| {
        (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
    };
    stops.iter().map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_stop_string_is_held_back() {
        let stops = vec!["\nUser:".to_string(), "END".to_string()];
        assert_eq!(held_back("hello", &stops), 0);
        assert_eq!(held_back("hello\nUs", &stops), 3);
        assert_eq!(held_back("the EN", &stops), 2);
    }
}
