//! inferq's one test binary; each file is a subject.

#![expect(clippy::unwrap_used, reason = "a test that meets what it does not expect should stop there")]

mod addresses;
mod assets;
mod bad_input;
mod buckets;
mod chaos;
mod claims;
mod contract;
mod deploy;
mod documents;
mod drains;
mod durability;
mod faults;
mod foreign_clients;
mod gke;
mod hard_places;
mod inputs;
#[cfg(feature = "mutants")]
mod mutants;
mod objects;
mod operator;
mod outputs;
mod parity;
mod pod;
mod pointers;
mod processes;
mod producer;
mod pubsub;
mod pubsub_emulator;
mod rabbitmq;
mod rabbitmq_server;
mod scaling;
mod sick_devices;
mod tidy;
mod traces;
mod versions;
mod wire;
