//! A TCP relay between a client and its server, for links that go wrong: cut, half-open, slow.
//!
//! In: connections to its address, and what its owner says about the link. Out: the same bytes to the server and back,
//! late, or not at all. Bytes that pass are never changed. It knows no protocol.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[cfg(test)]
mod tests;

/// How long a slow link holds back each piece.
const SLOWNESS: Duration = Duration::from_millis(100);
/// Bytes of a piece. A slow link carries ten of them a second.
const PIECE: usize = 16 << 10;

/// A server that hears nothing of a silent connection gives it up after so long.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// A running relay.
pub struct Relay {
    address: SocketAddr,
    link: watch::Sender<Link>,
    task: JoinHandle<()>,
}

/// What has happened to the link. A connection compares it with what it was when the connection began.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    cuts: u64,
    silences: u64,
    slow: bool,
}

impl Relay {
    /// A relay to this server on some free port.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (link, seen) = watch::channel(Link::default());
        let task = tokio::spawn(accept(listener, upstream, seen));
        Self { address, link, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection. New ones are let through.
    pub fn cut(&self) {
        self.link.send_modify(|link| link.cuts += 1);
    }

    /// Every connection goes silent for good, in both directions, and nobody is told: neither what is sent arrives, nor
    /// that the other side has gone away. After a while the server gives it up by itself. New ones are let through.
    pub fn half_open(&self) {
        self.link.send_modify(|link| link.silences += 1);
    }

    /// Whether each piece comes late, on all connections.
    pub fn slow(&self, slow: bool) {
        self.link.send_modify(|link| link.slow = slow);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, link: watch::Receiver<Link>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                connections.spawn(relay(client, upstream, link.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until both sides have ended it or it is cut.
async fn relay(mut client: TcpStream, upstream: SocketAddr, link: watch::Receiver<Link>) {
    let born = *link.borrow();
    // A server that is down: the client sees its connection closed.
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    // Closing either then sends a reset, which is what a cut link's ends see sooner or later.
    let _ = (client.set_zero_linger(), server.set_zero_linger(), client.set_nodelay(true), server.set_nodelay(true));
    let (mut cut, mut silence) = (link.clone(), link.clone());
    let given_up = async {
        let _ = silence.wait_for(|link| link.silences > born.silences).await;
        tokio::time::sleep(GIVEN_UP).await;
    };
    let (client_in, client_out) = client.split();
    let (server_in, server_out) = server.split();
    let alone = tokio::select! {
        // An error is the relay's own end.
        _ = cut.wait_for(|link| link.cuts > born.cuts) => false,
        () = both(pump(client_in, server_out, &link, born), pump(server_in, client_out, &link, born)) => false,
        () = given_up => true,
    };
    if alone {
        drop(server);
        swallow(&mut client, link, born).await;
    }
}

/// What the client sends goes nowhere, until it ends the connection or that is cut.
async fn swallow(client: &mut TcpStream, mut cut: watch::Receiver<Link>, born: Link) {
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        _ = cut.wait_for(|link| link.cuts > born.cuts) => {}
        _ = tokio::io::copy(client, &mut nowhere) => {}
    }
}

async fn both(up: impl Future<Output = io::Result<()>>, down: impl Future<Output = io::Result<()>>) {
    // An error of one direction is seen by the other's next read or write.
    let _ = tokio::join!(up, down);
}

/// One direction, until its source ends.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: &watch::Receiver<Link>,
    born: Link,
) -> io::Result<()> {
    let is_silent = || link.borrow().silences > born.silences;
    let mut piece = vec![0; PIECE];
    loop {
        let size = from.read(&mut piece).await.unwrap_or(0);
        if is_silent() && size > 0 {
            continue;
        }
        if is_silent() {
            return Ok(());
        }
        if link.borrow().slow {
            tokio::time::sleep(SLOWNESS).await;
        }
        if size == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..size]).await?;
    }
}
