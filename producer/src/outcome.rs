//! How a command ends: what it did or why it could not, and the exit code that a script reads.
//!
//! In: every error of this crate. Out: one line for stderr and a code. It never prints and never exits; `main` does.

use std::io;

use inferq_shared::broker::BrokerError;
use inferq_shared::bucket::BucketError;
use inferq_worker::serve::ServeError;

use crate::ledger::LedgerError;
use crate::pointer::PointerError;
use crate::source::SourceError;

/// How a command ended that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "it becomes the exit code"]
pub enum Outcome {
    /// All of it.
    Done,
    /// All of it, and some items have an error instead of a result.
    SomeFailed,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its flags, files or queues can't be used as they are.
    #[error("{0}")]
    Usage(String),
    /// A signal came.
    #[error("{0}")]
    Interrupted(String),
    /// Replies are missing after the time given.
    #[error("{0}")]
    TimedOut(String),
    /// What was asked about is not there.
    #[error("{0}")]
    NotFound(String),
    /// The broker did not do its part.
    #[error("{queue}: {error}")]
    Broker {
        /// The queue's address or name.
        queue: String,
        /// What the broker says.
        error: BrokerError,
    },
    /// The ledger did not do its part.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Results that lie in a bucket can't be had.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// A bucket did not do its part.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The input can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The worker inside `inferq run` ended.
    #[error(transparent)]
    Worker(#[from] ServeError),
    /// A file can't be written.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system says.
        error: io::Error,
    },
}

impl Outcome {
    /// 0, or 2 when some items failed.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::SomeFailed => 2,
        }
    }
}

impl Error {
    /// 64 for what the user must change, 70 for a lost device, 75 for a timeout, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Source(SourceError::Unusable(_) | SourceError::Damaged(_)) => 64,
            Self::Ledger(LedgerError::Sqlite { .. }) => 1,
            Self::Ledger(_) => 64,
            Self::Broker { error: BrokerError::UnknownQueue(_) | BrokerError::Refused(_), .. } => 64,
            Self::Bucket(BucketError::Forbidden { .. } | BucketError::Refused { .. }) => 64,
            Self::Pointer(PointerError::Bucket(BucketError::Forbidden { .. } | BucketError::Refused { .. })) => 64,
            Self::Pointer(_) | Self::Bucket(_) => 1,
            Self::TimedOut(_) => 75,
            Self::Worker(error) => error.exit_code(),
            Self::Interrupted(_) | Self::NotFound(_) | Self::Broker { .. } | Self::Source(_) | Self::Io { .. } => 1,
        }
    }

    /// Whether the reader of our output has gone, which is its right and no failure.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// An error of a file.
    pub fn io(what: impl Into<String>, error: io::Error) -> Self {
        Self::Io { what: what.into(), error }
    }
}
