//! A session: one model reading and answering under one method.

use crate::evidence::{Evidence, Text, passages};
use crate::progress::{Cancel, Meter, Progress};
use crate::prompt::Prompt;
use crate::sampler::{Sampler, Sampling, SamplingError};
use crate::stops::Stops;
use reattention::methods::{Catalyst, Method, Step, StepKind};
use reattention::rope::RopeConfig;
use reattention::{Context, KvDtype, LayerTrace, MethodError, Origin, SourceMap, TruncateError};
use reattention_kernels::Backend;
use reattention_model::{Logits, Model, Scratch, Tokenizer};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a session could not go on. It stands as it stood before the step that failed, but for
/// [`SessionError::NotANumber`], after which it takes no step until it is rolled back to before that one.
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
    /// The model's output is not finite: its weights are damaged, or too large for the arithmetic.
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
    /// Tokens cannot be chosen as asked.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A stop string that every text holds.
    #[error("a stop string is empty: it would end every answer at once; leave it out")]
    EmptyStop,
    /// Stop strings without the tokenizer that tells what tokens spell.
    #[error("stop strings need the tokenizer, which was not given; give it, or stop by tokens")]
    NoTokenizer,
    /// The method refused, or what it runs on failed ([`MethodError::is_refusal`]).
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The context cannot be rolled back that far.
    #[error(transparent)]
    Truncate(#[from] TruncateError),
}

impl SessionError {
    /// Whether what was asked cannot be done, here or anywhere; otherwise something failed on the way, or somebody cancelled.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Method(error) => error.is_refusal(),
            Self::NotANumber { .. } | Self::Cancelled { .. } => false,
            _ => true,
        }
    }
}

