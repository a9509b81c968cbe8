//! `inferq dead`: the letters that no worker could answer: listed, shown, run again, deleted.
//!
//! In: a queue's address and which letters are meant. Out: a table or JSON, a letter's bytes, and for `redrive` and
//! `purge` how many letters left. The work itself is the [`graveyard`]'s.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use inferq_shared::broker::{Broker, BrokerUrl};
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use self::graveyard::{Act, Done, Graveyard};
use self::letter::Filter;
use self::text::{ID, described, facts, row, table, whole};
use crate::connect::{connect, print, print_bytes, say};
use crate::help;
use crate::outcome::{Error, Outcome};
use crate::paint::Paint;
use crate::progress::{Progress, Tally, Total, grouped};
use crate::shown;

pub mod graveyard;
pub mod letter;
pub mod pass;
mod text;

/// The subcommands of `inferq dead`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List dead letters, one a line.
    #[command(after_help = help::DEAD_LIST)]
    List(ListArgs),
    /// Show all of one dead letter.
    #[command(after_help = help::DEAD_SHOW)]
    Show(ShowArgs),
    /// Put dead letters back into the queues that they come from, with all attempts before them.
    #[command(after_help = help::DEAD_REDRIVE)]
    Redrive(RedriveArgs),
    /// Delete dead letters.
    #[command(after_help = help::DEAD_PURGE)]
    Purge(PurgeArgs),
}

/// Whose dead letters.
#[derive(Debug, clap::Args)]
pub struct QueueArgs {
    /// The address of the jobs queue whose dead letters are meant, like sqlite:///var/lib/inferq/queue.db.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: BrokerUrl,
}

/// Which dead letters leave.
#[derive(Debug, clap::Args)]
pub struct Meant {
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    filter: Filter,
    /// No more than so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// The flags of `inferq dead list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    filter: Filter,
    /// List no more than so many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Write one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// The flags of `inferq dead show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    queue: QueueArgs,
    /// The job's id, or the key that `dead list` prints.
    #[arg(value_name = "ID|KEY")]
    id: String,
    /// Write the body to stdout, exactly and alone.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Write one JSON object a letter.
    #[arg(long)]
    json: bool,
}

/// The flags of `inferq dead redrive`.
#[derive(Debug, clap::Args)]
pub struct RedriveArgs {
    #[command(flatten)]
    meant: Meant,
    /// Only say what would go where.
    #[arg(long)]
    dry_run: bool,
}

/// The flags of `inferq dead purge`.
#[derive(Debug, clap::Args)]
pub struct PurgeArgs {
    #[command(flatten)]
    meant: Meant,
    /// Don't ask. Needed where nobody can be asked.
    #[arg(long)]
    yes: bool,
}

/// Runs `inferq dead`.
///
/// # Errors
/// When the queue is absent, the broker can't be reached, or nothing is called so.
pub async fn dead(command: Command, paint: Paint, stop: CancellationToken) -> Result<Outcome, Error> {
    match command {
        Command::List(args) => {
            on(&args.queue.queue.clone(), &stop, async |graves| list(args, paint, graves).await).await
        }
        Command::Show(args) => {
            on(&args.queue.queue.clone(), &stop, async |graves| show(args, paint, graves).await).await
        }
        Command::Redrive(args) => {
            on(&args.meant.queue.queue.clone(), &stop, async |graves| redrive(args, graves).await).await
        }
        Command::Purge(args) => {
            on(&args.meant.queue.queue.clone(), &stop, async |graves| purge(args, graves).await).await
        }
    }
}

