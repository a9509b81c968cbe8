//! Models by way of a bucket, through the real binary and a real server.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use inferq_tests::endpoints::{Endpoints, Store};
use inferq_tests::process::{command, peak_kib};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{copied, done, holds, made_up, stderr, until};

/// A sync between a folder and a store.
fn sync(store: &Store, words: &[&dyn AsRef<std::ffi::OsStr>]) -> Command {
    let mut sync = command("inferq-worker");
    sync.args(["assets", "sync"]).args(words).envs(store.variables().iter().cloned());
    sync.stdout(Stdio::piped()).stderr(Stdio::piped());
    sync
}

/// Waits without keeping the runtime from its work: what stands between client and server runs there.
fn end_of(sync: Child) -> Output {
    block_in_place(|| sync.wait_with_output()).unwrap()
}

fn until_a_part_is_copied(root: &Path) {
    block_in_place(|| until("a part is copied", || copied(root) > 0));
}

fn finished(sync: Child) -> String {
    let ended = end_of(sync);
    assert!(ended.status.success(), "{}", stderr(&ended));
    String::from_utf8(ended.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_goes_from_a_folder_through_a_bucket_to_a_volume() {
    let Some(endpoints) = Endpoints::start() else { return };
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    for (number, store) in [endpoints.s3().await, endpoints.gs().await].into_iter().enumerate() {
        // Larger than one part of an upload.
        made_up(&model, 40, number as u64);
        let uri = format!("{}models/tiny", store.root);
        let sent = finished(sync(&store, &[&model, &uri]).spawn().unwrap());
        assert!(sent.contains("tiny, 3 files"), "{sent}");
        finished(sync(&store, &[&uri, &root]).spawn().unwrap());
        assert!(holds(&root, &model));
        done(&[&"verify", &root]);
        // Sent again, nothing is; a later revision becomes current.
        assert_eq!(finished(sync(&store, &[&model, &uri]).spawn().unwrap()), sent);
        made_up(&model, 1, 10 + number as u64);
        finished(sync(&store, &[&model, &uri]).spawn().unwrap());
        finished(sync(&store, &[&uri, &root]).spawn().unwrap());
        assert!(holds(&root, &model));
    }
    assert_eq!(done(&[&"list", &root]).lines().count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_from_a_bucket_is_killed_and_goes_on_in_bounded_memory() {
    let Some(endpoints) = Endpoints::start() else { return };
    let store = endpoints.s3().await;
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 120, 3);
    let uri = format!("{}tiny", store.root);
    finished(sync(&store, &[&model, &uri]).spawn().unwrap());
    let mut killed = sync(&store, &[&uri, &root]).spawn().unwrap();
    until_a_part_is_copied(&root);
    let peak = peak_kib(&killed).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!root.join("current").exists());
    assert!(peak < 200 << 10, "{peak} KiB");
    let went_on = end_of(sync(&store, &[&uri, &root]).spawn().unwrap());
    assert!(went_on.status.success() && stderr(&went_on).contains("going on after"), "{}", stderr(&went_on));
    assert!(holds(&root, &model));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_replaced_in_the_middle_is_noticed() {
    let Some(endpoints) = Endpoints::start() else { return };
    let store = endpoints.s3().await;
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 120, 4);
    // Not a root: a model's files as somebody else has put them there.
    for name in ["config.json", "model.safetensors", "1_Pooling/config.json"] {
        store.buckets.upload(&store.uri(name), &model.join(name), |_| ()).await.unwrap();
    }
    let copying = sync(&store, &[&store.root.to_string(), &root]).spawn().unwrap();
    until_a_part_is_copied(&root);
    kill_process(Pid::from_child(&copying), Signal::STOP).unwrap();
    made_up(&model, 120, 5);
    store.buckets.upload(&store.uri("model.safetensors"), &model.join("model.safetensors"), |_| ()).await.unwrap();
    kill_process(Pid::from_child(&copying), Signal::CONT).unwrap();
    let ended = end_of(copying);
    assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("changed while it was read"), "{}", stderr(&ended));
    assert!(!root.join("current").exists());
    store.buckets.upload(&store.uri("config.json"), &model.join("config.json"), |_| ()).await.unwrap();
    finished(sync(&store, &[&store.root.to_string(), &root]).spawn().unwrap());
    assert!(holds(&root, &model));
    assert!(fs::read_dir(root.join(".sync")).unwrap().all(|entry| entry.unwrap().path().is_file()));
}
