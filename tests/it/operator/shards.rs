//! A job that was split, as an operator sees it: its shards in the queue, among the dead letters, in the bucket.
//!
//! Shards are published by hand, as a worker publishes them, so that each stands where it is looked for.

use inferq_shared::broker::{Attributes, Broker, BrokerUrl, ConsumeOptions, Message, Publisher};
use inferq_shared::job::{ObjectFormat, attribute};
use inferq_shared::manifest::part_name;
use inferq_tests::brokers::one;
use inferq_tests::endpoints::Store;
use serde_json::{Value, json};

use super::explained;
use crate::producer::{Place, inferq};

const COUNT: u32 = 5;

fn shard(number: u32, prefix: &str) -> Message {
    let id = format!("big.{number:05}");
    let body = json!({
        "version": 1, "id": id, "input_uri": "gs://bucket/texts.jsonl", "reply_to": {"uri": prefix},
        "shard": {"parent": "big", "number": number, "count": COUNT, "etag": "1", "unpacked": false,
                  "from": number * 28, "to": (number + 1) * 28, "line": number * 2 + 1, "index": number * 2, "items": 2},
    });
    let attributes = [(attribute::JOB_ID, &*id), (attribute::PARENT, "big"), (attribute::TOKENS, "7")];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Message { body: body.to_string().into(), attributes: Attributes::from(attributes) }
}

/// Publishes the shards; a worker has one, another is a dead letter, the parts of those two are absent with one more.
async fn split(place: &Place, store: &Store) -> (Broker, impl Drop) {
    let url: BrokerUrl = place.url().parse().unwrap();
    let broker = Broker::connect(&url).await.unwrap();
    let prefix = store.root.to_string();
    let shards = (0..COUNT).map(|number| shard(number, &prefix)).collect();
    broker.publisher().publish(&url.queues.shards(), shards).await.unwrap();
    let mut consumer = broker.consumer(&url.queues.shards(), ConsumeOptions::new()).await.unwrap();
    one(&mut consumer).await.unwrap().lease.dead_letter("forbidden: no leave to write").await.unwrap();
    let held = one(&mut consumer).await.unwrap();
    store.buckets.create(&part(store, 2), "{}".into(), "digest").await.unwrap();
    (broker, Held(Some((held, consumer))))
}

/// Keeps a lease until the test ends.
struct Held<T>(Option<T>);

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.0 = None;
    }
}

fn part(store: &Store, number: u32) -> inferq_shared::bucket::Uri {
    store.uri(&format!("big/{}", part_name(number, ObjectFormat::Jsonl)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_of_a_job_are_explained_and_counted() {
    let (place, store) = (Place::new(), Store::file());
    let (broker, held) = split(&place, &store).await;
    let (code, blind) = explained(&["--queue", &place.url(), "big"]);
    assert_eq!(code, 0, "{blind}");
    let verdict = "open until its shard big.00000 is redriven, a dead letter: forbidden: no leave to write";
    assert_eq!((&blind["verdict"], &blind["parts"]), (&json!(verdict), &Value::Null), "{blind}");
    assert!(blind["not_seen"].to_string().contains("say --allow-read"), "{blind}");

    let (_, seen) = explained(&["--queue", &place.url(), "--allow-read", &store.root.to_string(), "big"]);
    let shards = &seen["places"][0];
    assert_eq!(
        (&shards["what"], &shards["waiting"], &shards["leased_in_all"]),
        (&json!("shards"), &json!(3), &json!(1))
    );
    assert_eq!((&shards["leased"][0]["id"], &shards["leased"][0]["attempt"]), (&json!("big.00001"), &json!(1)));
    assert_eq!(seen["places"][1]["shard"], "big.00000", "{seen}");
    let parts = &seen["parts"];
    assert_eq!((&parts["shards"], &parts["there"], &parts["missing"]), (&json!(5), &json!(1), &json!([0, 1, 3, 4])));
    let text = inferq(&["explain", "--queue", &place.url(), "--allow-read", &store.root.to_string(), "big"]).stdout;
    for said in
        ["3 waiting, 1 leased", "big.00001 is leased", "1 part of 5 in file:///", "none yet of shard 0, 1, 3, 4"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }

    let (_, alone) = explained(&["--queue", &place.url(), "big.00003"]);
    let found = (&alone["verdict"], &alone["places"][0]["queue"], &alone["places"][0]["ahead"]);
    assert_eq!(found, (&json!("waiting for a worker"), &json!("jobs.shards"), &json!(1)), "{alone}");

    let status = inferq(&["status", "--queue", &place.url(), "--json"]).stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    let row = &status["queues"][1];
    assert_eq!((&row["role"], &row["waiting"], &row["leased"]), (&json!("shards"), &json!(3), &json!(1)), "{status}");
    assert_eq!((&row["tokens"], &status["work"]["tokens_waiting"]), (&json!(21), &json!(21)), "{status}");
    drop(held);
    broker.close().await;
}