/// Connects, works, and disconnects however the work ended: its leases must not be left to run out.
async fn on(
    url: &BrokerUrl,
    stop: &CancellationToken,
    work: impl AsyncFnOnce(&Graveyard<'_>) -> Result<Outcome, Error>,
) -> Result<Outcome, Error> {
    let broker: Broker = connect(url).await?;
    let done = work(&Graveyard { broker: &broker, url, stop }).await;
    broker.close().await;
    done
}

async fn list(args: ListArgs, paint: Paint, graves: &Graveyard<'_>) -> Result<Outcome, Error> {
    let (now, mut rows, mut more) = (Timestamp::now(), Vec::new(), false);
    graves
        .look(|letter| {
            if !args.filter.matches(&letter, now) {
                return Ok(ControlFlow::Continue(()));
            }
            if rows.len() as u64 == args.limit {
                more = true;
                return Ok(ControlFlow::Break(()));
            }
            rows.push(if args.json { vec![Value::from(facts(&letter)).to_string()] } else { row(&letter, now) });
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    if args.json {
        print(&rows.into_iter().map(|row| row.concat() + "\n").collect::<String>())?;
    } else {
        print(&table(&rows, paint))?;
    }
    if graves.by_leases() {
        say("read by leasing, and given back: meanwhile nobody else saw them");
    }
    if more {
        say(&format!("there are more than {}: raise --limit, or narrow them down", grouped(args.limit)));
    }
    Ok(Outcome::Done)
}

async fn show(args: ShowArgs, paint: Paint, graves: &Graveyard<'_>) -> Result<Outcome, Error> {
    let (now, mut found, mut keys) = (Timestamp::now(), None, Vec::new());
    graves
        .look(|letter| {
            if !letter.is_called(&args.id) {
                return Ok(ControlFlow::Continue(()));
            }
            keys.push(letter.key.clone());
            match (args.raw, args.json) {
                (true, _) => found = Some(letter.message.body),
                (false, true) => print(&format!("{}\n", whole(&letter)))?,
                (false, false) => print(&described(&letter, now, paint))?,
            }
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    keys.dedup();
    match (found, &keys[..]) {
        (_, []) => {
            let id = shown::line(args.id.as_bytes(), ID);
            Err(Error::NotFound(format!("no dead letter in {} is called {id}: see `inferq dead list`", graves.queue())))
        }
        (Some(body), [_]) => print_bytes(&body).map(|()| Outcome::Done),
        (Some(_), keys) => {
            let message = format!("{} dead letters are called so: name one by its key: {}", keys.len(), keys.join(" "));
            Err(Error::Usage(message))
        }
        (None, _) => Ok(Outcome::Done),
    }
}

async fn redrive(args: RedriveArgs, graves: &Graveyard<'_>) -> Result<Outcome, Error> {
    if args.dry_run {
        return dry_run(&args, graves).await;
    }
    let expected = graves.count(&args.meant.filter, args.meant.limit).await?;
    let done = clear(Act::Redrive, &args.meant.filter, expected.or(args.meant.limit), expected, graves).await?;
    for (queue, count) in &done.left {
        print(&format!("{} redriven to {}\n", letters(*count), queue.as_deref().unwrap_or_default()))?;
    }
    if done.left.is_empty() {
        print("no dead letter redriven\n")?;
    }
    if done.doubled > 0 {
        say(&format!("{} may come twice: the broker lost their leases", letters(done.doubled)));
    }
    let homeless: Vec<_> = done.homeless.iter().map(|(queue, n)| format!("{} of {queue}", letters(*n))).collect();
    if homeless.is_empty() {
        return ended(&done);
    }
    let message = format!("{} stay: there is no such queue any more; make it with `inferq setup`", homeless.join(", "));
    Err(Error::Usage(message))
}

async fn dry_run(args: &RedriveArgs, graves: &Graveyard<'_>) -> Result<Outcome, Error> {
    let mut queues = std::collections::BTreeMap::<String, u64>::new();
    let now = Timestamp::now();
    graves
        .look(|letter| {
            if args.meant.filter.matches(&letter, now) {
                *queues.entry(letter.queue.unwrap_or_else(|| graves.url.queues.jobs.clone())).or_default() += 1;
            }
            let full = args.meant.limit.is_some_and(|limit| queues.values().sum::<u64>() >= limit);
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .await?;
    let lines = queues.iter().map(|(queue, count)| format!("{} would be redriven to {queue}\n", letters(*count)));
    let lines: String = lines.collect();
    print(if lines.is_empty() { "no dead letter would be redriven\n" } else { &lines })?;
    Ok(Outcome::Done)
}

async fn purge(args: PurgeArgs, graves: &Graveyard<'_>) -> Result<Outcome, Error> {
    let expected = graves.count(&args.meant.filter, args.meant.limit).await?;
    let count = expected.map_or("an unknown number of dead letters".to_owned(), letters);
    if expected == Some(0) {
        print("no dead letter to purge\n")?;
        return Ok(Outcome::Done);
    }
    let meant = format!("{count} of {} ({})", graves.queue(), args.meant.filter);
    if !args.yes {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(Error::Usage(format!("purging {meant} can't be undone: say --yes")));
        }
        let question = format!("Delete {meant} for good?");
        if !agreed(&question, &mut io::stdin().lock(), &mut io::stderr()).map_err(|e| Error::io("can't ask", e))? {
            print("nothing purged\n")?;
            return Ok(Outcome::Done);
        }
    }
    // No more than was asked about, whatever has died since.
    let done = clear(Act::Purge, &args.meant.filter, expected.or(args.meant.limit), expected, graves).await?;
    print(&format!("{} purged\n", letters(done.count())))?;
    ended(&done)
}

/// Asks; only a clear yes is one.
fn agreed(question: &str, answers: &mut impl BufRead, questions: &mut impl Write) -> io::Result<bool> {
    write!(questions, "{question} [y/N] ")?;
    questions.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

async fn clear(
    act: Act,
    filter: &Filter,
    limit: Option<u64>,
    expected: Option<u64>,
    graves: &Graveyard<'_>,
) -> Result<Done, Error> {
    let progress = Progress::of("dead letters");
    progress.expect(expected.map_or(Total::Unknown, Total::Exactly));
    let done = graves.clear(act, filter, limit, |items| progress.reach(Tally { items, tokens: 0 })).await;
    progress.finish();
    done
}

fn ended(done: &Done) -> Result<Outcome, Error> {
    if done.sent_away > 0 {
        say(&format!("{} that were not meant are seen again in a minute", letters(done.sent_away)));
    }
    if done.stopped {
        return Err(Error::Interrupted("interrupted; the same command goes on".to_owned()));
    }
    Ok(Outcome::Done)
}

fn letters(count: u64) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{} dead letters", grouped(count)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        for (answer, expected) in [
            ("y\n", true),
            ("YES\r\n", true),
            ("yes", true),
            ("n\n", false),
            ("\n", false),
            ("", false),
            ("yep\n", false),
        ] {
            let mut asked = Vec::new();
            let agreed =
                agreed("Delete 3 dead letters?", &mut answer.as_bytes(), &mut asked).expect("memory is no file");
            assert_eq!(agreed, expected, "{answer:?}");
            assert_eq!(asked, b"Delete 3 dead letters? [y/N] ");
        }
    }
}
