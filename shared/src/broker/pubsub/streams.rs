//! The streams that bring one subscription's messages, and how many may be on their way.
//!
//! In: how much is wanted. Out: messages, each with the handler that settles it. Pub/Sub sends no more than a stream's
//! limit of messages that are not settled; a limit is fixed when its stream opens, so more streams are added as more is
//! wanted, and all are replaced when next to nothing is. A handler outlives its stream.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered, SelectAll};
use futures_util::{FutureExt, StreamExt};
use google_cloud_pubsub::Error;
use google_cloud_pubsub::client::Subscriber;
use google_cloud_pubsub::model::Message as PubSubMessage;
use google_cloud_pubsub::subscriber::handler::Handler;
use google_cloud_pubsub::subscriber::{MessageStream, ShutdownToken};
use tokio::task::unconstrained;

use super::super::desk::Wish;

/// Streams of a consumer that wants many: one stream of the emulator brings 1,900 messages a second, four 7,000.
const STREAMS: usize = 4;
/// A consumer that wants no more than this wants nothing fetched ahead: it probes, or runs suspects apart.
const FEW: usize = 8;
/// Bytes of messages that are not settled, a stream.
const BYTES: i64 = 64 << 20;
/// Bytes that may lie here although nobody has room for them.
const SURPLUS_BYTES_MAX: usize = 32 << 20;

/// What a stream brings: a message, or its end with what went wrong, if that is known.
pub(super) type Event = Result<(PubSubMessage, Handler), Option<Error>>;

/// What a wish asks of the streams.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    Keep,
    /// More may be on their way: so many.
    Open(usize),
    /// No more than `limit` may be on their way, and of what nobody has taken all but `keep` goes back.
    Shrink {
        /// Of all streams together.
        limit: usize,
        /// Deliveries.
        keep: usize,
    },
}

/// The streams of one consumer.
pub(super) struct Streams {
    client: Subscriber,
    subscription: String,
    /// The deadline that the client asks for and extends.
    lease: Duration,
    lease_max: Duration,
    open: SelectAll<BoxStream<'static, Event>>,
    tokens: Vec<ShutdownToken>,
    /// Of all of them together.
    limit: usize,
    /// Streams that are closed: each ends when its last handler has settled and the service has been told.
    closing: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Streams {
    pub(super) fn new(client: Subscriber, subscription: String, lease: Duration, lease_max: Duration) -> Self {
        let (open, closing) = (SelectAll::new(), FuturesUnordered::new());
        Self { client, subscription, lease, lease_max, open, tokens: Vec::new(), limit: 0, closing }
    }

    /// Whether none is open.
    pub(super) fn is_closed(&self) -> bool {
        self.tokens.is_empty()
    }

    /// How many messages may be held here before the next is read. The emulator knows no limits.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// What `wish` asks for, while so many deliveries (and bytes) have not been taken.
    pub(super) fn change(&self, wish: Wish, untaken: (usize, usize)) -> Change {
        let wanted = (wish.leased + wish.jobs).max(1);
        if self.is_closed() {
            return Change::Open(wanted);
        }
        let few = wanted <= FEW && self.limit > FEW;
        let surplus = untaken.1 > wish.bytes.max(SURPLUS_BYTES_MAX) && self.limit > wanted;
        if few || surplus {
            // What goes back has spent an attempt; what stays while suspects run spends one only if they kill the process.
            // Who probes with one leaves the rest to others.
            let keep = if surplus || wish.jobs == 1 { wish.jobs } else { untaken.0 };
            return Change::Shrink { limit: wanted, keep };
        }
        let limiting = untaken.0 == 0 && wish.leased >= self.limit;
        if limiting && wanted > self.limit {
            // At least twice as many as now, so that a growing wish does not add one stream after the other.
            return Change::Open((wanted - self.limit).max(self.limit));
        }
        Change::Keep
    }

    /// Lets so many more be on their way.
    pub(super) fn open(&mut self, more: usize) {
        let count = if more <= FEW { 1 } else { STREAMS };
        for n in 0..count {
            // Rounded so that all together have what is wanted.
            self.open_one(more / count + usize::from(n < more % count));
        }
    }

    fn open_one(&mut self, limit: usize) {
        // 0 would mean "no limit".
        let limit = limit.max(1);
        let subscribe = self.client.subscribe(&*self.subscription);
        let stream = subscribe
            .set_max_lease(self.lease_max)
            .set_max_lease_extension(self.lease)
            .set_max_outstanding_messages(i64::try_from(limit).unwrap_or(i64::MAX))
            .set_max_outstanding_bytes(BYTES)
            .build();
        self.limit += limit;
        self.tokens.push(stream.shutdown_token());
        self.open.push(events(stream));
    }

    /// What is opened from now on goes over this client's connection.
    pub(super) fn connect(&mut self, client: Subscriber) {
        self.client = client;
    }

    /// The next event. Messages that are here already are not read while there is no room for them.
    pub(super) async fn next(&mut self, room: bool) -> Event {
        loop {
            tokio::select! {
                Some(event) = self.open.next(), if room => return event,
                Some(()) = self.closing.next() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// What is here already.
    pub(super) fn next_ready(&mut self) -> Option<Event> {
        unconstrained(self.open.next()).now_or_never().flatten()
    }

    /// Closes all streams, and returns what they still had: a message that stays in one would be extended by the client
    /// until the last handler of that stream has settled. What is on its way comes again when its deadline has passed.
    pub(super) fn close(&mut self) -> Vec<(PubSubMessage, Handler)> {
        let mut rest = Vec::new();
        while let Some(event) = self.next_ready() {
            rest.extend(event.ok());
        }
        self.open.clear();
        self.limit = 0;
        for token in std::mem::take(&mut self.tokens) {
            self.closing.push(async move { token.shutdown().await }.boxed());
        }
        rest
    }

    /// Waits until all closed streams have ended.
    pub(super) async fn all_ended(&mut self) {
        while self.closing.next().await.is_some() {}
    }
}

fn events(stream: MessageStream) -> BoxStream<'static, Event> {
    let next = |stream: Option<MessageStream>| async move {
        let mut stream = stream?;
        Some(match stream.next().await {
            Some(Ok(message)) => (Ok(message), Some(stream)),
            Some(Err(error)) => (Err(Some(error)), None),
            None => (Err(None), None),
        })
    };
    stream::unfold(Some(stream), next).boxed()
}
