//! The bell: how a consumer that waits learns that another process has committed something for it.
//!
//! Every commit that makes something visible rings it by touching a small file beside the queue's, which every process
//! watches. The queue's own files won't do: their last write comes before the commit's sync, and what is in memory
//! mapped from a file tells nobody. A ring carries no news of its own; who hears it looks. It never blocks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// How often a waiting consumer looks even if nothing rang: somebody may have changed the file with other tools.
const LOOK: Duration = Duration::from_secs(1);
/// The same where the file can't be watched.
const LOOK_UNWATCHED: Duration = Duration::from_millis(20);
/// The longest that a bell is deaf after a ring: in a crowd every ring wakes everybody, mostly for nothing.
const DEAF_MAX_MS: u64 = 31;

/// A file to touch and a watch on it.
pub(super) struct Bell {
    file: Arc<File>,
    rung: Arc<Rung>,
    watcher: Option<RecommendedWatcher>,
}

impl Bell {
    /// Hangs the bell beside the queue's file.
    ///
    /// # Errors
    /// When its file can be neither opened nor made.
    pub(super) fn beside(queue: &Path) -> io::Result<Self> {
        let path = beside(queue, "-bell");
        let file = Arc::new(File::options().create(true).append(true).open(&path)?);
        let rung = Arc::new(Rung::default());
        let watcher = watch(&path, rung.clone()).inspect_err(|error| {
            tracing::warn!(
                error = %error, file = %path.display(),
                "can't watch the queue's bell, so a waiting consumer looks every {} ms or so; raise \
                 fs.inotify.max_user_instances (sysctl) above the number of processes that this user runs",
                LOOK_UNWATCHED.as_millis()
            );
        });
        Ok(Self { file, rung, watcher: watcher.ok() })
    }

    /// Wakes the waiting consumers of every process.
    pub(super) fn ring(&self) {
        // A bell that can't be rung costs others up to `LOOK`; the commit that it tells of is done all the same.
        let _ = self.file.set_modified(SystemTime::now());
    }

    /// Waits until it rings. A ring that nobody waited for is heard by the next who does.
    pub(super) async fn heard(&self) {
        self.rung.news.notified().await;
    }

    /// Learns whether a look found anything. The more are in vain, the longer it is deaf after a ring.
    pub(super) fn looked(&self, in_vain: bool) {
        let deaf_ms = self.rung.deaf_ms.load(Relaxed);
        self.rung.deaf_ms.store(if in_vain { (2 * deaf_ms + 1).min(DEAF_MAX_MS) } else { 0 }, Relaxed);
    }

    /// The file, for who takes turns.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// How long a waiting consumer may go without looking.
    pub(super) fn look_every(&self) -> Duration {
        if self.watcher.is_some() { LOOK } else { LOOK_UNWATCHED.mul_f64(rand::random_range(0.5..1.5)) }
    }
}

/// What the watching thread and the waiting one share.
#[derive(Debug, Default)]
struct Rung {
    news: Notify,
    deaf_ms: AtomicU64,
}

impl Rung {
    /// Passes a ring on, and then hears nothing for a while: what rings meanwhile is one ring after it.
    fn heard(&self) {
        self.news.notify_one();
        let deaf_ms = self.deaf_ms.load(Relaxed);
        if deaf_ms > 0 {
            // Unlike that of the others: of a crowd, somebody always listens.
            std::thread::sleep(Duration::from_millis(deaf_ms).mul_f64(rand::random_range(0.5..1.0)));
        }
    }
}

/// The queue's path with a suffix.
pub(super) fn beside(queue: &Path, suffix: &str) -> PathBuf {
    let mut name = queue.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn watch(path: &Path, rung: Arc<Rung>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |_event| rung.heard())?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
