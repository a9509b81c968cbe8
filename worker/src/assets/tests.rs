//! Tests of reading and vouching.

use super::*;

const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn manifest(sha256: &str) -> String {
    format!(r#"{{"name": "tiny", "files": [{{"name": "a", "size": 3, "sha256": "{sha256}"}}], "canary": null}}"#)
}

#[test]
fn the_revision_is_the_digest_of_the_files_read_in_any_order() {
    let directory = directory(&[("a", "abc"), ("b", ""), ("README.md", "unread")]);
    let forwards = ModelDirectory::open(directory.path()).unwrap();
    forwards.read("a", "").unwrap();
    forwards.read("b", "").unwrap();
    let backwards = ModelDirectory::open(directory.path()).unwrap();
    backwards.read("b", "").unwrap();
    assert_eq!(backwards.read_if_there("a").unwrap().unwrap(), b"abc");
    assert_eq!(backwards.read_if_there("c").unwrap(), None);
    let of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let lines = format!("a 3 {OF_ABC}\nb 0 {of_nothing}\n");
    assert_eq!(forwards.revision(), format!("sha256:{}", hex(&Sha256::digest(lines))));
    assert_eq!(forwards.revision(), backwards.revision());
}

#[test]
fn a_large_file_is_read_whole() {
    let text = "0123456789abcdef".repeat(CHUNK / 8);
    let directory = directory(&[("large", &text)]);
    let model = ModelDirectory::open(directory.path()).unwrap();
    assert!(model.read("large", "").unwrap() == text.as_bytes());
    let line = format!("large {} {}\n", text.len(), hex(&Sha256::digest(&text)));
    assert_eq!(model.revision(), format!("sha256:{}", hex(&Sha256::digest(line))));
}

#[test]
fn the_manifest_names_the_model_and_vouches_for_its_files() {
    let directory = directory(&[("a", "abc"), ("b", "x"), (MANIFEST, &manifest(OF_ABC))]);
    let model = ModelDirectory::open(directory.path()).unwrap();
    assert_eq!(model.name(), "tiny");
    model.read("a", "").unwrap();
    let error = model.read("b", "").unwrap_err().to_string();
    assert!(error.contains("not listed in manifest.json"), "{error}");
}

#[test]
fn a_file_that_differs_from_the_manifest_is_refused() {
    let other_digest = directory(&[("a", "abd"), (MANIFEST, &manifest(OF_ABC))]);
    let error = ModelDirectory::open(other_digest.path()).unwrap().read("a", "").unwrap_err();
    assert!(matches!(error, AssetsError::Mismatch { .. }) && error.to_string().contains(OF_ABC), "{error}");
    let other_size = directory(&[("a", "abcd"), (MANIFEST, &manifest(OF_ABC))]);
    let error = ModelDirectory::open(other_size.path()).unwrap().read("a", "").unwrap_err().to_string();
    assert!(error.contains("4 bytes, manifest.json says 3"), "{error}");
}

#[test]
fn a_copy_that_is_not_complete_may_be_on_its_way_and_a_damaged_one_is_not() {
    let error = |files: &[(&str, &str)]| {
        let directory = directory(files);
        let model = ModelDirectory::open(directory.path()).unwrap();
        (model.check_sizes(), model.read("a", ""))
    };
    let (sizes, read) = error(&[("a", "ab"), (MANIFEST, &manifest(OF_ABC))]);
    assert!(sizes.unwrap_err().may_be_on_its_way() && read.unwrap_err().may_be_on_its_way());
    let (sizes, read) = error(&[(MANIFEST, &manifest(OF_ABC))]);
    assert!(sizes.unwrap_err().may_be_on_its_way() && read.unwrap_err().may_be_on_its_way());
    let (sizes, read) = error(&[("a", "abd"), (MANIFEST, &manifest(OF_ABC))]);
    assert!(sizes.is_ok() && !read.unwrap_err().may_be_on_its_way());
}

#[test]
fn a_listed_file_is_not_optional() {
    let directory = directory(&[(MANIFEST, &manifest(OF_ABC))]);
    let model = ModelDirectory::open(directory.path()).unwrap();
    assert!(matches!(model.read_if_there("a"), Err(AssetsError::Missing { .. })));
}

#[test]
fn a_model_is_found_through_current_and_never_named_after_a_digest() {
    let root = directory(&[]);
    let names = ["tiny/sha256-53aa", "models--org--small--one/snapshots/c0ffee"];
    for name in names {
        std::fs::create_dir_all(root.path().join(name)).unwrap();
    }
    assert_eq!(name_of(&root.path().join(names[0])), "tiny");
    assert_eq!(name_of(&root.path().join(names[1])), "one");
    let link = root.path().join("tiny").join(CURRENT);
    std::os::unix::fs::symlink("sha256-53aa", &link).unwrap();
    std::fs::write(link.join("a"), "abc").unwrap();
    let model = ModelDirectory::open(&root.path().join("tiny")).unwrap();
    assert_eq!((model.read("a", "").unwrap(), model.name()), (b"abc".to_vec(), "tiny".to_owned()));
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("sha256-none", &link).unwrap();
    assert!(ModelDirectory::open(&root.path().join("tiny")).err().unwrap().may_be_on_its_way());
}

#[test]
fn a_broken_manifest_and_a_missing_file_are_named() {
    let broken = directory(&[(MANIFEST, "[]")]);
    let error = ModelDirectory::open(broken.path()).err().unwrap().to_string();
    assert!(error.contains("manifest.json: no manifest"), "{error}");
    let empty = directory(&[]);
    let error = ModelDirectory::open(empty.path()).unwrap().read("a", "it holds the a").unwrap_err().to_string();
    assert!(error.ends_with("/a: no such file; it holds the a"), "{error}");
    let error = ModelDirectory::open(&empty.path().join("none")).err().unwrap().to_string();
    assert!(error.contains("none: no such file; a model is a directory with"), "{error}");
}

#[test]
fn a_name_that_leads_out_of_the_directory_is_refused() {
    let directory = directory(&[("a", "abc")]);
    let model = ModelDirectory::open(directory.path()).unwrap();
    for name in ["../a", "/etc/passwd", "x/../../a"] {
        assert!(matches!(model.read(name, ""), Err(AssetsError::Malformed { .. })), "{name}");
    }
}
