//! `make simulate-scaling`: measured drains simulated again, scaling on messages against scaling on work, the search for the
//! component's settings.
//!
//! In: `--document`, which has the blocks to fill, `--prices`, `--plots`, where the figures for the plots go. Out: the filled
//! document; exit code 1 when a drain is not reproduced, a job is lost or a law of the model is broken.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use inferq_tests::scaling::drains::{self, Drain};
use inferq_tests::scaling::outcome::{Foresight, Outcome};
use inferq_tests::scaling::report::{self, Found, Row};
use inferq_tests::scaling::study::{self, COMPONENT, Case, Follows, Knobs, Place};
use inferq_tests::scaling::trace::Kind;
use inferq_tests::scaling::world::signals::Path;
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Options {
    /// The document whose blocks are filled.
    #[arg(long, default_value = "docs/scaling.md")]
    document: PathBuf,
    /// Where the figures for the plots go, as JSON.
    #[arg(long)]
    plots: PathBuf,
    /// What machines cost.
    #[arg(long, default_value = "k8s/gke/prices.csv")]
    prices: PathBuf,
}

/// Each case runs with each of them.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;
/// So that the search takes minutes.
const SEARCH_SEEDS: std::ops::RangeInclusive<u64> = 1..=2;
/// How far a simulated drain may be from the measured one.
const TOLERANCE: f64 = 0.2;

fn main() -> Result<()> {
    let options = Options::parse();
    let mut document =
        std::fs::read_to_string(&options.document).with_context(|| options.document.display().to_string())?;

    let measured = drains::load(drains::fixture())?;
    let replayed: Vec<_> = measured.iter().map(|drain| (drain.clone(), drains::replay(drain))).collect();
    for (drain, outcome) in &replayed {
        let difference = (outcome.cleared_s / drain.drained_s - 1.0).abs();
        ensure!(
            difference <= TOLERANCE,
            "{}: simulated {:.1} s, measured {} s",
            drain.name,
            outcome.cleared_s,
            drain.drained_s
        );
    }
    document = report::fill(&document, "drains", &report::drains(&replayed))?;

    let phases: Vec<f64> =
        measured.iter().flat_map(|drain| drain.workers.iter().map(drains::Worker::phases_s)).collect();
    let phases_s = phases.iter().sum::<f64>() / phases.len() as f64;
    let tokens_per_s = drains::two_core_rate(&measured)?;
    println!("a worker: {tokens_per_s:.0} tokens/s, ready {phases_s:.1} s after its start");
    let (price, spot_price) = prices(&options.prices)?;
    let place = Place { spot_price_an_hour: spot_price, ..Place::plain(tokens_per_s, phases_s, price) };
    document = report::fill(&document, "worker", &worker(&place))?;

    let compared = run(&seeded(&comparison(&place), SEEDS))?;
    document = report::fill(&document, "signals", &table(&compared))?;
    let varied = run(&seeded(&variations(&place), SEEDS))?;
    document = report::fill(&document, "variations", &table(&varied))?;
    let found = search(&place)?;
    document = report::fill(&document, "search", &report::search(&found))?;

    std::fs::write(&options.document, document)?;
    let plots = json!({
        "drains": replayed.iter().map(|(drain, outcome)| plotted_drain(drain, outcome)).collect::<Vec<_>>(),
        "runs": compared.iter().filter(|(case, ..)| case.seed == 1).map(|run| plotted_run(run, tokens_per_s)).collect::<Vec<_>>(),
        "search": found.iter().map(plotted_value).collect::<Vec<_>>(),
    });
    if let Some(folder) = options.plots.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&options.plots, serde_json::to_string(&plots)?)?;
    println!("wrote {} and {}", options.document.display(), options.plots.display());
    Ok(())
}

/// The machine whose half a node is: two of its four cores.
const MACHINE: &str = "n2-highmem-4";

/// What an hour of a node costs, and of a spot node.
fn prices(path: &std::path::Path) -> Result<(f64, f64)> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut rows = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(',').collect::<Vec<_>>());
    let header = rows.next().with_context(|| format!("{} has no header", path.display()))?;
    let row = rows
        .find(|row| row.first() == Some(&MACHINE))
        .with_context(|| format!("{} has no {MACHINE}", path.display()))?;
    let price = |column: &str| -> Result<f64> {
        let at = header
            .iter()
            .position(|name| *name == column)
            .with_context(|| format!("{} has no {column}", path.display()))?;
        let price: f64 =
            row.get(at).copied().unwrap_or_default().parse().with_context(|| format!("{MACHINE}'s {column}"))?;
        Ok(price / 2.0)
    };
    Ok((price("usd")?, price("spot_usd")?))
}

fn worker(place: &Place) -> String {
    format!(
        "A worker has two cores and computes {} tokens a second, what the two workers of the last drain computed side by side; it \
         is ready {:.1} s after its container's start, the mean of the phases in all three drains. A node holds one worker and \
         costs half of an {MACHINE}: US$ {:.3} an hour, {:.3} as a spot node (`k8s/gke/prices.csv`).",
        report::count(place.tokens_per_s),
        place.phases_s,
        place.price_an_hour,
        place.spot_price_an_hour
    )
}

type Ran = (Case, Outcome, Foresight);

