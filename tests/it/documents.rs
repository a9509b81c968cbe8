//! The documents say what the code does: tables made from the code, and codes that the code knows.
//!
//! `UPDATE_DOCS=1 make test` writes the tables anew.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::CommandFactory;
use inferq_shared::broker::{Capabilities, memory, pubsub, rabbitmq, sqlite};
use inferq_shared::telemetry::story;
use inferq_worker::ticket::ReleaseReason;

fn document(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Compares what stands between two marks of a document with what it should be, or writes it anew.
pub(crate) fn check_block(name: &str, mark: &str, expected: &str) {
    let path = document(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = text.find(&format!("<!-- {mark}")).unwrap_or_else(|| panic!("{name} has no mark {mark}"));
    let begin = begin + text[begin..].find("-->\n").unwrap() + 4;
    let end = begin + text[begin..].find(&format!("<!-- /{mark} -->")).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{}{expected}{}", &text[..begin], &text[end..])).unwrap();
        return;
    }
    assert_eq!(&text[begin..end], expected, "{name} is out of date: run the tests with UPDATE_DOCS=1");
}

#[test]
fn the_table_of_capabilities_is_true() {
    type Has = fn(&Capabilities) -> bool;
    let rows: [(&str, Has); 12] = [
        ("order of publishing", |c| c.fifo),
        ("release after any chosen time", |c| c.chosen_delay),
        ("leases expire", |c| c.lease_expiry),
        ("release spends no attempt", |c| c.free_release),
        ("bounded queues", |c| c.bounded),
        ("the bound is exact", |c| c.exact_bound),
        ("acks are answered", |c| c.answered_acks),
        ("fetches ahead", |c| c.fetches_ahead),
        ("outlives the process", |c| c.durable),
        ("shared by processes", |c| c.shared),
        ("looked at without a lease", |c| c.browse),
        ("workers leave word", |c| c.workers),
    ];
    let mut table = "| | memory | sqlite | rabbitmq | pubsub |\n|---|---|---|---|---|\n".to_owned();
    let word = |yes| if yes { "yes" } else { "no" };
    for (name, has) in rows {
        let all = [memory::CAPABILITIES, sqlite::CAPABILITIES, rabbitmq::CAPABILITIES, pubsub::CAPABILITIES];
        writeln!(table, "| {name} | {} |", all.map(|all| word(has(&all))).join(" | ")).unwrap();
    }
    check_block("ARCHITECTURE.md", "capabilities", &table);
}

#[test]
fn the_table_of_the_workers_flags_is_true() {
    let command = inferq_worker::config::Cli::command();
    let mut table = "| flag | variable | default | what |\n|---|---|---|---|\n".to_owned();
    for flag in command.get_arguments().filter(|flag| !flag.is_hide_set()) {
        let Some(variable) = flag.get_env() else { continue };
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
        let default: Vec<_> = flag.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let name = flag.get_long().unwrap();
        writeln!(table, "| `--{name}` | `{}` | {} | {help} |", variable.display(), default.join(",")).unwrap();
    }
    check_block("docs/operations.md", "flags", &table);
}

#[test]
fn every_step_of_a_jobs_story_and_every_reason_is_documented() {
    let text = std::fs::read_to_string(document("docs/operations.md")).unwrap();
    let words = story::STEPS.into_iter().chain(ReleaseReason::ALL.map(ReleaseReason::as_str));
    let missing: Vec<_> = words.filter(|word| !text.contains(&format!("\n| `{word}` |"))).collect();
    assert!(missing.is_empty(), "docs/operations.md says nothing of {missing:?}");
}
