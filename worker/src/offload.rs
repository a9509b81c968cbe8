//! Where work that keeps a core busy is done: on the runtime's blocking threads, or inline in a simulation.

/// Runs closures that compute. Cheap to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// On blocking threads, so that timers and sockets stay prompt.
    Threads,
    /// On the caller's thread, in the caller's order.
    Inline,
}

impl Offload {
    /// Runs `work` to its end.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Self::Inline => work(),
            Self::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down and will not poll this future again.
                    Err(_) => std::future::pending().await,
                },
            },
        }
    }
}
