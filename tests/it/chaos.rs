//! A short form of `make chaos`: one of everything that can go wrong.

use inferq_tests::chaos::{self, Options};
use inferq_tests::rabbitmq::RabbitmqServer;

#[tokio::test(flavor = "multi_thread")]
async fn workers_on_rabbitmq_live_through_everything_that_can_go_wrong() {
    let Some(server) = RabbitmqServer::own() else { return };
    let summary = chaos::run(&server, Options::from_environment(20).unwrap()).await.unwrap();
    assert!(summary.broken.is_empty(), "{summary}");
}
