//! A replica's own queue of work on its device, whichever thread calls: what it was warmed up with it also runs with, and two
//! replicas don't wait for each other.
//!
//! On a card each such queue is a CUDA stream with memory of its own; elsewhere there is none.

#[cfg(feature = "cuda")]
use cubecl_environment::stream::StreamId;

/// One queue.
pub(super) struct Stream {
    #[cfg(feature = "cuda")]
    id: StreamId,
}

impl Stream {
    /// Another than all before.
    pub(super) fn new() -> Self {
        Self {
            #[cfg(feature = "cuda")]
            id: StreamId::allocate(),
        }
    }

    /// Does this in the queue.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "cuda")]
        return self.id.executes(work);
        #[cfg(not(feature = "cuda"))]
        work()
    }
}
