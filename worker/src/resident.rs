//! A model in memory: found, loaded, warmed up and checked.
//!
//! In: what to load, from a directory or from what a root's `current` points to. Out: a [`Resident`] that may take jobs. While
//! the files are still on their way it waits, and says for what. It never takes a job itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::assets::{self, AssetsError};
use crate::config::{Config, ModelSource};
use crate::engine::{Engine, EngineError, Loaded, Warm, burn, echo};
use crate::health::{Health, State};
use crate::offload::Offload;

/// How often it is looked whether the files of a model have come.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A model that is loaded, warm and checked.
pub struct Resident {
    /// Its engines, its tokenizer, what it is.
    pub loaded: Loaded,
    /// The directory it was read from, with `current` followed; an engine without a model has none.
    pub directory: Option<PathBuf>,
    /// What its engines found out about themselves.
    pub warm: Warm,
}

/// Why a model is not there.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError {
    /// It can't be loaded as configured.
    #[error("failed to load the model: {0}")]
    Load(#[from] burn::LoadError),
    /// It does not run as it should.
    #[error("failed to warm up the model: {0}")]
    Warm(#[from] EngineError),
}

impl From<AssetsError> for ResidentError {
    fn from(error: AssetsError) -> Self {
        Self::Load(error.into())
    }
}

impl ResidentError {
    /// Whether files may still be on their way.
    pub fn may_be_on_its_way(&self) -> bool {
        matches!(self, Self::Load(burn::LoadError::Assets(error)) if error.may_be_on_its_way())
    }
}

/// What to load, and how to run it.
#[derive(Debug, Clone)]
pub struct Loading {
    source: ModelSource,
    wait: Duration,
    phase_limit: Duration,
}

impl Loading {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        Self { source: config.model.clone(), wait: config.assets_wait, phase_limit: config.phase_limit }
    }

    /// The directory or root that the model comes from.
    pub fn root(&self) -> Option<&Path> {
        match &self.source {
            ModelSource::Burn(options) => Some(&options.directory),
            ModelSource::Echo { .. } => None,
        }
    }

    /// Loads, warms and checks, and shows each step. `None`: stop was asked first.
    ///
    /// # Errors
    /// When there is no such model within the time to wait for it, or it does not run.
    pub async fn start(&self, health: &Health, stop: &CancellationToken) -> Result<Option<Resident>, ResidentError> {
        health.limit_phases(self.phase_limit);
        let loading = async {
            let (loaded, directory) = self.load_when_there(health).await?;
            health.model(&loaded.info);
            health.enter(State::Warming);
            warm(loaded, directory).await
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(None),
            resident = loading => resident.map(Some),
        }
    }

    /// As [`Loading::start`], from this directory, without a word to the outside: for a model beside another.
    ///
    /// # Errors
    /// When it can't be loaded or does not run.
    pub async fn beside(&self, directory: PathBuf) -> Result<Resident, ResidentError> {
        let (loaded, directory) = self.load(Some(directory)).await?;
        warm(loaded, directory).await
    }

    async fn load_when_there(&self, health: &Health) -> Result<Found, ResidentError> {
        let since = Instant::now();
        loop {
            health.enter(State::Loading);
            // Taken before loading: what comes meanwhile is a reason to try again.
            let glance = self.root().map(assets::glance);
            let error = match self.load_current().await {
                Err(error) if error.may_be_on_its_way() => error,
                loaded => return loaded,
            };
            let Some(left) = self.wait.checked_sub(since.elapsed()) else { return Err(error) };
            health.waiting(&error.to_string());
            if tokio::time::timeout(left, self.until_changed(glance)).await.is_err() {
                return Err(error);
            }
        }
    }

    async fn until_changed(&self, before: Option<String>) {
        while self.root().map(assets::glance) == before {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn load_current(&self) -> Result<Found, ResidentError> {
        let directory = self.root().map(assets::locate).transpose()?;
        self.load(directory).await
    }

    async fn load(&self, directory: Option<PathBuf>) -> Result<Found, ResidentError> {
        let started = Instant::now();
        let (options, from) = (self.clone(), directory.clone());
        let loaded = Offload::Threads.run(move || options.load_now(from)).await?;
        tracing::info!(
            model = loaded.info.name,
            revision = loaded.info.revision,
            device = loaded.info.device,
            duration_ms = started.elapsed().as_millis() as u64,
            "model loaded"
        );
        Ok((loaded, directory))
    }

    fn load_now(self, from: Option<PathBuf>) -> Result<Loaded, burn::LoadError> {
        match self.source {
            ModelSource::Echo { options, replicas, name } => Ok(echo::load(options, replicas.get(), name)),
            ModelSource::Burn(mut options) => {
                options.directory = from.unwrap_or(options.directory);
                burn::load(&options)
            }
        }
    }
}

/// A model that is loaded, and the directory it was read from.
type Found = (Loaded, Option<PathBuf>);

async fn warm(loaded: Loaded, directory: Option<PathBuf>) -> Result<Resident, ResidentError> {
    let started = Instant::now();
    let Loaded { engines, tokenizer, info } = loaded;
    let (engines, warm) = Offload::Threads.run(move || warm_all(engines)).await?;
    tracing::info!(duration_ms = started.elapsed().as_millis() as u64, "model warm and checked");
    Ok(Resident { loaded: Loaded { engines, tokenizer, info }, directory, warm })
}

type Warmed = (Box<dyn Engine>, Warm);

/// Warms all replicas at once, as they will run. Their batches are those of the device with the least room.
fn warm_all(engines: Vec<Box<dyn Engine>>) -> Result<(Vec<Box<dyn Engine>>, Warm), EngineError> {
    let warmed: Vec<Warmed> = std::thread::scope(|scope| {
        let warming: Vec<_> = engines
            .into_iter()
            .map(|mut engine| {
                scope.spawn(move || {
                    let warm = engine.warm_up()?;
                    engine.check()?;
                    Ok((engine, warm))
                })
            })
            .collect();
        let joined = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(engine) => engine,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        warming.into_iter().map(joined).collect::<Result<_, EngineError>>()
    })?;
    let batch_tokens = warmed.iter().filter_map(|(_, warm)| warm.batch_tokens).min();
    Ok((warmed.into_iter().map(|(engine, _)| engine).collect(), Warm { batch_tokens }))
}
