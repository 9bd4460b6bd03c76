//! The peer's second half: a Kafka producer that sends what mosquitto_sub prints, and keeps nothing.

use std::io::{BufRead as _, stdin};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

use crate::message::KAFKA_TOPIC;

/// Sends each line until there are no more. As safe as a producer alone can be: idempotent, and nothing timed out.
pub(crate) fn run(brokers: &str) -> Result<()> {
    let producer: BaseProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("compression.codec", "lz4")
        .set("linger.ms", "5")
        .create()
        .context("making a producer")?;
    let mut input = stdin().lock();
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).context("reading messages")? > 0 {
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if let Some(blank) = text.iter().position(|byte| *byte == b' ') {
            let (topic, payload) = (&text[..blank], &text[blank + 1..]);
            loop {
                match producer.send(BaseRecord::to(KAFKA_TOPIC).key(topic).payload(payload)) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                        producer.poll(Duration::from_millis(1));
                    }
                    Err((error, _)) => bail!("a message was not taken: {error}"),
                }
            }
            producer.poll(Duration::ZERO);
        }
        line.clear();
    }
    producer.flush(Duration::from_secs(30)).context("sending the last messages")
}
