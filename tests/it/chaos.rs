//! A short form of `make chaos`: one of everything that can go wrong.

use inferq_tests::chaos::{self, Options, Server, forgets};

#[tokio::test(flavor = "multi_thread")]
async fn workers_on_rabbitmq_live_through_everything_that_can_go_wrong() {
    live_through(Server::rabbitmq()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_on_pubsub_with_replies_in_a_bucket_live_through_everything_that_can_go_wrong() {
    live_through(Server::pubsub().await).await;
}

/// It has been said if there is none.
async fn live_through(server: Option<Server>) {
    let Some(server) = server else { return };
    let summary = chaos::run(&server, Options::from_environment(20).unwrap()).await.unwrap();
    assert!(summary.broken.is_empty(), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_forgets_everything_is_given_again_what_is_unanswered() {
    let Some(server) = Server::pubsub().await else { return };
    let broken = forgets::run(&server).await.unwrap();
    assert!(broken.is_empty(), "{broken:?}");
}
