//! `inferq completions` and `inferq man`: shell completions and man pages, made from the same declarations as `--help`.
//!
//! In: the declarations of both binaries, a shell or a folder. Out: a script or a page on stdout, or one page a command
//! in the folder.

use std::fs;
use std::path::PathBuf;

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::connect::print_bytes;
use crate::outcome::{Error, Outcome};

/// The binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// The producer.
    Inferq,
    /// The worker.
    InferqWorker,
}

/// The flags of `inferq completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
    /// Whose flags are completed.
    #[arg(long, value_enum, default_value = "inferq")]
    program: Program,
}

/// The flags of `inferq man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Where the pages go, one a command, like /usr/local/share/man/man1. Default: the main page, on stdout.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

fn worker() -> Command {
    inferq_worker::config::command()
}

/// Runs `inferq completions`.
///
/// # Errors
/// When stdout is closed or full.
pub fn completions(args: &CompletionsArgs, inferq: Command) -> Result<Outcome, Error> {
    let mut command = match args.program {
        Program::Inferq => inferq,
        Program::InferqWorker => worker(),
    };
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print_bytes(&script).map(|()| Outcome::Done)
}

/// Runs `inferq man`.
///
/// # Errors
/// When the folder can't be written, or stdout is closed or full.
pub fn man(args: &ManArgs, inferq: Command) -> Result<Outcome, Error> {
    let Some(directory) = &args.directory else {
        let mut page = Vec::new();
        Man::new(inferq).render(&mut page).map_err(|error| Error::io("a man page", error))?;
        return print_bytes(&page).map(|()| Outcome::Done);
    };
    let written = fs::create_dir_all(directory).and_then(|()| {
        clap_mangen::generate_to(inferq, directory)?;
        clap_mangen::generate_to(worker(), directory)
    });
    written.map_err(|error| Error::io(format!("can't write man pages to {}", directory.display()), error))?;
    Ok(Outcome::Done)
}
