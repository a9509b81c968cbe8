//! The worker: takes jobs from a queue, batches their items across jobs, runs a resident model, answers.
//!
//! ```text
//!  receive ──▶ intake ──▶ batch ──▶ engine ──▶ assemble ──▶ outbox ──▶ settle
//!  Delivery    Ticket     Batch     Answers    Reply        Confirmed  lease.ack()
//! ```
//!
//! [`receive`] pulls while there is room; [`admit`] has jobs decoded, checked and tokenised by [`intake`]; [`look`] asks buckets for objects that are there
//! already; [`claim`] reads inputs that are objects, and splits large ones; [`dispatch`] keeps the open jobs and
//! moves items through the pure [`batch`] policy to the [`replica`]s, each an [`engine`] on a thread of its own;
//! [`assemble`] puts answers together in input order; [`outbox`] has an [`object`] [`put`] if the job asked for one, publishes,
//! waits for the confirm, and settles.
//! [`pipeline`] is the only file that makes channels and spawns. [`serve`] makes a model [`resident`] and then runs the
//! line, and another after a [`swap`]; [`pulse`] knows whether it turns, and [`health`] tells the outside how far it is.

pub mod admit;
pub mod assemble;
pub mod assets;
pub mod batch;
pub mod claim;
pub mod clock;
pub mod config;
pub mod devices;
pub mod dispatch;
pub mod engine;
pub mod fitness;
pub mod health;
pub mod heaps;
pub mod herald;
pub mod in_flight;
pub mod intake;
pub mod lanes;
pub mod look;
pub mod memory;
pub mod mutant;
pub mod object;
pub mod offload;
pub mod outage;
pub mod outbox;
pub mod pipeline;
pub mod pod;
pub mod pulse;
pub mod put;
pub mod receive;
pub mod replica;
pub mod resident;
pub mod serve;
pub mod signals;
pub mod stores;
pub mod swap;
pub mod ticket;
pub mod tokenize;
