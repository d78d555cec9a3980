//! Prompts: sources, question and template put together, with the origin of every token.

use reattention::Origin;
use reattention_model::{ChatTemplate, Message, ModelError, Part, Place, Tokenizer};

/// A text to read, under the name evidence gives for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// File name or other label.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Tokens to read, with where they came from.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where each token stands in the sources, with indices into `sources`.
    pub origins: Vec<Option<Origin>>,
    /// The token the question starts at.
    pub question: Option<usize>,
    /// Name and text of each source.
    pub sources: Vec<(String, String)>,
}

impl Prompt {
    /// A prompt of bare tokens.
    pub fn from_ids(ids: Vec<u32>) -> Self {
        Self { origins: vec![None; ids.len()], ids, question: None, sources: Vec::new() }
    }

    /// The begin token (if the model has one), the sources, and a question in the model's chat template, or, for a model
    /// without one, as `\nQuestion: ...\nAnswer:`.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn ask(
        sources: &[Source],
        question: &str,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let (mut prompt, asked) =
            (Self::context(sources, tokenizer, template)?, Self::question(question, tokenizer, template)?);
        prompt.question = Some(prompt.ids.len());
        prompt.push_plain(&asked.ids);
        Ok(prompt)
    }

    /// What stands before the question: begin token or template, and the sources. They are put into tokens as one text.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn context(
        sources: &[Source],
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let mut prompt = Self::default();
        let head = prompt.begin(None, tokenizer, template)?.head;
        let texts: Vec<&Source> = sources.iter().collect();
        prompt.push(&head, "", &texts, tokenizer)?;
        prompt.question = Some(prompt.ids.len());
        Ok(prompt)
    }

    /// The question and what stands behind it. It follows what [`Prompt::context`] has put into tokens.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn question(
        question: &str,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        match template {
            Some(template) => Self::end(&format!("\n\n{question}"), question, "", tokenizer, template),
            None => Self::following(&[Part::Text(&format!("\nQuestion: {question}\nAnswer:"))], tokenizer),
        }
    }

    /// What stands before a question in a form of its own: begin token or template head, `before`, the source. They are put
    /// into tokens as one text. A system message that the template has no place for stands before `before`.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn opening(
        system: Option<&str>,
        before: &str,
        source: &Source,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        let mut prompt = Self::default();
        let around = prompt.begin(system, tokenizer, template)?;
        let before = match around.left_out {
            Some(system) => format!("{system}\n\n{before}"),
            None => before.to_string(),
        };
        prompt.push(&around.head, &before, &[source], tokenizer)?;
        prompt.question = Some(prompt.ids.len());
        Ok(prompt)
    }

    /// What follows an [`Prompt::opening`]: `after`, the rest of the template, and `prefix`, with which the answer begins.
    ///
    /// # Errors
    /// When the template or the tokenizer fails.
    pub fn closing(
        after: &str,
        prefix: &str,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PromptError> {
        match template {
            Some(template) => Self::end(after, after.trim(), prefix, tokenizer, template),
            None => Self::following(&[Part::Text(after), Part::Text(prefix)], tokenizer),
        }
    }

    /// The begin token and a text to continue, without question or template.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn text(source: &Source, tokenizer: &Tokenizer) -> Result<Self, PromptError> {
        let mut prompt = Self::default();
        let head = prompt.begin(None, tokenizer, None)?.head;
        prompt.push(&head, "", &[source], tokenizer)?;
        Ok(prompt)
    }

    /// Tokens that stand in a source.
    pub fn context_tokens(&self) -> usize {
        self.origins.iter().flatten().count()
    }

    fn push_plain(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.origins.resize(self.ids.len(), None);
    }

    /// The tokens that every text begins with, for a model without template; what the template puts around the user's words
    /// for one with it.
    fn begin<'a>(
        &mut self,
        system: Option<&'a str>,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Around<'a>, PromptError> {
        match template {
            Some(template) => Around::of(system, template),
            None => {
                self.push_plain(tokenizer.prefix());
                // A model without a template has no place for a system message but the text itself.
                Ok(Around { head: String::new(), tail: String::new(), left_out: system })
            }
        }
    }

    /// The user's last words, the rest of the template, and the beginning of the answer. A template that shows the user's words
    /// again has `again` there: the sources are read once.
    fn end(
        words: &str,
        again: &str,
        prefix: &str,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
    ) -> Result<Self, PromptError> {
        let tail = Around::of(None, template)?.tail;
        let mut parts = vec![Part::Text(words)];
        for (i, piece) in tail.split(MARK).enumerate() {
            if i > 0 {
                parts.push(Part::Text(again));
            }
            parts.push(Part::Markup(piece));
        }
        parts.push(Part::Text(prefix));
        Self::following(&parts, tokenizer)
    }

    /// Parts that follow what was put into tokens before.
    fn following(parts: &[Part<'_>], tokenizer: &Tokenizer) -> Result<Self, PromptError> {
        let mut prompt = Self { question: Some(0), ..Self::default() };
        prompt.push_plain(&tokenizer.encode_parts(parts, Place::Follows)?.ids);
        Ok(prompt)
    }

    /// The head of a template, `before` and the sources, put into tokens as one text.
    fn push(
        &mut self,
        head: &str,
        before: &str,
        sources: &[&Source],
        tokenizer: &Tokenizer,
    ) -> Result<(), PromptError> {
        if let Some(source) = sources.iter().find(|s| u32::try_from(s.text.len()).is_err()) {
            return Err(PromptError::SourceTooLarge { name: source.name.clone(), bytes: source.text.len() });
        }
        let mut parts = vec![Part::Markup(head), Part::Text(before)];
        parts.extend(sources.iter().map(|s| Part::Text(&s.text)));
        let encoded = tokenizer.encode_parts(&parts, Place::Leads)?;
        // Where each source begins in the whole, and where the last one ends.
        let mut edges = vec![head.len() + before.len()];
        for source in sources {
            edges.push(edges[edges.len() - 1] + source.text.len());
        }
        let first = self.sources.len();
        let mut at = 0;
        let origin = |range: &std::ops::Range<usize>| {
            // Tokens come in the order of the text. One that reaches over a seam is of the later part.
            while at + 1 < edges.len() && range.end > edges[at + 1] {
                at += 1;
            }
            let (start, end) = (edges[at], *edges.get(at + 1)?);
            (range.end > start && range.end > range.start).then(|| Origin {
                source: (first + at) as u32,
                start: (range.start.max(start) - start) as u32,
                end: (range.end.min(end) - start) as u32,
            })
        };
        self.origins.extend(encoded.offsets.iter().map(origin));
        self.ids.extend_from_slice(&encoded.ids);
        self.sources.extend(sources.iter().map(|s| (s.name.clone(), s.text.clone())));
        Ok(())
    }
}

