//! Loops over lapin that do nothing but what a broker's client must: the measure of what our own leave of it.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};

/// Messages that may be unacked, and replies that may be unconfirmed: a worker's jobs in flight.
const WINDOW: u16 = 512;
/// Messages that may be unconfirmed where nothing but publishing goes on.
const PUBLISH_WINDOW: usize = 1_000;
/// Bytes of a reply, about as many as those of the echo engine.
const REPLY_BYTES: usize = 512;

/// A connection, and a channel of it that confirms. Both close when dropped.
pub(crate) struct Link {
    /// The channel.
    pub(crate) channel: Channel,
    _connection: Connection,
}

/// Connects.
pub(crate) async fn link(url: &str) -> Result<Link> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(Link { channel, _connection: connection })
}

/// Declares a quorum queue.
pub(crate) async fn declare(channel: &Channel, queue: &str) -> Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(queue.into(), options, arguments).await?;
    Ok(())
}

/// How many messages of a queue wait to be delivered.
pub(crate) async fn waiting(channel: &Channel, queue: &str) -> Result<usize> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count() as usize)
}

/// Publishes one message and awaits its confirm.
pub(crate) async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> Result<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(2);
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await?;
    ensure!(confirm.is_ack() && confirm.take_message().is_none(), "the broker did not take a message");
    Ok(())
}

/// Publishes this body so many times, confirms awaited in a window.
pub(crate) async fn publish_many(channel: &Channel, queue: &str, body: &[u8], count: usize) -> Result<()> {
    let published = stream::iter(0..count).map(|_| publish(channel, queue, body)).buffer_unordered(PUBLISH_WINDOW);
    published.try_collect().await
}

/// Consumes with the window.
pub(crate) async fn consume(channel: &Channel, queue: &str) -> Result<Consumer> {
    channel.basic_qos(WINDOW, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?)
}

/// Consumes so many jobs, publishes a confirmed reply to each, and acks them. Reading and publishing have a connection
/// each, as an alarm stops the reads of one that publishes.
pub(crate) async fn answer(url: &str, jobs: &str, results: &str, count: usize) -> Result<()> {
    let (reads, writes) = (link(url).await?, link(url).await?);
    let reply = vec![7; REPLY_BYTES];
    let answered = |delivery: Result<Delivery, lapin::Error>| async {
        let tag = delivery?.delivery_tag;
        publish(&writes.channel, results, &reply).await?;
        anyhow::Ok(tag)
    };
    let consumer = consume(&reads.channel, jobs).await?;
    let mut tags = consumer.take(count).map(answered).buffered(WINDOW.into()).ready_chunks(WINDOW.into());
    while let Some(chunk) = tags.next().await {
        let last = chunk.into_iter().collect::<Result<Vec<_>>>()?.pop().context("a chunk has something in it")?;
        reads.channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
    }
    Ok(())
}
