//! NATS `JetStream`.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamError, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, stream};
use async_nats::{ConnectError, ConnectErrorKind};
use bytes::Bytes;

use super::parcel::Parcel;
use super::{Sink, SinkError};

/// Where events go in NATS.
#[derive(Clone)]
pub struct NatsConfig {
    /// `nats://[user:password@]host:port`.
    pub url: String,
    /// The stream. Created if there is none of this name; one that exists is used as it is.
    pub stream: String,
    /// The subject of the events, which the stream must hold.
    pub subject: String,
    /// How long a stream created here remembers ids. An exporter that stays away longer than that
    /// can repeat its last parcel. Default 1 h.
    pub window: Duration,
    /// Whether nobody else writes to the stream. Then the server is asked to refuse an event whose
    /// forerunner got lost, so that no failure changes the order. Default yes.
    pub sole_writer: bool,
    /// Bytes of the largest event; larger ones are dropped and counted. Keep it 1 KiB below the
    /// server's `max_payload`. Default 1 MiB less 1 KiB, which fits the server's default.
    pub max_event: usize,
}

impl NatsConfig {
    /// This stream and subject, and the defaults.
    pub fn new(url: &str, stream: &str, subject: &str) -> Self {
        Self {
            url: url.to_owned(),
            stream: stream.to_owned(),
            subject: subject.to_owned(),
            window: Duration::from_hours(1),
            sole_writer: true,
            max_event: (1 << 20) - (1 << 10),
        }
    }
}

/// Publishes events to a `JetStream` stream, each with its id as `Nats-Msg-Id`: within its window the
/// stream keeps one of those that come twice.
pub struct NatsSink {
    config: NatsConfig,
    context: Option<Context>,
}

impl NatsSink {
    /// Connects with the first parcel.
    pub fn new(config: NatsConfig) -> Self {
        Self {
            config,
            context: None,
        }
    }

    async fn connect(&self) -> Result<Context, SinkError> {
        let client = async_nats::connect(&self.config.url).await;
        let context = jetstream::new(client.map_err(not_connected)?);
        let wanted = stream::Config {
            name: self.config.stream.clone(),
            subjects: vec![self.config.subject.clone()],
            duplicate_window: self.config.window,
            ..stream::Config::default()
        };
        let created = context.get_or_create_stream(wanted).await;
        created.map_err(|error: CreateStreamError| SinkError::Transient(error.into()))?;
        Ok(context)
    }

    /// Publishes all, then waits for all answers.
    async fn publish(&self, context: &Context, parcel: &Parcel) -> Result<(), PublishError> {
        let mut answers = Vec::with_capacity(parcel.len());
        let mut last: Option<String> = None;
        for (id, payload) in parcel.iter() {
            let mut message = PublishMessage::build()
                .payload(Bytes::copy_from_slice(payload))
                .message_id(&id);
            if let Some(last) = last.filter(|_| self.config.sole_writer) {
                message = message.expected_last_message_id(last);
            }
            answers.push(
                context
                    .send_publish(self.config.subject.clone(), message)
                    .await?,
            );
            last = Some(id);
        }
        for answer in answers {
            answer.await?;
        }
        Ok(())
    }
}

impl Sink for NatsSink {
    async fn send(&mut self, parcel: &Parcel) -> Result<(), SinkError> {
        // Taken out: after a failure, what the client still has on its way shall not mix with the
        // next attempt.
        let context = match self.context.take() {
            Some(context) => context,
            None => self.connect().await?,
        };
        self.publish(&context, parcel)
            .await
            .map_err(not_published)?;
        self.context = Some(context);
        Ok(())
    }

    fn max_event(&self) -> usize {
        self.config.max_event
    }
}

impl fmt::Debug for NatsSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NatsSink").field(&self.config).finish()
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("NatsConfig")
            .field("stream", &self.stream)
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

fn not_connected(error: ConnectError) -> SinkError {
    match error.kind() {
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Authentication
        | ConnectErrorKind::AuthorizationViolation
        | ConnectErrorKind::Tls => SinkError::Fatal(error.into()),
        _ => SinkError::Transient(error.into()),
    }
}

fn not_published(error: PublishError) -> SinkError {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => SinkError::Fatal(error.into()),
        _ => SinkError::Transient(error.into()),
    }
}
