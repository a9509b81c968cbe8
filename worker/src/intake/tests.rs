//! Tests of what becomes of each kind of delivery.

use inferq_shared::broker::{Attributes, Delivery, Lease, Message};
use inferq_shared::reply::Reply;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::in_flight::{Bounds, InFlight};

fn intake(attempts_max: u32) -> Intake {
    let info = ModelInfo {
        name: "echo".to_owned(),
        revision: "echo-1".to_owned(),
        dimensions: 8,
        max_tokens: 4,
        device: "cpu".to_owned(),
        reads_pairs: true,
    };
    Intake {
        settings: Arc::new(IntakeSettings {
            limits: Limits { reply_bytes: 64 << 10, ..Limits::default() },
            queues: QueueNames::new("jobs"),
            reply_queues: vec!["elsewhere".to_owned()],
            readable: AllowList::default(),
            writable: [Uri::parse("s3://bucket/out/").unwrap()].into_iter().collect(),
            object_bytes: 128 << 10,
            attempts_max,
            unfit_limit: Duration::from_secs(3600),
            clock_skew: Duration::from_millis(1000),
        }),
        tokenizer: Arc::new(Tokenizer::words(4)),
        signature: Arc::new(Signature::new(&info, "worker")),
        info: Arc::new(info),
        clock: Clock::real(),
    }
}

fn received(body: &str, attributes: &[(&str, &str)], attempt: u32) -> Received {
    let (settler, _) = mpsc::unbounded_channel();
    let attributes: Attributes =
        attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let message = Message { body: body.to_owned().into(), attributes };
    let hold = InFlight::new(Bounds { jobs: 1, bytes: 1, tokens: 1 }).hold(body.len());
    Received::new(Delivery { message, attempt, lease: Lease::new(1, settler) }, hold, Instant::now())
}

fn admit(body: &serde_json::Value) -> Admission {
    intake(5).admit(received(&body.to_string(), &[], 1))
}

fn refused(admission: Admission) -> Reply {
    match admission {
        Admission::Leave(Outbound::Reply(answered)) => answered.reply,
        other => panic!("expected a reply at once, got {other:?}"),
    }
}

fn code(admission: Admission) -> (Status, String) {
    let reply = refused(admission);
    assert!(reply.results.is_empty());
    (reply.status, reply.error.unwrap().code)
}

fn job() -> serde_json::Value {
    json!({"version": 1, "id": "job-1", "inputs": ["one", {"id": "two", "text": "two words"}]})
}

fn with(field: &str, value: serde_json::Value) -> serde_json::Value {
    let mut job = job();
    job[field] = value;
    job
}

#[test]
fn a_good_job_becomes_a_ticket_with_its_tokens_and_default_route() {
    let Admission::Run(ticket) = admit(&job()) else { panic!("a good job runs") };
    let ids: Vec<&str> = ticket.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, ["job-1/0", "two"]);
    assert!(ticket.items.iter().all(|item| item.tokens.is_ok()));
    assert_eq!(ticket.case.route, "jobs.results");
}

#[test]
fn a_reply_goes_to_the_submissions_route_or_to_an_allowed_queue() {
    let received_from = |body: &serde_json::Value| received(&body.to_string(), &[(attribute::SUBMISSION, "sub-1")], 1);
    let Admission::Run(ticket) = intake(5).admit(received_from(&job())) else { panic!("it runs") };
    assert_eq!(ticket.case.route, "jobs.results.sub-1");
    let allowed = with("reply_to", json!({"queue": "elsewhere"}));
    let Admission::Run(ticket) = intake(5).admit(received_from(&allowed)) else { panic!("it runs") };
    assert_eq!(ticket.case.route, "elsewhere");
    let Admission::Leave(Outbound::Reply(answered)) =
        intake(5).admit(received_from(&with("reply_to", json!({"queue": "jobs"}))))
    else {
        panic!("the jobs queue is no place for replies")
    };
    assert_eq!(answered.route, "jobs.results.sub-1");
    assert_eq!(answered.reply.error.unwrap().code, "forbidden");
}

#[test]
fn an_amqp_client_is_answered_where_it_listens_if_that_is_its_own_or_allowed() {
    let asked = |queue: &str| {
        let attributes = [(attribute::AMQP_REPLY_TO, queue), (attribute::AMQP_CORRELATION_ID, "c-1")];
        intake(5).admit(received(&job().to_string(), &attributes, 1))
    };
    for queue in ["amq.rabbitmq.reply-to.g2dkABZ", "amq.gen-JzTY20BRgKO", "elsewhere", "jobs.results"] {
        let Admission::Run(ticket) = asked(queue) else { panic!("{queue} is the client's own, or allowed") };
        assert_eq!((&*ticket.case.route, ticket.case.correlation_id.as_deref()), (queue, Some("c-1")));
    }
    for queue in ["jobs", "jobs.dead", "others", "amq.direct", ""] {
        assert_eq!(code(asked(queue)), (Status::Rejected, "forbidden".to_owned()), "{queue}");
    }
    let attributes = [(attribute::AMQP_REPLY_TO, "amq.gen-x"), (attribute::JOB_ID, "job-1")];
    let Admission::Leave(Outbound::Reply(answered)) = intake(5).admit(received("no job", &attributes, 1)) else {
        panic!("what can't be read is answered as well")
    };
    assert_eq!((&*answered.route, answered.reply.status), ("amq.gen-x", Status::Rejected));
}

