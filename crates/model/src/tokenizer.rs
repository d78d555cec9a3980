//! Text to tokens and back.

mod pieces;
mod stream;
#[cfg(test)]
mod tests;
mod threads;

pub use stream::DecodeStream;

use crate::ModelError;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// A model's tokenizer, with its special tokens.
pub struct Tokenizer {
    file: String,
    inner: tokenizers::Tokenizer,
    /// The same without special tokens, made when a text spells one.
    literal: OnceLock<tokenizers::Tokenizer>,
    special: Vec<String>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
    vocab_size: usize,
    threads: usize,
}

/// A tokenised text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Bytes of the text each token stands for. A token that holds only a part of a character has the whole
    /// character's bytes; begin and end tokens have an empty range at their end of the text.
    pub offsets: Vec<Range<usize>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.file, self.vocab_size())
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder, and the names of begin and end token from `tokenizer_config.json`.
    ///
    /// # Errors
    /// When a file is missing or not valid.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer.json");
        let json = crate::files::read_text(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => ModelError::NoModel {
                path: dir.into(),
                reason: "tokenizer.json is missing; convert the tokenizer with transformers' AutoTokenizer and save it"
                    .into(),
            },
            _ => ModelError::io(&path)(e),
        })?;
        let config = match crate::files::read_text(&dir.join("tokenizer_config.json")) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(ModelError::io(&dir.join("tokenizer_config.json"))(e)),
        };
        Self::from_json(&json, config.as_deref(), &path.display().to_string())
    }

    /// A tokenizer from the texts of tokenizer.json and tokenizer_config.json; `file` names it in messages.
    ///
    /// # Errors
    /// When a text is not valid.
    pub fn from_json(json: &str, config: Option<&str>, file: &str) -> Result<Self, ModelError> {
        let error = |reason: String| ModelError::Tokenizer { file: file.into(), reason };
        let mut inner: tokenizers::Tokenizer =
            json.parse().map_err(|e: tokenizers::Error| error(e.to_string()))?;
        // A file may carry the truncation or padding of its training; a prompt is never cut silently.
        inner.with_truncation(None).map_err(|e| error(e.to_string()))?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let special = added
            .values()
            .filter(|t| t.special && !t.content.is_empty())
            .map(|t| t.content.clone())
            .collect();
        let config: Option<Value> = config
            .map(serde_json::from_str)
            .transpose()
            .map_err(|e| error(format!("tokenizer_config.json: {e}")))?;
        let name = |key: &str| token_name(config.as_ref()?.get(key)?);
        let (bos, eos) = (name("bos_token"), name("eos_token"));
        let mut tokenizer = Self {
            file: file.into(),
            inner,
            literal: OnceLock::new(),
            special,
            prefix: Vec::new(),
            suffix: Vec::new(),
            bos,
            eos,
            vocab_size: 0,
            threads: 1,
        };
        let largest = tokenizer.inner.get_vocab(true).into_values().max();
        tokenizer.vocab_size = largest.map_or(0, |id| id as usize + 1);
        (tokenizer.prefix, tokenizer.suffix) = tokenizer.find_affixes()?;
        Ok(tokenizer)
    }

    /// The same, on as many threads at most where a text is long; a new tokenizer keeps to the caller's. Results do not depend
    /// on it.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: threads.max(1), ..self }
    }

    /// Tokenises `text`, in which special tokens may be spelled out, as chat templates do. With `add_special`, the
    /// begin and end tokens that the tokenizer itself puts around every text are added.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, ModelError> {
        let (prefix, suffix) =
            if add_special { (&self.prefix[..], &self.suffix[..]) } else { (&[][..], &[][..]) };
        self.encode_with(&self.inner, text, prefix, suffix)
    }

    /// Tokenises `text` as mere text: what looks like a special token in it stays a string of characters. For
    /// documents and user input.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Encoded, ModelError> {
        let spelled = self.special.iter().any(|s| text.contains(s.as_str()));
        let inner = if spelled { self.literal.get_or_init(|| literal(&self.inner)) } else { &self.inner };
        self.encode_with(inner, text, &[], &[])
    }

    /// Tokens to text; with `skip_special`, without the special ones. Bytes that are no UTF-8 become `U+FFFD`.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        self.inner.decode(ids, skip_special).map_err(|e| self.error(e))
    }

    /// A decoder for tokens as they come.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// Id of the token that begins a text, as tokenizer_config.json names it.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_to_id(self.bos.as_deref()?)
    }

    /// Id of the token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_to_id(self.eos.as_deref()?)
    }

    /// Spelling of the begin token, for chat templates.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// Spelling of the end token.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of the token spelled `token`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Spelling of a token in the vocabulary's own alphabet.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    fn encode_with(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        prefix: &[u32],
        suffix: &[u32],
    ) -> Result<Encoded, ModelError> {
        let parts = pieces::cut(text, |s| bare(inner, s));
        let parts: Result<Vec<Encoded>, tokenizers::Error> =
            threads::in_order(parts, self.threads, |piece| encode_piece(inner, text, piece))
                .into_iter()
                .collect();
        let parts = parts.map_err(|e| self.error(e))?;
        let len = prefix.len() + suffix.len() + parts.iter().map(|p| p.ids.len()).sum::<usize>();
        let mut all = Encoded { ids: Vec::with_capacity(len), offsets: Vec::with_capacity(len) };
        all.push_special(prefix, 0);
        for part in parts {
            all.ids.extend(part.ids);
            all.offsets.extend(part.offsets);
        }
        all.push_special(suffix, text.len());
        Ok(all)
    }

    /// The tokens that the post-processor puts before and after a text.
    fn find_affixes(&self) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
        let ids = |special| {
            self.inner.encode("a", special).map(|e| e.get_ids().to_vec()).map_err(|e| self.error(e))
        };
        let (bare, dressed) = (ids(false)?, ids(true)?);
        let at = dressed.windows(bare.len().max(1)).position(|w| w == bare);
        let Some(at) = at else { return Ok((Vec::new(), Vec::new())) };
        Ok((dressed[..at].to_vec(), dressed[at + bare.len()..].to_vec()))
    }

    fn error(&self, e: tokenizers::Error) -> ModelError {
        ModelError::Tokenizer { file: self.file.clone(), reason: e.to_string() }
    }
}

impl Encoded {
    fn push_special(&mut self, ids: &[u32], at: usize) {
        self.ids.extend_from_slice(ids);
        self.offsets.resize(self.ids.len(), at..at);
    }
}

/// Tokens of a text by itself.
fn bare(inner: &tokenizers::Tokenizer, text: &str) -> Result<Encoded, tokenizers::Error> {
    let encoding = inner.encode(text, false)?;
    let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
    Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets })
}

fn encode_piece(
    inner: &tokenizers::Tokenizer,
    text: &str,
    piece: pieces::Piece,
) -> Result<Encoded, tokenizers::Error> {
    let mut encoded = bare(inner, &text[piece.range.clone()])?;
    for range in &mut encoded.offsets {
        *range = piece.range.start + range.start..piece.range.start + range.end;
    }
    if let (Some(slot), Some(first)) = (encoded.offsets.first_mut(), piece.first) {
        *slot = first;
    }
    Ok(encoded)
}

fn literal(inner: &tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    let mut literal = inner.clone();
    literal.set_encode_special_tokens(true);
    literal
}

/// A token in tokenizer_config.json: its spelling, or an object with it.
fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}
