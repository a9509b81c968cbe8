//! Commands whose files, queues or flags won't do: an exit code, and one line that names the thing and the way out.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use inferq_tests::namespace;
use inferq_tests::process::{binary, command};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::{Answer, exit};

/// A command and what comes of it.
pub(super) struct Row {
    pub(super) given: &'static str,
    pub(super) answer: Answer,
    run: fn(&Place) -> Output,
}

const fn row(given: &'static str, run: fn(&Place) -> Output, answer: Answer) -> Row {
    Row { given, answer, run }
}

/// A folder with a queue in it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        assert!(place.inferq(&["setup", "--queue", &place.url()]).status.success());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.name(name)
    }

    fn url(&self) -> String {
        self.url_of("queue.db")
    }

    fn url_of(&self, file: &str) -> String {
        format!("sqlite://{}", self.name(file))
    }

    fn inferq(&self, arguments: &[&str]) -> Output {
        command("inferq").args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn worker(&self, arguments: &[&str]) -> Output {
        let health = ["--health", "127.0.0.1:0"];
        command("inferq-worker").args(health).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Submits this input, with further flags.
    fn submit(&self, input: &str, flags: &[&str]) -> Output {
        self.inferq(&[&["submit", "--queue", &self.url(), "--input", input], flags].concat())
    }

    /// Submits one good line, with further flags.
    fn submit_with(&self, flags: &[&str]) -> Output {
        self.submit(&self.file("good.jsonl", "\"a\"\n"), flags)
    }

    /// Submits to the queue in this file.
    fn submit_to(&self, url: &str) -> Output {
        let input = self.file("good.jsonl", "\"a\"\n");
        self.inferq(&["submit", "--queue", url, "--input", &input])
    }

    fn collect(&self, ledger: &str, output: &str) -> Output {
        self.inferq(&["collect", "--ledger", ledger, "--output", output])
    }

    fn run(&self, input: &str, flags: &[&str]) -> Output {
        let output = self.name("out.jsonl");
        self.inferq(&[&["run", "--engine", "echo", "--input", input, "--output", &output], flags].concat())
    }

    /// A database that this SQL makes.
    fn database(&self, name: &str, sql: &str) -> String {
        rusqlite::Connection::open(self.path(name)).unwrap().execute_batch(sql).unwrap();
        self.name(name)
    }

    /// A pipe with a name.
    fn pipe(&self, name: &str) -> String {
        mknodat(CWD, self.path(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        self.name(name)
    }
}

/// The writing end of a pipe, once `reader` has opened the other.
fn opened_by(reader: &mut Child, pipe: &str) -> File {
    loop {
        let opened = File::options().write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(pipe);
        match opened {
            Ok(file) => return file,
            Err(error) => assert!(reader.try_wait().unwrap().is_none(), "nobody reads the pipe: {error}"),
        }
    }
}

/// A second input that goes while the first is read: by then both have been found.
fn submit_what_vanishes(place: &Place) -> Output {
    let (first, second) = (place.pipe("first.jsonl"), place.file("second.jsonl", "\"b\"\n"));
    let mut child = command("inferq")
        .args(["submit", "--queue", &place.url(), "--ledger", &place.name("l.db"), "--input", &first, &second])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = opened_by(&mut child, &first);
    fs::remove_file(second).unwrap();
    writer.write_all(b"\"a\"\n").unwrap();
    drop(writer);
    child.wait_with_output().unwrap()
}

/// An input that nobody may read, not even who owns it: in a user namespace of its own, root has no power either.
fn submit_what_is_unreadable(place: &Place) -> Output {
    let input = place.file("secret.jsonl", "\"a\"\n");
    fs::set_permissions(&input, fs::Permissions::from_mode(0o000)).unwrap();
    let arguments = ["submit", "--queue", &place.url(), "--input", &input];
    Command::new("unshare").arg("--user").arg(binary("inferq")).args(arguments).output().unwrap()
}

fn submit_what_has_grown(place: &Place) -> Output {
    let input = place.file("texts.jsonl", "\"a\"\n");
    assert!(place.submit(&input, &[]).status.success());
    place.submit(&place.file("texts.jsonl", "\"a\"\n\"b\"\n"), &[])
}

/// A ledger of a submission whose input was not read to its end.
fn collect_what_is_incomplete(place: &Place) -> Output {
    let input = place.file("good.jsonl", "\"a\"\n");
    let ledger = place.name("l.db");
    assert!(place.submit(&input, &["--ledger", &ledger]).status.success());
    place.database("l.db", "DELETE FROM settings WHERE name = 'complete'");
    place.collect(&ledger, "-")
}

const USAGE: i32 = 64;

/// What is given on a command line.
pub(super) const COMMANDS: &[Row] = &[
    row(
        "an input that is not there",
        |p| p.submit(&p.name("none.jsonl"), &[]),
        exit(USAGE, "none.jsonl does not exist"),
    ),
    row(
        "a pattern that nothing matches",
        |p| p.submit(&p.name("*.jsonl"), &["--ledger", &p.name("l.db")]),
        exit(USAGE, "no file matches"),
    ),
    row(
        "a directory as input",
        |p| p.submit(&p.folder.path().display().to_string(), &[]),
        exit(USAGE, "is a directory: name files, or a pattern like"),
    ),
    row("an input of unknown format", |p| p.submit(&p.file("texts.doc", "a"), &[]), exit(USAGE, "give --format")),
    row("an input that may not be read", submit_what_is_unreadable, exit(USAGE, "secret.jsonl: Permission denied")),
    row("an input that goes before it is read", submit_what_vanishes, exit(USAGE, "can't open input")),
    row(
        "an input that can't be read in the middle",
        |p| p.submit("/proc/self/mem", &["--format", "jsonl", "--ledger", &p.name("l.db")]),
        exit(1, "can't read /proc/self/mem after line 0: Input/output error"),
    ),
    row(
        "an input that has grown since it was submitted",
        submit_what_has_grown,
        exit(USAGE, "the input has changed since it was submitted"),
    ),
    row("an empty input", |p| p.run(&p.file("empty.jsonl", ""), &[]), exit(0, "0 items in")),
    row(
        "an input of random bytes",
        |p| p.run(&p.file("noise.txt", b"\xff\xfe\x00\n\x80\x81\n"), &[]),
        exit(2, "what failed, and why"),
    ),
    row(
        "standard input without `--ledger`",
        |p| p.submit("-", &["--format", "text"]),
        exit(USAGE, "--ledger FILE is required"),
    ),
    row("a queue of an unknown kind", |p| p.submit_to("kafka://host/"), exit(USAGE, "unknown scheme \"kafka\"")),
    row(
        "a queue in memory for two processes",
        |p| p.submit_to("memory:"),
        exit(USAGE, "a memory: queue ends with its process"),
    ),
    row(
        "a queue that was not set up",
        |p| p.submit_to(&format!("{}?queue=other", p.url())),
        exit(USAGE, "no queue named other at"),
    ),
    row(
        "the same for a worker",
        |p| p.worker(&["--engine", "echo", "--queue", &format!("{}?queue=other", p.url())]),
        exit(USAGE, "no queue named other: make it with"),
    ),
    row(
        "a text file as queue",
        |p| {
            p.file("text.db", "a text, and long enough to be seen as one ".repeat(30));
            p.submit_to(&p.url_of("text.db"))
        },
        exit(USAGE, "text.db is not a database, so not a queue"),
    ),
    row(
        "another program's database as queue",
        |p| {
            p.database("songs.db", "CREATE TABLE songs (title TEXT)");
            p.submit_to(&p.url_of("songs.db"))
        },
        exit(USAGE, "is a database of another program, not a queue"),
    ),
    row(
        "a ledger as queue",
        |p| {
            p.submit_with(&["--ledger", &p.name("l.db")]);
            p.submit_to(&p.url_of("l.db"))
        },
        exit(USAGE, "is a database of another program, not a queue"),
    ),
    row(
        "a directory as queue",
        |p| {
            fs::create_dir(p.path("folder")).unwrap();
            p.submit_to(&p.url_of("folder"))
        },
        exit(USAGE, "folder can't be written"),
    ),
    row(
        "a queue in a directory that is not there",
        |p| p.submit_to(&p.url_of("none/queue.db")),
        exit(USAGE, "there is no directory"),
    ),
    row(
        "a queue of a newer layout",
        |p| {
            p.database("queue.db", "PRAGMA user_version = 1000");
            p.submit_with(&[])
        },
        exit(USAGE, "has layout 1000, this build knows layout"),
    ),
    row(
        "the same for a worker",
        |p| {
            p.database("queue.db", "PRAGMA user_version = 1000");
            p.worker(&["--engine", "echo", "--queue", &p.url()])
        },
        exit(USAGE, "has layout 1000, this build knows layout"),
    ),
    row(
        "a text file as ledger",
        |p| p.submit_with(&["--ledger", &p.file("l.db", "a text, and long enough to be seen as one ".repeat(30))]),
        exit(USAGE, "l.db is not a ledger"),
    ),
    row(
        "another program's database as ledger",
        |p| p.submit_with(&["--ledger", &p.database("l.db", "CREATE TABLE songs (title TEXT)")]),
        exit(USAGE, "l.db is not a ledger"),
    ),
    row(
        "a queue as ledger",
        |p| {
            p.inferq(&["setup", "--queue", &p.url_of("other.db")]);
            p.submit_with(&["--ledger", &p.name("other.db")])
        },
        exit(USAGE, "other.db is not a ledger"),
    ),
    row(
        "a ledger of a newer layout",
        |p| {
            p.submit_with(&["--ledger", &p.name("l.db")]);
            p.database("l.db", "PRAGMA user_version = 1000");
            p.collect(&p.name("l.db"), "-")
        },
        exit(USAGE, "l.db has format 1000, this build knows format"),
    ),
    row(
        "a directory as ledger",
        |p| {
            fs::create_dir(p.path("folder")).unwrap();
            p.submit_with(&["--ledger", &p.name("folder")])
        },
        exit(USAGE, "folder can't be written"),
    ),
    row(
        "a ledger in a directory that is not there",
        |p| p.submit_with(&["--ledger", &p.name("none/l.db")]),
        exit(USAGE, "none/l.db can't be written"),
    ),
    row(
        "no ledger to collect by",
        |p| p.collect(&p.name("none.db"), "-"),
        exit(USAGE, "`inferq submit --ledger` makes one"),
    ),
    row(
        "an incomplete submission to collect",
        collect_what_is_incomplete,
        exit(USAGE, "finish it with the same `inferq submit` first"),
    ),
    row(
        "a directory as output",
        |p| p.collect("l.db", &p.folder.path().display().to_string()),
        exit(USAGE, "is a directory: name a file in it"),
    ),
    row(
        "an output in a directory that is not there",
        |p| p.collect("l.db", &p.name("none/out.jsonl")),
        exit(USAGE, "there is no directory"),
    ),
    row("`--items-per-job` 0", |p| p.submit_with(&["--items-per-job", "0"]), exit(USAGE, "0 is not in 1..=4096")),
    row("`--dimensions` 0", |p| p.submit_with(&["--dimensions", "0"]), exit(USAGE, "0 is not in 1..")),
    row(
        "`--deadline` \"tomorrow\"",
        |p| p.submit_with(&["--deadline", "tomorrow"]),
        exit(USAGE, "invalid value 'tomorrow' for '--deadline"),
    ),
    row(
        "`--metadata` that is no object",
        |p| p.submit_with(&["--metadata", "[1]"]),
        exit(USAGE, "must be a JSON object"),
    ),
    row(
        "`--metadata` of 4 KiB and a byte",
        |p| p.submit_with(&["--metadata", &format!(r#"{{"k":"{}"}}"#, "x".repeat(4089))]),
        exit(USAGE, "has 4097 bytes, the limit is 4096"),
    ),
    row("an unknown flag", |p| p.submit_with(&["--no-such-flag"]), exit(USAGE, "unexpected argument '--no-such-flag'")),
    row("an unknown command", |p| p.inferq(&["frobnicate"]), exit(USAGE, "unrecognized subcommand 'frobnicate'")),
    row(
        "a worker without a model",
        |p| p.worker(&["--queue", &p.url()]),
        exit(USAGE, "--model DIR is missing; or try --engine echo"),
    ),
    row(
        "a model that is not there",
        |p| p.worker(&["--queue", &p.url(), "--model", &p.name("none")]),
        exit(USAGE, "none: no such file; a model is a directory with"),
    ),
    row(
        "a device that is not there",
        |p| p.worker(&["--queue", &p.url(), "--engine", "echo", "--device", "cuda:0"]),
        exit(USAGE, "this build has no CUDA"),
    ),
    row(
        "`--max-attempts` 2",
        |p| p.worker(&["--queue", &p.url(), "--engine", "echo", "--max-attempts", "2"]),
        exit(USAGE, "--max-attempts is 2, it must be 3 to 1000"),
    ),
    row(
        "a health address that is taken",
        |p| {
            let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = taken.local_addr().unwrap().to_string();
            command("inferq-worker")
                .args(["--engine", "echo", "--queue", &p.url(), "--health", &address])
                .output()
                .unwrap()
        },
        exit(USAGE, "Address already in use"),
    ),
];

#[test]
fn every_command_that_will_not_do_says_why() {
    let has_namespaces = namespace::is_available("an input that may not be read");
    let mut wrong = Vec::new();
    for row in COMMANDS.iter().filter(|row| has_namespaces || !row.given.contains("may not be read")) {
        let differs = row.answer.differs_from_end(&(row.run)(&Place::new()));
        wrong.extend(differs.map(|differs| format!("{}: {} was expected, not {differs}", row.given, row.answer)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
