//! What holds of the membership machine whatever it is told.

use meshwork_proto::membership::{
    Action, BUCKETS, Input, Key, Ledger, MAX_KEYS, Membership, MembershipConfig, Message, Moment,
    Outcome,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::membership_harness::{Facts, Seeded, World, ms};

fn key() -> impl Strategy<Value = Key<u32>> {
    prop_oneof![
        4 => (0..30u32).prop_map(Key::Node),
        3 => (0..30u32, 0..30u32)
            .prop_map(|(accused, accuser)| Key::Suspicion { accused, accuser }),
        1 => any::<u8>().prop_map(|hash| Key::Revocation([hash; 32])),
        1 => Just(Key::Psk),
    ]
}

fn version() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..6u64, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn message() -> impl Strategy<Value = Message<u32>> {
    let seq = 0..200u32;
    prop_oneof![
        (seq.clone(), version()).prop_map(|(seq, version_of_you)| Message::Ping {
            seq,
            version_of_you
        }),
        seq.clone().prop_map(|seq| Message::Ack { seq }),
        (seq.clone(), 0..40u32).prop_map(|(seq, target)| Message::PingRequest { seq, target }),
        (seq, 0..40u32, any::<bool>()).prop_map(|(seq, target, alive)| Message::IndirectAck {
            seq,
            target,
            alive
        }),
        any::<bool>().prop_map(|urgent| Message::Neighbor { urgent }),
        Just(Message::Accept),
        Just(Message::Decline),
        Just(Message::Leave),
        any::<u64>().prop_map(|hash| Message::Summary { hash, count: 3 }),
        vec(any::<u64>(), 60..66).prop_map(|hashes| Message::Buckets { hashes }),
        (0..=BUCKETS, vec((key(), version()), 0..40), any::<bool>()).prop_map(
            |(bucket, mut keys, whole)| {
                keys.sort_unstable();
                Message::Keys {
                    bucket,
                    keys,
                    whole,
                }
            }
        ),
        vec(key(), 0..300).prop_map(|keys| Message::Want { keys }),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        any::<u8>().prop_map(|hops| Outcome::New { hops }),
        Just(Outcome::Duplicate),
        Just(Outcome::Old),
        Just(Outcome::Incomplete),
        Just(Outcome::Refused),
    ]
}

fn input() -> impl Strategy<Value = Input<u32>> {
    let peer = 0..40u32;
    prop_oneof![
        3 => peer.clone().prop_map(|peer| Input::LinkUp { peer }),
        1 => peer.clone().prop_map(|peer| Input::LinkDown { peer }),
        1 => peer.clone().prop_map(|peer| Input::DialFailed { peer }),
        12 => (peer.clone(), message()).prop_map(|(from, message)| Input::Message { from, message }),
        6 => (peer.clone(), key(), version(), outcome()).prop_map(|(from, key, version, outcome)| {
            Input::Heard { from, key, version, outcome }
        }),
        1 => key().prop_map(|key| Input::Published { key }),
        1 => peer.prop_map(|peer| Input::Forgotten { peer }),
        4 => Just(Input::Timer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_views_are_bounded_and_timers_get_on(
        seed in any::<u64>(),
        script in vec((input(), 0..3_000u64), 1..400),
    ) {
        let mut chance = Seeded(seed);
        let mut facts = Facts::new(0);
        for node in 1..30 {
            facts.accept(Key::Node(node), 1, 1);
        }
        let config = MembershipConfig::default();
        let mut machine = Membership::new(0, config, (0..100).collect(), Moment::ZERO, &mut chance);
        let (mut now, mut out) = (Moment::ZERO, Vec::new());
        for (input, wait) in script {
            now = now + ms(wait);
            machine.handle(now, input, &facts, &mut chance, &mut out);
            prop_assert!(machine.next_timer() > now || wait == 0 || machine.next_timer() > Moment::ZERO);
            machine.handle(now, Input::Timer, &facts, &mut chance, &mut out);
            prop_assert!(machine.next_timer() > now);
            let active: Vec<u32> = machine.active().collect();
            prop_assert!(active.len() <= 8 && !active.contains(&0), "{active:?}");
            // No input causes more than what a few full messages and a flood amount to.
            prop_assert!(out.len() < 4 * MAX_KEYS, "{} actions", out.len());
            let to_itself = out.iter().any(|action| matches!(
                action,
                Action::Dial { peer: 0 } | Action::Accuse { accused: 0, .. }
            ));
            prop_assert!(!to_itself);
            out.clear();
        }
        // Written out, which shows every list that it keeps.
        let size = format!("{machine:?}").len();
        prop_assert!(size < 64 * 1024, "{size} bytes");
    }

    #[test]
    fn repair_makes_two_ledgers_equal(
        seed in any::<u64>(),
        mine in vec((key(), 1..9u64), 0..200),
        theirs in vec((key(), 1..9u64), 0..200),
    ) {
        let mut world = World::empty(seed);
        for (id, held) in [(100, mine), (101, theirs)] {
            world.start(id, Vec::new());
            for (key, version) in held {
                world.node(id).facts.accept(key, version, 1);
            }
        }
        world.link(100, 101);
        // They go on to find out that all those nodes are gone, and say so: there is a moment
        // when neither has more to tell.
        let equal = (0..60).any(|_| {
            world.run(ms(500));
            let (a, b) = (&world.nodes[&100].facts, &world.nodes[&101].facts);
            (0..BUCKETS).all(|bucket| a.keys(bucket) == b.keys(bucket))
        });
        prop_assert!(equal);
    }
}
