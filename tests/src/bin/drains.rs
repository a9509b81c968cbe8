//! `make drains`: workers stopped as a kubelet stops them, in every phase and on every broker, and replaced under load.
//!
//! In: the brokers to try, all of them if none is named; INFERQ_DRAINS_GRACE_S, such as 15,60; INFERQ_DRAINS_ROUNDS, how
//! often an update is compared with none; INFERQ_TEST_MODEL. Out: one table, the same as JSON beside the binaries, and
//! exit code 1 when a promise was broken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use inferq_tests::drains::row::{Header, Row, name};
use inferq_tests::drains::story::Phase;
use inferq_tests::drains::{self, Kind, Load, Terms, check};
use inferq_tests::figures::keep;
use inferq_tests::kubelet::Probes;
use inferq_tests::{pubsub, rabbitmq};
use serde_json::json;
use tokio::task::JoinSet;

/// Seconds from SIGTERM to SIGKILL: what spot nodes give, and more than enough.
const GRACES: &str = "15,60";
/// Rounds of a load with and without an update.
const ROUNDS: u64 = 3;
/// Jobs a second, half of what three workers can do.
const RATE: f64 = 60.0;
/// How long they come.
const LENGTH: Duration = Duration::from_secs(30);

/// Rows, and what was broken in them.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
    broken: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let brokers = brokers()?;
    let graces = std::env::var("INFERQ_DRAINS_GRACE_S").unwrap_or_else(|_| GRACES.to_owned());
    let seconds = |text: &str| anyhow::Ok(Duration::from_secs(text.trim().parse().context("INFERQ_DRAINS_GRACE_S")?));
    let graces: Vec<Terms> = graces.split(',').map(|text| seconds(text).map(Terms::of_grace)).collect::<Result<_>>()?;
    let rounds = std::env::var("INFERQ_DRAINS_ROUNDS").map_or(Ok(ROUNDS), |text| text.parse())?;
    let model = std::env::var("INFERQ_TEST_MODEL").context("INFERQ_TEST_MODEL is not set: `make drains` sets it")?;
    let mut table = Table::default();
    println!("{Header}");
    // They wait most of the time, for limits to pass: side by side they take no longer than the longest.
    let mut stops = JoinSet::new();
    for kind in &brokers {
        for terms in &graces {
            stops.spawn(stopped(*kind, *terms, PathBuf::from(&model)));
        }
    }
    while let Some(stopped) = stops.join_next().await {
        table.add(stopped??);
    }
    // These are measured, one at a time.
    for round in 0..rounds {
        for kind in &brokers {
            table.add(compared(*kind, graces[0], round).await?);
        }
    }
    keep("drains", &json!({"rows": table.rows, "broken": table.broken}))?;
    table.broken.iter().for_each(|line| println!("broken: {line}"));
    ensure!(table.broken.is_empty(), "{} promises are broken", table.broken.len());
    Ok(())
}

fn brokers() -> Result<Vec<Kind>> {
    let all = [Kind::Sqlite, Kind::Rabbitmq, Kind::PubSub];
    let named: Vec<String> = std::env::args().skip(1).collect();
    let known = |named: &String| match all.into_iter().find(|kind| name(*kind) == named) {
        Some(kind) => Ok(kind),
        None => bail!("there are no drains on {named}: sqlite, rabbitmq and pubsub are known"),
    };
    if named.is_empty() { Ok(all.to_vec()) } else { named.iter().map(known).collect() }
}

/// One stop in each phase.
async fn stopped(kind: Kind, terms: Terms, model: PathBuf) -> Result<Table> {
    let mut table = Table::default();
    for phase in Phase::ALL {
        let story = drains::stop(kind, phase, terms, Path::new(&model)).await?.context(how_to_install(kind))?;
        table.note(Row::from(&story), check::stop(&story));
    }
    Ok(table)
}

/// The same load without an update and with one.
async fn compared(kind: Kind, terms: Terms, seed: u64) -> Result<Table> {
    let load = Load { rate: RATE, length: LENGTH, seed, probes: Probes::deployed() };
    let mut table = Table::default();
    for updating in [false, true] {
        let update = drains::update(kind, load, terms, updating).await?.context(how_to_install(kind))?;
        table.note(Row::from(&update), check::update(&update));
    }
    Ok(table)
}

fn how_to_install(kind: Kind) -> &'static str {
    match kind {
        Kind::Rabbitmq => rabbitmq::HOW_TO_INSTALL,
        Kind::PubSub => pubsub::HOW_TO_INSTALL,
        Kind::Memory | Kind::Sqlite => "it is always there",
    }
}

impl Table {
    fn note(&mut self, row: Row, broken: Vec<String>) {
        self.broken.extend(broken.into_iter().map(|line| format!("{} {line}", row.about())));
        self.rows.push(row);
    }

    /// Adds and prints rows.
    fn add(&mut self, more: Self) {
        more.rows.iter().for_each(|row| println!("{row}"));
        self.rows.extend(more.rows);
        self.broken.extend(more.broken);
    }
}
