//! Hot swap: notices that a root's `current` points elsewhere, and makes that revision resident.
//!
//! In: the root, and the revision that runs. Out: what the next line is to run. The line itself knows nothing of it: it is
//! built around one model, drains when another is ready, and ends; so tokenizer, signature and engines change together,
//! between jobs. A revision that can't be loaded, or does not prove itself, is refused, and the one that runs stays.

use std::path::{Path, PathBuf};

use inferq_shared::telemetry;
use tokio_util::sync::CancellationToken;

use crate::assets;
use crate::config::Config;
use crate::health::{Health, State};
use crate::memory;
use crate::resident::{LOOK_EVERY, Loading, Resident, ResidentError};

/// What loading takes beside a model's files and the weights made of them.
const MARGIN_BYTES: u64 = 64 << 20;

/// Watches a root.
pub struct Swap {
    loading: Loading,
    watched: Option<PathBuf>,
    running: PathBuf,
    name: String,
    /// What was refused, as it was then: worth another look only when it has changed.
    refused: Option<String>,
}

/// What the next line is to run.
pub enum Next {
    /// A model that is loaded, warm and checked.
    Resident(Box<Resident>),
    /// The revision in this directory, which there is no memory for as long as the other is there.
    AfterDrain(PathBuf),
}

impl Swap {
    /// Watches the root that this model came from, if that is asked for.
    pub fn new(config: &Config, resident: &Resident) -> Self {
        let loading = Loading::new(config);
        let watched = loading.root().filter(|_| config.watch_assets).map(Path::to_owned);
        if let Some(root) = watched.as_ref().filter(|root| !root.join(assets::CURRENT).is_symlink()) {
            tracing::warn!(root = %root.display(), "--watch-assets watches a link named current, and there is none");
        }
        let running = resident.directory.clone().unwrap_or_default();
        Self { loading, watched, running, name: resident.loaded.info.name.clone(), refused: None }
    }

    /// Returns when another revision is to run; never where nothing is watched.
    pub async fn next(&mut self, health: &Health) -> Next {
        let Some(root) = self.watched.clone() else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(directory) = self.another(&root, health) else { continue };
            tracing::info!(directory = %directory.display(), "another revision is current");
            if !has_room(&directory) {
                tracing::warn!("no memory for two revisions at once: jobs are held back while the other is loaded");
                return Next::AfterDrain(directory);
            }
            match self.load(directory.clone()).await {
                Ok(resident) => return Next::Resident(Box::new(resident)),
                Err(reason) => self.refuse(&directory, &reason, health),
            }
        }
    }

    /// The directory that `current` points to, unless it is the running one or was refused as it is.
    fn another(&mut self, root: &Path, health: &Health) -> Option<PathBuf> {
        let directory = assets::locate(root).ok()?;
        if directory == self.running {
            if self.refused.take().is_some() {
                health.refused(None);
            }
            return None;
        }
        (self.refused.as_ref() != Some(&assets::glance(&directory))).then_some(directory)
    }

    async fn load(&self, directory: PathBuf) -> Result<Resident, String> {
        let resident = self.loading.beside(directory).await.map_err(|error| error.to_string())?;
        let name = &resident.loaded.info.name;
        if *name != self.name {
            return Err(format!("it is the model {name}, and this worker runs {}: start another worker", self.name));
        }
        Ok(resident)
    }

    fn refuse(&mut self, directory: &Path, reason: &str, health: &Health) {
        tracing::error!(directory = %directory.display(), reason, "revision refused; the one before stays");
        telemetry::model_swap("refused");
        health.refused(Some(format!("revision refused: {reason}")));
        self.refused = Some(assets::glance(directory));
    }

    /// Makes resident what comes next, now that the line before has ended. `None`: stop was asked first.
    ///
    /// # Errors
    /// When neither it nor the one before can be loaded.
    pub async fn take(
        &mut self,
        next: Next,
        health: &Health,
        stop: &CancellationToken,
    ) -> Result<Option<Resident>, ResidentError> {
        let resident = match next {
            Next::Resident(resident) => *resident,
            Next::AfterDrain(directory) => {
                health.enter(State::Loading);
                let loading = self.load_or_return(directory, health);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(None),
                    resident = loading => resident?,
                }
            }
        };
        let directory = resident.directory.clone().unwrap_or_default();
        if directory != self.running {
            tracing::info!(revision = resident.loaded.info.revision, "revision switched");
            telemetry::model_swap("switched");
            (self.running, self.refused) = (directory, None);
        }
        Ok(Some(resident))
    }

    async fn load_or_return(&mut self, directory: PathBuf, health: &Health) -> Result<Resident, ResidentError> {
        match self.load(directory.clone()).await {
            Ok(resident) => Ok(resident),
            Err(reason) => {
                self.refuse(&directory, &reason, health);
                self.loading.beside(self.running.clone()).await
            }
        }
    }
}

/// Whether a model in this directory fits beside what is in memory: while it is loaded its files are there twice, as
/// they are and as the device wants them.
fn has_room(directory: &Path) -> bool {
    let needed = 2 * assets::bytes_below(directory) + MARGIN_BYTES;
    memory::available().is_none_or(|available| available > needed)
}
