//! TLS: whom a client trusts, and what is said of a connection that can't be made.

use std::path::Path;
use std::process::Output;

use inferq_shared::broker::{Broker, BrokerUrl, ConsumeOptions, Publisher};
use inferq_tests::brokers::{message, one, text};
use inferq_tests::certificates::Authority;
use inferq_tests::process::command;
use inferq_tests::rabbitmq::RabbitmqServer;

/// A server that is called localhost, its authority's certificate in a file, and that file's folder.
fn server() -> Option<(RabbitmqServer, tempfile::TempDir)> {
    let authority = Authority::new();
    let server = RabbitmqServer::own_with_tls(&authority.identity("localhost"))?;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    Some((server, folder))
}

/// The address of the server's TLS port by this name, with what stands behind the `?`.
fn url(server: &RabbitmqServer, host: &str, options: &str) -> String {
    format!("amqps://guest:guest@{host}:{}/%2F?{options}", server.tls_port())
}

fn trusting(file: &Path) -> String {
    format!("cacertfile={}", file.display())
}

/// What `inferq setup` makes of an address, with these certificates for the system's.
fn set_up(url: &str, system: &Path) -> Output {
    command("inferq").args(["setup", "--queue", url]).env("SSL_CERT_FILE", system).output().unwrap()
}

#[tokio::test]
async fn jobs_travel_over_tls_with_a_file_of_certificates_or_the_systems() {
    let Some((server, folder)) = server() else { return };
    let ca = folder.path().join("ca.pem");
    let address: BrokerUrl = url(&server, "localhost", &trusting(&ca)).parse().unwrap();
    let broker = Broker::connect(&address).await.unwrap();
    broker.setup(&address.queues).await.unwrap();
    let jobs = &address.queues.jobs;
    broker.publisher().publish(jobs, vec![message("a")]).await.unwrap();
    let mut consumer = broker.consumer(jobs, ConsumeOptions::new()).await.unwrap();
    let delivery = one(&mut consumer).await.unwrap();
    assert_eq!(text(&delivery), "a");
    delivery.lease.ack().await.unwrap();
    broker.close().await;
    // Without a file the system's certificates count.
    let ran = set_up(&url(&server, "localhost", ""), &ca);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn what_tls_does_not_trust_ends_commands_and_workers_at_once_and_says_what_to_do() {
    let Some((server, folder)) = server() else { return };
    let ca = folder.path().join("ca.pem");
    let of = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        trusting(&path)
    };
    let (other, empty) = (of("other.pem", &Authority::new().pem()), of("empty.pem", "no certificate at all\n"));
    let plain = server.address().port();
    for (given, address, says) in [
        ("another authority", url(&server, "localhost", &other), "?cacertfile="),
        ("no authority", url(&server, "localhost", ""), "?cacertfile="),
        ("another host", url(&server, "127.0.0.1", &trusting(&ca)), "127.0.0.1"),
        ("no file", url(&server, "localhost", &trusting(&folder.path().join("none.pem"))), "none.pem"),
        ("no certificate in the file", url(&server, "localhost", &empty), "empty.pem"),
        ("a port without TLS", format!("amqps://guest:guest@localhost:{plain}/?{}", trusting(&ca)), "check amqps"),
        ("TLS, not asked for", format!("amqp://guest:guest@localhost:{}/", server.tls_port()), "amqps://"),
    ] {
        let runs = [
            set_up(&address, Path::new("/dev/null")),
            command("inferq-worker")
                .args(["--engine", "echo", "--health", "127.0.0.1:0", "--queue", &address])
                .env("SSL_CERT_FILE", "/dev/null")
                .output()
                .unwrap(),
        ];
        for ran in runs {
            let said = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(64), "{given}: {said}");
            assert!(said.contains(says) && !said.contains("panicked"), "{given}: {said}");
        }
    }
}
