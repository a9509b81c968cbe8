//! `inferq-worker assets`, through the real binary: manifests, copies that are killed, raced and betrayed, and pruning.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Instant;

use inferq_tests::process::{PATIENCE, command, peak_kib};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::parity::model_directory;

mod buckets;
mod serving;
mod swapping;

/// Runs `inferq-worker assets` to its end.
pub(crate) fn assets(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    command("inferq-worker").arg("assets").args(words).output().unwrap()
}

/// As [`assets`], where it must do what it is asked to; its stdout.
pub(crate) fn done(words: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = assets(words);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The names of the files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = PathBuf::from(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => names.extend(files(&entry.path()).into_iter().map(|below| name.join(below))),
            false => names.push(name),
        }
    }
    names
}

/// A copy of MiniLM's files, to be changed.
pub(crate) fn minilm(to: &Path) {
    let from = model_directory();
    for name in files(&from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Files that nobody can run, of so many MiB in all.
fn made_up(at: &Path, mib: usize, seed: u64) {
    fs::create_dir_all(at.join("1_Pooling")).unwrap();
    let mut bytes = vec![0; mib << 20];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    fs::write(at.join("model.safetensors"), bytes).unwrap();
    fs::write(at.join("config.json"), format!("{{\"seed\": {seed}}}")).unwrap();
    fs::write(at.join("1_Pooling/config.json"), "").unwrap();
    fs::write(at.join("pytorch_model.bin"), "a pickle").unwrap();
}

pub(crate) fn flip_a_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn current(root: &Path) -> PathBuf {
    root.join("current").canonicalize().unwrap()
}

/// Whether a root's current revision holds what a directory holds, and nothing a worker does not read.
fn holds(root: &Path, model: &Path) -> bool {
    let same = |name: &str| fs::read(current(root).join(name)).unwrap() == fs::read(model.join(name)).unwrap();
    let is_whole = ["model.safetensors", "config.json", "1_Pooling/config.json"].into_iter().all(same);
    is_whole && !current(root).join("pytorch_model.bin").exists()
}

/// Waits until something is so, without sleeping.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_manifest_vouches_for_every_byte_and_a_flipped_one_is_named() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("tiny");
    made_up(&model, 3, 1);
    let said = done(&[&"manifest", &model]);
    assert!(said.contains("tiny, 3 files, 3.00 MiB") && said.contains("no canary"), "{said}");
    let revision = said.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap().trim_end_matches(',');
    assert!(done(&[&"verify", &model]).contains(revision));
    assert_eq!(done(&[&"manifest", &model, &"--name", &"other"]), said.replace("tiny,", "other,"));
    flip_a_byte(&model.join("model.safetensors"), 2 << 20);
    let refused = assets(&[&"verify", &model]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("model.safetensors: sha256 "), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("1 of 3 files are damaged"), "{}", stderr(&refused));
}

#[test]
fn a_snapshot_of_links_becomes_a_revision_named_by_its_digest() {
    let folder = TempDir::new().unwrap();
    let (blobs, root) = (folder.path().join("blobs"), folder.path().join("root"));
    let snapshot = folder.path().join("models--org--small-model/snapshots/c0ffee");
    made_up(&blobs, 5, 2);
    fs::create_dir_all(snapshot.join("1_Pooling")).unwrap();
    for name in ["model.safetensors", "config.json", "1_Pooling/config.json", "pytorch_model.bin"] {
        symlink(blobs.join(name), snapshot.join(name)).unwrap();
    }
    let said = done(&[&"sync", &snapshot, &root]);
    assert!(said.contains("small-model, 3 files"), "{said}");
    assert!(holds(&root, &blobs));
    assert!(!current(&root).join("model.safetensors").is_symlink());
    done(&[&"verify", &root]);
    let folder_name = current(&root).file_name().unwrap().to_string_lossy().into_owned();
    assert!(done(&[&"list", &root]).starts_with(&format!("* {folder_name}  small-model, 3 files")));
    // What is there needs no copying; from root to root works as well.
    done(&[&"sync", &snapshot, &root]);
    let other = folder.path().join("other");
    done(&[&"sync", &root, &other]);
    assert!(done(&[&"sync", &root, &other]).contains("is there already"));
    assert!(holds(&other, &blobs));
    assert_eq!(
        fs::read_dir(other.join(".sync")).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(),
        0
    );
}

#[test]
fn a_damaged_copy_is_replaced_and_who_has_it_open_reads_on() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 3, 1);
    // At first the source has no manifest.
    for has_manifest in [false, true] {
        if has_manifest {
            done(&[&"manifest", &model]);
        }
        done(&[&"sync", &model, &root]);
        let weights = current(&root).join("model.safetensors");
        flip_a_byte(&weights, 2 << 20);
        let mut open = File::open(&weights).unwrap();
        if has_manifest {
            assert!(done(&[&"sync", &model, &root, &"--trust-sizes"]).contains("is there already"));
        }
        assert_eq!(assets(&[&"verify", &root]).status.code(), Some(1));
        let mended = assets(&[&"sync", &model, &root]);
        assert!(mended.status.success() && stderr(&mended).contains("it is copied again"), "{}", stderr(&mended));
        done(&[&"verify", &root]);
        assert!(holds(&root, &model));
        let mut before = Vec::new();
        open.read_to_end(&mut before).unwrap();
        assert!(before.len() > 2 << 20 && before != fs::read(&weights).unwrap());
    }
}

