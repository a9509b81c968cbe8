//! How many tokens items have: exactly, by the model's own tokenizer, or about, by their bytes.
//!
//! In: a model's directory or none, items. Out: a number. The weights are not read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use inferq_shared::job::Item;
use inferq_worker::engine::burn::load_tokenizer;
use inferq_worker::serve::ServeError;
use inferq_worker::tokenize::Tokenizer;
use rayon::prelude::*;

use crate::outcome::Error;

/// Bytes of text that are about one token.
const BYTES_PER_TOKEN: usize = 4;

/// Counts tokens.
#[derive(Clone, Default)]
pub enum TokenCounter {
    /// A fourth of the bytes.
    #[default]
    Estimate,
    /// Those that the model reads: of what is cut, only what is left.
    Exact(Arc<Tokenizer>),
}

impl TokenCounter {
    /// By the tokenizer of the model in `directory`, if one is named.
    ///
    /// # Errors
    /// When there is no such model.
    pub fn of_model(directory: Option<&Path>) -> Result<Self, Error> {
        let Some(directory) = directory else { return Ok(Self::Estimate) };
        let tokenizer = load_tokenizer(directory).map_err(ServeError::from)?;
        Ok(Self::Exact(Arc::new(tokenizer)))
    }

    /// Whether counts are exact.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Exact(_))
    }

    /// The tokens of `items`. One that the tokenizer fails on has none: no model reads it.
    pub fn count(&self, items: &[Item]) -> u64 {
        match self {
            Self::Estimate => items.iter().map(|item| (item.input.len_bytes() / BYTES_PER_TOKEN).max(1) as u64).sum(),
            Self::Exact(tokenizer) => {
                let tokens = |item: &Item| tokenizer.encode(&item.input, true).map_or(0, |tokens| tokens.ids.len());
                items.par_iter().map(|item| tokens(item) as u64).sum()
            }
        }
    }
}

impl fmt::Debug for TokenCounter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_exact() { "Exact" } else { "Estimate" })
    }
}
