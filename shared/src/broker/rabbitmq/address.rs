//! Addresses of RabbitMQ: `amqp(s)://user:password@host:port[,host:port…]/vhost`, and the options behind the `?`.
//!
//! In: the parts of an address. Out: an [`AmqpUrl`], one dialable address a host. It never connects, and its `Debug` and
//! `Display` leave the password out.

use std::fmt;
use std::path::PathBuf;

use lapin::uri::{AMQPScheme, AMQPUri};

/// Heartbeats, unless `?heartbeat=` says otherwise: a silent peer is noticed after two of them.
const HEARTBEAT_S: u16 = 10;

/// What kind of queues `setup` declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueType {
    /// Replicated, and it counts deliveries: for anything that matters.
    #[default]
    Quorum,
    /// On one node, for development.
    Classic,
}

impl QueueType {
    /// As the broker names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

impl std::str::FromStr for QueueType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "quorum" => Ok(Self::Quorum),
            "classic" => Ok(Self::Classic),
            _ => Err(format!("queue type {text:?} must be quorum or classic")),
        }
    }
}

/// How to reach RabbitMQ.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    /// One for each host, at least one; they differ in nothing else.
    pub(super) uris: Vec<AMQPUri>,
    /// Certificates to trust instead of the system's.
    pub(super) cacertfile: Option<PathBuf>,
    /// The kind of queues that `setup` declares.
    pub queue_type: QueueType,
}

impl AmqpUrl {
    /// Reads what stands before the `?`, scheme and all, and the options that are not the queue's name.
    ///
    /// # Errors
    /// Says what is wrong, never the password.
    pub fn parse(address: &str, options: &[(String, String)]) -> Result<Self, String> {
        let (mut heartbeat, mut cacertfile, mut queue_type) = (HEARTBEAT_S, None, QueueType::default());
        for (key, value) in options {
            match &**key {
                "heartbeat" => heartbeat = seconds(value)?,
                "cacertfile" => cacertfile = Some(PathBuf::from(value)),
                "queue-type" => queue_type = value.parse()?,
                _ => {
                    let known = "queue, heartbeat, cacertfile and queue-type are known";
                    return Err(format!("unknown option {key:?} in the address: {known}"));
                }
            }
        }
        let uris = uris(address, heartbeat)?;
        if cacertfile.is_some() && uris[0].scheme == AMQPScheme::AMQP {
            return Err("cacertfile is for amqps:// addresses; amqp:// has no certificates".to_owned());
        }
        Ok(Self { uris, cacertfile, queue_type })
    }

    /// The virtual host.
    pub(super) fn vhost(&self) -> &str {
        &self.uris[0].vhost
    }
}

fn seconds(text: &str) -> Result<u16, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=600).contains(seconds));
    seconds.ok_or_else(|| format!("heartbeat {text:?} must be 1 to 600 seconds"))
}

/// One address for each of the hosts between commas.
fn uris(address: &str, heartbeat: u16) -> Result<Vec<AMQPUri>, String> {
    let (scheme, rest) = address.split_once("://").ok_or_else(|| wrong("//host is missing"))?;
    let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
    // An empty virtual host is what `amqp://host/` means to the letter, and nobody's meaning.
    let vhost = if vhost.is_empty() { "%2f" } else { vhost };
    let user = if user.contains(':') { user.to_owned() } else { format!("{user}:") };
    hosts.split(',').map(|host| uri(scheme, &user, host, vhost, heartbeat)).collect()
}

fn uri(scheme: &str, user: &str, host: &str, vhost: &str, heartbeat: u16) -> Result<AMQPUri, String> {
    if host.is_empty() {
        return Err(wrong("a host is empty"));
    }
    let mut uri: AMQPUri =
        format!("{scheme}://{user}@{host}/{vhost}").parse().map_err(|_| wrong(&format!("of host {host:?}")))?;
    uri.query.heartbeat = Some(heartbeat);
    Ok(uri)
}

fn wrong(what: &str) -> String {
    format!("not an address of RabbitMQ, {what}: write amqp://user:password@host:5672/vhost?queue=jobs")
}

/// A part of an address as it is written: what would end it is escaped.
fn escaped(part: &str) -> String {
    ::url::form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>().replace('+', "%20")
}

impl fmt::Display for AmqpUrl {
    /// Everything but the password and the options at their defaults; always ends in the virtual host.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = &self.uris[0];
        write!(formatter, "{}://{}@", first.scheme, escaped(&first.authority.userinfo.username))?;
        for (index, uri) in self.uris.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma}{}:{}", uri.authority.host, uri.authority.port)?;
        }
        write!(formatter, "/{}", escaped(self.vhost()))
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self} ({} queues)", self.queue_type.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(address: &str) -> AmqpUrl {
        AmqpUrl::parse(address, &[]).expect("a good address")
    }

    #[test]
    fn addresses_are_written_back_without_their_password() {
        for (address, shown) in [
            ("amqp://localhost", "amqp://guest@localhost:5672/%2F"),
            ("amqp://localhost/", "amqp://guest@localhost:5672/%2F"),
            ("amqp://u:p%40ss@h:1/v", "amqp://u@h:1/v"),
            ("amqps://u:pass@h", "amqps://u@h:5671/%2F"),
            ("amqp://u:pass@a,b:1,c/v%2Fw", "amqp://u@a:5672,b:1,c:5672/v%2Fw"),
        ] {
            let url = parsed(address);
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("pass"));
            assert_eq!(parsed(shown).to_string(), shown);
        }
        assert_eq!(parsed("amqp://u:p%40ss@h:1/v").uris[0].authority.userinfo.password, "p@ss");
    }

    #[test]
    fn options_are_read_and_checked() {
        let option = |key: &str, value: &str| [(key.to_owned(), value.to_owned())];
        let url = AmqpUrl::parse("amqp://h", &option("heartbeat", "30")).expect("a good address");
        assert_eq!(url.uris[0].query.heartbeat, Some(30));
        let url = AmqpUrl::parse("amqp://h", &option("queue-type", "classic")).expect("a good address");
        assert_eq!(url.queue_type, QueueType::Classic);
        for (key, value) in [("heartbeat", "0"), ("queue-type", "stream"), ("durable", "1"), ("cacertfile", "/ca.pem")]
        {
            let error = AmqpUrl::parse("amqp://u:secret@h", &option(key, value)).expect_err("a wrong option");
            assert!(error.contains(key) || error.contains("queue type"), "{error}");
        }
    }

    #[test]
    fn wrong_addresses_are_refused_without_their_password() {
        for wrong in ["amqp:h", "amqp://", "amqp://u:secret@", "amqp://u:secret@h:port", "amqp://u:secret@a,,b"] {
            let error = AmqpUrl::parse(wrong, &[]).expect_err("a wrong address");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
