//! What is deployed agrees with the code: manifests, their alerts and dashboard. The checks are programs of their own, since the
//! schemas and the servers that they need are; here they run, and what they miss fails with CI set.

use std::path::{Path, PathBuf};
use std::process::Command;

use inferq_tests::process::binary;
use inferq_tests::scaling::study::COMPONENT;

use crate::parity::model_directory;

fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(name)
}

/// A python with what the checks import. `None`, with a line that says so, where there is no way to get it.
fn python(tool_name: &str) -> Option<String> {
    let made = Command::new(tool(tool_name)).output().unwrap();
    let said = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let python = said.lines().last().map(str::to_owned);
    if python.is_none() {
        eprintln!("left out: {}", String::from_utf8_lossy(&made.stderr));
    }
    python
}

/// Whether this command is there; where it is not, says how to get it, but with CI set it must be.
fn is_there(command: &str, how: &str) -> bool {
    let is_there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(command).is_file()));
    assert!(is_there || std::env::var_os("CI").is_none(), "{command} is missing: {how}");
    if !is_there {
        eprintln!("left out: {command} is missing: {how}");
    }
    is_there
}

/// Where the binaries lie.
fn binaries() -> PathBuf {
    binary("inferq-worker").parent().unwrap().to_owned()
}

fn passes(command: &mut Command) {
    let done = command.output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{error}");
}

#[test]
fn the_manifests_are_valid_and_agree_with_the_binaries_and_planted_faults_are_found() {
    if !is_there("kubectl", "https://kubernetes.io/docs/tasks/tools") {
        return;
    }
    let Some(python) = python("k8s.sh") else { return };
    passes(Command::new(python).arg(tool("k8s_check.py")).arg("--bin").arg(binaries()).arg("--plant"));
}

#[test]
fn each_alert_fires_where_it_should_and_nowhere_else() {
    if is_there("promtool", "apt install prometheus") {
        passes(Command::new(tool("alerts_check.py")).arg("--bin").arg(binaries()));
    }
}

#[test]
fn each_panel_of_the_dashboard_shows_what_real_workers_say() {
    if is_there("prometheus", "apt install prometheus") {
        passes(
            Command::new(tool("dashboard_check.py")).arg("--bin").arg(binaries()).arg("--model").arg(model_directory()),
        );
    }
}

#[test]
fn the_scaler_is_set_to_what_the_simulation_has_found() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/components/keda/inferq-worker-scaledobject.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let (up, down) = manifest.split_once("scaleDown:").unwrap();
    let policy = |percent: u32, period: u32| format!("{{type: Percent, value: {percent}, periodSeconds: {period}}}");
    for (part, expected) in [
        (&*manifest, format!("pollingInterval: {}\n", COMPONENT.polling_s)),
        (&*manifest, format!("cooldownPeriod: {}\n", COMPONENT.cooldown_s)),
        (up, policy(100, COMPONENT.up_period_s)),
        (down, policy(COMPONENT.down_percent, 60)),
        (down, format!("stabilizationWindowSeconds: {}\n", COMPONENT.down_stable_s)),
    ] {
        assert!(part.contains(&expected), "{expected}");
    }
    let thresholds: Vec<f64> = manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("threshold: "))
        .map(|value| value.trim_matches('"').parse().unwrap())
        .collect();
    assert_eq!(thresholds, [COMPONENT.target_s, COMPONENT.messages, COMPONENT.busy]);
}
