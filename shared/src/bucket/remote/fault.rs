//! What a client's error means to us.
//!
//! In: errors of `object_store`. Out: [`BucketError`]s. Pure. The library names the common statuses by variants; the others it hides in a
//! type that isn't public, whose text says `status code: 503`, so that text is read here and nowhere else.

use std::error::Error as StdError;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use super::super::error::Action;
use super::super::{BucketError, Uri, refused};

/// The longest reason, in characters; stores answer with pages.
const REASON_MAX: usize = 300;

/// What `error` means for `action` on `uri`.
pub(super) fn of(uri: &Uri, action: Action, error: &Error) -> BucketError {
    match error {
        Error::NotFound { .. } => of_status(404, uri, action, error),
        Error::Precondition { .. } => of_status(412, uri, action, error),
        Error::PermissionDenied { .. } => of_status(403, uri, action, error),
        Error::Unauthenticated { .. } => of_status(401, uri, action, error),
        Error::Generic { .. } => match status_in(&error.to_string()) {
            Some(status) => of_status(status, uri, action, error),
            None => of_transport(uri, error),
        },
        _ => refused(uri, reason(error)),
    }
}

fn of_status(status: u16, uri: &Uri, action: Action, error: &Error) -> BucketError {
    let uri = uri.clone();
    match status {
        404 => BucketError::NotFound { uri },
        412 => BucketError::Changed { uri },
        403 => {
            let permission = action.permission(uri.scheme());
            BucketError::Forbidden { uri, permission }
        }
        401 => refused(&uri, format!("the credentials are not accepted: {}", reason(error))),
        416 => refused(&uri, "the range is not in the object"),
        301 | 307 => refused(&uri, "the bucket is elsewhere: set AWS_REGION or AWS_ENDPOINT"),
        408 | 429 | 500.. => BucketError::Unavailable { uri, reason: reason(error) },
        // 200 with an error in its body means "slow down".
        ..=299 => BucketError::Unavailable { uri, reason: reason(error) },
        _ => refused(&uri, reason(error)),
    }
}

/// Connections that fail, time out or break are worth trying again; so is what can't be told apart from them.
fn of_transport(uri: &Uri, error: &Error) -> BucketError {
    let uri = uri.clone();
    let reason = reason(error);
    match kind(error) {
        Some(_) => BucketError::Unavailable { uri, reason },
        None => BucketError::Refused { uri, reason },
    }
}

fn kind(error: &Error) -> Option<HttpErrorKind> {
    sources(error).find_map(|source| source.downcast_ref::<HttpError>()).map(HttpError::kind)
}

fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // Not `error.source()`: a reference to an error is an error itself, and lives shorter.
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (**error).source())
}

/// The HTTP status that an error's text names.
fn status_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// What happened, in few words: the status and the store's own code and message, or the last of the causes.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    let words = match status_in(&text) {
        Some(status) => {
            let of_store = ["Code", "Message"].into_iter().filter_map(|tag| element(&text, tag));
            of_store.fold(format!("status {status}"), |reason, said| format!("{reason}: {said}"))
        }
        None => sources(error).last().map_or(text, ToString::to_string),
    };
    words.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect()
}

/// The text of an XML element, such as `SlowDown` in `<Code>SlowDown</Code>`.
fn element<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{tag}>"))?;
    rest.split_once("</").map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    fn fault(text: &str) -> BucketError {
        let uri = Uri::parse("s3://bucket/key").expect("an address");
        of(&uri, Action::List, &generic(text))
    }

    #[test]
    fn a_status_in_a_text_says_what_to_do() {
        let of = |status: u16| fault(&format!("Server returned non-2xx status code: {status} X: <Code>No</Code>"));
        assert!(matches!(of(403), BucketError::Forbidden { permission: "s3:ListBucket", .. }));
        assert!(matches!(of(404), BucketError::NotFound { .. }));
        assert!(matches!(of(412), BucketError::Changed { .. }));
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(of(status).is_transient(), "{status}");
        }
        for status in [301, 400, 401, 405, 411, 416] {
            assert!(matches!(of(status), BucketError::Refused { .. }), "{status}");
        }
    }

    #[test]
    fn a_reason_holds_the_store_s_own_words_and_no_page() {
        let text = "status code: 503 Service Unavailable: <?xml?><Error><Code>SlowDown</Code><Message>Later</Message>";
        assert_eq!(
            fault(&format!("{text}{}", "x".repeat(10_000))).to_string(),
            "s3://bucket/key: the store is not available: status 503: SlowDown: Later"
        );
    }
}
