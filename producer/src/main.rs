//! `inferq`: reads the flags, runs one subcommand, says on stderr why it failed, and exits.
//!
//! The only file that exits and that sets process-wide state. Exit codes are those of [`inferq_producer::outcome`].

use std::process::{ExitCode, exit};

use clap::Parser;
use inferq_producer::outcome::{Error, Outcome};
use inferq_producer::{collect, help, run, setup, status, submit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Submits inference jobs to a queue, collects their replies, or does it all in one process.
#[derive(Parser)]
#[command(name = "inferq", version, after_help = help::MAIN, max_term_width = 100)]
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
    /// Show what waits, is leased, delayed, dead or answered.
    #[command(after_help = help::STATUS)]
    Status(status::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Command::try_parse().unwrap_or_else(|error| {
        // Closed streams are no reason to fail differently.
        let _ = error.print();
        exit(if error.use_stderr() { 64 } else { 0 })
    });
    let stop = CancellationToken::new();
    match stop_on_signals(stop.clone()) {
        Ok(()) => end(run_command(command, stop).await),
        Err(error) => end(Err(Error::io("can't listen for signals", error))),
    }
}

async fn run_command(command: Command, stop: CancellationToken) -> Result<Outcome, Error> {
    match command {
        Command::Run(args) => run::run(*args, stop).await,
        Command::Setup(args) => setup::setup(args).await,
        Command::Submit(args) => submit::submit(*args, stop).await,
        Command::Collect(args) => collect::collect(*args, stop).await,
        Command::Status(args) => status::status(args, stop).await,
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
            eprintln!("inferq: {error}");
            exit(error.exit_code().into())
        }
    }
}
