//! Redis Streams.

use std::fmt;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError};

use super::parcel::Parcel;
use super::{Sink, SinkError};

/// Where events go in Redis.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host:port/[database]`, or `unix:///path/of/the/socket`. TLS
    /// (`rediss://`) is not built in.
    pub url: String,
    /// The key of the stream.
    pub stream: String,
    /// Entries that the stream keeps, about; the oldest go. Default none: all are kept.
    pub max_len: Option<usize>,
}

/// A URL by which no Redis can be reached. Its text is not repeated: it may hold a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisUrlError {
    /// Not of the form.
    #[error("this is no URL of a Redis: write redis://[user:password@]host:port/[database]")]
    NoUrl,
    /// A part of it cannot be.
    #[error("a part of the URL of the Redis is wrong")]
    Part(#[source] RedisError),
    /// It asks for TLS, and must not be answered with less.
    #[error(
        "rediss:// asks for TLS, which is not built in: use redis:// on this machine, or through a \
         tunnel that encrypts (stunnel, WireGuard)"
    )]
    Tls,
}

/// Adds events to one Redis stream, a parcel in one transaction. An entry has the fields `dedup_id`
/// and `d`, the payload.
///
/// Redis keeps what it is given: when an answer gets lost, the parcel is in the stream twice, with the
/// same ids, and readers tell by [`crate::bus::RedisStreamDedup`].
pub struct RedisSink {
    client: redis::Client,
    config: RedisConfig,
    connection: Option<MultiplexedConnection>,
}

impl RedisSink {
    /// Connects with the first parcel.
    pub fn new(config: RedisConfig) -> Result<Self, RedisUrlError> {
        let url = redis::parse_redis_url(&config.url).ok_or(RedisUrlError::NoUrl)?;
        if matches!(url.scheme(), "rediss" | "valkeys") {
            return Err(RedisUrlError::Tls);
        }
        let client = redis::Client::open(url).map_err(RedisUrlError::Part)?;
        Ok(Self {
            client,
            config,
            connection: None,
        })
    }

    fn transaction(&self, parcel: &Parcel) -> redis::Pipeline {
        let mut pipe = redis::pipe();
        pipe.atomic();
        for (id, payload) in parcel.iter() {
            let command = pipe.cmd("XADD").arg(&self.config.stream);
            if let Some(max_len) = self.config.max_len {
                command.arg("MAXLEN").arg("~").arg(max_len);
            }
            command
                .arg("*")
                .arg("dedup_id")
                .arg(id)
                .arg("d")
                .arg(payload)
                .ignore();
        }
        pipe
    }
}

impl Sink for RedisSink {
    async fn send(&mut self, parcel: &Parcel) -> Result<(), SinkError> {
        // Taken out: a connection that fails, or whose answer nobody awaits any more, is not used again.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self
                .client
                .get_multiplexed_async_connection()
                .await
                .map_err(failed)?,
        };
        let transaction = self.transaction(parcel);
        transaction
            .query_async::<()>(&mut connection)
            .await
            .map_err(failed)?;
        self.connection = Some(connection);
        Ok(())
    }
}

impl fmt::Debug for RedisSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisSink")
            .field("stream", &self.config.stream)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("stream", &self.stream)
            .field("max_len", &self.max_len)
            .finish_non_exhaustive()
    }
}

/// What somebody must put right is fatal; everything else may pass.
fn failed(error: RedisError) -> SinkError {
    let config = matches!(
        error.kind(),
        ErrorKind::InvalidClientConfig | ErrorKind::AuthenticationFailed
    );
    // The server's own words; of a transaction, about each command that failed.
    let said = error.clone().into_server_errors();
    let mut codes = said
        .iter()
        .flat_map(|errors| errors.iter())
        .map(|(_, error)| error.code());
    if config || codes.any(|code| FATAL.contains(&code)) {
        SinkError::Fatal(error.into())
    } else {
        SinkError::Transient(error.into())
    }
}

/// Not a stream; not logged in, or not rightly; not allowed.
const FATAL: [&str; 4] = ["WRONGTYPE", "NOAUTH", "WRONGPASS", "NOPERM"];
