//! `inferq-worker health`: asks a worker's endpoint how it is, for containers that have nothing else to ask with.
//!
//! In: an address. Out: what the endpoint said, and whether that was 200. It never waits longer than it was told to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The end of `inferq-worker health --help`.
pub const HELP: &str = "\
Examples:
  inferq-worker health                                  # ready? the address is the worker's own --health
  inferq-worker health --live --health 127.0.0.1:9090   # alive, ready or not?

Exit codes:
  0   yes
  1   no, or no answer
  64  usage";

/// The flags of `inferq-worker health`.
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// Where the worker serves its health; an address that means all of the machine's is asked at its loopback
    #[arg(long, env = "INFERQ_HEALTH", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub health: SocketAddr,
    /// Ask whether it is alive, not whether it is ready
    #[arg(long)]
    pub live: bool,
    /// How long to wait for the answer, in seconds
    #[arg(long, value_name = "S", default_value_t = 5)]
    pub timeout_s: u64,
}

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It answered, and said so.
    #[error("{said}")]
    No {
        /// Its message.
        said: String,
    },
    /// It did not answer.
    #[error("no answer from {address}: {why}")]
    Silent {
        /// Who was asked.
        address: SocketAddr,
        /// What happened instead.
        why: String,
    },
}

/// Asks. What the endpoint said, when it was 200.
///
/// # Errors
/// When it said no, or nothing.
pub async fn probe(args: &ProbeArgs) -> Result<String, ProbeError> {
    let address = reachable(args.health);
    let silent = |why: String| ProbeError::Silent { address, why };
    let path = if args.live { "/livez" } else { "/healthz" };
    let limit = Duration::from_secs(args.timeout_s);
    let answer = timeout(limit, get(address, path)).await;
    let answer = answer.map_err(|_| silent(format!("nothing within {} s (--timeout-s)", args.timeout_s)))?;
    let (status, body) = answer.map_err(|e| silent(e.to_string()))?;
    let said = message(&body);
    if status == StatusCode::OK { Ok(said) } else { Err(ProbeError::No { said }) }
}

/// A server on all addresses is asked at the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), AnyError> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let ask = async {
        let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, Limited::new(response, ANSWER_BYTES_MAX).collect().await?.to_bytes()))
    };
    // The connection ends with the answer, or before it with an error that `ask` tells too.
    tokio::pin!(connection);
    tokio::select! {
        answer = ask => answer,
        ended = &mut connection => { ended?; Err("the connection was closed".into()) }
    }
}

/// The message inside the endpoint's JSON, or all of it.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        message: String,
    }
    let text = || String::from_utf8_lossy(body).into_owned();
    serde_json::from_slice::<Answer>(body).map_or_else(|_| text(), |answer| answer.message)
}