/// A private-use character that marks the place of somebody's words in a rendered template.
pub(crate) const MARK: &str = "\u{F8FF}";

/// What a template puts around the user's words.
struct Around<'a> {
    /// Before them.
    head: String,
    /// Behind them; it has [`MARK`] where the template shows them again.
    tail: String,
    /// The system message, if the template refuses or leaves out one.
    left_out: Option<&'a str>,
}

impl<'a> Around<'a> {
    fn of(system: Option<&'a str>, template: &ChatTemplate) -> Result<Self, PromptError> {
        let render = |system: Option<&str>| {
            let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
            messages.push(Message::user(MARK));
            template.render(&messages, true)
        };
        let shown = match system {
            Some(text) => render(system).ok().filter(|marked| marked.contains(text.trim())),
            None => None,
        };
        let (marked, left_out) = match shown {
            Some(marked) => (marked, None),
            None => (render(None)?, system),
        };
        let (head, tail) = marked.split_once(MARK).ok_or(PromptError::TemplateDropsUser)?;
        Ok(Self { head: head.to_string(), tail: tail.to_string(), left_out })
    }
}

/// Why a prompt could not be put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// Template or tokenizer failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The template leaves out the user's message.
    #[error("the chat template does not render the user's message; use --no-template")]
    TemplateDropsUser,
    /// Byte offsets are kept in 32 bits.
    #[error("source `{name}` has {bytes} bytes; a source may have at most 4 GiB: split it")]
    SourceTooLarge {
        /// Name of the source.
        name: String,
        /// Its size.
        bytes: usize,
    },
}
