//! Text into tokens, on CPU threads: the model's own tokenizer file, with its padding and truncation overridden.
//!
//! In: one input. Out: its [`Tokens`], special ones included, never padded, and cut only where the job allows it. What
//! is cut is what sentence-transformers would cut. Sharing one tokenizer among threads is fine. It must stay bounded in
//! time and memory whatever the text is: a text of the largest size costs what its bytes cost, and cut texts are read
//! only as far as the model reads.

use inferq_shared::job::Input;
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings};
use tokenizers::{Encoding, PostProcessor, PreTokenizerWrapper, Tokenizer as HuggingFace};

use crate::engine::Tokens;

/// Bytes of text read for each token that the model reads, at first; doubled until there are tokens enough.
const WINDOW_BYTES_PER_TOKEN: usize = 32;

/// Turns text into the tokens of one model.
pub struct Tokenizer {
    kind: Kind,
    max_tokens: usize,
}

enum Kind {
    /// A tokenizer file of Hugging Face's format.
    File(Box<File>),
    /// Words, each hashed to an id: for engines without a model.
    Words,
}

struct File {
    tokenizer: HuggingFace,
    lowercase: bool,
    /// Whether text before a white space has the same tokens whatever follows it, so that a long text needs no reading
    /// to its end.
    splits_at_white_space: bool,
}

/// Why a text did not become tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// Longer than the model reads, and the job forbids cutting.
    #[error("the input has {tokens} tokens, the limit is {limit}; shorten it or set truncate to true")]
    TooLong {
        /// Tokens of the whole input, special ones included.
        tokens: usize,
        /// Tokens that the model reads.
        limit: usize,
    },
    /// The tokenizer failed on this input.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

impl Tokenizer {
    /// A tokenizer from the bytes of a `tokenizer.json`, for a model that reads `max_tokens` tokens, special ones
    /// included. With `lowercase`, texts are lowercased first, as `do_lower_case` of `sentence_bert_config.json` asks.
    ///
    /// # Errors
    /// When the bytes are no tokenizer of this format, or its special tokens alone pass the limit.
    pub fn from_file(json: &[u8], max_tokens: usize, lowercase: bool) -> Result<Self, TokenizeError> {
        let mut tokenizer = HuggingFace::from_bytes(json).map_err(failed)?;
        tokenizer.with_padding(None).with_truncation(None).map_err(failed)?;
        let special = added_tokens(&tokenizer, false);
        if special >= max_tokens {
            return Err(TokenizeError::TooLong { tokens: special + 1, limit: max_tokens });
        }
        let splits_at_white_space =
            matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)));
        let file = File { tokenizer, lowercase, splits_at_white_space };
        Ok(Self { kind: Kind::File(Box::new(file)), max_tokens })
    }

    /// A tokenizer that needs no file: one leading special token, then one for each word between white space.
    pub fn words(max_tokens: usize) -> Self {
        Self { kind: Kind::Words, max_tokens: max_tokens.max(1) }
    }

    /// Tokens that the model reads, special ones included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The tokens of one input. With `truncate`, what is longer than the model reads is cut.
    ///
    /// # Errors
    /// When the input is too long and must not be cut, or the tokenizer fails on it.
    pub fn encode(&self, input: &Input, truncate: bool) -> Result<Tokens, TokenizeError> {
        match &self.kind {
            Kind::File(file) => file.encode(input, truncate, self.max_tokens),
            Kind::Words => words(input, truncate, self.max_tokens),
        }
    }
}

impl File {
    fn encode(&self, input: &Input, truncate: bool, limit: usize) -> Result<Tokens, TokenizeError> {
        let (first, second) = match input {
            Input::Text(text) => (text, None),
            Input::Pair(query, passage) => (query, Some(passage)),
        };
        let room = limit - added_tokens(&self.tokenizer, second.is_some()).min(limit);
        // Neither half of a pair can keep more than the room there is for both.
        let enough = if truncate { room } else { usize::MAX };
        let first = self.read(first, enough)?;
        let second = second.map(|text| self.read(text, enough)).transpose()?;
        let tokens = first.len() + second.as_ref().map_or(0, Encoding::len);
        if tokens > room && !truncate {
            return Err(TokenizeError::TooLong { tokens: tokens + limit - room, limit });
        }
        let cut = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: room,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let (first, second) = truncate_encodings(first, second, &cut).map_err(failed)?;
        let whole = self.tokenizer.post_process(first, second, true).map_err(failed)?;
        if whole.is_empty() {
            return Err(TokenizeError::Failed("the input has no token at all".to_owned()));
        }
        Ok(Tokens { ids: whole.get_ids().to_vec(), type_ids: whole.get_type_ids().to_vec() })
    }

    /// The tokens of one text without special ones: all of them, or at least `enough`.
    fn read(&self, text: &str, enough: usize) -> Result<Encoding, TokenizeError> {
        let mut window = enough.saturating_mul(WINDOW_BYTES_PER_TOKEN);
        while self.splits_at_white_space && window < text.len() {
            let Some(end) = white_space_from(text, window) else { break };
            let encoding = self.tokens_of(&text[..end])?;
            if encoding.len() >= enough {
                return Ok(encoding);
            }
            window = end.saturating_mul(2);
        }
        self.tokens_of(text)
    }

    fn tokens_of(&self, text: &str) -> Result<Encoding, TokenizeError> {
        if self.lowercase {
            return self.tokenizer.encode_fast(text.to_lowercase(), false).map_err(failed);
        }
        self.tokenizer.encode_fast(text, false).map_err(failed)
    }
}

fn added_tokens(tokenizer: &HuggingFace, pair: bool) -> usize {
    tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
}

/// Where the first ASCII white space at or after `start` lies: a byte that is never inside a character.
fn white_space_from(text: &str, start: usize) -> Option<usize> {
    text.as_bytes()[start..].iter().position(|byte| matches!(byte, b' ' | b'\n' | b'\t' | b'\r')).map(|at| start + at)
}

fn failed(error: impl std::fmt::Display) -> TokenizeError {
    TokenizeError::Failed(error.to_string())
}

/// The id that stands before every input, so that an empty one has a token too.
const LEADING: u32 = 0;

fn words(input: &Input, truncate: bool, limit: usize) -> Result<Tokens, TokenizeError> {
    let (first, second) = match input {
        Input::Text(text) => (text.as_str(), ""),
        Input::Pair(query, passage) => (query.as_str(), passage.as_str()),
    };
    let hashed = |text| str::split_whitespace(text).map(word_id);
    let tokens = 1 + hashed(first).count() + hashed(second).count();
    if tokens > limit && !truncate {
        return Err(TokenizeError::TooLong { tokens, limit });
    }
    let leading = std::iter::once((LEADING, 0));
    let all = leading.chain(hashed(first).map(|id| (id, 0))).chain(hashed(second).map(|id| (id, 1)));
    let (ids, type_ids) = all.take(limit).unzip();
    Ok(Tokens { ids, type_ids })
}

/// A word's id: stable over runs, builds and machines; see <https://www.rfc-editor.org/rfc/rfc9923>.
pub fn word_id(word: &str) -> u32 {
    word.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests;
