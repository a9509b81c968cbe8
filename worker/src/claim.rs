//! The claims stage: jobs whose inputs are an object with one item a line.
//!
//! In: [`Claim`]s from intake. Out: windows of items to dispatch, shards to their queue, parts and manifests to the bucket,
//! and to the outbox how each job leaves the line. A small input is one job (`whole.rs`); a large one is counted once and
//! split into shards (`split.rs`), each of which ends in a part (`shard.rs`); who puts the last part ends the job
//! (`finish.rs`). Everything here may be done twice: a job that comes again after a crash finds what is there. It settles
//! no lease.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use inferq_shared::broker::Publisher;
use inferq_shared::bucket::{Buckets, Uri};
use inferq_shared::job::{Job, ObjectFormat, Shard};
use inferq_shared::packing::Packing;
use inferq_shared::reply::{Reply, ReplyError, Status};
use inferq_shared::telemetry::story;
use tokio::sync::mpsc;

use self::lines::Splitter;
use self::plan::{Piece, PieceSize};
use self::reader::{Ended, Reader, Source};
use self::unpack::UnpackCaps;
use self::windows::{Asker, Computed, Feeder};
use crate::object::Target;
use crate::outage::Patience;
use crate::pulse::Pulse;
use crate::ticket::{Case, Outbound};

pub mod completion;
mod finish;
pub mod lines;
mod pieces;
pub mod plan;
pub mod reader;
mod shard;
mod split;
pub mod unpack;
mod whole;
pub mod windows;

/// A job, or a shard of one, before its inputs are read.
#[derive(Debug)]
pub struct Claim {
    /// Who is to be answered, and how.
    pub case: Case,
    /// What was asked for; its inputs are `uri`.
    pub job: Job,
    /// The object; for a shard that is refused it may be none.
    pub uri: Result<Uri, String>,
    /// Which piece of the object.
    pub shard: Option<Shard>,
    /// Where its results go, unless into the reply.
    pub place: Option<Place>,
    /// After this instant nobody wants the answer.
    pub deadline: Option<Instant>,
    /// Why a shard is not run: its part says so of every item.
    pub refusal: Option<ReplyError>,
}

/// Where results go.
#[derive(Debug, Clone)]
pub struct Place {
    /// The one object of a job that is not split.
    pub object: Uri,
    /// The folder of one that is.
    pub folder: Uri,
    /// How they are written.
    pub format: ObjectFormat,
}

/// What an operator decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimSettings {
    /// The most items of a shard.
    pub shard_items: u32,
    /// How much compressed inputs may unpack to.
    pub unpack: UnpackCaps,
}

/// The most text of a shard, so that a worker can hold what it unpacks.
const SHARD_BYTES: u64 = 64 << 20;
/// Claims that are worked on at once.
const CLAIMS: usize = 8;

/// The stage.
pub struct Claims<P> {
    /// From intake.
    pub claims: mpsc::Receiver<Claim>,
    /// To the outbox.
    pub outbound: mpsc::Sender<Outbound>,
    /// What each claim is worked on with.
    pub desk: Desk<P>,
    /// Beats while the stage turns.
    pub pulse: Pulse,
}

/// What a claim is worked on with. Cheap to clone.
#[derive(Clone)]
pub struct Desk<P> {
    /// Where objects are.
    pub buckets: Buckets,
    /// Where shards are published.
    pub publisher: P,
    /// The way to the engine.
    pub feeder: Arc<Feeder>,
    /// How long a bucket is waited for to be read: until stop.
    pub reading: Patience,
    /// How long a bucket or queue is waited for to be written: until working stops.
    pub writing: Patience,
    /// What an operator decides.
    pub settings: ClaimSettings,
}

/// How a claim ends well.
enum Answer {
    /// By this reply.
    Reply(Box<Reply>),
    /// By these results, which are still to be put.
    Results(Box<Reply>, Option<Box<Target>>),
    /// By what is there already.
    Done,
}

