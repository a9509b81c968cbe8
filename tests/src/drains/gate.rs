//! A link that can be stalled and freed again: a gate between a worker and its broker.
//!
//! In: connections to its address. Out: the same bytes to the server and back. While it is shut nothing passes, in either
//! direction, and nothing is lost or told: as when a network stops carrying packets for a while. It knows no protocol.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Bytes that pass at a time.
const PIECE: usize = 64 << 10;

/// A running gate, open at first.
#[derive(Debug)]
pub(super) struct Gate {
    address: SocketAddr,
    shut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Opens the gate again when dropped.
#[derive(Debug)]
pub(super) struct Shut(watch::Sender<bool>);

impl Gate {
    /// A gate before this server, on some free port.
    pub(super) async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (shut, seen) = watch::channel(false);
        let task = tokio::spawn(accept(listener, server, seen));
        Ok(Self { address, shut, task })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing pass from now on.
    pub(super) fn shut(&self) -> Shut {
        self.shut.send_replace(true);
        Shut(self.shut.clone())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                connections.spawn(pass(client, server, shut.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until both sides have ended it.
async fn pass(mut client: TcpStream, server: SocketAddr, shut: watch::Receiver<bool>) {
    // A server that is down: the client sees its connection closed.
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    // An error of one direction is seen by the other's next read or write.
    let _ = tokio::join!(pump(from_client, to_server, shut.clone()), pump(from_server, to_client, shut));
}

/// One direction, until its source ends.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut shut: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let size = from.read(&mut piece).await.unwrap_or(0);
        // An error: the gate itself is gone, and with it its connections.
        let _ = shut.wait_for(|shut| !shut).await;
        if size == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..size]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_through_a_shut_gate_arrives_when_it_opens() -> io::Result<()> {
        let server = TcpListener::bind("127.0.0.1:0").await?;
        let gate = Gate::start(server.local_addr()?).await?;
        let mut client = TcpStream::connect(gate.address()).await?;
        let (mut served, _) = server.accept().await?;
        let shut = gate.shut();
        client.write_all(b"late").await?;
        client.shutdown().await?;
        let mut got = String::new();
        let mut reading = Box::pin(served.read_to_string(&mut got));
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut reading).await;
        assert!(early.is_err(), "it passed a shut gate");
        drop(shut);
        reading.await?;
        assert_eq!(got, "late");
        Ok(())
    }
}
