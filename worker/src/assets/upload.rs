//! `assets sync` to a bucket: the same root, with objects for files.
//!
//! ```text
//! ROOT/sha256-53aa…/…             objects, manifest.json last
//! ROOT/current                    an object that holds the name sha256-53aa…
//! ```
//!
//! In: a model's directory. Out: its files under a name that is their digest, and `current` once all are there; so who
//! reads through `current` finds a whole model. A file that is there with its size is not sent again.

use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use inferq_shared::bucket::{Buckets, Uri};

use super::command::{Failure, say};
use super::disk::{DiskError, on};
use super::look::{described, fingerprints};
use super::manifest::{MANIFEST, Manifest};
use super::progress::Bytes;
use super::source::{Listing, Source, SourceFile, version};
use super::{AssetsError, CURRENT};
use crate::offload::Offload;

/// Files on their way at once.
const FILES: usize = 4;

pub(super) async fn into_bucket(source: &Source, root: &Uri, name: Option<String>) -> Result<(), Failure> {
    let listing = source.list().await?;
    let Source::Folder(directory) = &listing.place else {
        let message = "from bucket to bucket goes by way of a folder: sync to one first".to_owned();
        return Err(Failure::Usage(message));
    };
    let manifest = manifest(&listing, directory, name).await?;
    let target = root.join(&format!("{}/", manifest.folder()))?;
    let (buckets, bar) = (Buckets::new(), Bytes::of(manifest.size()));
    let send = |file: &SourceFile| send(&buckets, &target, directory, file.clone(), &bar);
    let sending: Vec<_> = listing.files.iter().map(send).collect();
    stream::iter(sending).buffer_unordered(FILES).try_collect::<Vec<()>>().await?;
    drop(bar);
    send_text(&buckets, &target.join(MANIFEST)?, &manifest.encode()).await?;
    send_text(&buckets, &root.join(CURRENT)?, manifest.folder().as_bytes()).await?;
    say(&format!("{target}: {}", described(&manifest)))
}

/// What is sent: its digests, which must be those that it came with.
async fn manifest(listing: &Listing, directory: &Path, name: Option<String>) -> Result<Manifest, Failure> {
    let (from, names) = (directory.to_owned(), listing.files.iter().map(|file| file.name.clone()).collect());
    let files = Offload::Threads.run(move || fingerprints(&from, names)).await?;
    if let Some((name, found)) =
        files.iter().find(|(name, found)| listing.expected(name).is_some_and(|is| is != *found))
    {
        let what = format!("sha256 {}, its manifest says otherwise", found.sha256);
        return Err(AssetsError::Mismatch { path: listing.place.path_of(name), what }.into());
    }
    let canary = listing.manifest.as_ref().and_then(|manifest| manifest.canary.clone());
    Ok(Manifest { name: name.unwrap_or_else(|| listing.name.clone()), files, canary })
}

async fn send(buckets: &Buckets, target: &Uri, directory: &Path, file: SourceFile, bar: &Bytes) -> Result<(), Failure> {
    let uri = target.join(&file.name)?;
    if buckets.head(&uri).await?.is_some_and(|there| there.size == file.size) {
        bar.add(file.size);
        return Ok(());
    }
    // A link, as in a cache of Hugging Face's, is the file that it points to.
    let link = directory.join(&file.name);
    let path = on(&link, link.canonicalize())?;
    buckets.upload(&uri, &path, |bytes| bar.add(bytes)).await?;
    match version(&on(&path, path.metadata())?) == file.version {
        true => Ok(()),
        false => {
            // It has the name of other bytes.
            buckets.delete(&uri).await?;
            Err(Failure::Changed(link.display().to_string()))
        }
    }
}

async fn send_text(buckets: &Buckets, uri: &Uri, text: &[u8]) -> Result<(), Failure> {
    let failed = |source| DiskError { path: PathBuf::from("a temporary file"), source };
    let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
    file.write_all(text).map_err(failed)?;
    buckets.upload(uri, file.path(), |_| ()).await?;
    Ok(())
}
