//! Tests of putting answers together: order, cutting, scaling, status.

use std::sync::Arc;
use std::time::Instant;

use inferq_shared::broker::Lease;
use inferq_shared::job::JobId;
use tokio::sync::mpsc;

use super::*;
use crate::engine::Tokens;
use crate::in_flight::{Bounds, InFlight};

fn case(parameters: Parameters) -> Case {
    // Nobody listens: these leases are only carried.
    let (settler, _) = mpsc::unbounded_channel();
    Case {
        id: JobId::new("job-1").unwrap(),
        parameters,
        metadata: serde_json::Map::new(),
        route: "jobs.results".to_owned(),
        object: None,
        attempt: 2,
        trace: Default::default(),
        correlation_id: None,
        submission: None,
        lease: Lease::new(1, settler),
        hold: InFlight::new(Bounds { jobs: 1, bytes: 1, tokens: 1 }).hold(1),
        at: Instant::now(),
        queued: Duration::from_millis(12),
        intake: Duration::ZERO,
    }
}

fn signature() -> Signature {
    Signature { model: "m".to_owned(), revision: "sha256:0".to_owned(), worker: "w".to_owned() }
}

fn open(parameters: Parameters, items: Vec<Result<usize, ReplyError>>) -> Open {
    let item = |(index, tokens): (usize, Result<usize, ReplyError>)| TicketItem {
        id: format!("item-{index}"),
        tokens: tokens.map(|count| Arc::new(Tokens { ids: vec![1; count], type_ids: vec![0; count] })),
    };
    Open::new(Ticket {
        case: case(parameters),
        items: items.into_iter().enumerate().map(item).collect(),
        deadline: None,
    })
}

fn embedding_of(values: &[f32]) -> Result<Answer, ReplyError> {
    Ok(Answer::Embedding(Arc::from(values)))
}

fn reply(open: Open) -> Reply {
    match open.finish(&signature()) {
        Some(Outbound::Reply(answered)) => answered.reply,
        other => panic!("a complete job is answered, not {other:?}"),
    }
}

#[test]
fn answers_come_back_in_input_order_whatever_the_order_of_running() {
    let mut job = open(Parameters { normalize: false, ..Parameters::default() }, vec![Ok(3), Ok(4), Ok(5)]);
    for index in [2u32, 0, 1] {
        assert!(!job.is_complete());
        job.answer(index, embedding_of(&[index as f32]), Run::default());
    }
    assert!(job.is_complete());
    let reply = reply(job);
    assert_eq!(reply.status, Status::Succeeded);
    assert_eq!(reply.usage, Usage { items: 3, tokens: 12 });
    assert_eq!(reply.attempt, 2);
    for (index, result) in reply.results.iter().enumerate() {
        assert_eq!((result.index as usize, &*result.id), (index, &*format!("item-{index}")));
        assert_eq!(result.embedding.as_ref().unwrap().values(), [index as f32]);
    }
}

#[test]
fn dimensions_are_cut_before_the_rest_is_scaled_to_length_one() {
    let parameters = Parameters { dimensions: Some(2), encoding: Encoding::Base64, ..Parameters::default() };
    let mut job = open(parameters, vec![Ok(1)]);
    job.answer(0, embedding_of(&[3.0, 4.0, 12.0]), Run::default());
    let reply = reply(job);
    assert_eq!(reply.results[0].embedding, Some(Embedding::Base64(vec![0.6, 0.8])));
}

#[test]
fn the_status_says_how_many_items_have_a_result() {
    let too_long = || Err(ReplyError::new("input_too_long", "300 tokens"));
    let failed = || Err(ReplyError::new("failed", "no"));
    let expired = || Err(ReplyError::new("expired", "late"));
    assert_eq!(reply(open(Parameters::default(), vec![too_long(), too_long()])).status, Status::Failed);
    let both = |first: Result<Answer, ReplyError>, second: Result<Answer, ReplyError>| {
        let mut job = open(Parameters::default(), vec![Ok(1), Ok(1)]);
        job.answer(0, first, Run::default());
        job.answer(1, second, Run::default());
        reply(job)
    };
    assert_eq!(both(embedding_of(&[1.0]), failed()).status, Status::Partial);
    assert_eq!(both(embedding_of(&[1.0]), expired()).status, Status::Partial);
    assert_eq!(both(failed(), expired()).status, Status::Failed);
    let late = both(expired(), expired());
    assert_eq!((late.status, late.results.len()), (Status::Expired, 0));
    assert_eq!(late.error.unwrap().code, "expired");
}

#[test]
fn a_number_that_json_cannot_carry_is_an_item_error() {
    let mut job = open(Parameters::default(), vec![Ok(1)]);
    job.answer(0, embedding_of(&[f32::NAN, 1.0]), Run::default());
    let reply = reply(job);
    assert_eq!(reply.status, Status::Failed);
    assert!(reply.results[0].error.as_ref().unwrap().message.contains("not finite"));
}

#[test]
fn a_vector_of_zeros_stays_one() {
    let mut job = open(Parameters::default(), vec![Ok(1)]);
    job.answer(0, embedding_of(&[0.0, 0.0]), Run::default());
    assert_eq!(reply(job).results[0].embedding, Some(Embedding::Float(vec![0.0, 0.0])));
}
