//! Buckets that are down are waited for, however long, and that is said once.
//!
//! In: a call to a bucket. Out: its answer, good or bad, once there is one. What asks again costs nothing: reads and whole
//! uploads only.

use std::time::Duration;

use inferq_shared::bucket::BucketError;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::connect::say;

/// Between two looks at a bucket that is down; each look lasts some seconds of its own.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Calls until the bucket answers.
///
/// # Errors
/// What is no outage.
pub async fn waited_for<T, Called: Future<Output = Result<T, BucketError>>>(
    call: impl Fn() -> Called,
) -> Result<T, BucketError> {
    let mut said = false;
    loop {
        match call().await {
            Err(error) if error.is_transient() => {
                if !said {
                    say(&format!("waiting: {error}"));
                    said = true;
                }
                sleep(LOOK_AGAIN).await;
            }
            answered => return answered,
        }
    }
}

/// The same, from code that blocks: on a thread of `runtime`'s, or on one of its own.
///
/// # Errors
/// What is no outage.
pub fn blocking<T, Called: Future<Output = Result<T, BucketError>>>(
    runtime: &Handle,
    call: impl Fn() -> Called,
) -> Result<T, BucketError> {
    block_in_place(|| runtime.block_on(waited_for(call)))
}
