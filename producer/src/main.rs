//! `inferq`: reads the flags, runs one subcommand, says on stderr why it failed, and exits.
//!
//! The only file that exits and that sets process-wide state. Exit codes are those of [`inferq_producer::outcome`].

use std::process::{ExitCode, exit};

use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use inferq_producer::connect::say;
use inferq_producer::outcome::{Error, Outcome};
use inferq_producer::paint::{Paint, When};
use inferq_producer::{bench, collect, dead, explain, help, manual, run, setup, status, submit};
use inferq_shared::telemetry::traces;
use inferq_worker::config::without_passwords;
use inferq_worker::heaps;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Submits inference jobs to a queue, collects their replies, or does it all in one process.
#[derive(Parser)]
#[command(name = "inferq", version, after_help = help::MAIN, max_term_width = 100)]
struct Cli {
    /// When to use colour; NO_COLOR is heeded too.
    #[arg(long, global = true, env = "INFERQ_COLOR", value_enum, default_value = "auto", value_name = "WHEN")]
    color: When,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Embed a file in one process: embedded queue, worker and collector.
    #[command(after_help = help::RUN)]
    Run(Box<run::Args>),
    /// Make the queues that belong to one jobs queue, if they are absent.
    #[command(after_help = help::SETUP)]
    Setup(setup::Args),
    /// Publish the lines of a file as jobs.
    #[command(after_help = help::SUBMIT)]
    Submit(Box<submit::Args>),
    /// Receive the replies to a submission and write them as one file.
    #[command(after_help = help::COLLECT, mut_arg("output_format", |flag| flag.visible_alias("format")))]
    Collect(Box<collect::Args>),
    /// Show what waits, is leased, delayed, dead or answered, and who works on it.
    #[command(after_help = help::STATUS)]
    Status(status::Args),
    /// List, show, redrive or purge dead letters: what no worker could answer.
    #[command(subcommand, after_help = help::DEAD)]
    Dead(dead::Command),
    /// Say what happened to one job or item, from ledger, queue and logs.
    #[command(after_help = help::EXPLAIN)]
    Explain(explain::Args),
    /// Put an open-loop load on a queue and measure how long its answers take.
    #[command(after_help = help::BENCH)]
    Bench(Box<bench::Args>),
    /// Write a shell's completions to stdout.
    #[command(after_help = help::COMPLETIONS)]
    Completions(manual::CompletionsArgs),
    /// Write man pages.
    #[command(after_help = help::MAN)]
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    heaps::bound();
    run_process()
}

#[tokio::main]
async fn run_process() -> ExitCode {
    let cli = parse().unwrap_or_else(|error| {
        // Closed streams are no reason to fail differently.
        let _ = error.print();
        exit(if error.use_stderr() { 64 } else { 0 })
    });
    let stop = CancellationToken::new();
    let ended = match stop_on_signals(stop.clone()) {
        Ok(()) => run_command(cli, stop).await,
        Err(error) => Err(Error::io("can't listen for signals", error)),
    };
    traces::end();
    end(ended)
}

fn parse() -> Result<Cli, clap::Error> {
    let matches = Cli::command().color(color_of_help(std::env::args())).try_get_matches();
    let matches = matches.map_err(without_passwords)?;
    Cli::from_arg_matches(&matches)
}

/// What `--color` says, read before the flags are: help and errors are written while they are read.
fn color_of_help(mut arguments: impl Iterator<Item = String>) -> ColorChoice {
    let mut said = std::env::var("INFERQ_COLOR").unwrap_or_default();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix("--color") {
            Some("") => said = arguments.next().unwrap_or_default(),
            Some(value) if value.starts_with('=') => said = value[1..].to_owned(),
            _ => {}
        }
    }
    match said.as_str() {
        "always" => ColorChoice::Always,
        "never" => ColorChoice::Never,
        _ => ColorChoice::Auto,
    }
}

async fn run_command(cli: Cli, stop: CancellationToken) -> Result<Outcome, Error> {
    let paint = Paint::new(cli.color);
    match cli.command {
        Command::Run(args) => run::run(*args, stop).await,
        Command::Setup(args) => setup::setup(args, paint).await,
        Command::Submit(args) => submit::submit(*args, stop).await,
        Command::Collect(args) => collect::collect(*args, stop).await,
        Command::Status(args) => status::status(args, paint, stop).await,
        Command::Dead(command) => dead::dead(command, paint, stop).await,
        Command::Explain(args) => explain::explain(args, paint, stop).await,
        Command::Bench(args) => bench::bench(*args, paint, stop).await,
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::man(&args, Cli::command()),
    }
}

/// The first signal asks the command to stop; the second ends the process at once.
fn stop_on_signals(stop: CancellationToken) -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        stop.cancel();
        either(&mut interrupt, &mut terminate).await;
        exit(1)
    });
    Ok(())
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! { _ = one.recv() => {}, _ = other.recv() => {} }
}

/// Exits at once: a reader thread may still be waiting for stdin.
fn end(ended: Result<Outcome, Error>) -> ! {
    match ended {
        Ok(outcome) => exit(outcome.exit_code().into()),
        Err(error) if error.is_broken_pipe() => exit(0),
        Err(error) => {
            say(&format!("inferq: {error}"));
            exit(error.exit_code().into())
        }
    }
}
