//! A relay's faults as its client and its server see them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant, timeout};

use super::{Relay, SLOWNESS};
use crate::process::PATIENCE;

/// A relay with a listener behind it.
async fn relay() -> (Relay, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    (Relay::start(server.local_addr().expect("it is bound")).await, server)
}

/// Both ends of a connection that has carried a byte.
async fn connected(relay: &Relay, server: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(relay.address()).await.expect("the relay listens");
    let (mut accepted, _) = server.accept().await.expect("the relay connects");
    client.write_all(b"?").await.expect("it is sent");
    assert_eq!(accepted.read_u8().await.expect("it arrives"), b'?');
    accepted.write_all(b"!").await.expect("it is sent");
    assert_eq!(client.read_u8().await.expect("it arrives"), b'!');
    (client, accepted)
}

#[tokio::test]
async fn an_end_of_one_side_reaches_the_other() {
    let (relay, server) = relay().await;
    let (client, mut accepted) = connected(&relay, &server).await;
    drop(client);
    assert_eq!(timeout(PATIENCE, accepted.read(&mut [0])).await.expect("in time").unwrap_or(0), 0);
}

#[tokio::test]
async fn a_cut_is_seen_by_both_sides_and_a_new_connection_passes() {
    let (relay, server) = relay().await;
    let (mut client, mut accepted) = connected(&relay, &server).await;
    relay.cut();
    for side in [&mut client, &mut accepted] {
        assert!(timeout(PATIENCE, side.read(&mut [0])).await.expect("in time").is_err(), "a reset");
    }
    connected(&relay, &server).await;
}

#[tokio::test]
async fn a_half_open_link_swallows_everything_and_tells_nobody() {
    let (relay, server) = relay().await;
    let (mut client, mut accepted) = connected(&relay, &server).await;
    relay.half_open();
    client.write_all(b"lost").await.expect("the relay takes it");
    drop(client);
    // Another connection goes through the same relay meanwhile, so what was to arrive has had its chance.
    connected(&relay, &server).await;
    assert!(timeout(Duration::from_millis(50), accepted.read(&mut [0])).await.is_err(), "neither bytes nor an end");
}

#[tokio::test]
async fn a_slow_link_is_late_and_loses_nothing() {
    let (relay, server) = relay().await;
    let (mut client, mut accepted) = connected(&relay, &server).await;
    relay.slow(true);
    let sent = Instant::now();
    client.write_all(b"late").await.expect("it is sent");
    let mut bytes = [0; 4];
    accepted.read_exact(&mut bytes).await.expect("it arrives");
    assert!(&bytes == b"late" && sent.elapsed() >= SLOWNESS);
}
