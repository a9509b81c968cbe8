//! The ledger on real files: what is kept, what is refused, which reply wins.

use inferq_shared::job::{Input, Item, Metadata};
use inferq_shared::reply::{ItemResult, Reply, ReplyError, Status, Timings, Usage};

use super::*;
use crate::chunk::{Chunk, Work};
use crate::source::{BadLine, Place, Unit};

fn plan(model: &str) -> Plan {
    let parameters = serde_json::json!({"model-name": model});
    Plan {
        queue: "sqlite:///q.db?queue=jobs".to_owned(),
        parameters: parameters.as_object().cloned().expect("an object"),
    }
}

fn chunk(number: u64, ids: &[Option<&str>]) -> Chunk {
    let item = |id: &Option<&str>| Item { id: id.map(str::to_owned), input: Input::Text("x".to_owned()) };
    let place = Place { name: "f".into(), unit: Unit::Line, number: number * 10 + 1 };
    let digest = [number as u8; 16];
    Chunk {
        number,
        first: number * 10,
        place,
        work: Work::Items(ids.iter().map(item).collect()),
        bad: Vec::new(),
        digest,
    }
}

fn reply(id: JobId, status: Status, results: u32) -> Reply {
    let result = |index| ItemResult {
        id: format!("{id}/{index}"),
        index,
        embedding: None,
        labels: None,
        error: Some(ReplyError::new("x", "y")),
        tokens: Some(3),
    };
    Reply {
        version: 1,
        id: id.clone(),
        status,
        model: "m".to_owned(),
        revision: "r".to_owned(),
        results: (0..results).map(result).collect(),
        error: (results == 0).then(|| ReplyError::new("rejected", "no")),
        output_uri: None,
        usage: Usage { items: results, tokens: u64::from(results) * 3 },
        timings_ms: Timings::default(),
        worker: "w".to_owned(),
        attempt: 1,
        metadata: Metadata::new(),
    }
}

fn begun(path: &Path) -> Ledger {
    let mut ledger = Ledger::open_or_create(path).expect("a ledger");
    ledger.begin(&plan("m"), || "s1".to_owned()).expect("a submission");
    ledger
}

fn record(ledger: &mut Ledger, reply: &Reply) -> Recorded {
    ledger.record_replies(&[Answer::new(reply, reply.encode().into())]).expect("a durable record").remove(0)
}

#[test]
fn looking_into_a_ledger_changes_no_byte_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("l.db");
    let mut ledger = begun(&path);
    ledger.record_confirmed(&[Confirmed::of(&chunk(0, &[None]))]).expect("durable");
    drop(ledger);
    let before = std::fs::read(&path).expect("a file");
    let ledger = Ledger::look_into(&path).expect("the same ledger");
    assert!(ledger.look_up("s1-000000").expect("readable").is_some());
    drop(ledger);
    assert!(std::fs::read(&path).expect("a file") == before);
    let empty = dir.path().join("empty.db");
    std::fs::write(&empty, "").expect("written");
    assert!(matches!(Ledger::look_into(&empty), Err(LedgerError::NotALedger(_))));
    assert!(std::fs::read(&empty).expect("a file").is_empty());
}

#[test]
fn what_was_recorded_is_there_when_opened_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("l.db");
    let mut ledger = begun(&path);
    let mut with_bad = chunk(1, &[Some("a"), None]);
    let bad = BadLine { id: Some("b".to_owned()), error: ReplyError::new("malformed", "no") };
    with_bad.bad.push((11, bad.clone()));
    ledger.record_confirmed(&[Confirmed::of(&chunk(0, &[None])), Confirmed::of(&with_bad)]).expect("durable");
    assert_eq!(record(&mut ledger, &reply(job_id("s1", 1), Status::Succeeded, 2)), Recorded::First(1));
    let before = ledger.counts();
    drop(ledger);
    let mut ledger = Ledger::open(&path).expect("the same ledger");
    assert_eq!(ledger.counts(), before);
    assert_eq!((before.chunks, before.jobs, before.entries, before.bad), (2, 2, 4, 1));
    assert_eq!((before.answered, before.items_answered, before.tokens), (1, 2, 6));
    assert_eq!(ledger.begin(&plan("m"), || "s2".to_owned()).expect("the same plan"), "s1");
    assert_eq!(ledger.unanswered(9).expect("readable"), vec![(job_id("s1", 0), "f line 1".to_owned())]);
    let mut seen = Vec::new();
    let visit = |answered: Answered| -> Result<(), LedgerError> {
        seen.push(answered);
        Ok(())
    };
    ledger.for_each(Selection::All, visit).expect("readable");
    assert_eq!((seen[0].items, seen[0].ids.len(), seen[0].reply.is_some()), (1, 0, false));
    assert_eq!(seen[1].ids, vec![Some("a".to_owned()), None]);
    assert_eq!(seen[1].bad, vec![(11, bad.id, bad.error)]);
}

