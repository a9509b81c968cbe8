//! From `--queue` to a broker, with errors that name the queue and the way out.
//!
//! In: a [`BrokerUrl`]. Out: a [`Broker`] that other processes can reach too.

use std::io::{self, Write};
use std::path::Path;

use inferq_shared::broker::{Broker, BrokerError, BrokerUrl, Scheme, without_password};
use inferq_shared::telemetry::traces;

use crate::outcome::Error;

/// Connects to the broker of `url`.
///
/// # Errors
/// When it is out of reach or refuses, or lives only in this process.
pub async fn connect(url: &BrokerUrl) -> Result<Broker, Error> {
    if url.scheme == Scheme::Memory {
        let message = "a memory: queue ends with its process: use sqlite:///path/queue.db, amqp://host/vhost or pubsub://project/topic, or `inferq run`";
        return Err(Error::Usage(message.to_owned()));
    }
    Broker::connect(url).await.map_err(|error| failed(url, error))
}

/// Begins to export traces of what a command does on the queue at `url`, if the environment asks for that.
pub fn trace(url: &BrokerUrl) {
    if let Err(error) = traces::install("inferq", url) {
        say(&format!("warning: {error}; going on without traces"));
    }
}

/// The error of a queue at `url`.
pub fn failed(url: &BrokerUrl, error: BrokerError) -> Error {
    match error {
        BrokerError::UnknownQueue(queue) => {
            let url = quoted(&url.to_string());
            Error::Usage(format!("no queue named {queue} at {url}: make it with `inferq setup --queue {url}`"))
        }
        error => Error::Broker { queue: url.to_string(), error },
    }
}

/// The address with an absolute path, so that it means the same from every directory.
///
/// # Errors
/// When the current directory can't be read.
pub fn absolute(url: &BrokerUrl) -> Result<BrokerUrl, Error> {
    let Scheme::Sqlite(path) = &url.scheme else { return Ok(url.clone()) };
    let path = std::path::absolute(path).map_err(|error| Error::io(format!("queue {url}"), error))?;
    Ok(BrokerUrl { scheme: Scheme::Sqlite(path), queues: url.queues.clone() })
}

/// A word as a shell reads it back: in quotes where it needs them.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A path as a shell reads it back.
pub fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// The command that runs now, as a shell reads it back; `***` stands for a password.
pub fn this_command() -> String {
    let words: Vec<_> = std::env::args_os().map(|word| quoted(&without_password(&word.to_string_lossy()))).collect();
    words.join(" ")
}

/// Writes what a command has to say to stdout.
///
/// # Errors
/// When stdout is closed or full.
pub fn print(text: &str) -> Result<(), Error> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for what need not be text.
///
/// # Errors
/// When stdout is closed or full.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Error::io("can't write to stdout", error))
}

/// Says something beside the data, on stderr.
pub fn say(line: &str) {
    // Who has closed stderr does not want to know.
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_where_a_shell_would_misread_them() {
        assert_eq!(quoted("/tmp/a.db"), "/tmp/a.db");
        assert_eq!(quoted("sqlite:///q.db?queue=jobs"), "'sqlite:///q.db?queue=jobs'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
