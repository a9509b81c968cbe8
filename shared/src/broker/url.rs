//! Broker addresses: `memory:`, `sqlite:///path/queue.db` and `amqp(s)://…`, each with `?queue=name`, and
//! `pubsub://project/topic`.
//!
//! In: text from a flag or variable. Out: a checked [`BrokerUrl`]. It never connects, and never prints a password.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ::url::form_urlencoded;

use super::QueueNames;
use super::pubsub::PubSubUrl;
use super::rabbitmq::{AmqpUrl, QueueType};

/// Where a queue is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Which broker, and how to reach it.
    pub scheme: Scheme,
    /// The names of the queues: the topic, `?queue=`, else `jobs`.
    pub queues: QueueNames,
}

/// The brokers this build speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// `memory:`: inside one process.
    Memory,
    /// `sqlite:///absolute/path` or `sqlite:relative/path`: a file on this machine.
    Sqlite(PathBuf),
    /// `amqp(s)://user:password@host:port[,host:port…]/vhost`: RabbitMQ.
    Amqp(AmqpUrl),
    /// `pubsub://project/topic`: Google Pub/Sub.
    PubSub(Box<PubSubUrl>),
}

impl BrokerUrl {
    /// The address of an embedded queue in a file.
    pub fn sqlite(path: impl Into<PathBuf>) -> Self {
        Self { scheme: Scheme::Sqlite(path.into()), queues: QueueNames::new("jobs") }
    }
}

impl FromStr for BrokerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = address.split_once(':').ok_or_else(|| unknown(text))?;
        let options: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        if scheme == "pubsub" {
            let url = PubSubUrl::parse(rest, &options)?;
            return Ok(Self { queues: QueueNames::new(url.topic()), scheme: Scheme::PubSub(Box::new(url)) });
        }
        let (queues, options): (Vec<_>, Vec<_>) = options.into_iter().partition(|(key, _)| key == "queue");
        let queue = queues.into_iter().next_back().map_or_else(|| "jobs".to_owned(), |(_, name)| name);
        let queues = QueueNames::new(queue_name(queue)?);
        let scheme = match scheme {
            "memory" => Scheme::Memory,
            "sqlite" => Scheme::Sqlite(sqlite_path(rest)?),
            "amqp" | "amqps" => Scheme::Amqp(AmqpUrl::parse(address, &options)?),
            _ => return Err(unknown(address)),
        };
        if let (Scheme::Memory | Scheme::Sqlite(_), Some((key, _))) = (&scheme, options.first()) {
            return Err(format!("unknown option {key:?} in the address: only ?queue=NAME is known"));
        }
        Ok(Self { scheme, queues })
    }
}

/// A word of a command line, without the password if it is an address that has one.
pub fn without_password(word: &str) -> String {
    let found = word.find("://").and_then(|scheme| {
        let host = word.rfind('@').filter(|host| *host > scheme)?;
        let colon = word[scheme + 3..host].find(':')?;
        Some((scheme + 3 + colon, host))
    });
    found.map_or_else(|| word.to_owned(), |(colon, host)| format!("{}:***{}", &word[..colon], &word[host..]))
}

fn unknown(address: &str) -> String {
    // Only the scheme: what follows may hold a password.
    let scheme = address.split_once(':').map_or("none", |(scheme, _)| scheme);
    let known = "sqlite:///path/queue.db, amqp(s)://user:password@host/vhost, pubsub://project/topic and memory:";
    format!("unknown scheme {scheme:?}: this build speaks {known}")
}

fn queue_name(name: String) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(allowed) {
        return Err(format!("queue name {name:?} must be 1 to 128 of A-Z a-z 0-9 . _ -"));
    }
    Ok(name)
}

fn sqlite_path(rest: &str) -> Result<PathBuf, String> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() || path.ends_with('/') {
        return Err("a sqlite address must name a file: sqlite:///var/lib/inferq/queue.db".to_owned());
    }
    if rest.starts_with("//") && !path.starts_with('/') {
        return Err(format!("sqlite://{path} names a host: write sqlite:///{path} or sqlite:{path}"));
    }
    Ok(PathBuf::from(path))
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scheme {
            Scheme::Memory => formatter.write_str("memory:")?,
            Scheme::Sqlite(path) if path.is_absolute() => write!(formatter, "sqlite://{}", path.display())?,
            Scheme::Sqlite(path) => write!(formatter, "sqlite:{}", path.display())?,
            Scheme::Amqp(url) => write!(formatter, "{url}")?,
            Scheme::PubSub(url) => return write!(formatter, "{url}"),
        }
        write!(formatter, "?queue={}", self.queues.jobs)?;
        match &self.scheme {
            Scheme::Amqp(url) if url.queue_type == QueueType::Classic => formatter.write_str("&queue-type=classic"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_shown_without_its_password() {
        for (word, shown) in [
            ("amqp://u:s3cret@h/v", "amqp://u:***@h/v"),
            ("--queue=amqps://u:s3/cr@et@a,b:1/v?queue=q", "--queue=amqps://u:***@a,b:1/v?queue=q"),
            ("ampq://u:s3cret@h:port", "ampq://u:***@h:port"),
            ("amqp://u@h:5672/v", "amqp://u@h:5672/v"),
            ("sqlite:///a/b.db", "sqlite:///a/b.db"),
            ("a@b:c", "a@b:c"),
        ] {
            assert_eq!(without_password(word), shown);
        }
    }

    #[test]
    fn addresses_are_read_and_written_back() {
        for address in [
            "memory:?queue=jobs",
            "sqlite:///var/q.db?queue=a.b",
            "sqlite:q.db?queue=jobs",
            "amqp://user@host:5672/vhost?queue=jobs",
            "amqp://user@a:1,b:2/%2F?queue=jobs&queue-type=classic",
            "pubsub://my-project/jobs",
            "pubsub://example.com:project/a.b?subscription=fast&endpoint=127.0.0.1:8085",
        ] {
            assert_eq!(address.parse::<BrokerUrl>().map(|url| url.to_string()), Ok(address.to_owned()));
        }
    }

    #[test]
    fn a_wrong_address_is_named_without_its_password() {
        let error = "amqpx://user:secret@host/".parse::<BrokerUrl>().expect_err("an unknown scheme");
        assert!(error.contains("amqpx") && !error.contains("secret"), "{error}");
        let error = "amqp://user:secret@host/?durable=1".parse::<BrokerUrl>().expect_err("an unknown option");
        assert!(error.contains("durable") && !error.contains("secret"), "{error}");
        for wrong in ["", "sqlite:", "sqlite://host/q.db", "sqlite:q.db?queue=", "sqlite:q.db?durable=1", "queue.db"] {
            assert!(wrong.parse::<BrokerUrl>().is_err(), "{wrong}");
        }
    }
}
