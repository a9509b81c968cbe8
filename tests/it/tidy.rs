//! The rules of the tree that no compiler checks, as a test over its text.
//!
//! In: every source file and the few documents with a bound. Out: a list of `file:line: rule`, which must be empty.
//! What a rule looks for is planted in a sample as well, so that a rule that stopped working is noticed.

use std::path::{Path, PathBuf};

/// Text that may stand only in certain files of the product's crates. Paths match as prefixes.
struct Reserved {
    words: &'static [&'static str],
    only_in: &'static [&'static str],
    rule: &'static str,
}

const RESERVED: &[Reserved] = &[
    Reserved {
        // Not burn:: alone: that may be our own engine::burn.
        words: &["use burn::", "burn::tensor", "burn::prelude", "burn::nn", "burn::module", "burn_flex", "gemm::"],
        only_in: &["worker/src/engine.rs", "worker/src/engine/"],
        rule: "only the files of worker/src/engine/ name burn and its kernels",
    },
    Reserved { words: &["lapin"], only_in: &["shared/src/broker/rabbitmq"], rule: "only broker/rabbitmq names lapin" },
    Reserved {
        words: &["google_cloud"],
        only_in: &["shared/src/broker/pubsub"],
        rule: "only broker/pubsub names google-cloud",
    },
    Reserved {
        words: &["opentelemetry"],
        only_in: &["shared/src/telemetry/traces"],
        rule: "only telemetry/traces names opentelemetry",
    },
    Reserved {
        words: &["parquet::", "arrow_array", "arrow_schema", "flate2::", "zstd::"],
        only_in: &["producer/src/source/", "producer/src/sink", "shared/src/columns", "worker/src/claim/unpack"],
        rule: "only sources and sinks, the columns of results, and what unpacks claims name formats of files",
    },
    Reserved { words: &["object_store"], only_in: &["shared/src/bucket"], rule: "only bucket names object_store" },
    Reserved {
        words: &["process::exit("],
        only_in: &["worker/src/main.rs", "producer/src/main.rs"],
        rule: "only main.rs exits",
    },
    Reserved {
        words: &["set_global_default(", "set_global_recorder(", "install_recorder(", ".init()", ".try_init()"],
        only_in: &["shared/src/telemetry.rs", "shared/src/telemetry/"],
        rule: "only telemetry.rs installs globals",
    },
    Reserved {
        words: &["spawn(", "spawn_blocking("],
        only_in: &[
            "worker/src/pipeline.rs",
            "worker/src/pipeline/",
            "worker/src/health.rs",
            "worker/src/health/",
            // Its caller awaits the closure to its end.
            "worker/src/offload.rs",
            "shared/src/broker/",
            // Files as objects: its caller awaits the closure to its end.
            "shared/src/bucket/file.rs",
            "producer/src/main.rs",
            "producer/src/submit",
            "producer/src/collect",
            "producer/src/run",
            "producer/src/dead",
            "producer/src/status",
            "producer/src/setup",
            "producer/src/bench",
        ],
        rule: "only pipeline.rs and health.rs, brokers and subcommands spawn",
    },
];

/// Files whose decisions depend on their arguments alone.
const PURE: &[&str] = &[
    "shared/src/job",
    "shared/src/manifest",
    "shared/src/packing",
    "shared/src/digest",
    "shared/src/reply",
    "shared/src/backoff",
    "shared/src/presence",
    "shared/src/broker/pubsub/address",
    "shared/src/broker/pubsub/leases",
    "shared/src/broker/pubsub/message",
    "shared/src/broker/pubsub/place",
    "shared/src/broker/pubsub/plan",
    "shared/src/broker/pubsub/watchdog",
    "shared/src/bucket/uri",
    "shared/src/bucket/allow",
    "shared/src/bucket/error",
    "worker/src/assets/manifest",
    "worker/src/batch",
    "worker/src/claim/completion",
    "worker/src/claim/lines",
    "worker/src/claim/plan",
    "worker/src/claim/unpack",
    "producer/src/address",
    "producer/src/chunk",
    "producer/src/source/parse",
    "producer/src/pace",
    "producer/src/report",
    "producer/src/shown",
    "producer/src/bench/plot",
    "producer/src/dead/letter",
    "producer/src/status/work",
];

const IMPURE: &[&str] = &[
    "async ",
    ".await",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "tokio::",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "rand::rng(",
];

/// Text that may stand nowhere.
const NOWHERE: &[(&str, &str)] = &[
    ("#[ignore", "a test that can't run fails and says what is missing"),
    ("#[should_panic", "a test says what it expects by an assertion"),
    ("#[allow(", "#[expect(lint, reason = \"…\")], never a bare allow"),
    ("#![allow(", "#![expect(lint, reason = \"…\")], never a bare allow"),
    ("todo!(", "nothing is left for later"),
    ("unimplemented!(", "nothing is left for later"),
];

const PRODUCT: [&str; 3] = ["shared/src/", "worker/src/", "producer/src/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is in the workspace").to_owned()
}

