//! A queue of dead letters: looking at it, and taking letters out of it for good.
//!
//! In: a broker, the queue, which letters are meant. Out: letters one by one, or letters that were first confirmed
//! elsewhere and then acked. A crash at any point can double a job, never lose one. What is in memory is one batch.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use futures_util::future::join_all;
use inferq_shared::backoff::Backoff;
use inferq_shared::broker::{
    Bodies, Broker, BrokerError, BrokerUrl, Cursor, Delivery, Lease, Message, Page, Publisher,
};
use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::letter::{Filter, Letter};
use super::pass::Pass;
use crate::connect::failed;
use crate::outcome::Error;

/// One look brings no more than this.
const PAGE: Page = Page {
    after: Cursor::START,
    messages: NonZeroUsize::new(256).expect("256 is not 0"),
    bytes: 16 << 20,
    bodies: Bodies::Whole,
};

/// The dead letters of one jobs queue.
pub struct Graveyard<'a> {
    /// Where they lie.
    pub broker: &'a Broker,
    /// The address that they are named by.
    pub url: &'a BrokerUrl,
    /// Asks the work to stop between two batches.
    pub stop: &'a CancellationToken,
}

/// What is done with the letters that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Each goes back to the queue that it comes from, or to this one's jobs where nobody knows.
    Redrive,
    /// Each is deleted.
    Purge,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Letters that left, by the queue that they went to; deleted ones by none.
    pub left: BTreeMap<Option<String>, u64>,
    /// Letters whose queue is not there any more; they stay.
    pub homeless: BTreeMap<String, u64>,
    /// Letters that were confirmed elsewhere and may be here as well: their lease was lost before they were acked.
    pub doubled: u64,
    /// Letters that are hidden for a minute.
    pub sent_away: u64,
    /// It was asked to stop in between.
    pub stopped: bool,
}

impl Done {
    /// How many left.
    pub fn count(&self) -> u64 {
        self.left.values().sum()
    }
}

