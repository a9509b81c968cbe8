//! `inferq setup`: the queues that belong to one jobs queue, made if they are absent.
//!
//! In: a queue's address. Out: jobs, dead letters and default results, on the broker; their names and what is in them,
//! on stdout. Running it again changes nothing.

use inferq_shared::broker::rabbitmq::QueueType;
use inferq_shared::broker::{BrokerUrl, Scheme};

use crate::connect::{connect, failed, print};
use crate::outcome::{Error, Outcome};
use crate::paint::Paint;
use crate::status::{read, table};

/// The flags of `inferq setup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The queue's address, like sqlite:///var/lib/inferq/queue.db or amqp://user:password@host/vhost?queue=jobs.
    #[arg(long, env = "INFERQ_QUEUE", hide_env_values = true, value_name = "URL")]
    queue: BrokerUrl,
    /// The kind of queues to declare on RabbitMQ: quorum, or classic for development [default: the address's, else quorum].
    #[arg(long, env = "INFERQ_QUEUE_TYPE", value_name = "TYPE")]
    queue_type: Option<QueueType>,
}

/// Runs `inferq setup`.
///
/// # Errors
/// When the broker refuses or can't be reached.
pub async fn setup(args: Args, paint: Paint) -> Result<Outcome, Error> {
    let mut args = args;
    if let Some(queue_type) = args.queue_type {
        let Scheme::Amqp(url) = &mut args.queue.scheme else {
            return Err(Error::Usage("--queue-type is for amqp:// addresses; other brokers have one kind".to_owned()));
        };
        url.queue_type = queue_type;
    }
    let broker = connect(&args.queue).await?;
    broker.setup(&args.queue.queues).await.map_err(|error| failed(&args.queue, error))?;
    let status = read(&broker, &args.queue).await?;
    broker.close().await;
    print(&format!("ready at {}\n{}", args.queue, table(&status, paint)))?;
    Ok(Outcome::Done)
}