impl<P: Publisher> Claims<P> {
    /// Works on claims until nothing more comes and all have left.
    pub async fn run(mut self) {
        let mut working: FuturesUnordered<BoxFuture<'static, Option<Outbound>>> = FuturesUnordered::new();
        let mut open = true;
        while open || !working.is_empty() {
            self.pulse.beat();
            tokio::select! {
                biased;
                Some(outbound) = working.next(), if !working.is_empty() => {
                    if let Some(outbound) = outbound {
                        // The outbox outlives this stage; were it gone, dropping the lease would redeliver the job.
                        let _ = self.outbound.send(outbound).await;
                    }
                }
                claim = self.claims.recv(), if open && working.len() < CLAIMS => match claim {
                    Some(claim) => {
                        self.desk.reading.seed = self.desk.reading.seed.wrapping_add(1);
                        working.push(Box::pin(self.desk.clone().work_on(claim)));
                    }
                    None => open = false,
                },
                () = self.pulse.due() => {}
            }
        }
    }
}

impl<P: Publisher> Desk<P> {
    async fn work_on(mut self, mut claim: Claim) -> Option<Outbound> {
        let ended = match claim.shard.take() {
            Some(shard) => self.shard(&mut claim, &shard).await,
            None => self.whole(&mut claim).await,
        };
        let mut case = claim.case;
        case.trace.stage("claim");
        match ended {
            Ok(Answer::Reply(reply)) => Some(Outbound::Reply(Box::new(case.answered(*reply)))),
            Ok(Answer::Results(reply, target)) => {
                case.object = target;
                Some(Outbound::Reply(Box::new(case.answered(*reply))))
            }
            Ok(Answer::Done) => Some(case.done()),
            Err(Ended::Failed(error)) => {
                let status = if error.code == "source_changed" { Status::Failed } else { Status::Rejected };
                let reply = self.feeder.intake.signature.refusal(&case, 0, status, error);
                Some(Outbound::Reply(Box::new(case.answered(reply))))
            }
            Err(Ended::Released(reason)) => Some(case.release(reason)),
            Err(Ended::Undeliverable(reason)) => Some(case.dead(reason)),
            Err(Ended::Lost) => {
                story::dropped(&case.id);
                case.trace.fail("dropped", "device_lost");
                None
            }
        }
    }

    /// How large pieces may be: results of one must fit an object.
    fn piece_size(&self, job: &Job) -> PieceSize {
        let items = self.settings.shard_items.min(self.feeder.intake.items_of_an_object(job.parameters));
        PieceSize { items, bytes: SHARD_BYTES }
    }

    /// Reads a range of an object for a job that came at `since`.
    fn reader(&self, source: Source, packing: Packing, since: Instant) -> Reader {
        let with = (self.buckets.clone(), self.reading.clone(), self.feeder.offload);
        Reader::new(with, source, (packing, self.settings.unpack), since)
    }

    /// The lines of a piece, or of the whole, from line `number` at byte `from` on.
    fn splitter(&self, from: u64, number: u64) -> Splitter {
        Splitter::new(from, number, lines::line_bytes_max(&self.feeder.intake.settings.limits))
    }

    /// Computes the items of one piece.
    async fn compute(
        &self,
        asker: Asker,
        (source, packing): (Source, Packing),
        piece: &Piece,
        since: Instant,
    ) -> Result<Computed, Ended> {
        let splitter = self.splitter(piece.from, piece.line);
        let computed = self.feeder.compute(asker, self.reader(source, packing, since), splitter).await?;
        if computed.results.len() == piece.items as usize {
            return Ok(computed);
        }
        let message = format!(
            "input_uri had {} items when they were counted, and {} when read",
            piece.items,
            computed.results.len()
        );
        Err(Ended::Failed(ReplyError::new("source_changed", message)))
    }
}