fn run(cases: &[Case]) -> Result<Vec<Ran>> {
    let results = study::run_all(cases);
    let mut ran = Vec::new();
    for (case, (outcome, foresight)) in cases.iter().zip(results) {
        let faults = outcome.faults(foresight);
        ensure!(faults.is_empty(), "{}, {}: {}", case.kind.name(), case.label, faults.join("; "));
        println!("{:<11} {:<40} {}", case.kind.name(), case.label, summary(&outcome, foresight));
        ran.push((case.clone(), outcome, foresight));
    }
    Ok(ran)
}

fn summary(outcome: &Outcome, foresight: Foresight) -> String {
    format!(
        "cleared {} p99 {} node-hours {:.1} ({:.2} x) cost {:.2} reversals {}",
        report::time(outcome.cleared_s),
        report::time(outcome.wait_p99_s),
        outcome.node_hours,
        outcome.node_hours / foresight.node_hours,
        outcome.cost,
        outcome.reversals
    )
}

/// Each case with each seed, a case's runs beside each other.
fn seeded(cases: &[Case], seeds: std::ops::RangeInclusive<u64>) -> Vec<Case> {
    cases.iter().flat_map(|case| seeds.clone().map(|seed| Case { seed, ..case.clone() })).collect()
}

fn table(ran: &[Ran]) -> String {
    let is_same = |one: &Ran, other: &Ran| one.0.kind == other.0.kind && one.0.label == other.0.label;
    let rows: Vec<_> = ran.chunk_by(is_same).map(row).collect();
    report::outcomes(&rows)
}

fn row(ran: &[Ran]) -> Row<'_> {
    let (case, ..) = &ran[0];
    let outcomes = ran.iter().map(|(_, outcome, foresight)| (outcome, *foresight)).collect();
    Row { trace: case.kind.name(), label: &case.label, outcomes }
}

/// Work against messages, on every trace.
fn comparison(place: &Place) -> Vec<Case> {
    let work = Knobs { follows: Follows::Work, ..COMPONENT };
    let all = |kind| {
        [
            Case::new("messages", kind, COMPONENT.by_messages(place.tokens_per_s), *place),
            Case::new("work", kind, work, *place),
            Case::new("work and busy", kind, COMPONENT, *place),
        ]
    };
    Kind::ALL.into_iter().flat_map(all).collect()
}

/// What else makes a difference.
fn variations(place: &Place) -> Vec<Case> {
    let scraped = Place { path: Path::SCRAPED, ..*place };
    let silent = Place { tells_cost: false, ..*place };
    let few = Knobs { replicas_max: 20, ..COMPONENT };
    let mut late = Case::new("drain limit 25 s, notice 15 s", Kind::SpotStorm, COMPONENT, *place);
    late.place.drain_limit_s = 25.0;
    vec![
        Case::new("queue scraped every 30 s", Kind::Daily, COMPONENT, scraped),
        Case::new("queue scraped every 30 s", Kind::Burst, COMPONENT, scraped),
        Case::new("slow nodes", Kind::Daily, COMPONENT, place.slow()),
        Case::new("slow nodes", Kind::Burst, COMPONENT, place.slow()),
        Case::new("at most 20 workers", Kind::Burst, few, *place),
        Case::new("messages, no deletion cost", Kind::Daily, COMPONENT.by_messages(place.tokens_per_s), silent),
        late,
    ]
}

/// Each knob's values over all traces.
fn search(place: &Place) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for sweep in study::sweeps() {
        for (value, knobs) in sweep.values {
            let label = format!("{}: {value}", sweep.knob);
            let cases = Kind::ALL.map(|kind| Case::new(&label, kind, knobs, *place));
            let ran = run(&seeded(&cases, SEARCH_SEEDS))?;
            let all = row(&ran);
            let daily: Vec<_> = ran.iter().filter(|(case, ..)| case.kind == Kind::Daily).cloned().collect();
            found.push(Found {
                knob: sweep.knob.to_owned(),
                is_component: knobs == COMPONENT,
                value,
                cost: all.mean(|outcome, foresight| outcome.node_hours / foresight.node_hours),
                middle_s: all.mean(|outcome, _| outcome.wait_p50_s),
                wait_s: all.mean(|outcome, _| outcome.wait_p99_s),
                daily_s: row(&daily).mean(|outcome, _| outcome.wait_p99_s),
                reversals: ran.iter().map(|(_, outcome, _)| outcome.reversals).sum(),
                score: all.mean(study::score),
            });
        }
    }
    Ok(found)
}

fn plotted_drain(drain: &Drain, outcome: &Outcome) -> Value {
    json!({ "name": drain.name, "measured_s": drain.drained_s, "simulated_s": outcome.cleared_s })
}

fn plotted_run((case, outcome, _): &Ran, tokens_per_s: f64) -> Value {
    json!({
        "trace": case.kind.name(),
        "follows": case.label,
        "tokens_per_s": tokens_per_s,
        "outcome": outcome,
        "moments": outcome.moments,
    })
}

fn plotted_value(found: &Found) -> Value {
    json!({
        "knob": found.knob,
        "value": found.value,
        "is_component": found.is_component,
        "cost": found.cost,
        "wait_s": found.wait_s,
        "daily_s": found.daily_s,
        "reversals": found.reversals,
    })
}
