//! What a stranger's first packet costs us.
//!
//! Packets of diallers who do not belong here are recorded, then replayed to fresh listeners. With TLS
//! anybody's first packet starts a handshake; ours must open under the PSK first.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::Scale;
use crate::figures::series_in_turn;
use crate::lane::Lanes;
use crate::meter::thread_cpu;
use crate::report::{Bar, Of, Row, Unit};
use crate::stack::{CLIENT, End, LOOPBACK, SERVER, Setup, Stack};

/// Packets sent before waiting for the listener, so that its socket does not overflow.
const BURST: usize = 50;
/// Longest wait for a packet.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the stranger believes to be the secret.
const WRONG: Setup = Setup {
    mtu: 1452,
    psk: [8; 32],
};

pub(crate) fn rows(scale: &Scale) -> Vec<Row> {
    let lanes = Lanes::start();
    let count = scale.of(400);
    let ours = record(&lanes, Stack::Noise, count);
    let tls = record(&lanes, Stack::Tls, count);
    let [noise, rustls, bare] = series_in_turn(
        scale.rounds,
        [
            &mut || cost(&lanes, Stack::Noise, &ours),
            &mut || cost(&lanes, Stack::Tls, &tls),
            &mut || bare_cost(&ours),
        ],
    );
    vec![
        Row::new(
            "stranger.cpu",
            "a stranger's first packet, our CPU",
            Unit::Micros,
            noise,
        )
        .peer("rustls", &rustls)
        .limit("recv alone", &bare)
        .bar(Bar::AtMost(10.0, Of::One)),
    ]
}

/// First packets of strangers, each of another attempt.
fn record(lanes: &Lanes, stack: Stack, count: usize) -> Vec<Vec<u8>> {
    let stranger = lanes
        .client
        .run(async move { stack.bind(WRONG, CLIENT, SERVER) });
    // All traps stay until the end: a new one must not catch what an earlier attempt still sends.
    let traps: Vec<UdpSocket> = (0..count)
        .map(|_| UdpSocket::bind(LOOPBACK).unwrap())
        .collect();
    let packets = traps.iter().map(|trap| {
        let addr = trap.local_addr().unwrap();
        let dialler = stranger.clone();
        let attempt = lanes
            .client
            .runtime
            .spawn(async move { dialler.try_connect(addr).await });
        let mut packet = vec![0; 2048];
        trap.set_read_timeout(Some(PATIENCE)).unwrap();
        let (length, _) = trap.recv_from(&mut packet).unwrap();
        attempt.abort();
        packet.truncate(length);
        packet
    });
    let packets = packets.collect();
    stranger.close();
    packets
}

/// Microseconds of the listener's thread for each packet.
fn cost(lanes: &Lanes, stack: Stack, packets: &[Vec<u8>]) -> f64 {
    let accepted = Arc::new(AtomicU64::new(0));
    let counter = accepted.clone();
    let server = lanes.server.run(async move {
        let server = stack.bind(Setup::default(), SERVER, CLIENT);
        let listener = server.clone();
        tokio::spawn(async move {
            while let Some(attempt) = listener.accept().await {
                tokio::spawn(async move { drop(attempt.complete().await) });
                counter.fetch_add(1, Relaxed);
            }
        });
        server
    });
    let handled = || match &server {
        End::Ours(end, _) => end.stats().unknown_initials,
        End::Tls(_) => accepted.load(Relaxed),
    };
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    let before = lanes.server.run(async { thread_cpu() });
    for (burst, packets) in packets.chunks(BURST).enumerate() {
        for packet in packets {
            socket.send_to(packet, server.addr()).unwrap();
        }
        let sent = burst * BURST + packets.len();
        let start = Instant::now();
        while handled() < sent as u64 {
            assert!(
                start.elapsed() < PATIENCE,
                "{} of {sent} packets handled",
                handled()
            );
            thread::sleep(Duration::from_micros(200));
        }
    }
    let spent = lanes.server.run(async { thread_cpu() }) - before;
    server.close();
    spent / packets.len() as f64
}

/// Microseconds for each packet of a thread that does nothing but receive.
fn bare_cost(packets: &[Vec<u8>]) -> f64 {
    let receiver = UdpSocket::bind(LOOPBACK).unwrap();
    let addr = receiver.local_addr().unwrap();
    let count = packets.len();
    let thread = thread::spawn(move || {
        let mut packet = [0; 2048];
        let before = thread_cpu();
        for _ in 0..count {
            receiver.recv_from(&mut packet).unwrap();
        }
        thread_cpu() - before
    });
    let sender = UdpSocket::bind(LOOPBACK).unwrap();
    for packets in packets.chunks(BURST) {
        for packet in packets {
            sender.send_to(packet, addr).unwrap();
        }
        thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap() / count as f64
}