impl Graveyard<'_> {
    /// The queue's name.
    pub fn queue(&self) -> String {
        self.url.queues.dead()
    }

    /// Whether letters can only be looked at by leasing them.
    pub fn by_leases(&self) -> bool {
        !self.broker.capabilities().browse
    }

    /// Calls `visit` with each letter until it breaks off, without leasing where the broker can do so.
    ///
    /// # Errors
    /// When the queue is absent, the broker can't be reached, or `visit` fails.
    pub async fn look(&self, mut visit: impl FnMut(Letter) -> Result<ControlFlow<()>, Error>) -> Result<(), Error> {
        if self.by_leases() {
            return self.look_by_leases(visit).await;
        }
        let mut page = PAGE;
        loop {
            let seen = self.broker.browse(&self.queue(), page).await.map_err(|error| failed(self.url, error))?;
            let seen = seen.unwrap_or_default();
            let Some(last) = seen.last() else { return Ok(()) };
            page.after = last.cursor;
            for browsed in seen {
                if self.stop.is_cancelled() || visit(Letter::new(browsed.message))?.is_break() {
                    return Ok(());
                }
            }
        }
    }

    /// Calls `visit` with each letter that can be leased until it breaks off; all of them stay.
    ///
    /// # Errors
    /// As [`Graveyard::look`].
    pub async fn look_by_leases(
        &self,
        mut visit: impl FnMut(Letter) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let named = |error| failed(self.url, error);
        let mut pass = Pass::begin(self.broker, &self.queue()).await.map_err(named)?;
        let mut seen = Ok(ControlFlow::Continue(()));
        while let Ok(ControlFlow::Continue(())) = seen
            && !self.stop.is_cancelled()
        {
            let deliveries = pass.next().await.map_err(named)?;
            if deliveries.is_empty() {
                break;
            }
            for Delivery { message, lease, .. } in deliveries {
                if let Ok(ControlFlow::Continue(())) = seen {
                    seen = visit(Letter::new(message));
                }
                pass.keep(lease).await.map_err(named)?;
            }
        }
        pass.end().await.map_err(named)?;
        seen.map(drop)
    }

    /// How many letters are meant, `limit` at most; `None` where only leasing could tell.
    ///
    /// # Errors
    /// As [`Graveyard::look`].
    pub async fn count(&self, filter: &Filter, limit: Option<u64>) -> Result<Option<u64>, Error> {
        if self.by_leases() {
            return Ok(None);
        }
        let (mut count, now) = (0, Timestamp::now());
        self.look(|letter| {
            count += u64::from(filter.matches(&letter, now));
            Ok(if limit.is_some_and(|limit| count >= limit) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })
        .await?;
        Ok(Some(count.min(limit.unwrap_or(u64::MAX))))
    }

    /// Does `act` with the letters that are meant, `limit` at most, and calls `report` with how many are done.
    ///
    /// # Errors
    /// When the queue is absent or the broker refuses: what was done until then is done.
    pub async fn clear(
        &self,
        act: Act,
        filter: &Filter,
        limit: Option<u64>,
        mut report: impl FnMut(u64),
    ) -> Result<Done, Error> {
        let named = |error| failed(self.url, error);
        let (mut done, now) = (Done::default(), Timestamp::now());
        let mut pass = Pass::begin(self.broker, &self.queue()).await.map_err(named)?;
        let cleared = async {
            loop {
                let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(done.count()));
                done.stopped = self.stop.is_cancelled();
                if room == 0 || done.stopped {
                    return Ok(());
                }
                let deliveries = pass.next().await?;
                if deliveries.is_empty() {
                    return Ok(());
                }
                let meant = meant(deliveries, filter, (now, room), &mut pass).await?;
                self.clear_batch(act, meant, &mut pass, &mut done).await?;
                report(done.count());
            }
        };
        let cleared: Result<(), BrokerError> = cleared.await;
        // What was kept goes back whatever happened.
        let ended = pass.end().await;
        cleared.map_err(named)?;
        done.sent_away = ended.map_err(named)?;
        Ok(done)
    }

    async fn clear_batch(
        &self,
        act: Act,
        meant: Vec<(Letter, Lease)>,
        pass: &mut Pass,
        done: &mut Done,
    ) -> Result<(), BrokerError> {
        let mut homes: BTreeMap<Option<String>, Vec<(Letter, Lease)>> = BTreeMap::new();
        for (letter, lease) in meant {
            let home = match act {
                Act::Purge => None,
                Act::Redrive => Some(letter.queue.clone().unwrap_or_else(|| self.url.queues.jobs.clone())),
            };
            homes.entry(home).or_default().push((letter, lease));
        }
        for (home, letters) in homes {
            let (letters, leases): (Vec<_>, Vec<_>) = letters.into_iter().unzip();
            if let Some(queue) = &home {
                let messages = letters.iter().map(|letter| letter.revived(Timestamp::now())).collect();
                if let Err(error) = self.publish(queue, messages).await {
                    for lease in leases {
                        pass.keep(lease).await?;
                    }
                    if !matches!(error, BrokerError::UnknownQueue(_)) {
                        return Err(error);
                    }
                    *done.homeless.entry(queue.clone()).or_default() += letters.len() as u64;
                    continue;
                }
            }
            let acked = join_all(leases.into_iter().map(Lease::ack)).await;
            let lost = acked.iter().filter(|acked| acked.is_err()).count() as u64;
            // A purged letter whose lease was lost is still there; a redriven one is in both places.
            match act {
                Act::Redrive => done.doubled += lost,
                Act::Purge => acked.into_iter().find(|acked| acked.is_err()).unwrap_or(Ok(()))?,
            }
            *done.left.entry(home).or_default() += letters.len() as u64;
        }
        Ok(())
    }

    /// Publishes until confirmed, again and again while the broker is away or the queue is full, until it is asked to
    /// stop.
    async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<(), BrokerError> {
        let publisher = self.broker.publisher();
        let mut failures = 0;
        loop {
            let error = match publisher.publish(queue, messages.clone()).await {
                Err(error) if error.is_transient() => error,
                published => return published,
            };
            tokio::select! {
                () = self.stop.cancelled() => return Err(error),
                () = sleep(Backoff::BROKER.delay(failures, &mut rand::rng())) => failures += 1,
            }
        }
    }
}

/// The letters that are meant, as many as there is room for; the others are kept.
async fn meant(
    deliveries: Vec<Delivery>,
    filter: &Filter,
    (now, room): (Timestamp, u64),
    pass: &mut Pass,
) -> Result<Vec<(Letter, Lease)>, BrokerError> {
    let mut meant = Vec::new();
    for Delivery { message, lease, .. } in deliveries {
        let letter = Letter::new(message);
        if (meant.len() as u64) < room && filter.matches(&letter, now) {
            meant.push((letter, lease));
        } else {
            pass.keep(lease).await?;
        }
    }
    Ok(meant)
}
