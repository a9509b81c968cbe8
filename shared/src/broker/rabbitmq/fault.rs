//! What the AMQP client reports, as the contract's errors.
//!
//! In: a [`lapin::Error`] and what was being done. Out: a [`BrokerError`]: refused for good, or out of reach for now.

use std::io;

use lapin::ErrorKind;
use lapin::protocol::AMQPError;

use super::super::BrokerError;
use super::publish::DIRECT_REPLY;

/// Reply codes of AMQP 0-9-1, <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>.
const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;
const NOT_IMPLEMENTED: u16 = 540;
const INTERNAL_ERROR: u16 = 541;

/// What the server said, where it is the server that failed the call.
pub(super) fn reply(error: &lapin::Error) -> Option<&AMQPError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error),
        _ => None,
    }
}

/// The error of a call that is about no queue in particular.
pub(super) fn broker(error: &lapin::Error) -> BrokerError {
    let Some(reply) = reply(error) else { return BrokerError::Unavailable(error.to_string()) };
    let text = reply.get_message().as_str().to_owned();
    match reply.get_id() {
        ACCESS_REFUSED => BrokerError::Refused(format!("{text} (does the user have the right to do this?)")),
        NOT_ALLOWED => BrokerError::Refused(format!("{text} (make the virtual host, or give the user access to it)")),
        PRECONDITION_FAILED | NOT_IMPLEMENTED => BrokerError::Refused(text),
        _ => BrokerError::Unavailable(text),
    }
}

/// The error of a call that is about `queue`.
pub(super) fn of_queue(queue: &str, error: &lapin::Error) -> BrokerError {
    match reply(error) {
        Some(reply) if reply.get_id() == NOT_FOUND => BrokerError::UnknownQueue(queue.to_owned()),
        // 3.10 fails over a name that it has not made itself, and takes the connection with it: once is enough.
        Some(reply) if reply.get_id() == INTERNAL_ERROR && queue.starts_with(DIRECT_REPLY) => {
            BrokerError::UnknownQueue(queue.to_owned())
        }
        _ => broker(error),
    }
}

/// The error of what worked until now.
pub(super) fn for_now(error: &lapin::Error) -> BrokerError {
    let text = reply(error).map_or_else(|| error.to_string(), |reply| reply.get_message().as_str().to_owned());
    BrokerError::Unavailable(text)
}

/// The other end took the connection and threw it away.
pub(super) fn is_reset(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::IOError(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

/// The error of dialling `host`.
pub(super) fn of_dialling(host: &str, error: &lapin::Error) -> BrokerError {
    match error.kind() {
        // TLS: an unknown issuer, another name, no TLS at the other end.
        ErrorKind::IOError(error) if error.kind() == io::ErrorKind::InvalidData => {
            let way = "check amqps, the port and ?cacertfile=";
            BrokerError::Refused(format!("no TLS connection with {host}: {error} ({way})"))
        }
        // An answer that is not AMQP, such as TLS.
        ErrorKind::ParsingError(_) => BrokerError::Refused(format!(
            "{host} does not speak AMQP: if it speaks TLS, write amqps://, else check the port"
        )),
        _ => match broker(error) {
            BrokerError::Refused(text) => BrokerError::Refused(format!("{host}: {text}")),
            BrokerError::Unavailable(text) => BrokerError::Unavailable(format!("{host}: {text}")),
            other => other,
        },
    }
}
