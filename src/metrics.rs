//! What a node counts, for Prometheus: one page of text at `/metrics`, off unless `metrics` in
//! `config.toml` names an address.
//!
//! The page is made anew from the node's own status at each request, so nothing is counted twice and
//! nobody has to clean up after peers that left. `docs/metrics.md` explains the names.

mod sheet;
#[cfg(test)]
pub(crate) mod tests;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use meshwork_proto::mesh::MeshStatus;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use sheet::render;

/// Requests answered at a time; one scraper needs one.
const MAX_REQUESTS: usize = 8;
/// Time for a client to send its request line and headers.
const HEADERS: Duration = Duration::from_secs(5);
/// Time for a whole exchange: a client that does not read is let go.
const EXCHANGE: Duration = Duration::from_secs(15);

/// Tells how the node stands now.
pub(crate) type Source = Arc<dyn Fn() -> MeshStatus + Send + Sync>;

/// The page, being served.
#[derive(Debug)]
pub(crate) struct Page {
    /// Where.
    pub address: SocketAddr,
    listener: TcpListener,
}

impl Page {
    /// Listens at `address`; port 0 is any free one.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { address, listener })
    }

    /// Answers until `stopped` says so; then what is being answered ends with this future.
    pub(crate) async fn serve(self, source: Source, mut stopped: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(MAX_REQUESTS));
        let mut exchanges = JoinSet::new();
        let answering = async {
            loop {
                let free = room.clone().acquire_owned().await;
                let free = free.expect("nobody closes it");
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let source = source.clone();
                        exchanges.spawn(async move {
                            exchange(stream, source).await;
                            drop(free);
                        });
                    }
                    // Out of file descriptors, or a client that gave up.
                    Err(error) => {
                        tracing::debug!(%error, "no scraper");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                while exchanges.try_join_next().is_some() {}
            }
        };
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => {}
            () = answering => {}
        }
    }
}

/// Answers one client.
async fn exchange(stream: tokio::net::TcpStream, source: Source) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &source);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(EXCHANGE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a scraper broke off"),
        Err(_) => tracing::debug!("a scraper was too slow"),
    }
}

fn answer<B>(request: &Request<B>, source: &Source) -> Response<Full<Bytes>> {
    let text = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, "only /metrics is here\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        let methods = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, methods);
        return response;
    }
    let mut response = Response::new(Full::from(render(&source())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
