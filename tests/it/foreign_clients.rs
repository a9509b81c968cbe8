//! Other languages' clients, as our documents show them, against a real server and a real worker.

use std::path::Path;
use std::process::{Command, Stdio};

use inferq_tests::process::{WorkerProcess, command, worker_on};
use inferq_tests::pubsub::{self, Emulator};
use inferq_tests::rabbitmq::RabbitmqServer;
use serde_json::{Value, json};

#[test]
fn the_python_example_publishes_a_job_over_rabbitmq_and_reads_its_reply() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let Some(mut example) = example("rabbitmq.py", "pika.sh") else { return };
    let url = server.url(&server.virtual_host());
    example.arg(&url);
    is_answered(&format!("{url}?queue=jobs"), &mut example);
}

#[test]
fn the_python_example_publishes_a_job_over_pubsub_and_reads_its_reply() {
    let Some(emulator) = Emulator::shared() else { return };
    let Some(mut example) = example("pubsub.py", "pubsub_client.sh") else { return };
    let project = pubsub::project();
    example.arg(&project).env("PUBSUB_EMULATOR_HOST", emulator.address().to_string());
    is_answered(&emulator.url(&project), &mut example);
}

/// A command for one of the examples, with the python that a tool prints. Says what is left out where that can't be had;
/// with CI set that is a failure.
fn example(name: &str, tool: &str) -> Option<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tool = Command::new(root.join("tools").join(tool)).stderr(Stdio::inherit()).output().unwrap();
    assert!(tool.status.success(), "with CI set its client must be there");
    let python = String::from_utf8(tool.stdout).unwrap();
    if python.is_empty() {
        eprintln!("left out: docs/examples/{name}");
        return None;
    }
    let mut command = Command::new(python.trim());
    command.arg(root.join("../docs/examples").join(name));
    Some(command)
}

/// Runs an example beside a worker on fresh queues.
fn is_answered(queue: &str, example: &mut Command) {
    let setup = command("inferq").args(["setup", "--queue", queue]).output().unwrap();
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    let _worker = WorkerProcess::spawn(&mut worker_on(queue, &["--engine", "echo"]));
    let ran = example.output().unwrap();
    let reply: Value = serde_json::from_slice(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ran.stderr)));
    assert_eq!((&reply["status"], &reply["results"][1]["id"]), (&json!("succeeded"), &json!("doc-2")));
}
