//! The producer: submits jobs, collects their replies, or does both beside a worker in one process.
//!
//! ```text
//!            entries          jobs, attributes                    best replies
//!   source ──────────▶ chunk ─────────────────▶ submit ▶ queue ┄┄▶ collect ──────▶ rows ▶ sink
//!                                                  └────▶ ledger ◀────┘
//! ```
//!
//! - [`source`]: input files → entries; [`chunk`]: entries → the items of each job (pure).
//! - [`duplicates`]: which ids stand twice; [`tokens`]: how many tokens items have.
//! - [`recipe`]: the flags that say what every job asks for.
//! - [`ledger`]: what the broker has confirmed and which replies have come; both commands go on from it.
//! - [`submit`], [`collect`], [`run`], [`setup`], [`status`], [`dead`], [`explain`], [`mod@bench`], [`manual`]: one
//!   subcommand each.
//! - [`pace`]: when a load's jobs are due; [`report`]: how long they took (both pure).
//! - [`output`]: the ledger → [`rows`] (pure) → [`sink`], an output file that is whole or absent; [`follow`]: one that
//!   grows as replies come. [`summary`]: what is said at the end.
//! - [`mod@pointer`]: results that lie in a bucket, by the reply that points there.
//! - [`progress`]: a bar for people, a line now and then for logs.
//! - [`shown`], [`paint`]: what is safe on a terminal, and its colours.
//! - [`outcome`]: how a command ends, and the exit code that says so.

pub mod address;
pub mod bench;
pub mod chunk;
pub mod collect;
pub mod connect;
pub mod dead;
pub mod duplicates;
pub mod explain;
pub mod follow;
pub mod help;
pub mod ledger;
pub mod manual;
pub mod outage;
pub mod outcome;
pub mod output;
pub mod pace;
pub mod paint;
pub mod pointer;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod rows;
pub mod run;
pub mod setup;
pub mod shown;
pub mod sink;
pub mod source;
pub mod status;
pub mod submit;
pub mod summary;
pub mod tokens;
