//! Google's own client, without anything of ours: what tests ask of an emulator directly, and what benchmarks measure
//! against.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use futures_util::Stream;
use futures_util::stream::unfold;
use google_cloud_auth::credentials::{Credentials, anonymous};
use google_cloud_pubsub::client::{Publisher, Subscriber, SubscriptionAdmin, TopicAdmin};
use google_cloud_pubsub::model::Message;
use google_cloud_pubsub::subscriber::handler::Handler;

/// The longest that Pub/Sub lets anybody hold a message without a word.
const LEASE: Duration = Duration::from_secs(600);

/// A connection to one project.
pub struct Client {
    project: String,
    endpoint: String,
    topics: TopicAdmin,
    subscriptions: SubscriptionAdmin,
    subscriber: Subscriber,
}

impl Client {
    /// Connects to a project of the emulator at this address.
    ///
    /// # Errors
    /// When the client can't be made.
    pub async fn connect(address: SocketAddr, project: &str) -> Result<Self> {
        let endpoint = format!("http://{address}");
        let topics = TopicAdmin::builder().with_endpoint(&endpoint).with_credentials(nobody()).build().await?;
        let subscriptions =
            SubscriptionAdmin::builder().with_endpoint(&endpoint).with_credentials(nobody()).build().await?;
        let subscriber = Subscriber::builder().with_endpoint(&endpoint).with_credentials(nobody()).build().await?;
        Ok(Self { project: project.to_owned(), endpoint, topics, subscriptions, subscriber })
    }

    /// Makes a topic and a subscription of one name.
    ///
    /// # Errors
    /// When there is one already.
    pub async fn declare(&self, name: &str) -> Result<()> {
        self.topics.create_topic().set_name(self.topic(name)).send().await?;
        let subscription = self.subscriptions.create_subscription().set_name(self.subscription(name));
        subscription.set_topic(self.topic(name)).set_ack_deadline_seconds(LEASE.as_secs() as i32).send().await?;
        Ok(())
    }

    /// A publisher to a topic, with the client's own batches.
    ///
    /// # Errors
    /// When the client can't be made.
    pub async fn publisher(&self, topic: &str) -> Result<Publisher> {
        let builder = Publisher::builder(self.topic(topic));
        Ok(builder.with_endpoint(&self.endpoint).with_credentials(nobody()).build().await?)
    }

    /// Messages of a subscription as they come on a stream, with what settles them.
    pub fn stream(&self, subscription: &str) -> impl Stream<Item = Result<(Message, Handler)>> + use<> {
        let subscribe = self.subscriber.subscribe(self.subscription(subscription));
        let messages = subscribe.set_max_lease_extension(LEASE).build();
        unfold(messages, |mut messages| async move { Some((messages.next().await?.map_err(Into::into), messages)) })
    }

    fn topic(&self, name: &str) -> String {
        format!("projects/{}/topics/{name}", self.project)
    }

    fn subscription(&self, name: &str) -> String {
        format!("projects/{}/subscriptions/{name}", self.project)
    }
}

fn nobody() -> Credentials {
    anonymous::Builder::new().build()
}
