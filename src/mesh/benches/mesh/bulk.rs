//! One stream, one direction, as fast as it goes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use quinn::Connection;

use crate::Scale;
use crate::figures::{Series, series_in_turn};
use crate::lane::Lanes;
use crate::report::{Bar, Of, Row, Unit};
use crate::stack::{Pair, Setup, Stack};

/// Bytes of one write.
const CHUNK: usize = 1 << 20;
/// Bytes that TCP's reader and writer move at a time.
const TCP_CHUNK: usize = 64 << 10;

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let lanes = Lanes::start();
    let bytes = scale.of(1 << 30);
    let mut rows = Vec::new();
    let [noise, tls, null, tcp] = measure(scale, &lanes, 1452, bytes);
    rows.push(
        Row::new(
            "bulk.1452",
            "one stream, MTU 1,452",
            Unit::GigabytesPerSecond,
            noise.clone(),
        )
        .peer("rustls", &tls)
        .limit("loopback TCP", &tcp)
        .bar(Bar::AtLeast(1.0, Of::Peer)),
    );
    rows.push(
        Row::new(
            "bulk.1452.crypto",
            "the same, against no crypto",
            Unit::GigabytesPerSecond,
            noise,
        )
        .limit("no crypto", &null),
    );
    let [noise, tls, null, tcp] = measure(scale, &lanes, 6000, bytes);
    rows.push(
        Row::new(
            "bulk.6000",
            "one stream, MTU 6,000",
            Unit::GigabytesPerSecond,
            noise.clone(),
        )
        .peer("rustls", &tls)
        .limit("loopback TCP", &tcp)
        .bar(Bar::AtLeast(0.9, Of::Limit)),
    );
    rows.push(
        Row::new(
            "bulk.6000.crypto",
            "the same, against no crypto",
            Unit::GigabytesPerSecond,
            noise,
        )
        .limit("no crypto", &null),
    );
    rows
}

/// Noise, TLS, no crypto, TCP.
fn measure(scale: &Scale, lanes: &Lanes, mtu: u16, bytes: usize) -> [Series; 4] {
    let setup = Setup {
        mtu,
        ..Setup::default()
    };
    let links = [Stack::Noise, Stack::Tls, Stack::Null].map(|stack| Link::new(stack, lanes, setup));
    let [noise, tls, null] = &links;
    let series = series_in_turn(
        scale.rounds,
        [
            &mut || noise.rate(lanes, bytes),
            &mut || tls.rate(lanes, bytes),
            &mut || null.rate(lanes, bytes),
            &mut || tcp_rate(bytes),
        ],
    );
    for link in &links {
        let found = link.connection.stats().path.current_mtu;
        if found + 30 < mtu {
            eprintln!("bulk: a connection ended with MTU {found} instead of {mtu}");
        }
        link.pair.close();
    }
    series
}

/// A connection whose listener swallows every stream and then says so.
pub(crate) struct Link {
    pair: Pair,
    connection: Connection,
}

impl Link {
    pub(crate) fn new(stack: Stack, lanes: &Lanes, setup: Setup) -> Self {
        let pair = stack.pair(lanes, setup, swallow);
        let connection = pair.connect(lanes);
        Self { pair, connection }
    }

    /// Gigabytes a second of one stream of so many bytes.
    pub(crate) fn rate(&self, lanes: &Lanes, bytes: usize) -> f64 {
        let connection = self.connection.clone();
        let took = lanes.client.run(async move {
            let chunk = Bytes::from(vec![7; CHUNK.min(bytes)]);
            let start = Instant::now();
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            let mut left = bytes;
            while left > 0 {
                let part = chunk.slice(..left.min(chunk.len()));
                left -= part.len();
                send.write_chunk(part).await.unwrap();
            }
            send.finish().unwrap();
            let answer = recv.read_to_end(8).await.unwrap();
            assert_eq!(answer, (bytes as u64).to_be_bytes(), "all bytes arrived");
            start.elapsed()
        });
        bytes as f64 / took.as_secs_f64() / 1e9
    }
}

async fn swallow(connection: Connection) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        tokio::spawn(async move {
            let mut bytes = 0u64;
            while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
                bytes += chunk.bytes.len() as u64;
            }
            let _ = send.write_all(&bytes.to_be_bytes()).await;
            let _ = send.finish();
        });
    }
}

/// The same over a loopback TCP connection and two plain threads.
fn tcp_rate(bytes: usize) -> f64 {
    let listener = TcpListener::bind(crate::stack::LOOPBACK).unwrap();
    let addr = listener.local_addr().unwrap();
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; TCP_CHUNK];
        let mut left = bytes;
        while left > 0 {
            let read = stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the writer writes on");
            left -= read;
        }
        stream.write_all(&[1]).unwrap();
    });
    let mut stream = TcpStream::connect(addr).unwrap();
    let chunk = vec![7; TCP_CHUNK];
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = &chunk[..left.min(TCP_CHUNK)];
        stream.write_all(part).unwrap();
        left -= part.len();
    }
    stream.read_exact(&mut [0]).unwrap();
    let took = start.elapsed();
    reader.join().unwrap();
    bytes as f64 / took.as_secs_f64() / 1e9
}
