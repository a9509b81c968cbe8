//! Generators of every message that can be written, for the property tests.

use inferq_shared::job::{
    Encoding, Input, Inputs, Item, Job, JobId, Limits, Metadata, ObjectFormat, Parameters, ParentId, ReplyTo, Shard,
};
use inferq_shared::reply::{Embedding, ItemResult, Label, Reply, ReplyError, Status, Timings, Usage};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::Value;

/// Texts, plain and awkward.
pub(super) fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[ -~]{0,40}",
        1 => any::<String>(),
        1 => Just("\u{0}\u{1f}\"\\\u{7f}\u{2028}\u{feff}\u{10ffff}".to_owned()),
        1 => Just(String::new()),
    ]
}

fn named() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 é/._-]{1,20}"
}

fn job_id() -> impl Strategy<Value = JobId> {
    "[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,127}".prop_map(|id| JobId::new(id).expect("made of allowed characters"))
}

fn number() -> impl Strategy<Value = f32> {
    use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![
        POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO,
        prop::sample::select(vec![0.0, -0.0, f32::MIN_POSITIVE, f32::MAX, f32::MIN, 1e-45, -1e-45, 0.1, 1.0 / 3.0]),
    ]
}

/// Any JSON.
pub(super) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // A whole number with a point is an integer to JSON Schema and none to us, as the schemas say.
        (proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL)
            .prop_filter("with a fraction", |number| number.fract() != 0.0)
            .prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((named(), inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let whole = vec((named(), value()), 0..4).prop_map(|pairs| pairs.into_iter().collect::<Metadata>());
    whole.prop_filter("within the limit", |map| {
        serde_json::to_vec(map).is_ok_and(|json| json.len() <= Limits::default().metadata_bytes)
    })
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        (option::of(named()), text()).prop_map(|(id, text)| Item { id, input: Input::Text(text) }),
        (text(), text()).prop_map(|(query, passage)| Item { id: None, input: Input::Pair(query, passage) }),
    ]
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let encoding = prop::sample::select(vec![Encoding::Float, Encoding::Base64]);
    (any::<bool>(), any::<bool>(), option::of(1u32..), encoding).prop_map(
        |(truncate, normalize, dimensions, encoding)| Parameters { truncate, normalize, dimensions, encoding },
    )
}

fn reply_to() -> impl Strategy<Value = ReplyTo> {
    let format = prop::sample::select(vec![ObjectFormat::Jsonl, ObjectFormat::Parquet]);
    prop_oneof![
        named().prop_map(ReplyTo::Queue),
        (named(), format).prop_map(|(prefix, format)| ReplyTo::Bucket { prefix: format!("gs://{prefix}/"), format }),
    ]
}

fn shard() -> impl Strategy<Value = Shard> {
    let parent = "[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,119}"
        .prop_map(|id| ParentId::new(JobId::new(id).expect("allowed characters")).expect("a short id"));
    let piece = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>());
    (parent, any::<u32>(), any::<u32>(), named(), any::<bool>(), piece).prop_map(
        |(parent, number, count, etag, unpacked, (from, to, line, index, items))| Shard {
            parent,
            number,
            count,
            etag,
            unpacked,
            from,
            to,
            line,
            index,
            items,
        },
    )
}

/// Any job that can be written.
pub(super) fn job() -> impl Strategy<Value = Job> {
    let inputs = prop_oneof![
        5 => vec(item(), 1..6).prop_map(Inputs::Items),
        1 => named().prop_map(Inputs::Uri),
        1 => (named(), shard()).prop_map(|(uri, shard)| Inputs::Shard { uri, shard }),
    ];
    // The years 1 to 9999: what RFC 3339 can write.
    let deadline =
        option::of((-62_135_596_800i64..253_402_200_000, 0i32..1_000_000_000).prop_map(|(seconds, nanoseconds)| {
            jiff::Timestamp::new(seconds, nanoseconds).expect("within the years 1 to 9999")
        }));
    (job_id(), option::of(named()), inputs, parameters(), option::of(reply_to()), deadline, metadata()).prop_map(
        |(id, model, inputs, parameters, reply_to, deadline, metadata)| Job {
            id,
            model,
            inputs,
            parameters,
            reply_to,
            deadline,
            metadata,
        },
    )
}

fn reply_error() -> impl Strategy<Value = ReplyError> {
    ("[a-z_]{1,20}", text()).prop_map(|(code, message)| ReplyError { code, message })
}

fn item_result() -> impl Strategy<Value = ItemResult> {
    let label = (text(), number()).prop_map(|(label, score)| Label { label, score });
    let outcome = prop_oneof![
        vec(number(), 0..20).prop_map(|values| (Some(Embedding::Float(values)), None, None)),
        vec(any::<u32>(), 0..20)
            .prop_map(|bits| { (Some(Embedding::Base64(bits.into_iter().map(f32::from_bits).collect())), None, None) }),
        vec(label, 0..4).prop_map(|labels| (None, Some(labels), None)),
        reply_error().prop_map(|error| (None, None, Some(error))),
    ];
    (text(), any::<u32>(), outcome, option::of(any::<u32>())).prop_map(
        |(id, index, (embedding, labels, error), tokens)| ItemResult { id, index, embedding, labels, error, tokens },
    )
}

/// Any reply that can be written.
pub(super) fn reply() -> impl Strategy<Value = Reply> {
    let statuses = vec![Status::Succeeded, Status::Partial, Status::Failed, Status::Rejected, Status::Expired];
    let time = || proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO;
    let timings = (time(), time(), time(), time()).prop_map(|(queued, intake, batch, engine)| Timings {
        queued,
        intake,
        batch,
        engine,
    });
    let usage = (any::<u32>(), any::<u64>()).prop_map(|(items, tokens)| Usage { items, tokens });
    let whole = (option::of(reply_error()), option::of(text()), vec(item_result(), 0..4), any::<u32>());
    (job_id(), prop::sample::select(statuses), text(), whole, usage, timings, metadata()).prop_map(
        |(id, status, name, (error, output_uri, results, attempt), usage, timings_ms, metadata)| Reply {
            version: 1,
            id,
            status,
            model: name.clone(),
            revision: format!("sha256:{name}"),
            results,
            error,
            output_uri,
            usage,
            timings_ms,
            worker: name,
            attempt,
            metadata,
        },
    )
}
