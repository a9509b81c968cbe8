//! Taking turns: how the processes of one queue file wait for each other.
//!
//! SQLite waits for its write lock by trying again and again, in no order: a hundred processes that do so use up the
//! processors that the one at work needs, and some never get it. So each takes its turn first, a lock on the bell's
//! file, for which the kernel lets them sleep in a line; one that dies leaves it. SQLite's own lock remains what keeps
//! the file whole: who can't have a turn goes on without.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A place in the line.
#[derive(Debug)]
pub(super) struct Turns(Arc<File>);

/// A turn; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<File>);

impl Turns {
    /// Turns by a lock on this file, which nobody else in this process has open under the same description.
    pub(super) fn by(file: Arc<File>) -> Self {
        Self(file)
    }

    /// Waits for a turn.
    pub(super) fn take(&self) -> Turn {
        while flock(&self.0, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
        Turn(self.0.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // What was never locked is unlocked without harm.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