#[test]
fn older_revisions_go_when_asked_to_and_never_the_current_one() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    let mut revisions = Vec::new();
    for seed in 0..4 {
        made_up(&model, 1, seed);
        done(&[&"sync", &model, &root]);
        revisions.push(current(&root));
    }
    // Back to the oldest.
    fs::remove_file(root.join("current")).unwrap();
    symlink(revisions[0].file_name().unwrap(), root.join("current")).unwrap();
    assert_eq!(done(&[&"prune", &root]).lines().count(), 2);
    assert!(revisions.iter().all(|revision| revision.exists()), "nothing goes without --yes");
    done(&[&"prune", &root, &"--yes"]);
    let left: Vec<_> = revisions.iter().map(|revision| revision.exists()).collect();
    assert_eq!(left, [true, false, false, true]);
    fs::remove_file(root.join("current")).unwrap();
    assert_eq!(assets(&[&"prune", &root, &"--yes"]).status.code(), Some(64), "none is known to be out of use");
}

fn start_sync(model: &Path, root: &Path) -> Child {
    command("inferq-worker")
        .args(["assets", "sync"])
        .arg(model)
        .arg(root)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Bytes of the weights that an unfinished copy has.
fn copied(root: &Path) -> u64 {
    let copies = fs::read_dir(root.join(".sync")).into_iter().flatten();
    let size = |path: PathBuf| path.join("files/model.safetensors").metadata().map_or(0, |found| found.len());
    copies.map(|copy| size(copy.unwrap().path())).max().unwrap_or(0)
}

#[test]
fn a_copy_killed_at_any_byte_goes_on_and_is_never_seen_half() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 400, 3);
    let mut rng = StdRng::seed_from_u64(3);
    let mut kills = 0;
    for _ in 0..5 {
        let before = copied(&root);
        let aim = before + rng.random_range(1..60 << 20);
        let mut sync = start_sync(&model, &root);
        until("a part is copied", || copied(&root) >= aim || sync.try_wait().unwrap().is_some());
        sync.kill().unwrap();
        let ended = sync.wait_with_output().unwrap();
        if ended.status.success() {
            break;
        }
        kills += 1;
        assert!(!root.join("current").exists(), "half a model is not published");
        assert!(before == 0 || stderr(&ended).contains("going on after"), "{}", stderr(&ended));
        assert!(copied(&root) >= before, "what was copied is kept");
    }
    assert!(kills >= 2, "the copy was killed in the middle");
    let was_left = copied(&root) > 0;
    let ended = start_sync(&model, &root).wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", stderr(&ended));
    assert!(!was_left || stderr(&ended).contains("going on after"), "{}", stderr(&ended));
    assert!(holds(&root, &model));
    done(&[&"verify", &root]);
}

#[test]
fn what_an_interrupted_copy_left_damaged_is_copied_again() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 300, 4);
    done(&[&"manifest", &model]);
    let mut sync = start_sync(&model, &root);
    until("a part is copied", || copied(&root) > 0);
    sync.kill().unwrap();
    sync.wait().unwrap();
    let copy = fs::read_dir(root.join(".sync")).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir());
    flip_a_byte(&copy.unwrap().join("files/model.safetensors"), 100);
    let ended = start_sync(&model, &root).wait_with_output().unwrap();
    assert!(stderr(&ended).contains("copying it again"), "{}", stderr(&ended));
    assert!(ended.status.success() && holds(&root, &model));
}