/// One model reading and answering under one method. Sessions share nothing but the model and the backend.
#[derive(Debug)]
pub struct Session {
    pub(crate) model: Arc<Model>,
    pub(crate) context: Context,
    scratch: Scratch,
    /// Tokens in the context.
    pub(crate) ids: Vec<u32>,
    /// The last token of an answer, which is fed before whatever follows it.
    pending: Option<u32>,
    /// Where each token of `ids` comes from.
    pub(crate) sources: SourceMap,
    texts: Vec<Text>,
    /// Logits after the last token of `ids`, `[vocab_size]`; empty where they are not known.
    pub(crate) logits: Vec<f32>,
    /// The tokens of a step that gave no numbers. While it stands no step is taken.
    broken: Option<Range<usize>>,
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
    /// Tokens that end the answer and are not part of it, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// Goes on where the model would end, for measurements of a given length.
    pub ignore_end: bool,
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
            ignore_end: false,
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
            pending: None,
            sources: SourceMap::default(),
            texts: Vec::new(),
            logits: Vec::new(),
            broken: None,
        }
    }

    /// Tokens read and generated so far, a generated one not fed yet included.
    pub fn len(&self) -> usize {
        self.ids.len() + usize::from(self.pending.is_some())
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        self.context.method()
    }

    /// Logits after the last token fed, `[vocab_size]`; empty where they are not known: before the first one, after a
    /// prompt that was not read to its end, and after a roll-back.
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
        self.check_numbers()?;
        // The last token of an answer is fed as every answer token is, before what follows it.
        self.feed_pending()?;
        // Should this prefill end early, there is nothing to continue from.
        self.logits.clear();
        let first_source = self.texts.len() as u32;
        for (name, text) in &prompt.sources {
            self.sources.add_source(name.clone());
            self.texts.push(Text::new(text.clone()));
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
                // What was announced will not come.
                self.context.abort();
                return Err(SessionError::Cancelled { done: tokens.start, total });
            }
            let want = if i + 1 == steps.len() { Logits::Last } else { Logits::None };
            let origins = tokens.clone().map(|token| {
                let origin = prompt.origins.get(token).copied().flatten();
                origin.map(|o| Origin { source: o.source + first_source, ..o })
            });
            let logits = self.feed(&prompt.ids[tokens.clone()], origins, step, &want)?;
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
    /// When there is nothing to continue from, the options make no sense (nothing is generated then), a step gives no
    /// numbers, or the method refuses. Tokens generated until then are part of the session.
    pub fn generate(
        &mut self,
        options: &GenerateOptions,
        tokenizer: Option<&Tokenizer>,
        cancel: &Cancel,
        mut on_text: impl FnMut(&str),
    ) -> Result<Generation, SessionError> {
        self.check_numbers()?;
        if self.logits.is_empty() {
            return Err(SessionError::NothingRead);
        }
        let mut stops = Stops::new(&options.stop_strings).ok_or(SessionError::EmptyStop)?;
        if tokenizer.is_none() && !options.stop_strings.is_empty() {
            return Err(SessionError::NoTokenizer);
        }
        let start = Instant::now();
        let mut sampler = Sampler::new(options.sampling.clone())?;
        sampler.see(&self.ids);
        sampler.see(self.pending.as_slice());
        let mut stream = tokenizer.map(Tokenizer::decode_stream);
        let mut ids = Vec::new();
        let mut finish = Finish::Length;
        let before = self.ids.len();
        while ids.len() < options.max_new_tokens {
            if cancel.is_cancelled() {
                finish = Finish::Cancelled;
                break;
            }
            self.feed_pending()?;
            let token = sampler.sample(&self.logits);
            let ends = !options.ignore_end && self.model.config().eos_ids.contains(&token);
            if ends || options.stop_tokens.contains(&token) {
                finish = Finish::StopToken;
                break;
            }
            ids.push(token);
            self.pending = Some(token);
            sampler.see(&[token]);
            if let Some(stream) = &mut stream {
                if stops.push(&stream.push(token)) {
                    finish = Finish::StopString;
                    break;
                }
                let ready = stops.ready();
                if !ready.is_empty() {
                    on_text(ready);
                }
            }
        }
        if let Some(stream) = stream.filter(|_| finish != Finish::StopString)
            && stops.push(&stream.finish())
        {
            finish = Finish::StopString;
        }
        let rest = stops.rest();
        if !rest.is_empty() {
            on_text(rest);
        }
        let text = stops.into_text();
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

    /// Rolls back to the first `n` tokens, so that another question can be asked of the same context. Where there are no
    /// more, nothing happens.
    ///
    /// # Errors
    /// When the method has released tokens it would need; [`Session::pin`] prevents that. The session then stands as it
    /// stood.
    pub fn truncate(&mut self, n: usize) -> Result<(), SessionError> {
        if n >= self.len() {
            return Ok(());
        }
        if n < self.ids.len() {
            self.context.truncate(n)?;
            self.ids.truncate(n);
            self.sources.truncate(n);
            self.logits.clear();
        }
        self.pending = None;
        self.broken = self.broken.take().filter(|step| step.start < n);
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

    /// Keeps whatever a roll-back to the current length ([`Session::len`]) needs. The last token of an answer is fed for it.
    ///
    /// # Errors
    /// When that token cannot be fed.
    pub fn pin(&mut self) -> Result<(), SessionError> {
        self.check_numbers()?;
        self.feed_pending()?;
        self.context.pin();
        Ok(())
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
        let step = Step { tokens: start..start + tokens.len(), kind };
        self.feed(tokens, std::iter::repeat_n(None, tokens.len()), &step, want)
    }

    /// Feeds a step of tokens, one of `origins` for each. Either all of them are part of the session afterwards or none.
    fn feed(
        &mut self,
        tokens: &[u32],
        origins: impl Iterator<Item = Option<Origin>>,
        step: &Step,
        want: &Logits,
    ) -> Result<Vec<f32>, SessionError> {
        self.check_numbers()?;
        let logits = self.model.forward(tokens, step, &mut self.context, &mut self.scratch, want, None)?;
        self.note(tokens, origins);
        if logits.iter().all(|l| l.is_finite()) {
            return Ok(logits);
        }
        // The context may be unable to go back, so the step stays, and nothing is built on it.
        self.logits.clear();
        self.broken = Some(step.tokens.clone());
        Err(SessionError::NotANumber { token: step.tokens.end })
    }

    /// Takes note of tokens that the context holds from now on.
    pub(crate) fn note(&mut self, tokens: &[u32], origins: impl Iterator<Item = Option<Origin>>) {
        self.ids.extend_from_slice(tokens);
        origins.for_each(|origin| self.sources.push(origin));
    }

    /// Refuses to go on from a step that gave no numbers.
    pub(crate) fn check_numbers(&self) -> Result<(), SessionError> {
        self.broken.as_ref().map_or(Ok(()), |step| Err(SessionError::NotANumber { token: step.end }))
    }

    /// Feeds the last token of an answer, if it is not fed yet; it still waits if that fails.
    pub(crate) fn feed_pending(&mut self) -> Result<(), SessionError> {
        let Some(token) = self.pending else { return Ok(()) };
        let before = self.ids.len();
        let fed = self.feed_unsourced(&[token], StepKind::Decode, &Logits::Last);
        if self.ids.len() > before {
            self.pending = None;
        }
        self.logits = fed?;
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
