//! Taking turns: how the processes of one queue file wait for each other.
//!
//! SQLite waits for its write lock by trying again and again, in no order: a hundred processes that do so use up the
//! processors that the one at work needs, and some never get it. So each takes its turn first, a lock on the bell's
//! file, for which the kernel lets them sleep in a line; one that dies leaves it. SQLite's own lock remains what keeps
//! the file whole: who gets no turn goes on without.

use std::fs::File;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The longest wait for a turn. Longer than a line of some hundred takes: somebody was stopped in theirs.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A place in the line.
#[derive(Debug)]
pub(super) struct Turns(Arc<File>);

/// A turn; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<File>);

impl Turns {
    /// Turns by a lock on this file, which is open under a description of its own.
    pub(super) fn by(file: Arc<File>) -> Self {
        Self(file)
    }

    /// Waits for a turn, but not for ever.
    pub(super) fn take(&self) -> Option<Turn> {
        match flock(&*self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Some(Turn(self.0.clone())),
            Err(Errno::WOULDBLOCK) => self.wait(),
            // A file system without such locks.
            Err(_) => None,
        }
    }

    /// Waits in the line, on a thread of its own because the kernel's wait has no end.
    fn wait(&self) -> Option<Turn> {
        let file = self.0.clone();
        let (tell, told) = mpsc::channel();
        let wait = move || {
            while flock(&*file, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
            // If nobody waits for it any more, this drops the turn, which ends it.
            let _ = tell.send(Turn(file));
        };
        thread::Builder::new().name("inferq-turn".to_owned()).spawn(wait).ok()?;
        told.recv_timeout(WAIT_MAX).ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // What was never locked is unlocked without harm.
        let _ = flock(&*self.0, FlockOperation::Unlock);
    }
}