#[test]
fn the_best_reply_is_kept_then_the_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut ledger = begun(&dir.path().join("l.db"));
    ledger.record_confirmed(&[Confirmed::of(&chunk(0, &[None]))]).expect("durable");
    let id = job_id("s1", 0);
    let steps = [
        (Status::Expired, 0, Recorded::First(0)),
        (Status::Failed, 1, Recorded::Duplicate),
        (Status::Partial, 1, Recorded::Duplicate),
        (Status::Succeeded, 1, Recorded::Duplicate),
        (Status::Partial, 1, Recorded::Duplicate),
    ];
    let kept = [Status::Expired, Status::Expired, Status::Partial, Status::Succeeded, Status::Succeeded];
    for ((status, results, expected), kept) in steps.into_iter().zip(kept) {
        assert_eq!(record(&mut ledger, &reply(id.clone(), status, results)), expected);
        let visit = |answered: Answered| -> Result<(), LedgerError> {
            let body = answered.reply.expect("a reply");
            assert_eq!(Reply::decode(&body).expect("a reply").status, kept);
            Ok(())
        };
        ledger.for_each(Selection::All, visit).expect("readable");
    }
    assert_eq!((ledger.counts().answered, ledger.counts().tokens), (1, 3));
}

#[test]
fn replies_of_others_and_unfit_ones_are_not_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut ledger = begun(&dir.path().join("l.db"));
    ledger.record_confirmed(&[Confirmed::of(&chunk(0, &[None]))]).expect("durable");
    for other in ["s2-000000", "s1-000001", "s1-0", "s1-0000000", "s1"] {
        let id = JobId::new(other).expect("an id");
        assert_eq!(record(&mut ledger, &reply(id, Status::Succeeded, 1)), Recorded::Unknown, "{other}");
    }
    let two = reply(job_id("s1", 0), Status::Succeeded, 2);
    assert!(matches!(record(&mut ledger, &two), Recorded::Unfit(why) if why.contains("2 results")));
    let mut misplaced = reply(job_id("s1", 0), Status::Succeeded, 1);
    misplaced.results[0].index = 4;
    assert!(matches!(record(&mut ledger, &misplaced), Recorded::Unfit(_)));
    assert_eq!(ledger.counts().answered, 0);
}

#[test]
fn a_second_holder_another_file_and_a_missing_one_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("l.db");
    let held = begun(&path);
    assert!(matches!(Ledger::open(&path), Err(LedgerError::Locked(_))));
    drop(held);
    assert!(Ledger::open(&path).is_ok(), "the lock goes with its holder");
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "not a database, but longer than its header would be: ".repeat(9)).expect("a file");
    assert!(matches!(Ledger::open_or_create(&text), Err(LedgerError::NotALedger(_))));
    let other = dir.path().join("other.db");
    Connection::open(&other).and_then(|other| other.execute_batch("CREATE TABLE t (x)")).expect("a database");
    assert!(matches!(Ledger::open_or_create(&other), Err(LedgerError::NotALedger(_))));
    assert!(matches!(Ledger::open(&dir.path().join("none.db")), Err(LedgerError::Missing(_))));
}

#[test]
fn a_changed_plan_or_input_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut ledger = begun(&dir.path().join("l.db"));
    let error = ledger.begin(&plan("n"), || "s2".to_owned()).expect_err("another model").to_string();
    assert!(error.contains("--model-name \"m\""), "{error}");
    let mut other = plan("m");
    other.queue = "sqlite:///r.db?queue=jobs".to_owned();
    let error = ledger.begin(&other, || "s2".to_owned()).expect_err("another queue").to_string();
    assert!(error.contains("--queue sqlite:///q.db"), "{error}");

    let first = Confirmed::of(&chunk(0, &[None]));
    assert!(!ledger.is_confirmed(&first).expect("readable"));
    ledger.record_confirmed(&[first.clone(), Confirmed::of(&chunk(1, &[None]))]).expect("durable");
    assert!(ledger.is_confirmed(&first).expect("readable"));
    let changed = Confirmed::of(&Chunk { digest: [9; 16], ..chunk(0, &[None]) });
    let error = ledger.is_confirmed(&changed).expect_err("other entries").to_string();
    assert!(error.contains("f line 1"), "{error}");
    assert!(ledger.record_complete(1).expect_err("shorter").to_string().contains("shorter"));
    ledger.record_complete(2).expect("durable");
    assert!(matches!(ledger.is_confirmed(&Confirmed::of(&chunk(2, &[None]))), Err(LedgerError::Changed(_))), "longer");
}

#[test]
fn what_a_followed_output_holds_is_kept_with_its_length() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("l.db");
    let mut ledger = begun(&path);
    let mut bad = chunk(2, &[]);
    bad.bad.push((20, BadLine { id: None, error: ReplyError::new("malformed", "no") }));
    let chunks = [chunk(0, &[None]), chunk(1, &[None]), bad, chunk(3, &[None])];
    ledger.record_confirmed(&chunks.map(|chunk| Confirmed::of(&chunk))).expect("durable");
    for number in [0, 3] {
        record(&mut ledger, &reply(job_id("s1", number), Status::Succeeded, 1));
    }
    let mut followed = Followed { output: "/out".to_owned(), encoding: inferq_shared::job::Encoding::Float, bytes: 0 };
    ledger.begin_followed(&followed).expect("durable");
    assert_eq!(ledger.unfollowed(0, 9).expect("readable"), [0, 2, 3], "answered, or without a job");
    followed.bytes = 70;
    ledger.record_followed(&followed, &[3, 0]).expect("durable");
    drop(ledger);
    let mut ledger = Ledger::open(&path).expect("the same ledger");
    assert_eq!(ledger.followed().expect("readable"), Some(followed.clone()));
    assert_eq!(ledger.unfollowed(0, 9).expect("readable"), [2]);
    ledger.begin_followed(&Followed { bytes: 0, ..followed }).expect("durable");
    assert_eq!(ledger.unfollowed(1, 1).expect("readable"), [2], "another output begins with nothing");
}
