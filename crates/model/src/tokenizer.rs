//! Text to tokens and back.

mod ends;
mod pieces;
mod prefix;
mod sentencepiece;
mod stream;
#[cfg(test)]
mod tests;
mod threads;

pub(crate) use ends::is_end_name;
pub(crate) use sentencepiece::SentencePiece;
pub use stream::DecodeStream;

use crate::ModelError;
use serde_json::Value;
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::{AddedToken, NormalizerWrapper, OffsetReferential, OffsetType};

/// A model's tokenizer, with its special tokens.
///
/// Three kinds of added tokens are told apart: *special* ones, *markers* (not special by the file, but spelled by the chat
/// template or written as markup, as Qwen3's `<think>`), and ordinary ones (runs of spaces, HTML tags). Templates may
/// spell all of them, documents only ordinary ones.
pub struct Tokenizer {
    file: String,
    inner: tokenizers::Tokenizer,
    /// Joins by score, for vocabularies that have no ranked joins.
    sentencepiece: Option<SentencePiece>,
    /// The variants of `inner` that some texts need, made when one does; see [`Tokenizer::variant`].
    variants: [OnceLock<tokenizers::Tokenizer>; 5],
    prefix_rule: prefix::Rule,
    special: Vec<String>,
    markers: Vec<String>,
    /// Tokens that count as special for their spelling alone, and that plain text may be joined to.
    by_name: Vec<u32>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<String>,
    eos: Option<String>,
    vocab_size: usize,
    threads: usize,
}

/// What stands before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing: it leads, and a tokenizer that puts a space before texts does so.
    Leads,
    /// Other text, put into tokens before: nothing is added.
    Follows,
}

/// A part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Of a template: special tokens may be spelled out.
    Markup(&'a str),
    /// Somebody's words: what looks like a special token is a string of characters.
    Text(&'a str),
}

impl<'a> Part<'a> {
    /// Its text.
    pub fn text(&self) -> &'a str {
        match *self {
            Self::Markup(text) | Self::Text(text) => text,
        }
    }
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
        let tokenizer = Self::from_json(&json, config.as_deref(), &path.display().to_string())?;
        Ok(match std::fs::read_to_string(dir.join("chat_template.jinja")) {
            Ok(template) => tokenizer.with_template(&template),
            Err(_) => tokenizer,
        })
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
        let templates = config.as_ref().and_then(|c| c.get("chat_template")).map(Value::to_string);
        let mut tokenizer = Self {
            file: file.into(),
            prefix_rule: prefix::Rule::of(&inner),
            inner,
            sentencepiece: None,
            variants: Default::default(),
            special,
            markers: Vec::new(),
            by_name: Vec::new(),
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
        Ok(tokenizer.with_template(templates.as_deref().unwrap_or_default()))
    }

    /// Takes the tokens that a chat template spells for markers, besides those that look like markup.
    pub(crate) fn with_template(mut self, template: &str) -> Self {
        let added = self.inner.get_added_tokens_decoder();
        let marks = |token: &str| is_markup(token) || is_spelled(template, token);
        let markers = added.values().filter(|t| !t.special && marks(&t.content)).map(|t| t.content.clone());
        self.markers.extend(markers);
        self.markers.sort_unstable();
        self.markers.dedup();
        self
    }

    /// Joins texts by score instead of by ranks.
    pub(crate) fn with_sentencepiece(mut self, pieces: SentencePiece) -> Self {
        self.sentencepiece = Some(pieces);
        self
    }

    /// Says which special tokens are so for their spelling alone.
    pub(crate) fn with_special_by_name(mut self, ids: Vec<u32>) -> Self {
        self.by_name = ids;
        self
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
        let parts = self.encode_parts(&[Part::Markup(text)], Place::Leads)?;
        if !add_special {
            return Ok(parts);
        }
        let mut all = Encoded::default();
        self.prefix.iter().for_each(|&id| all.push(id, 0..0));
        all.append(parts, 0);
        self.suffix.iter().for_each(|&id| all.push(id, text.len()..text.len()));
        Ok(all)
    }

    /// Tokenises `text` as mere text: what looks like a special token or a template's marker in it stays a string of
    /// characters. For documents and user input.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Encoded, ModelError> {
        self.encode_parts(&[Part::Text(text)], Place::Leads)
    }

    /// Tokenises `text` with special tokens as characters, but every other added token as itself, a template's markers
    /// too. This is what llama.cpp does with special parsing off, and Hugging Face with `split_special_tokens`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Encoded, ModelError> {
        let mut all = Encoded::default();
        self.encode_stretch(text, 0, Place::Leads, Markers::Tokens, &mut all)?;
        Ok(all)
    }

    /// Tokenises the parts of a prompt as one text: nothing is put between them, and tokens may reach over a seam.
    /// Offsets are those of the parts one after the other. `place` says what stands before the first.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_parts(&self, parts: &[Part<'_>], place: Place) -> Result<Encoded, ModelError> {
        let whole: Cow<'_, str> = match parts {
            [part] => Cow::Borrowed(part.text()),
            _ => parts.iter().map(Part::text).collect(),
        };
        let (mut all, mut place, mut from, mut base) = (Encoded::default(), place, 0, 0);
        for part in parts {
            if let Part::Markup(markup) = *part {
                for (range, id) in self.spelled_out(markup) {
                    let range = base + range.start..base + range.end;
                    self.encode_stretch(&whole[from..range.start], from, place, Markers::Text, &mut all)?;
                    all.push(id, range.clone());
                    (from, place) = (range.end, self.after_special());
                }
            }
            base += part.text().len();
        }
        self.encode_stretch(&whole[from..], from, place, Markers::Text, &mut all)?;
        Ok(all)
    }

    /// The tokens that the tokenizer itself puts before every text: the begin token, or none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Whether the vocabulary has this token as one that is added to its joins: special ones, markers and the like.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
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

    /// The special tokens and markers in a template's text, with their places, in order.
    fn spelled_out(&self, markup: &str) -> Vec<(Range<usize>, u32)> {
        let wanted = |list: &[String]| list.iter().any(|s| markup.contains(s.as_str()));
        if !wanted(&self.special) && !wanted(&self.markers) {
            return Vec::new();
        }
        let added = self.inner.get_added_vocabulary();
        let split = added.extract_and_normalize(None::<&NormalizerWrapper>, markup);
        let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let found = splits.iter().filter_map(|(_, (start, end), tokens)| {
            let id = tokens.as_ref()?.first()?.id;
            let token = added.get_added_tokens_decoder().get(&id)?;
            let taken = token.special || self.markers.binary_search(&token.content).is_ok();
            taken.then_some((*start..*end, id))
        });
        found.collect()
    }

    /// What a text is that stands behind a special token.
    fn after_special(&self) -> Place {
        match self.sentencepiece.is_some() || self.prefix_rule != prefix::Rule::First {
            true => Place::Leads,
            false => Place::Follows,
        }
    }

    /// Tokenises text without special tokens of our own making, which starts at byte `base` of the whole.
    fn encode_stretch(
        &self,
        text: &str,
        base: usize,
        place: Place,
        markers: Markers,
        all: &mut Encoded,
    ) -> Result<(), ModelError> {
        if text.is_empty() {
            return Ok(());
        }
        let inner = self.variant(text, place, markers);
        let bare = |text: &str| self.bare(inner, text, place);
        let parts = pieces::cut(text, bare);
        for part in threads::in_order(parts, self.threads, |piece| encode_piece(bare, text, piece)) {
            all.append(part.map_err(|e| self.error(e))?, base);
        }
        Ok(())
    }

    /// Tokens of a text by itself.
    fn bare(
        &self,
        inner: &tokenizers::Tokenizer,
        text: &str,
        place: Place,
    ) -> Result<Encoded, tokenizers::Error> {
        if let Some(pieces) = &self.sentencepiece {
            return Ok(pieces.encode(inner.get_added_vocabulary(), text, place));
        }
        let encoding = inner.encode(text, false)?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets })
    }

    /// The tokenizer that takes `text` as asked: with special tokens, and markers, as characters if it spells any; without
    /// a space before it if it follows other text.
    fn variant(&self, text: &str, place: Place, markers: Markers) -> &tokenizers::Tokenizer {
        let spells = |list: &[String]| list.iter().any(|s| text.contains(s.as_str()));
        let literal = match markers {
            Markers::Text if spells(&self.markers) => 2,
            _ => usize::from(spells(&self.special)),
        };
        let unprefixed = place == Place::Follows
            && self.sentencepiece.is_none()
            && self.prefix_rule != prefix::Rule::Never;
        let Some(index) = (2 * literal + usize::from(unprefixed)).checked_sub(1) else { return &self.inner };
        self.variants[index].get_or_init(|| {
            let mut inner = self.inner.clone();
            inner.set_encode_special_tokens(literal > 0);
            if literal == 2 {
                let special = self.markers.iter().map(|m| AddedToken::from(m.clone(), true));
                // Adding a token that is there changes its kind alone; nothing of it can fail.
                let _ = inner.add_special_tokens(special);
            }
            if unprefixed {
                prefix::remove(&mut inner);
            }
            inner
        })
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

/// What a template's markers are in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Markers {
    Tokens,
    Text,
}

