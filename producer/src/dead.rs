//! `inferq dead`: the letters that no worker could answer: listed, shown, run again, deleted.
//!
//! In: a queue's address and which letters are meant. Out: a table or JSON, a letter's bytes, and for `redrive` and
//! `purge` how many letters left. The work itself is the [`graveyard`]'s.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use inferq_shared::broker::{Broker, BrokerUrl};
use inferq_shared::job::attribute;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use self::graveyard::{Act, Done, Graveyard};
use self::letter::{Filter, Letter};
use crate::connect::{connect, print, print_bytes, say};
use crate::help;
use crate::outcome::{Error, Outcome};
use crate::paint::Paint;
use crate::progress::{Progress, Tally, Total, duration, grouped};
use crate::shown;

pub mod graveyard;
pub mod letter;
pub mod pass;

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
    #[arg(long, env = "INFERQ_QUEUE", value_name = "URL")]
    queue: BrokerUrl,
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
    queue: QueueArgs,
    #[command(flatten)]
    filter: Filter,
    /// Redrive no more than so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only say what would go where.
    #[arg(long)]
    dry_run: bool,
}

/// The flags of `inferq dead purge`.
#[derive(Debug, clap::Args)]
pub struct PurgeArgs {
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    filter: Filter,
    /// Delete no more than so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
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
            on(&args.queue.queue.clone(), &stop, async |graves| redrive(args, graves).await).await
        }
        Command::Purge(args) => on(&args.queue.queue.clone(), &stop, async |graves| purge(args, graves).await).await,
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

/// Characters of a letter's body in the list.
const HEAD: usize = 40;
/// Characters of a reason and an id in the list.
const REASON: usize = 48;
const ID: usize = 32;

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
    if more {
        say(&format!("there are more than {}: raise --limit, or narrow them down", grouped(args.limit)));
    }
    Ok(Outcome::Done)
}

const COLUMNS: [&str; 7] = ["key", "id", "reason", "attempts", "when", "bytes", "begins"];

fn row(letter: &Letter, now: Timestamp) -> Vec<String> {
    vec![
        letter.key.clone(),
        letter.id.as_ref().map_or("-".to_owned(), |id| shown::line(id.as_bytes(), ID)),
        shown::line(letter.reason.as_bytes(), REASON),
        letter.attempts.map_or("-".to_owned(), |attempts| attempts.to_string()),
        when(letter, now),
        grouped(letter.message.body.len() as u64),
        shown::line(&letter.message.body, HEAD),
    ]
}

fn when(letter: &Letter, now: Timestamp) -> String {
    let age = |at| duration(Duration::try_from(now.duration_since(at)).unwrap_or_default());
    letter.at.map_or("-".to_owned(), |at| format!("{} ago", age(at)))
}

/// The rows under their headings, each column as wide as it must be.
fn table(rows: &[Vec<String>], paint: Paint) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(COLUMNS[column].len())
    };
    let widths: Vec<_> = (0..COLUMNS.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = paint.heading(&line(&COLUMNS)) + "\n";
    for row in rows {
        text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
        text.push('\n');
    }
    text
}

/// What is known of a letter, but its attributes and body; documented in docs/operations.md.
fn facts(letter: &Letter) -> Map<String, Value> {
    let facts = json!({
        "key": letter.key,
        "id": letter.id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "at": letter.at,
        "queue": letter.queue,
        "bytes": letter.message.body.len(),
        "begins": shown::line(&letter.message.body, HEAD),
    });
    match facts {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
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

fn whole(letter: &Letter) -> Value {
    let mut whole = facts(letter);
    let (text, base64) = match std::str::from_utf8(&letter.message.body) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(&letter.message.body))),
    };
    whole.extend([
        ("attributes".to_owned(), json!(letter.message.attributes)),
        ("body".to_owned(), json!(text)),
        ("body_base64".to_owned(), json!(base64)),
    ]);
    Value::Object(whole)
}

fn described(letter: &Letter, now: Timestamp, paint: Paint) -> String {
    let safe = |text: &str| shown::line(text.as_bytes(), 4096);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut text = String::new();
    let mut fact = |name: &str, value: String| text += &format!("{} {value}\n", paint.heading(&format!("{name:10}")));
    fact("key", letter.key.clone());
    fact("id", or_dash(letter.id.as_deref().map(safe)));
    fact("reason", safe(&letter.reason));
    fact("attempts", or_dash(letter.attempts.map(|attempts| attempts.to_string())));
    fact("when", letter.at.map_or("-".to_owned(), |at| format!("{at} ({})", when(letter, now))));
    fact("from", or_dash(letter.queue.as_deref().map(safe)));
    if let Some(parent) = letter.message.attributes.get(attribute::PARENT) {
        fact("parent", format!("{}, which stays open until this shard is redriven", safe(parent)));
    }
    fact("bytes", grouped(letter.message.body.len() as u64));
    for (name, value) in &letter.message.attributes {
        fact("attribute", format!("{}: {}", safe(name), safe(value)));
    }
    format!("{text}{}\n{}\n\n", paint.heading("body"), shown::block(&letter.message.body))
}

async fn redrive(args: RedriveArgs, graves: &Graveyard<'_>) -> Result<Outcome, Error> {
    if args.dry_run {
        return dry_run(&args, graves).await;
    }
    let expected = graves.count(&args.filter, args.limit).await?;
    let done = clear(Act::Redrive, &args.filter, expected.or(args.limit), expected, graves).await?;
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
            if args.filter.matches(&letter, now) {
                *queues.entry(letter.queue.unwrap_or_else(|| graves.url.queues.jobs.clone())).or_default() += 1;
            }
            let full = args.limit.is_some_and(|limit| queues.values().sum::<u64>() >= limit);
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .await?;
    let lines = queues.iter().map(|(queue, count)| format!("{} would be redriven to {queue}\n", letters(*count)));
    let lines: String = lines.collect();
    print(if lines.is_empty() { "no dead letter would be redriven\n" } else { &lines })?;
    Ok(Outcome::Done)
}

async fn purge(args: PurgeArgs, graves: &Graveyard<'_>) -> Result<Outcome, Error> {
    let expected = graves.count(&args.filter, args.limit).await?;
    let count = expected.map_or("an unknown number of dead letters".to_owned(), letters);
    if expected == Some(0) {
        print("no dead letter to purge\n")?;
        return Ok(Outcome::Done);
    }
    let meant = format!("{count} of {} ({})", graves.queue(), args.filter);
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
    let done = clear(Act::Purge, &args.filter, expected.or(args.limit), expected, graves).await?;
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

    #[test]
    fn a_list_has_a_line_a_letter_and_nothing_in_it_acts_on_the_terminal() {
        let attributes = [("inferq-dead-reason", "malformed: \u{1b}[2J"), ("inferq-dead-attempt", "2")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let letter = Letter::new(inferq_shared::broker::Message { body: "\u{7}{\n}".into(), attributes });
        let table = table(&[row(&letter, Timestamp::UNIX_EPOCH)], Paint::new(crate::paint::When::Never));
        let lines: Vec<_> = table.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("key           id  reason"), "{table}");
        let expected = format!("{}  -   malformed: \\u{{1b}}[2J  2         -     4      \\u{{7}}{{\\n}}", letter.key);
        assert_eq!(lines[1], expected);
    }
}
