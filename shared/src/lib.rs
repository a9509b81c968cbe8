//! What inferq's worker and producer must agree on.
//!
//! - [`job`] and [`reply`]: the wire format, version 1, with its limits.
//! - [`manifest`]: the parts of a job that was split.
//! - [`broker`]: the seam over every queue: publishers, consumers, deliveries and the leases that settle them.
//! - [`bucket`]: objects by address, in clouds and folders, and who may name them.
//! - [`columns`]: results as Parquet.
//! - [`packing`]: how a file or object is compressed; [`digest`]: what is in it, in short.
//! - [`presence`]: what a worker says of itself for others to read.
//! - [`backoff`]: how long to wait before trying again.
//! - [`telemetry`]: logs, metrics and traces, and the names they use.
//!
//! The words are those of ARCHITECTURE.md's glossary: a producer publishes a *job* of *items*; a worker receives it as
//! a *delivery* with a *lease*, and answers with a *reply* on the job's *route*; what nobody can answer becomes a
//! *dead letter*.

pub mod backoff;
pub mod broker;
pub mod bucket;
pub mod columns;
pub mod digest;
pub mod job;
pub mod manifest;
pub mod packing;
pub mod presence;
pub mod reply;
pub mod telemetry;
