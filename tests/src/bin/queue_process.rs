//! A process on an embedded queue, for tests that kill one or run several at once.
//!
//! In: what to do, the queue's file, and numbers. Out: one line on standard output for each message, once what the line
//! says is confirmed. It asserts nothing; whoever started it reads the lines.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use inferq_shared::broker::{Broker, BrokerUrl, ConsumeOptions, Consumer, Publisher};
use inferq_tests::brokers::{leases, message, text, up_to};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["publish", file, prefix, count, batch] => publish(file, prefix, count.parse()?, batch.parse()?).await,
        ["consume", file] => consume(file).await,
        ["hold", file, lease_ms] => hold(file, Duration::from_millis(lease_ms.parse()?)).await,
        _ => bail!("publish FILE PREFIX COUNT BATCH, consume FILE, or hold FILE LEASE_MS"),
    }
}

/// Publishes `{prefix}-0` and so on, a batch at a time, and prints each once it is confirmed.
async fn publish(file: &str, prefix: &str, count: usize, batch: usize) -> Result<()> {
    let publisher = connect(file).await?.publisher();
    for start in (0..count).step_by(batch) {
        let texts: Vec<String> = (start..count.min(start + batch)).map(|n| format!("{prefix}-{n}")).collect();
        publisher.publish("jobs", texts.iter().map(|text| message(text)).collect()).await?;
        texts.iter().try_for_each(|text| say(text))?;
    }
    Ok(())
}

/// Receives and acks until it is killed, and prints each once its ack is confirmed.
async fn consume(file: &str) -> Result<()> {
    let mut consumer = connect(file).await?.consumer("jobs", ConsumeOptions::new()).await?;
    loop {
        for delivery in consumer.receive(up_to(20)).await? {
            let text = text(&delivery);
            delivery.lease.ack().await?;
            say(&text)?;
        }
    }
}

/// Takes whatever comes and keeps it until it is killed.
async fn hold(file: &str, lease: Duration) -> Result<()> {
    let mut consumer = connect(file).await?.consumer("jobs", leases(lease)).await?;
    let mut held = Vec::new();
    loop {
        for delivery in consumer.receive(up_to(20)).await? {
            say(&text(&delivery))?;
            held.push(delivery);
        }
    }
}

async fn connect(file: &str) -> Result<Broker> {
    Ok(Broker::connect(&BrokerUrl::sqlite(Path::new(file))).await?)
}

/// One line, one write: who reads them finds whole lines even after a kill.
fn say(line: &str) -> Result<()> {
    Ok(std::io::stdout().write_all(format!("{line}\n").as_bytes())?)
}
