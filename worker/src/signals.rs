//! SIGTERM and SIGINT: the first asks to stop, the second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `stop` at the first signal; returns at the second.
pub async fn second(stop: &CancellationToken) {
    let handler = |kind| signal(kind).expect("the runtime has signals enabled, and these two can be handled");
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate()), handler(SignalKind::interrupt()));
    for time in ["first", "second"] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("{time} signal to stop");
        stop.cancel();
    }
}
