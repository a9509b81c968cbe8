//! Other languages' clients, as our documents show them, against a real server and a real worker.

use std::path::Path;
use std::process::{Command, Stdio};

use inferq_tests::process::{WorkerProcess, command, worker_on};
use inferq_tests::rabbitmq::RabbitmqServer;
use serde_json::{Value, json};

#[test]
fn the_python_example_publishes_a_job_and_reads_its_reply() {
    let Some(server) = RabbitmqServer::shared() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tool = Command::new(root.join("tools/pika.sh")).stderr(Stdio::inherit()).output().unwrap();
    assert!(tool.status.success(), "with CI set pika must be there");
    let python = String::from_utf8(tool.stdout).unwrap();
    if python.is_empty() {
        eprintln!("left out: the Python example for RabbitMQ");
        return;
    }
    let url = server.url(&server.virtual_host());
    let queue = format!("{url}?queue=jobs");
    let setup = command("inferq").args(["setup", "--queue", &queue]).output().unwrap();
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    let _worker = WorkerProcess::spawn(&mut worker_on(&queue, &["--engine", "echo"]));
    let example = root.join("../docs/examples/rabbitmq.py");
    let ran = Command::new(python.trim()).arg(example).arg(&url).output().unwrap();
    let reply: Value = serde_json::from_slice(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ran.stderr)));
    assert_eq!((&reply["status"], &reply["results"][1]["id"]), (&json!("succeeded"), &json!("doc-2")));
}
