//! Tests of states and endpoint, over real sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::clock::Clock;

/// A served endpoint, with limits short enough to meet.
async fn served(limits: EndpointLimits) -> (Health, SocketAddr, tokio::task::JoinHandle<()>) {
    let health = Health::unobserved();
    let endpoint = health.bind("127.0.0.1:0".parse().unwrap()).await.unwrap().with_limits(limits);
    let address = endpoint.address().unwrap();
    (health, address, tokio::spawn(endpoint.serve()))
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    // A refused connection may be reset: what came before counts.
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8(response).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let response = ask(address, &format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
    let code = response.split(' ').nth(1).unwrap().parse().unwrap();
    (code, response.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn account() -> InFlight {
    InFlight::new(crate::in_flight::Bounds { jobs: 1, bytes: 1, tokens: 1 })
}

#[tokio::test]
async fn readiness_follows_the_state_and_liveness_only_what_is_broken() {
    let (health, address, _served) = served(EndpointLimits::default()).await;
    let not_ready = |state: &str| (503, format!(r#"{{"code":"503","message":"{state}"}}"#));
    let ok = (200, r#"{"code":"200","message":"Ok"}"#.to_owned());
    assert_eq!(get(address, "/healthz").await, not_ready("starting"));
    for (state, name) in [(State::Loading, "loading"), (State::Warming, "warming")] {
        health.enter(state);
        assert_eq!(get(address, "/healthz").await, not_ready(name));
        assert_eq!(get(address, "/livez").await, ok);
    }
    health.ready(account());
    assert_eq!(get(address, "/healthz").await, ok);
    assert_eq!(get(address, "/readyz").await, ok);
    health.unfit(true);
    assert_eq!(get(address, "/readyz").await, not_ready("unfit"));
    assert_eq!(get(address, "/livez").await, ok);
    health.unfit(false);
    assert_eq!(get(address, "/readyz").await, ok);
    let watchdog = Watchdog::new(Duration::ZERO, Clock::real());
    health.watched_by(watchdog.clone());
    assert_eq!(get(address, "/livez").await, ok);
    let pulse = watchdog.pulse("dispatch");
    pulse.beat();
    assert_eq!(get(address, "/livez").await, not_ready("stuck"));
    assert_eq!(get(address, "/healthz").await, ok, "readiness is another question");
    let status: serde_json::Value = serde_json::from_str(&get(address, "/status").await.1).unwrap();
    assert_eq!(status["stuck"], "dispatch");
    pulse.rest();
    assert_eq!(get(address, "/livez").await, ok);
    health.draining();
    health.unfit(true);
    assert_eq!(get(address, "/healthz").await, not_ready("draining"));
    health.failed("no device");
    assert_eq!(get(address, "/livez").await, not_ready("failed"));
    health.stopped();
    assert_eq!(health.state(), State::Failed, "a failed worker stays failed");
}

#[tokio::test]
async fn a_phase_that_does_not_end_is_stuck_but_waiting_is_not() {
    let (health, address, _served) = served(EndpointLimits::default()).await;
    health.limit_phases(Duration::ZERO);
    let stuck = (503, r#"{"code":"503","message":"stuck"}"#.to_owned());
    for state in [State::Loading, State::Warming] {
        assert_eq!(get(address, "/livez").await.0, 200);
        health.enter(state);
        assert_eq!(get(address, "/livez").await, stuck);
        let status: serde_json::Value = serde_json::from_str(&get(address, "/status").await.1).unwrap();
        assert_eq!(status["stuck"], state.as_str());
        health.waiting("config.json: no such file");
    }
    health.ready(account());
    assert_eq!(get(address, "/livez").await.0, 200);
}

#[tokio::test]
async fn status_says_what_runs_and_how_long_each_phase_took() {
    let (health, address, _served) = served(EndpointLimits::default()).await;
    health.enter(State::Loading);
    health.model(&ModelInfo {
        name: "m".to_owned(),
        revision: "sha256:0".to_owned(),
        dimensions: 1,
        max_tokens: 1,
        device: "cpu".to_owned(),
        reads_pairs: false,
    });
    health.enter(State::Warming);
    health.ready(account());
    let (code, body) = get(address, "/status").await;
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, status["state"].as_str(), status["model"].as_str()), (200, Some("ready"), Some("m")));
    assert!(status["phases"]["loading_ms"].is_u64() && status["phases"]["warming_ms"].is_u64());
    assert_eq!(status["in_flight"]["jobs"], 0);
}

#[tokio::test]
async fn only_get_and_head_of_known_paths_are_answered() {
    let (_health, address, _served) = served(EndpointLimits::default()).await;
    assert_eq!(get(address, "/").await.0, 404);
    let posted =
        ask(address, "POST /healthz HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert!(posted.starts_with("HTTP/1.1 405") && posted.to_lowercase().contains("allow: get, head"), "{posted}");
    let head = ask(address, "HEAD /livez HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn an_oversized_head_is_refused() {
    let (_health, address, _served) = served(EndpointLimits::default()).await;
    let response = ask(address, &format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(64 << 10))).await;
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 431"), "{response}");
    assert_eq!(get(address, "/livez").await.0, 200);
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_cut_off() {
    let limits = EndpointLimits { head_time: Duration::from_millis(50), ..EndpointLimits::default() };
    let (_health, address, _served) = served(limits).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "the endpoint hung up by itself");
}

#[tokio::test]
async fn a_probe_is_answered_while_slow_clients_hold_every_connection() {
    let limits = EndpointLimits::default();
    let (_health, address, _served) = served(limits).await;
    let mut slow = Vec::new();
    for _ in 0..limits.connections {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
        slow.push(stream);
    }
    assert_eq!(get(address, "/livez").await.0, 200);
    let mut rest = Vec::new();
    let _ = slow[0].read_to_end(&mut rest).await;
    assert_eq!(rest, b"", "the oldest had to go");
    slow[1].write_all(b" test\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    slow[1].read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200", "the others stay");
}
