//! The harness of inferq's tests: what they need to run a broker or a process for real.
//!
//! Out: [`brokers`], a fresh broker of each kind for one test; [`process`], the real binaries as child processes, and
//! [`endpoints`], places for objects; [`rabbitmq`], servers of it, with [`certificates`] of theirs, [`pubsub`], emulators of that, and [`relay`], links to them that go wrong; [`queue_file`], the embedded queue that they share; [`world`], the whole worker simulated from one seed, and
//! [`history`], what happened in it and whether it may;
//! [`mod@line`], a worker's line in this process over real buckets;
//! [`scaling`], autoscaling simulated; [`kubelet`], a worker probed and stopped as on Kubernetes, and [`drains`], how it ends;
//! [`otlp`], a receiver of traces; [`chaos`], workers on RabbitMQ under a schedule of faults; [`figures`], what benchmarks print and keep.

pub mod brokers;
pub mod certificates;
pub mod chaos;
pub mod drains;
pub mod endpoints;
pub mod figures;
pub mod history;
pub mod kubelet;
pub mod line;
pub mod namespace;
pub mod otlp;
pub mod process;
pub mod pubsub;
pub mod queue_file;
pub mod rabbitmq;
pub mod relay;
pub mod scaling;
pub mod world;
