//! `inferq setup`: the queues that belong to one jobs queue, made if they are absent.
//!
//! In: a queue's address. Out: jobs, dead letters and default results, on the broker; their names, what is in them and what
//! is still to be granted, on stdout. Running it again changes nothing.

use inferq_shared::broker::rabbitmq::QueueType;
use inferq_shared::broker::{BrokerUrl, Scheme};

use crate::connect::{connect, failed, print};
use crate::outcome::{Error, Outcome};
use crate::paint::Paint;
use crate::status::{read, table};

/// The flags of `inferq setup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The queue's address, like sqlite:///var/lib/inferq/queue.db, amqp://user:password@host/vhost?queue=jobs or
    /// pubsub://project/jobs.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: BrokerUrl,
    /// The kind of queues to declare on RabbitMQ: quorum, or classic for development [default: the address's, else quorum].
    #[arg(long, env = "INFERQ_QUEUE_TYPE", value_name = "TYPE")]
    queue_type: Option<QueueType>,
    /// Over Pub/Sub: make the subscriptions of jobs and shards exactly-once (within a region, and slower), or not. Unset: new
    /// ones are not, and others stay as they are.
    #[arg(long, env = "INFERQ_EXACTLY_ONCE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    exactly_once: Option<bool>,
    /// Over Pub/Sub: change what is there already, where it is not as setup makes it.
    #[arg(long, env = "INFERQ_UPDATE")]
    update: bool,
}

/// Runs `inferq setup`.
///
/// # Errors
/// When the broker refuses or can't be reached.
pub async fn setup(args: Args, paint: Paint) -> Result<Outcome, Error> {
    let queue = args.address()?;
    let broker = connect(&queue).await?;
    broker.setup(&queue.queues).await.map_err(|error| failed(&queue, error))?;
    let status = read(&broker, &queue).await?;
    let grants = broker.grants(&queue.queues);
    broker.close().await;
    print(&format!("ready at {queue}\n{}{}", table(&status, paint), granting(&grants)))?;
    Ok(Outcome::Done)
}

impl Args {
    /// The address with what the flags say of it.
    fn address(&self) -> Result<BrokerUrl, Error> {
        let mut queue = self.queue.clone();
        match (&mut queue.scheme, self.queue_type) {
            (Scheme::Amqp(url), Some(queue_type)) => url.queue_type = queue_type,
            (_, None) => {}
            _ => {
                let message = "--queue-type is for amqp:// addresses; other brokers have one kind";
                return Err(Error::Usage(message.to_owned()));
            }
        }
        match &mut queue.scheme {
            Scheme::PubSub(url) => (url.exactly_once, url.update) = (self.exactly_once, self.update),
            _ if self.exactly_once.is_some() || self.update => {
                let message = "--exactly-once and --update are for pubsub:// addresses";
                return Err(Error::Usage(message.to_owned()));
            }
            _ => {}
        }
        Ok(queue)
    }
}

fn granting(commands: &[String]) -> String {
    if commands.is_empty() {
        return String::new();
    }
    let why = "once, by an owner, so that Pub/Sub may move to the dead letters what was delivered too often";
    format!("\n{why}:\n{}\n", commands.join("\n"))
}