#[test]
fn the_reply_that_points_at_an_object_goes_where_any_other_would() {
    let job = with("reply_to", json!({"uri": "s3://bucket/out/"})).to_string();
    let asked = |queue: &str| intake(5).admit(received(&job, &[(attribute::AMQP_REPLY_TO, queue)], 1));
    let Admission::Run(ticket) = asked("amq.gen-x") else { panic!("it runs") };
    assert_eq!((&*ticket.case.route, ticket.case.object.is_some()), ("amq.gen-x", true));
    assert_eq!(code(asked("jobs")), (Status::Rejected, "forbidden".to_owned()));
}

#[test]
fn what_no_worker_can_run_is_rejected_by_name() {
    let rejected = |code: &str| (Status::Rejected, code.to_owned());
    assert_eq!(code(admit(&with("inputs", json!([])))), rejected("invalid"));
    assert_eq!(code(admit(&with("parameters", json!({"dimensions": 9})))), rejected("invalid"));
    assert_eq!(code(admit(&with("parameters", json!({"dimensions": 0})))), rejected("invalid"));
    assert_eq!(code(admit(&with("reply_to", json!({"uri": "gs://bucket/prefix/"})))), rejected("forbidden"));
    assert_eq!(code(admit(&with("reply_to", json!({"uri": "s3://bucket/output/"})))), rejected("forbidden"));
    assert_eq!(code(admit(&with("reply_to", json!({"uri": "s3://bucket/out/../in/"})))), rejected("invalid"));
    assert_eq!(code(admit(&json!({"version": 1, "id": "a", "input_uri": "gs://bucket/o"}))), rejected("forbidden"));
    let many = vec!["word"; 400];
    let reply = refused(admit(&with("inputs", json!(many))));
    assert!(reply.error.unwrap().message.contains("base64"));
}

#[test]
fn results_become_an_object_beneath_an_allowed_prefix() {
    let mut asked = with("reply_to", json!({"uri": "s3://bucket/out/a/", "format": "parquet"}));
    let Admission::Run(ticket) = admit(&asked) else { panic!("it runs") };
    let target = ticket.case.object.expect("it asked for one");
    assert_eq!(target.uri.to_string(), "s3://bucket/out/a/job-1.parquet");
    assert_eq!(ticket.case.route, "jobs.results", "that is where the pointer goes");
    assert_eq!(ticket.case.hold.bytes(), asked.to_string().len() + target.bytes_max, "what it can hold is counted");
    asked["model"] = json!("echo");
    asked["deadline"] = json!("2999-01-01T00:00:00Z");
    let Admission::Run(again) = admit(&asked) else { panic!("it runs") };
    assert_eq!(again.case.object.unwrap().digest, target.digest, "it asks for the same");
    let mut many = with("reply_to", json!({"uri": "s3://bucket/out/"}));
    many["inputs"] = json!(vec!["word"; 250]);
    assert!(matches!(admit(&many), Admission::Run(_)), "more than a reply may have");
    many["inputs"] = json!(vec!["word"; 400]);
    let message = refused(admit(&many)).error.unwrap().message;
    assert!(message.contains("the object could reach") && !message.contains("a bucket"), "{message}");
}

#[test]
fn bytes_without_an_id_are_a_dead_letter_unless_an_attribute_names_one() {
    match intake(5).admit(received("not json", &[], 1)) {
        Admission::Leave(Outbound::Dead { reason, .. }) => assert!(reason.starts_with("malformed:"), "{reason}"),
        other => panic!("expected a dead letter, got {other:?}"),
    }
    let named = intake(5).admit(received("not json", &[(attribute::JOB_ID, "job-7")], 1));
    let reply = refused(named);
    assert_eq!((reply.id.as_str(), reply.status), ("job-7", Status::Rejected));
}

#[test]
fn another_workers_job_is_given_back_until_nobody_came_for_it() {
    for foreign in [with("model", json!("another")), with("version", json!(2))] {
        assert!(matches!(admit(&foreign), Admission::Misfit(Outbound::Release { after: MISFIT_DELAY, .. })));
        let old = (Timestamp::now().as_millisecond() - 3_601_000).to_string();
        let given_up = intake(5).admit(received(&foreign.to_string(), &[(attribute::PUBLISHED_AT, &old)], 1));
        assert_eq!(code(given_up), (Status::Rejected, "no_worker".to_owned()));
    }
}

#[test]
fn a_deadline_has_passed_only_beyond_the_clocks_skew() {
    let at = |ms: i64| json!(Timestamp::from_millisecond(Timestamp::now().as_millisecond() + ms).unwrap().to_string());
    assert_eq!(code(admit(&with("deadline", at(-2000)))), (Status::Expired, "expired".to_owned()));
    assert!(matches!(admit(&with("deadline", at(-500))), Admission::Run(Ticket { deadline: Some(_), .. })));
}

#[test]
fn attempts_end() {
    let exhausted = intake(5).admit(received(&job().to_string(), &[], 6));
    assert_eq!(code(exhausted), (Status::Failed, "attempts_exhausted".to_owned()));
    assert!(matches!(intake(5).admit(received(&job().to_string(), &[], 5)), Admission::Run(_)));
}

#[test]
fn a_too_long_input_is_an_item_error_where_cutting_is_forbidden() {
    let mut long = with("inputs", json!(["short", "a b c d e f g h"]));
    long["parameters"] = json!({"truncate": false});
    let Admission::Run(ticket) = admit(&long) else { panic!("its mates run") };
    assert!(ticket.items[0].tokens.is_ok());
    assert_eq!(ticket.items[1].tokens.as_ref().unwrap_err().code, "input_too_long");
}
