//! A worker in a pod tells Kubernetes what ending it would cost. The API server is one of our own, over TLS: it takes the call
//! apart and answers as it is told. No real one can be had here.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use inferq_tests::certificates::{Authority, Identity};
use inferq_tests::process::{PATIENCE, WorkerProcess, worker_command};
use inferq_tests::queue_file::{QueueFile, numbered};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A call as the server saw it.
#[derive(Debug, PartialEq)]
struct Call {
    line: String,
    token: String,
    kind: String,
    body: Value,
}

struct ApiServer {
    port: u16,
    calls: UnboundedReceiver<Call>,
}

impl ApiServer {
    /// One that shows this identity, and answers every call with this status.
    async fn start(identity: &Identity, status: StatusCode) -> Self {
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tx, calls) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, status, tx.clone()));
            }
        });
        Self { port, calls }
    }

    async fn call(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv()).await.expect("the worker calls").unwrap()
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, status: StatusCode, calls: UnboundedSender<Call>) {
    // Who does not trust us leaves.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let answer = service_fn(|request: Request<Incoming>| {
        let calls = calls.clone();
        async move {
            let header = |name| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            let (token, kind) = (header("authorization"), header("content-type"));
            let line = format!("{} {}", request.method(), request.uri());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap();
            let _ = calls.send(Call { line, token, kind, body });
            Ok::<_, hyper::Error>(Response::builder().status(status).body(Full::new(Bytes::from("{}"))).unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

/// An echo worker, slow with each batch, in the pod `inferq-0`.
fn in_pod(queue: &QueueFile, server: &ApiServer) -> Command {
    let slow = ["--engine", "echo", "--replicas", "1", "--max-batch-items", "1", "--echo-batch-ms", "100"];
    let mut command = worker_command(&queue.path, &slow);
    command.args(["--pod-name", "inferq-0", "--pod-namespace", "ml", "--service-account-dir"]);
    command.arg(account(queue)).env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    command.env("KUBERNETES_SERVICE_PORT", server.port.to_string());
    command
}

fn account(queue: &QueueFile) -> std::path::PathBuf {
    queue.beside("account")
}

fn lay_out(folder: &Path, authority: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("ca.crt"), authority).unwrap();
    std::fs::write(folder.join("token"), "a-token\n").unwrap();
}

fn cost(call: &Call) -> u32 {
    let annotations = &call.body["metadata"]["annotations"];
    annotations["controller.kubernetes.io/pod-deletion-cost"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_sets_its_pod_s_deletion_cost_by_the_work_in_hand() {
    let (queue, identity) = (QueueFile::new().await, Authority::new().identity("127.0.0.1"));
    let mut server = ApiServer::start(&identity, StatusCode::OK).await;
    lay_out(&account(&queue), &identity.authority);
    let worker = WorkerProcess::spawn(&mut in_pod(&queue, &server));
    let idle = server.call().await;
    let expected = Call {
        line: "PATCH /api/v1/namespaces/ml/pods/inferq-0".to_owned(),
        token: "Bearer a-token".to_owned(),
        kind: "application/merge-patch+json".to_owned(),
        body: json!({ "metadata": { "annotations": { "controller.kubernetes.io/pod-deletion-cost": "0" } } }),
    };
    assert_eq!(idle, expected);
    // Enough for the worker to be busy when it looks again.
    queue.publish(numbered(0..400)).await;
    assert!(cost(&server.call().await) > 0);
    worker.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_not_be_annotated_takes_jobs_all_the_same() {
    let (queue, identity) = (QueueFile::new().await, Authority::new().identity("127.0.0.1"));
    let mut server = ApiServer::start(&identity, StatusCode::FORBIDDEN).await;
    lay_out(&account(&queue), &identity.authority);
    let worker = WorkerProcess::spawn(&mut in_pod(&queue, &server));
    server.call().await;
    let said = worker.until_logged("the pod's deletion cost can't be set; a scale-in may end a busy pod");
    assert!(said["error"].as_str().unwrap().contains("the verb patch on pods"), "{said}");
    queue.publish(numbered(0..3)).await;
    let replies = queue.collect(3, |_| ()).await;
    // It is called as its pod is.
    assert!(replies.values().all(|reply| reply.worker == "inferq-0"), "{replies:?}");
    worker.terminate();
    assert_eq!(worker.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_to_no_server_but_the_cluster_s() {
    let (queue, stranger) = (QueueFile::new().await, Authority::new().identity("127.0.0.1"));
    let mut server = ApiServer::start(&stranger, StatusCode::OK).await;
    lay_out(&account(&queue), &Authority::new().pem());
    let worker = WorkerProcess::spawn(&mut in_pod(&queue, &server));
    worker.until_logged("the pod's deletion cost can't be set; a scale-in may end a busy pod");
    assert!(timeout(Duration::ZERO, server.calls.recv()).await.is_err(), "a call came through");
    worker.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_s_name_outside_of_one_is_refused_with_what_is_missing() {
    let queue = QueueFile::new().await;
    let mut command = worker_command(&queue.path, &["--engine", "echo", "--pod-name", "a", "--pod-namespace", "b"]);
    let output = command.env_remove("KUBERNETES_SERVICE_HOST").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64));
    assert!(said.contains("KUBERNETES_SERVICE_HOST is not set") && said.lines().count() == 1, "{said}");
}
