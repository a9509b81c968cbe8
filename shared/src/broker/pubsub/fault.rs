//! What the Pub/Sub client reports, as the contract's errors.
//!
//! In: a client's error and the place that it is about. Out: a [`BrokerError`]: refused for good with what to grant, no
//! such queue, or out of reach for now.

use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::Error;

use super::super::BrokerError;
use super::place::Place;

/// What was being done, which decides what to grant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    /// Publishing to the topic.
    Publish,
    /// Taking messages from the subscription.
    Consume,
    /// Looking whether topic or subscription are there, and how they are made.
    Look,
    /// Making, changing or removing them.
    Manage,
}

impl Action {
    /// The least of Google's roles that allows it: <https://cloud.google.com/pubsub/docs/access-control>.
    fn role(self) -> &'static str {
        match self {
            Self::Publish => "roles/pubsub.publisher",
            Self::Consume => "roles/pubsub.subscriber",
            Self::Look => "roles/pubsub.viewer",
            Self::Manage => "roles/pubsub.editor",
        }
    }
}

/// The error of doing `action` with `place`.
pub(super) fn of(place: &Place, action: Action, error: &Error) -> BrokerError {
    match code(error) {
        Some(Code::NotFound) => BrokerError::UnknownQueue(place.queue.clone()),
        Some(Code::PermissionDenied) => {
            let on = match action {
                Action::Publish => &place.topic,
                Action::Consume => &place.subscription,
                Action::Look | Action::Manage => "its project",
            };
            let role = action.role();
            BrokerError::Refused(format!("{}; grant {role} on {on} to the account that this runs as", text(error)))
        }
        Some(Code::Unauthenticated) => BrokerError::Refused(format!("{}; {}", text(error), HOW_TO_LOG_IN)),
        Some(Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented) => {
            BrokerError::Refused(text(error))
        }
        _ if error.is_authentication() && !error.is_transient_and_before_rpc() => no_credentials(&text(error)),
        _ => BrokerError::Unavailable(text(error)),
    }
}

/// What to do where nobody is logged in.
const HOW_TO_LOG_IN: &str =
    "on Google Cloud give the workload a service account, elsewhere run `gcloud auth application-default login`";

/// No credentials could be had.
pub(super) fn no_credentials(why: &str) -> BrokerError {
    BrokerError::Refused(format!("no credentials for Pub/Sub: {why}; {HOW_TO_LOG_IN}"))
}

/// There may be credentials, but they can't be had for now.
pub(super) fn credentials_out_of_reach(why: &str) -> BrokerError {
    BrokerError::Unavailable(format!("credentials for Pub/Sub: {why}; {HOW_TO_LOG_IN}"))
}

/// What the service answered, if it did.
pub(super) fn code(error: &Error) -> Option<Code> {
    if let Some(status) = error.status() {
        return Some(status.code);
    }
    // The administrative calls are HTTP, and not every proxy answers in Google's form.
    match error.http_status_code()? {
        401 => Some(Code::Unauthenticated),
        403 => Some(Code::PermissionDenied),
        404 => Some(Code::NotFound),
        409 => Some(Code::AlreadyExists),
        _ => None,
    }
}

/// What is wrong, in the service's words where it has spoken.
fn text(error: &Error) -> String {
    match error.status() {
        Some(status) if !status.message.is_empty() => format!("{} ({})", status.message, status.code.name()),
        Some(status) => status.code.name().to_owned(),
        None => error.to_string(),
    }
}
