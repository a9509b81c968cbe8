//! What an operator lets jobs read and write by address.
//!
//! In: the prefixes of `--allow-read` or `--allow-write`, and the address a job names. Out: nothing, or a [`NotAllowed`].
//! Denied is the default: an empty list allows nothing. Pure; that a file's path has no symbolic links in it is seen to
//! where it is opened.

use super::Uri;

/// Prefixes that are allowed; none allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList(Vec<Uri>);

/// An address beneath no allowed prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{uri} is beneath no prefix that {flag} allows: the operator can add one, such as {flag} {}", folder_of(.uri))]
pub struct NotAllowed {
    /// What was asked for.
    pub uri: Uri,
    /// The flag whose prefixes were looked through.
    pub flag: &'static str,
}

impl AllowList {
    /// Whether `uri` lies at or beneath one of the prefixes.
    ///
    /// # Errors
    /// When it doesn't, naming `flag`.
    pub fn check(&self, uri: &Uri, flag: &'static str) -> Result<(), NotAllowed> {
        if self.0.iter().any(|prefix| uri.starts_with(prefix)) {
            return Ok(());
        }
        Err(NotAllowed { uri: uri.clone(), flag })
    }

    /// Whether nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The prefixes, as they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Uri> {
        self.0.iter()
    }
}

impl FromIterator<Uri> for AllowList {
    fn from_iter<I: IntoIterator<Item = Uri>>(prefixes: I) -> Self {
        Self(prefixes.into_iter().collect())
    }
}

/// The narrowest prefix that would allow an address.
fn folder_of(uri: &Uri) -> String {
    let text = uri.to_string();
    let end = text.rfind('/').map_or(text.len(), |slash| slash + 1);
    text[..end].to_owned()
}