/// Every file below `folder` that is ours, as a path from the root, sorted.
fn files(root: &Path, folder: &str, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return };
    for entry in entries {
        let entry = entry.expect("a readable folder");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let is_ours = !name.starts_with('.') && !["target", "corpus", "artifacts", "vendor"].contains(&name.as_str());
        if entry.file_type().expect("a file type").is_dir() {
            if is_ours {
                files(root, &path, found);
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
}

fn tree() -> Vec<String> {
    let mut found = Vec::new();
    files(&root(), "", &mut found);
    found
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(root().join(path)).ok()
}

/// The lines of product code with their numbers: no comments, and nothing from a file's inline tests on.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_tests = |line: &str| line.trim_start().starts_with("mod tests {");
    text.lines()
        .enumerate()
        .take_while(move |(_, line)| !is_tests(line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index + 1, line.split(" // ").next().unwrap_or(line)))
}

/// Whether `line` holds `word` as a name of its own: not within a longer name. Scoped threads are joined where they are
/// spawned, so they are nobody's business but their file's.
fn names(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(is_name) && !line[..at].ends_with("scope."))
}

/// What is wrong with one Rust file.
fn faults_of(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |line: usize, rule: &str| faults.push(format!("{path}:{line}: {rule}"));
    if !text.starts_with("//!") {
        fault(1, "every file opens with //!: what it owns, what comes in, what goes out");
    }
    let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
    if PRODUCT.iter().any(|folder| path.starts_with(folder)) && !is_test {
        for (line, text) in code(text) {
            for reserved in RESERVED.iter().filter(|r| !r.only_in.iter().any(|prefix| path.starts_with(prefix))) {
                if reserved.words.iter().any(|word| names(text, word)) {
                    fault(line, reserved.rule);
                }
            }
            if PURE.iter().any(|pure| path.starts_with(pure)) && IMPURE.iter().any(|word| text.contains(word)) {
                fault(line, "a pure file has no async, no clock, no randomness and no I/O: the instant is an argument");
            }
        }
    }
    for (index, text) in text.lines().enumerate() {
        for (word, rule) in NOWHERE {
            if text.contains(word) {
                fault(index + 1, rule);
            }
        }
        if path.starts_with("tests/it/") && text.contains("sleep(") {
            fault(index + 1, "no test sleeps: wait for what should happen");
        }
    }
    faults
}

