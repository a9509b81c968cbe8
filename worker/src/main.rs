//! The binary `inferq-worker`: flags, telemetry, health endpoint, broker, worker, exit code; or `assets`, `devices` and
//! `health`, which need none of these.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use inferq_shared::telemetry::{self, Telemetry, traces};
use inferq_worker::assets;
use inferq_worker::config::{Args, Asked, Config, parse};
use inferq_worker::devices::{DevicesArgs, devices};
use inferq_worker::health::Health;
use inferq_worker::health::probe::{ProbeArgs, probe};
use inferq_worker::heaps;
use inferq_worker::serve::{ServeError, connect, serve};
use inferq_worker::signals;
use tokio_util::sync::CancellationToken;

/// Usage or configuration, as in sysexits.h.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    heaps::bound();
    match parse(std::env::args_os()) {
        Ok(Asked::Work(args)) => worker(*args),
        Ok(Asked::Assets(command)) => look_after(command),
        Ok(Asked::Health(args)) => ask(&args),
        Ok(Asked::Devices(args)) => list(&args),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 })
        }
    }
}

fn worker(args: Args) -> ExitCode {
    let log = args.log.clone();
    let started = args.check().and_then(|config| Ok((config, telemetry::install(&log).map_err(|e| e.to_string())?)));
    let (config, telemetry) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("inferq-worker: {error}");
            return ExitCode::from(EX_USAGE);
        }
    };
    if let Err(error) = traces::install("inferq-worker", &config.queue) {
        tracing::warn!(%error, "going on without traces");
    }
    let runtime = runtime().expect("the system has room for a runtime's threads");
    let code = runtime.block_on(run(config, telemetry));
    // What still computes at the drain limit is not waited for.
    runtime.shutdown_background();
    ExitCode::from(code)
}

fn look_after(command: assets::command::Command) -> ExitCode {
    let runtime = runtime().expect("the system has room for a runtime's threads");
    match runtime.block_on(assets::command::run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inferq-worker: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn ask(args: &ProbeArgs) -> ExitCode {
    let runtime = runtime().expect("the system has room for a runtime's threads");
    match runtime.block_on(probe(args)) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("inferq-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list(args: &DevicesArgs) -> ExitCode {
    match devices(args) {
        Ok(said) => {
            print!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("inferq-worker: {error}");
            ExitCode::from(EX_USAGE)
        }
    }
}

/// As tokio makes it, but with few threads for blocking work: decoding, tokenising and encoding keep a core busy each, and
/// every thread more keeps memory of its own.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(heaps::cores() + 1).build()
}

async fn run(config: Config, telemetry: Telemetry) -> u8 {
    let stop = CancellationToken::new();
    let health = Health::new(telemetry);
    let endpoint = match health.bind(config.health).await {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::error!(address = %config.health, %error, "failed to bind the health endpoint; choose another with --health");
            return EX_USAGE;
        }
    };
    let termination_log = config.termination_log.clone();
    let ended = tokio::select! {
        biased;
        ended = work(config, &health, &stop) => ended,
        () = endpoint.serve() => unreachable!("the endpoint serves until it is dropped"),
        () = signals::second(&stop) => return 1,
    };
    traces::end();
    match ended {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "the worker ended");
            leave_word(&termination_log, &error.to_string());
            error.exit_code()
        }
    }
}

/// Kubernetes makes the file, and shows what it holds of a container that has ended. Where there is none, nobody asks.
fn leave_word(file: &Path, reason: &str) {
    let written =
        OpenOptions::new().write(true).truncate(true).open(file).and_then(|mut file| file.write_all(reason.as_bytes()));
    if let Err(error) = written {
        tracing::debug!(file = %file.display(), %error, "no word left for Kubernetes");
    }
}

async fn work(config: Config, health: &Health, stop: &CancellationToken) -> Result<(), ServeError> {
    let Some(broker) = connect(&config.queue, stop).await.map_err(ServeError::Broker)? else { return Ok(()) };
    let ended = serve(config, &broker, health.clone(), stop.clone()).await;
    broker.close().await;
    ended
}