impl Encoded {
    fn push(&mut self, id: u32, range: Range<usize>) {
        self.ids.push(id);
        self.offsets.push(range);
    }

    /// Appends tokens of a text that starts at byte `base` of the whole.
    fn append(&mut self, part: Encoded, base: usize) {
        self.ids.extend(part.ids);
        self.offsets.extend(part.offsets.into_iter().map(|r| base + r.start..base + r.end));
    }
}

fn encode_piece(
    bare: impl Fn(&str) -> Result<Encoded, tokenizers::Error>,
    text: &str,
    piece: pieces::Piece,
) -> Result<Encoded, tokenizers::Error> {
    let mut encoded = bare(&text[piece.range.clone()])?;
    for range in &mut encoded.offsets {
        *range = piece.range.start + range.start..piece.range.start + range.end;
    }
    if let (Some(slot), Some(first)) = (encoded.offsets.first_mut(), piece.first) {
        *slot = first;
    }
    Ok(encoded)
}

/// Whether a token is written as markup is: `<|im_start|>`, or with full-width bars.
fn is_markup(token: &str) -> bool {
    let within = |open: &str, close: &str| {
        token.strip_prefix(open).and_then(|t| t.strip_suffix(close)).is_some_and(|t| !t.is_empty())
    };
    within("<|", "|>") || within("<\u{ff5c}", "\u{ff5c}>")
}

/// Whether a template spells this token. White space and plain words that happen to stand in it mark nothing.
fn is_spelled(template: &str, token: &str) -> bool {
    let bracketed =
        token.starts_with(['<', '[', '{', '(']) && token.ends_with(['>', ']', '}', ')', '<', '[', '{']);
    bracketed && token.chars().count() > 2 && template.contains(token)
}

/// A token in tokenizer_config.json: its spelling, or an object with it.
fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}
