//! Any bytes are a line that is an item, or a job, which comes back as it was written, or a fault that says something,
//! and not too much.

#![no_main]

use inferq_shared::job::Limits;
use inferq_shared::job::line::{self, BadLine, Fields};
use libfuzzer_sys::fuzz_target;

// The file alone: the producer links the worker, which is no business of the fuzzer's.
#[path = "../../producer/src/source/parse.rs"]
mod parse;

fuzz_target!(|bytes: &[u8]| {
    let fields = Fields::default();
    // Limits small enough for the fuzzer to pass each of them.
    let small = Limits { body_bytes: 4096, items: 8, input_bytes: 64, metadata_bytes: 64, nesting: 6, ..Limits::default() };
    for limits in [Limits::default(), small] {
        for parsed in [line::text(bytes, &limits), line::item(bytes, &fields, &limits)] {
            match parsed {
                Ok(item) => {
                    let written = serde_json::to_vec(&item).expect("an item is JSON");
                    assert!(item.input.len_bytes() <= limits.input_bytes);
                    assert_eq!(line::item(&written, &fields, &limits), Ok(item));
                }
                Err(bad) => check(&bad),
            }
        }
        match parse::job(bytes, &limits) {
            Ok(job) => assert_eq!(parse::job(&job.encode(), &Limits::default()), Ok(job)),
            Err(bad) => check(&bad),
        }
    }
});

fn check(bad: &BadLine) {
    assert!(!bad.error.message.is_empty() && bad.error.message.len() < 2048, "{bad:?}");
}
