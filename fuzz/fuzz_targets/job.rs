//! Any bytes are a job that is written and read back unchanged, or a fault that says something, and not too much.

#![no_main]

use inferq_shared::job::{Job, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    // Limits small enough for the fuzzer to pass each of them.
    let small = Limits { body_bytes: 4096, items: 8, input_bytes: 64, metadata_bytes: 64, nesting: 6, ..Limits::default() };
    for limits in [Limits::default(), small] {
        match Job::decode(body, &limits) {
            Ok(job) => assert_eq!(Job::decode(&job.encode(), &Limits::default()).as_ref(), Ok(&job)),
            Err(error) => assert!(!error.message.is_empty() && error.message.len() < 1024, "{error:?}"),
        }
    }
});
