//! `make chaos`: minutes of everything that can go wrong with a broker, its links and the workers.
//!
//! In: the broker, `rabbitmq` if not named, or `pubsub`; INFERQ_CHAOS_SECONDS and INFERQ_CHAOS_SEED. Out: what happened, and
//! exit code 1 when a promise was broken.

use anyhow::{Context, Result, bail, ensure};
use inferq_tests::chaos::{self, Options, Server, forgets};
use inferq_tests::{pubsub, rabbitmq};

#[tokio::main]
async fn main() -> Result<()> {
    let server = match std::env::args().nth(1).as_deref() {
        None | Some("rabbitmq") => Server::rabbitmq().context(rabbitmq::HOW_TO_INSTALL)?,
        Some("pubsub") => Server::pubsub().await.context(pubsub::HOW_TO_INSTALL)?,
        Some(other) => bail!("there is no chaos over {other}: rabbitmq and pubsub are known"),
    };
    let summary = chaos::run(&server, Options::from_environment(600)?).await?;
    println!("{summary}");
    ensure!(summary.broken.is_empty(), "{} promises are broken", summary.broken.len());
    if let Server::PubSub(..) = server {
        let broken = forgets::run(&server).await?;
        ensure!(broken.is_empty(), "after all was forgotten: {}", broken.join(", "));
        println!("all was forgotten in the middle of a submission, and nothing lost or doubled");
    }
    Ok(())
}
