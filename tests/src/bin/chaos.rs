//! `make chaos`: minutes of everything that can go wrong with RabbitMQ, its links and the workers.
//!
//! In: INFERQ_CHAOS_SECONDS and INFERQ_CHAOS_SEED. Out: what happened, and exit code 1 when a promise was broken.

use anyhow::{Context, Result, ensure};
use inferq_tests::chaos::{self, Options};
use inferq_tests::rabbitmq::{HOW_TO_INSTALL, RabbitmqServer};

#[tokio::main]
async fn main() -> Result<()> {
    let server = RabbitmqServer::own().context(HOW_TO_INSTALL)?;
    let summary = chaos::run(&server, Options::from_environment(600)?).await?;
    println!("{summary}");
    ensure!(summary.broken.is_empty(), "{} promises are broken", summary.broken.len());
    Ok(())
}
