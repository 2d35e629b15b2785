//! Theory against packets: a naive puncher that sends to all it knows must get as far as
//! [`direct_possible`] says, and no further.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::*;
use crate::nat::{DEPENDENCES, Ports, theory::direct_possible};

/// How long both send, and how often.
const EFFORT: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_millis(100);

/// Asks the helper, tells the other, sends to all addresses of the other that are known, answers
/// what comes. Whether an answer came from where it was asked for.
async fn punch(socket: Udp, helper: Udp, other_reflexive: SocketAddr) -> bool {
    let mut known = BTreeSet::from([other_reflexive]);
    let end = Instant::now() + EFFORT;
    let mut connected = false;
    while Instant::now() < end {
        for to in &known {
            socket.send(*to, format!("ping {to}").as_bytes());
        }
        // The mapping that the other was told of lives on.
        socket.send(helper.addr(), b"keep");
        let round = Instant::now() + EVERY;
        while let Ok((from, payload)) = tokio::time::timeout_at(round, socket.receive()).await {
            known.insert(from);
            match payload.strip_prefix(b"ping ") {
                Some(asked) => socket.send(from, &[b"pong ", asked].concat()),
                None => connected |= payload == format!("pong {from}").as_bytes(),
            }
        }
    }
    connected
}

/// Whether a naive puncher connects two hosts behind these translators, in packets.
fn punched(seed: u64, a: &[NatModel], b: &[NatModel]) -> bool {
    in_net(seed, async |net| {
        let helper = public(&net, "198.51.100.1:1000");
        let a = Udp::bind(&behind(&net, "203.0.113.1", a), 7000);
        let b = Udp::bind(&behind(&net, "203.0.113.2", b), 7000);
        let seen_a = a.reach(helper.addr(), &helper).await.unwrap();
        let seen_b = b.reach(helper.addr(), &helper).await.unwrap();
        let one = tokio::spawn(punch(a, helper.clone(), seen_b));
        let other = tokio::spawn(punch(b, helper, seen_a));
        sleep(EFFORT + EVERY).await;
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        assert_eq!(one, other, "a path works both ways or not at all");
        one
    })
}

#[test]
fn packets_bear_the_theory_out_for_all_pairs() {
    let sides: Vec<Vec<NatModel>> = std::iter::once(vec![])
        .chain(NatModel::kinds().map(|model| vec![model]))
        .collect();
    let mut possible = 0;
    for (index, a) in sides.iter().enumerate() {
        for b in &sides[index..] {
            let expected = direct_possible(a, b);
            possible += usize::from(expected);
            assert_eq!(punched(1, a, b), expected, "{a:?} and {b:?}");
        }
    }
    // Of 55 pairs; a change of the theory is to be seen here.
    assert_eq!(possible, 33);
}

fn random_chain(rng: &mut StdRng) -> Vec<NatModel> {
    let levels = rng.random_range(0..=2);
    let mut pick = || DEPENDENCES[rng.random_range(0..3)];
    let models: Vec<_> = (0..levels).map(|_| NatModel::new(pick(), pick())).collect();
    let ports = [Ports::Preserve, Ports::Random, Ports::Sequential];
    let with_ports = |model: NatModel| model.ports(ports[rng.random_range(0..3)]);
    models.into_iter().map(with_ports).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn packets_bear_the_theory_out_for_chains(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (a, b) = (random_chain(&mut rng), random_chain(&mut rng));
        prop_assert_eq!(punched(seed, &a, &b), direct_possible(&a, &b), "{:?} and {:?}", a, b);
    }
}
