//! What a card's kernels were compiled and tuned to, kept between starts: the second start has nothing left to do.
//!
//! In: a folder for such files, and what they depend on. Out: a file that is there whole or not at all, whoever else writes
//! it: each process works on a copy of its own and publishes by one rename. A file that can't be read or written costs a
//! slow start and nothing else. cubecl has one store a process, so all models of a process share it.

use std::fs::File;
use std::path::{Path, PathBuf};

use cubecl::bundle::{self, BundleFormat};
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::environment;
use tempfile::TempDir;

/// The kernels of one model on one kind of card.
#[derive(Debug)]
pub(super) struct KernelCache {
    file: PathBuf,
    /// What the file had when it was read.
    entries: u64,
    /// Where this process keeps its own copy.
    _own: TempDir,
}

/// The folder of such files in a model's directory, to be shipped with the model.
const FOLDER: &str = "kernels";

/// Gives this process a store of its own, before it uses a device. `None` where there is no room for one: then nothing is
/// kept.
pub(super) fn begin() -> Option<TempDir> {
    let own = match tempfile::tempdir() {
        Ok(own) => own,
        Err(error) => {
            tracing::warn!(%error, "no temporary folder: every start compiles all kernels");
            return None;
        }
    };
    let mut config = CubeClRuntimeConfig::default();
    config.compilation.cache = true;
    // Taken over the first time; later it is what it is already.
    CubeClRuntimeConfig::try_set(config);
    environment::set_root(own.path());
    Some(own)
}

impl KernelCache {
    /// Takes over the file of this key in `folder`; where it is not there, the one that lies in the model's directory.
    pub(super) fn open(own: TempDir, folder: &Path, model: &Path, key: &str) -> Self {
        let name = format!("{}.kernels", key.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '.'), "-"));
        let file = folder.join(&name);
        if let Some(found) = [file.clone(), model.join(FOLDER).join(name)].into_iter().find(|file| file.is_file()) {
            match bundle::open(&found) {
                Ok(found) => drop(bundle::import(found.as_ref())),
                Err(error) => {
                    tracing::warn!(file = %found.display(), %error, "kernels of an earlier start can't be read")
                }
            }
        }
        let entries = entries();
        tracing::info!(file = %file.display(), entries, "kernels of earlier starts");
        Self { file, entries, _own: own }
    }

    /// Publishes what this process has, unless it has nothing new.
    pub(super) fn save(&self) {
        let (file, entries) = (self.file.display(), entries());
        if entries <= self.entries {
            return;
        }
        match self.publish() {
            Ok(()) => tracing::info!(%file, entries, "kernels kept for the next start"),
            Err(error) => tracing::warn!(%file, error, "kernels can't be kept: the next start is as slow as this one"),
        }
    }

    fn publish(&self) -> Result<(), String> {
        let folder = self.file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        // In the same folder, so that the rename is one step.
        let work = tempfile::tempdir_in(folder).map_err(|error| error.to_string())?;
        let copy = work.path().join("copy");
        environment::bundle().save(&copy, BundleFormat::Flat).map_err(|error| error.to_string())?;
        let synced = File::open(&copy).and_then(|file| file.sync_all());
        synced.and_then(|()| std::fs::rename(&copy, &self.file)).map_err(|error| error.to_string())
    }
}

/// How many kernels and choices this process has.
fn entries() -> u64 {
    environment::namespaces().iter().map(|namespace| namespace.entries).sum()
}