#[test]
fn every_source_file_keeps_the_rules() {
    let mut faults = Vec::new();
    // This file quotes what it looks for.
    for path in tree().iter().filter(|path| path.ends_with(".rs") && *path != "tests/it/tidy.rs") {
        faults.extend(faults_of(path, &read(path).expect("a source file is text")));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_rule_finds_what_it_looks_for() {
    for (path, text) in [
        ("worker/src/intake.rs", "fn a() {}"),
        ("worker/src/intake.rs", "//! x\nuse burn::tensor::Tensor;"),
        ("worker/src/intake.rs", "//! x\nlet t: ::burn::tensor::Tensor<2>;"),
        ("worker/src/intake.rs", "//! x\nuse lapin::Channel;"),
        ("worker/src/intake.rs", "//! x\nuse google_cloud_pubsub::client;"),
        ("worker/src/intake.rs", "//! x\nuse object_store::path;"),
        ("shared/src/telemetry/story.rs", "//! x\nuse opentelemetry_sdk::trace::Span;"),
        ("worker/src/intake.rs", "//! x\nstd::process::exit(1);"),
        ("worker/src/intake.rs", "//! x\ntracing_subscriber::fmt().init();"),
        ("worker/src/intake.rs", "//! x\nmetrics::set_global_recorder(r);"),
        ("worker/src/intake.rs", "//! x\ntokio::spawn(async {});"),
        ("worker/src/intake.rs", "//! x\nthread::Builder::new().spawn(f);"),
        ("producer/src/source.rs", "//! x\nspawn_blocking(f);"),
        ("producer/src/recipe.rs", "//! x\nuse parquet::arrow::ArrowWriter;"),
        ("producer/src/source/parse.rs", "//! x\nstd::fs::read(path);"),
        ("shared/src/telemetry.rs", "//! x\nstd::thread::spawn(f);"),
        ("shared/src/job.rs", "//! x\npub async fn a() {}"),
        ("worker/src/batch/turns.rs", "//! x\nlet now = Instant::now();"),
        ("producer/src/pace.rs", "//! x\nlet text = std::fs::read(path);"),
        ("producer/src/report.rs", "//! x\nlet now = Instant::now();"),
        ("producer/src/dead/letter.rs", "//! x\nlet now = Timestamp::now();"),
        ("tests/it/a.rs", "//! x\ntokio::time::sleep(d).await;"),
        ("tests/it/a.rs", "//! x\n#[ignore]\nfn a() {}"),
        ("shared/src/job/tests.rs", "//! x\n#[should_panic]\nfn a() {}"),
        ("shared/src/lib.rs", "//! x\n#![allow(dead_code)]"),
        ("shared/src/lib.rs", "//! x\n#[allow(dead_code)]"),
        ("shared/src/lib.rs", "//! x\ntodo!()"),
    ] {
        assert_eq!(faults_of(path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("worker/src/main.rs", "//! x\nuse crate::engine::burn; // burn::tensor\nstd::process::exit(1);"),
        ("worker/src/intake.rs", "//! x\n// tokio::spawn( is not for us\nmod tests {\n    tokio::spawn(f);\n}"),
        ("worker/src/intake.rs", "//! x\nlet respawn = a.respawn();\nscope.spawn(f);"),
        ("shared/src/broker/sqlite.rs", "//! x\nstd::thread::spawn(f);"),
    ] {
        assert_eq!(faults_of(path, text), Vec::<String>::new());
    }
}

#[test]
fn files_are_named_for_what_they_own() {
    let mut faults = Vec::new();
    for path in tree() {
        let name = path.rsplit('/').next().unwrap_or(&path);
        let stem = name.split('.').next().unwrap_or(name);
        if name == "mod.rs" {
            faults.push(format!("{path}:1: foo.rs beside foo/, no mod.rs"));
        }
        if ["utils", "util", "common", "helpers", "misc"].contains(&stem) {
            faults.push(format!("{path}:1: a file is named for what it owns, not {stem}"));
        }
        if name.ends_with(".snap.new") || name.ends_with(".orig") {
            faults.push(format!("{path}:1: left over"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn documents_stay_short() {
    for (path, lines_max) in [("README.md", 120), ("ARCHITECTURE.md", 250)] {
        let lines = read(path).map_or(0, |text| text.lines().count());
        assert!(lines <= lines_max, "{path}:{lines}: has {lines} lines, the limit is {lines_max}");
    }
}

#[test]
fn nothing_is_left_for_later() {
    let mut faults = Vec::new();
    let is_written = |path: &&String| {
        let endings = [".rs", ".md", ".toml", ".sh", ".py", ".yaml", ".yml", ".json", "Makefile", ".ci/run"];
        endings.iter().any(|ending| path.ends_with(ending))
            && *path != "tests/it/tidy.rs"
            && !path.contains("fixtures/")
    };
    for path in tree().iter().filter(is_written) {
        for (index, line) in read(path).unwrap_or_default().lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
            if words.any(|word| ["TODO", "FIXME", "XXX", "HACK"].contains(&word)) {
                faults.push(format!("{path}:{}: do it, or open an issue", index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = read("Cargo.toml").expect("the workspace's manifest");
    let lines: Vec<&str> = manifest.lines().collect();
    let start = lines.iter().position(|line| *line == "[workspace.dependencies]").expect("one list of dependencies");
    let mut faults = Vec::new();
    for (index, line) in lines.iter().enumerate().skip(start + 1).take_while(|(_, line)| !line.starts_with('[')) {
        let is_dependency = line.contains(" = ") && !line.starts_with('#') && !line.contains("path = ");
        if is_dependency && !lines[index - 1].starts_with("# ") {
            faults.push(format!("Cargo.toml:{}: a dependency has its reason above it", index + 1));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_crate_takes_version_edition_lints_and_dependencies_from_the_workspace() {
    let mut faults = Vec::new();
    for folder in ["shared", "worker", "producer", "tests"] {
        let path = format!("{folder}/Cargo.toml");
        let manifest = read(&path).expect("a member's manifest");
        for line in ["version.workspace = true", "edition.workspace = true", "[lints]\nworkspace = true"] {
            if !manifest.contains(line) {
                faults.push(format!("{path}:1: has no {line:?}"));
            }
        }
        let mut in_dependencies = false;
        for (index, line) in manifest.lines().enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
            } else if in_dependencies
                && line.contains('=')
                && !line.starts_with('#')
                && !line.contains("workspace = true")
            {
                faults.push(format!("{path}:{}: a dependency's version is in the workspace's manifest", index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn only_the_worker_depends_on_the_model_s_libraries() {
    for folder in ["shared", "producer", "tests"] {
        let manifest = read(&format!("{folder}/Cargo.toml")).expect("a member's manifest");
        for (index, line) in manifest.lines().enumerate() {
            let named = ["burn", "gemm", "tokenizers", "safetensors"].into_iter().find(|name| line.starts_with(name));
            assert_eq!(named, None, "{folder}/Cargo.toml:{}: only the worker depends on it", index + 1);
        }
    }
}

#[test]
fn every_version_of_the_wire_format_has_fixtures() {
    for version in 1..=inferq_shared::job::VERSION {
        let folder = format!("tests/fixtures/wire/v{version}/");
        for kind in ["job-", "reply-"] {
            let count = tree().iter().filter(|path| path.starts_with(&format!("{folder}{kind}"))).count();
            assert!(count > 0, "{folder}: has no {kind} fixture");
        }
    }
}
