//! A discrete-event simulation of workers that are scaled on Kubernetes: a queue, the autoscaler's formulas, nodes, pods, drains
//! and reclaimed nodes, from one seed.
//!
//! In: a [`world::Plan`]. Out: an [`outcome::Outcome`], the same for the same plan and seed. [`autoscaler`] decides, without
//! knowing the world; [`worker`] is the line of one worker; [`cluster`] the nodes; [`trace`] what arrives and which nodes are
//! taken; [`drains`] the measured drains that the simulation has to reproduce; [`study`] the comparisons and the search for
//! good settings; [`report`] says them in a document.
//!
//! It never reads a clock, and its numbers are about the model: which of them are measured and which are assumed stands at
//! each of them.

pub mod autoscaler;
pub mod cluster;
pub mod drains;
pub mod outcome;
pub mod report;
pub mod study;
pub mod trace;
pub mod worker;
pub mod world;

/// A time since the simulation began, or a length of time, in milliseconds.
pub type Ms = u64;

/// Seconds as milliseconds, rounded.
pub fn ms(seconds: f64) -> Ms {
    (seconds * 1000.0).round() as Ms
}

/// Milliseconds as seconds.
pub fn seconds(ms: Ms) -> f64 {
    ms as f64 / 1000.0
}
