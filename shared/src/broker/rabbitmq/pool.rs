//! Channels in confirm mode, kept for the next publish.
//!
//! In: the publishing connection. Out: channels whose every publish has been confirmed. A channel that was given up in the
//! middle of a publish is never handed out again: its late confirms would be taken for somebody else's.

use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{Manager, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult};
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::time::timeout;

use super::super::BrokerError;
use super::fault;
use super::link::Link;

/// Publishes that run at the same time; the next one waits for a channel.
const CHANNELS_MAX: usize = 16;
/// A call that is not answered within so long has failed.
const CALL: Duration = Duration::from_secs(15);

/// Makes the channels of a pool.
pub(super) struct Channels {
    link: Arc<Link>,
}

/// A channel in confirm mode.
pub(super) struct ConfirmChannel {
    pub(super) channel: Channel,
    /// A publish is not wholly confirmed.
    pub(super) unconfirmed: bool,
}

/// An empty pool over `link`.
pub(super) fn pool(link: Arc<Link>) -> Pool<Channels> {
    Pool::builder(Channels { link })
        .max_size(CHANNELS_MAX)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(2 * CALL))
        .build()
        .expect("a pool with a runtime can have timeouts")
}

/// A channel, which goes back when it is dropped.
///
/// # Errors
/// `Unavailable` without a connection, or when every channel stays busy.
pub(super) async fn channel(pool: &Pool<Channels>) -> Result<Object<Channels>, BrokerError> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => error,
        PoolError::Closed => BrokerError::Closed,
        error => BrokerError::Unavailable(format!("no channel to publish on: {error}")),
    })
}

impl Manager for Channels {
    type Type = ConfirmChannel;
    type Error = BrokerError;

    async fn create(&self) -> Result<ConfirmChannel, BrokerError> {
        let up = self.link.up()?;
        let opened = async {
            let channel = up.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        };
        let channel = answered(opened).await?.map_err(|error| fault::broker(&error))?;
        Ok(ConfirmChannel { channel, unconfirmed: false })
    }

    async fn recycle(&self, kept: &mut ConfirmChannel, _: &Metrics) -> RecycleResult<BrokerError> {
        if kept.unconfirmed || !kept.channel.status().connected() {
            return Err(RecycleError::message("closed, or given up with unconfirmed publishes"));
        }
        Ok(())
    }
}

/// The broker's answer to one call, if it comes in time.
pub(super) async fn answered<T>(call: impl Future<Output = lapin::Result<T>>) -> Result<lapin::Result<T>, BrokerError> {
    let late = |_| BrokerError::Unavailable(format!("no answer within {} s", CALL.as_secs()));
    timeout(CALL, call).await.map_err(late)
}
