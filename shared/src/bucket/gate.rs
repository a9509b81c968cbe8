//! What stands before and behind every call to a bucket: in tests the place where a process dies.
//!
//! In: the name of a call, the object, and the moment. Out: nothing; it returns at once, late, or never, and the call
//! waits for it. Without one, which is how every process runs, a call goes straight through.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::Uri;

/// A moment of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// Nothing has happened yet.
    Before,
    /// It has happened, and the caller does not know yet.
    After,
}

type Passing = dyn Fn(&'static str, &Uri, Moment) -> BoxFuture<'static, ()> + Send + Sync;

/// Called twice a call. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Passing>);

impl Gate {
    /// Calls `pass` with the name of the call, its object and the moment, and waits for what that returns.
    pub fn new(pass: impl Fn(&'static str, &Uri, Moment) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(pass))
    }

    pub(super) async fn through<T>(&self, call: &'static str, uri: &Uri, done: impl Future<Output = T>) -> T {
        (self.0)(call, uri, Moment::Before).await;
        let done = done.await;
        (self.0)(call, uri, Moment::After).await;
        done
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Gate")
    }
}
