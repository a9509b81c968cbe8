//! The worker and its model's files: found through `current`, waited for, vouched for, and proved by a canary.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use inferq_shared::reply::Status;
use inferq_tests::process::{WorkerProcess, worker_command};
use inferq_tests::queue_file::{QueueFile, message};
use serde_json::Value;
use tempfile::TempDir;

use super::{current, done, flip_a_byte, minilm};

/// MiniLM with a canary, in a folder of its own.
pub(super) struct Model {
    folder: TempDir,
}

impl Model {
    pub(super) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        minilm(&folder.path().join("minilm"));
        done(&[&"manifest", &folder.path().join("minilm"), &"--canary"]);
        Self { folder }
    }

    pub(super) fn source(&self) -> std::path::PathBuf {
        self.folder.path().join("minilm")
    }

    pub(super) fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }

    pub(super) fn sync(&self) -> String {
        done(&[&"sync", &self.source(), &self.root()]);
        let folder = current(&self.root()).file_name().unwrap().to_string_lossy().into_owned();
        folder.replace("sha256-", "sha256:")
    }
}

fn start(queue: &QueueFile, model: &Path, flags: &[&str]) -> WorkerProcess {
    WorkerProcess::start_with(&queue.path, &[&["--model", &model.display().to_string()], flags].concat())
}

/// What a worker on this model ends with.
fn refused(queue: &QueueFile, model: &Path) -> (Option<i32>, String) {
    let output = worker_command(&queue.path, &["--model", &model.display().to_string()]).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_its_files_says_for_which_and_names_their_revision_in_its_replies() {
    let (model, queue) = (Model::new(), QueueFile::new().await);
    let worker = start(&queue, &model.root(), &["--assets-wait-s", "600"]);
    worker.until_logged("waiting for the model's files");
    let (code, body) = worker.get("/healthz");
    assert!(code == 503 && body.contains("waiting: ") && body.contains("root: no such file"), "{body}");
    assert_eq!(worker.get("/livez").0, 200);
    let status: Value = serde_json::from_str(&worker.get("/status").1).unwrap();
    assert_eq!(status["state"], "waiting");
    assert!(status["reason"].as_str().unwrap().contains("root: no such file"), "{status}");
    queue.publish([message("early", "a text")]).await;
    let revision = model.sync();
    let reply = queue.collect(1, |_| ()).await.remove("early").unwrap();
    assert_eq!(
        (reply.status, reply.revision.as_str(), reply.model.as_str()),
        (Status::Succeeded, &*revision, "minilm")
    );
    let status: Value = serde_json::from_str(&worker.get("/status").1).unwrap();
    assert_eq!((&status["state"], &status["revision"]), (&"ready".into(), &revision.as_str().into()));
    assert_eq!(status["reason"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_half_filled_is_waited_for_until_every_file_is_whole() {
    let (model, queue) = (Model::new(), QueueFile::new().await);
    let (source, half) = (model.source(), model.folder.path().join("half"));
    minilm(&half);
    fs::copy(source.join("manifest.json"), half.join("manifest.json")).unwrap();
    fs::write(half.join("model.safetensors"), &fs::read(source.join("model.safetensors")).unwrap()[..1000]).unwrap();
    let worker = start(&queue, &half, &["--assets-wait-s", "600"]);
    let waiting = worker.until_logged("waiting for the model's files");
    assert!(waiting["reason"].as_str().unwrap().contains("/model.safetensors: 1000 bytes"), "{waiting}");
    fs::copy(source.join("model.safetensors"), half.join("model.safetensors")).unwrap();
    worker.until_logged("ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_comes_is_waited_for_only_so_long() {
    let queue = QueueFile::new().await;
    let model = queue.beside("nothing").display().to_string();
    let flags = ["--model", &model, "--assets-wait-s", "1"];
    let output = worker_command(&queue.path, &flags).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    assert!(stderr.contains("waiting for the model's files") && stderr.contains("nothing: no such file"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_refused_by_name_however_long_the_worker_would_wait() {
    let (model, queue) = (Model::new(), QueueFile::new().await);
    model.sync();
    flip_a_byte(&current(&model.root()).join("model.safetensors"), 50_000_000);
    let path = model.root().display().to_string();
    let flags = ["--model", &path, "--assets-wait-s", "600"];
    let output = worker_command(&queue.path, &flags).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    assert!(stderr.contains("/model.safetensors: sha256 ") && stderr.contains("damaged"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_canary_gives_other_numbers_is_never_ready() {
    let (model, queue) = (Model::new(), QueueFile::new().await);
    // The embedding of another text: vouched for, but not what this model makes of the canary.
    done(&[&"manifest", &model.source(), &"--canary=another text"]);
    let path = model.source().join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["canary"]["input"] = "a text that nobody embedded".into();
    fs::write(&path, manifest.to_string()).unwrap();
    let (code, stderr) = refused(&queue, &model.source());
    assert_eq!(code, Some(70), "{stderr}");
    assert!(stderr.contains("the manifest's canary is 0.") && !stderr.contains("\"ready\""), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_current_that_points_nowhere_is_named() {
    let (folder, queue) = (TempDir::new().unwrap(), QueueFile::new().await);
    symlink("sha256-gone", folder.path().join("current")).unwrap();
    let (code, stderr) = refused(&queue, folder.path());
    assert_eq!(code, Some(64));
    assert!(stderr.contains("/current: no such file; it points to a revision that is not there"), "{stderr}");
}