#[test]
fn two_copies_at_once_end_in_one_whole_revision() {
    let folder = TempDir::new().unwrap();
    let (model, twin, root) = (folder.path().join("tiny"), folder.path().join("twin"), folder.path().join("root"));
    made_up(&model, 60, 5);
    made_up(&twin, 60, 5);
    // Two of one source wait for each other, two of another race them to the same name.
    let syncs: Vec<_> = [&model, &twin, &model, &twin].map(|source| start_sync(source, &root)).into();
    for sync in syncs {
        let ended = sync.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", stderr(&ended));
    }
    assert!(holds(&root, &model));
    assert_eq!(done(&[&"list", &root]).lines().count(), 1);
    done(&[&"verify", &root]);
}

#[test]
fn a_source_that_changes_in_the_middle_is_noticed_and_nothing_is_mixed() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 400, 6);
    let sync = start_sync(&model, &root);
    until("a part is copied", || copied(&root) > 0);
    kill_process(Pid::from_child(&sync), Signal::STOP).unwrap();
    made_up(&model, 400, 7);
    kill_process(Pid::from_child(&sync), Signal::CONT).unwrap();
    let ended = sync.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("changed while it was read"), "{}", stderr(&ended));
    assert!(!root.join("current").exists());
    done(&[&"sync", &model, &root]);
    assert!(holds(&root, &model));
}

#[test]
fn a_source_that_is_not_what_its_manifest_says_is_refused() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 9, 8);
    done(&[&"manifest", &model]);
    flip_a_byte(&model.join("model.safetensors"), 5 << 20);
    let refused = assets(&[&"sync", &model, &root]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("tiny/model.safetensors: sha256"), "{}", stderr(&refused));
    assert!(!root.join("current").exists());
    fs::write(model.join("model.safetensors"), "short").unwrap();
    let refused = assets(&[&"sync", &model, &root]);
    assert!(stderr(&refused).contains("5 bytes, its manifest says"), "{}", stderr(&refused));
}

#[test]
fn memory_does_not_grow_with_the_model() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("tiny"), folder.path().join("root"));
    made_up(&model, 600, 9);
    let mut sync = start_sync(&model, &root);
    let mut peak = 0;
    until("the copy is done", || {
        peak = peak_kib(&sync).unwrap_or(peak).max(peak);
        sync.try_wait().unwrap().is_some()
    });
    assert!(holds(&root, &model));
    assert!((1..200 << 10).contains(&peak), "{peak} KiB");
}

#[test]
fn wrong_commands_are_one_line_and_exit_64() {
    let folder = TempDir::new().unwrap();
    let (none, empty) = (folder.path().join("none"), folder.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    let cases: [(&[&dyn AsRef<std::ffi::OsStr>], &str); 9] = [
        (&[], "Usage: inferq-worker assets <COMMAND>"),
        (&[&"polish"], "unrecognized subcommand"),
        (&[&"sync", &none, &empty], "none: no such file; a model is a directory"),
        (&[&"sync", &empty, &none], "config.json: no such file; it holds no model"),
        (&[&"sync", &"ftp://host/model", &none], "ftp"),
        (&[&"list", &"s3://models/minilm"], "s3:// is no folder"),
        (&[&"prune", &"gs://models/minilm"], "gs:// is no folder"),
        (&[&"verify", &empty], "manifest.json: no such file; there is nothing to compare with"),
        (&[&"prune", &empty, &"--keep", &"0"], "--keep"),
    ];
    for (words, named) in cases {
        let output = assets(words);
        assert_eq!(output.status.code(), Some(64), "{named}: {}", stderr(&output));
        assert!(stderr(&output).contains(named), "{named}: {}", stderr(&output));
    }
}

#[test]
fn a_canary_is_kept_as_long_as_the_files_are_what_it_was_made_with() {
    let folder = TempDir::new().unwrap();
    let (model, root) = (folder.path().join("all-MiniLM-L6-v2"), folder.path().join("root"));
    minilm(&model);
    assert!(done(&[&"manifest", &model, &"--canary=a bird in a cage"]).contains("with a canary"));
    assert!(done(&[&"manifest", &model]).contains("with a canary"));
    done(&[&"sync", &model, &root]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(current(&root).join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["canary"]["input"], "a bird in a cage");
    assert_eq!(manifest["name"], "all-MiniLM-L6-v2");
    fs::write(model.join("vocab.txt"), "another").unwrap();
    assert!(done(&[&"manifest", &model]).contains("no canary"));
}
