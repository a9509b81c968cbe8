//! Large inputs: objects with one item a line, read by ranges and split into shards.

pub mod completion;
pub mod lines;
pub mod plan;
pub mod unpack;
