//! Outsiders: who can send to nodes, and has seen what they send, but has no key.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng, RngExt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::task::TaskTracker;

use super::{
    actor::Actor,
    log::LoudLog,
    spec::{AttackSpec, Weapon},
    stage::Stage,
};
use crate::{Delivery, Net};

/// First packets that are kept.
const MAX_FIRST: usize = 64;
/// Other datagrams that are kept: the last ones.
const MAX_OTHERS: usize = 512;
/// Both bits are set in the first byte of QUIC's long packets of ours (RFC 9000 §17.2).
const LONG: u8 = 0xc0;
/// A first packet's datagram has at least so many bytes (RFC 9000 §14.1).
const FIRST_LEN: usize = 1200;
/// Where the destination's connection id begins in a long packet, after its length.
const ID_AT: usize = 6;

/// What an attacker on the path has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Tape(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    first: Vec<(SocketAddr, Vec<u8>)>,
    others: VecDeque<(SocketAddr, Vec<u8>)>,
}

impl Tape {
    /// Records everything from now on.
    pub(super) fn record(net: &Net) -> Self {
        let tape = Self::default();
        let seen = tape.0.clone();
        net.set_hook(move |datagram| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = || (datagram.from, datagram.payload.to_vec());
            if is_first(datagram.payload) {
                if seen.first.len() < MAX_FIRST {
                    seen.first.push(entry());
                }
            } else {
                if seen.others.len() == MAX_OTHERS {
                    seen.others.pop_front();
                }
                seen.others.push_back(entry());
            }
            vec![Delivery::of(datagram.payload)]
        });
        tape
    }

    fn first(&self, chance: &mut impl Rng) -> Option<(SocketAddr, Vec<u8>)> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!seen.first.is_empty())
            .then(|| seen.first[chance.random_range(0..seen.first.len())].clone())
    }

    fn any(&self, chance: &mut impl Rng) -> Option<(SocketAddr, Vec<u8>)> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = seen.first.len() + seen.others.len();
        let pick = (all > 0).then(|| chance.random_range(0..all))?;
        Some(match pick.checked_sub(seen.first.len()) {
            Some(index) => seen.others[index].clone(),
            None => seen.first[pick].clone(),
        })
    }
}

/// Attacks each target with each weapon, at the rate that was asked. What nodes log above `debug`
/// meanwhile is measured as `logged`, and the share of targets whose counters rose as `noticed`.
pub(super) fn begin(stage: &Arc<Stage>, tasks: &TaskTracker, log: &LoudLog, attack: &AttackSpec) {
    let targets = stage.cast_all(&attack.on);
    for target in &targets {
        for weapon in attack.with.clone() {
            let (stage, target, attack) = (stage.clone(), target.clone(), attack.clone());
            tasks.spawn(async move { fire(&stage, &target, weapon, &attack).await });
        }
    }
    let (stage, log, length) = (stage.clone(), log.clone(), attack.length);
    tasks.spawn(async move {
        let before: Vec<_> = targets.iter().map(|target| strangers(target)).collect();
        log.count(true);
        sleep(length).await;
        log.count(false);
        let mut book = stage.book();
        for (target, before) in targets.iter().zip(before) {
            let rose = strangers(target) > before;
            book.measure("noticed", f64::from(u8::from(rose)));
        }
        let (count, lines) = log.heard();
        #[allow(clippy::cast_precision_loss, reason = "lines are few")]
        book.measure("logged", count as f64);
        if let Some(first) = lines.first() {
            book.note.clone_from(first);
        }
    });
}

fn strangers(target: &Actor) -> u64 {
    target.mesh().map_or(0, |mesh| {
        let status = mesh.status();
        status.strangers + status.failed_handshakes
    })
}

async fn fire(stage: &Stage, target: &Actor, weapon: Weapon, attack: &AttackSpec) {
    let Some(tape) = &stage.tape else {
        return;
    };
    let mut chance = stage.chance(&format!("{weapon:?} at {}", target.name));
    let end = Instant::now() + attack.length;
    let mut ticks = interval(Duration::from_secs(1) / attack.rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while Instant::now() < end {
        ticks.tick().await;
        let (from, payload) = shot(weapon, tape, &mut chance);
        for to in target.addrs() {
            stage.net.inject(from, to, &payload);
        }
    }
}

/// One hostile datagram and where it claims to come from.
fn shot(weapon: Weapon, tape: &Tape, chance: &mut impl Rng) -> (SocketAddr, Vec<u8>) {
    let seen = match weapon {
        Weapon::Flood => tape.first(chance),
        Weapon::Garbage => None,
        Weapon::Replay | Weapon::Truncate | Weapon::Flip => tape.any(chance),
    };
    let Some((from, mut bytes)) = seen else {
        let mut bytes = vec![0; chance.random_range(1..1400)];
        chance.fill_bytes(&mut bytes);
        return (anywhere(chance), bytes);
    };
    match weapon {
        Weapon::Flood => {
            // The header stays believable: only the connection id and all that is secret change.
            chance.fill_bytes(&mut bytes[ID_AT..ID_AT + 8]);
            chance.fill_bytes(&mut bytes[64..]);
        }
        Weapon::Truncate => bytes.truncate(chance.random_range(0..bytes.len().max(1))),
        Weapon::Flip => {
            for _ in 0..chance.random_range(1..8) {
                let at = chance.random_range(0..bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << chance.random_range(0..8);
                }
            }
        }
        Weapon::Replay | Weapon::Garbage => {}
    }
    let spoofed = weapon != Weapon::Flood && chance.random_bool(0.5);
    let from = if spoofed { from } else { anywhere(chance) };
    (from, bytes)
}

/// An address on the internet that no node has.
fn anywhere(chance: &mut impl Rng) -> SocketAddr {
    let ip: [u8; 3] = std::array::from_fn(|_| chance.random());
    SocketAddr::from((
        [66, ip[0], ip[1], ip[2]],
        chance.random_range(1024..u16::MAX),
    ))
}

fn is_first(payload: &[u8]) -> bool {
    payload.len() >= FIRST_LEN && payload[0] & LONG == LONG
}
