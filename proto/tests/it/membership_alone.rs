//! What one membership machine does, fed by hand.

use std::time::Duration;

use meshwork_proto::membership::{
    Action, Input, Key, Liveness, Membership, MembershipConfig, Message, Moment, Outcome,
    renewal_ttl,
};

use crate::membership_harness::{Facts, Seeded, ms};

/// One machine, fed by hand.
struct Alone {
    machine: Membership<u32>,
    facts: Facts,
    chance: Seeded,
    now: Moment,
}

impl Alone {
    /// Its neighbours are 1 to `neighbours`; it knows as many more nodes.
    fn with(neighbours: u32) -> Self {
        let mut chance = Seeded(1);
        let config = MembershipConfig::default();
        let mut alone = Self {
            machine: Membership::new(0, config, Vec::new(), Moment::ZERO, &mut chance),
            facts: Facts::new(0),
            chance,
            now: Moment::ZERO,
        };
        for peer in 1..=neighbours * 2 {
            alone.facts.accept(Key::Node(peer), 1, 1);
        }
        for peer in 1..=neighbours {
            alone.handle(Input::LinkUp { peer });
            alone.hear(peer, Message::Neighbor { urgent: false });
        }
        alone
    }

    fn handle(&mut self, input: Input<u32>) -> Vec<Action<u32>> {
        let mut out = Vec::new();
        self.machine
            .handle(self.now, input, &self.facts, &mut self.chance, &mut out);
        out
    }

    fn hear(&mut self, from: u32, message: Message<u32>) -> Vec<Action<u32>> {
        self.handle(Input::Message { from, message })
    }

    fn heard(&mut self, from: u32, key: Key<u32>, version: u64) -> Vec<Action<u32>> {
        let outcome = self.facts.accept(key, version, 1);
        self.handle(Input::Heard {
            from,
            key,
            version,
            outcome,
        })
    }

    /// Runs its timers; everybody but `silent` answers.
    fn pass(&mut self, time: Duration, silent: &[u32]) -> Vec<Action<u32>> {
        let (end, mut all) = (self.now + time, Vec::new());
        while self.machine.next_timer() <= end {
            self.now = self.machine.next_timer();
            for action in self.handle(Input::Timer) {
                if let Action::Send {
                    to,
                    message: Message::Ping { seq, .. },
                } = &action
                    && !silent.contains(to)
                {
                    all.extend(self.hear(*to, Message::Ack { seq: *seq }));
                }
                all.push(action);
            }
        }
        self.now = end;
        all
    }
}

#[test]
fn a_ping_is_answered_with_nothing_else() {
    let mut alone = Alone::with(4);
    let ping = Message::Ping {
        seq: 9,
        version_of_you: 1,
    };
    let answer = Action::Send {
        to: 2,
        message: Message::Ack { seq: 9 },
    };
    assert_eq!(alone.hear(2, ping), [answer]);
}

#[test]
fn an_outdated_neighbour_is_told_the_news() {
    let mut alone = Alone::with(4);
    alone.pass(ms(5_000), &[]);
    let ping = Message::Ping {
        seq: 9,
        version_of_you: 0,
    };
    let news = Action::Tell {
        to: 2,
        key: Key::Node(0),
    };
    assert!(alone.hear(2, ping).contains(&news));
}

#[test]
fn silence_is_asked_about_before_it_is_blamed() {
    let mut alone = Alone::with(5);
    let actions = alone.pass(ms(10_000), &[3]);
    let at = |wanted: fn(&Action<u32>) -> bool| actions.iter().position(wanted);
    let asked = at(|action| {
        let Action::Send {
            to,
            message: Message::PingRequest { target: 3, .. },
        } = action
        else {
            return false;
        };
        *to != 3
    });
    let accused = at(|action| {
        matches!(
            action,
            Action::Accuse {
                accused: 3,
                version: 1
            }
        )
    });
    assert!(asked.unwrap() < accused.unwrap());
    let others =
        |action: &&Action<u32>| matches!(action, Action::Accuse { accused, .. } if *accused != 3);
    assert_eq!(actions.iter().filter(others).count(), 0);
}

#[test]
fn silence_of_all_is_blamed_on_nobody() {
    let mut alone = Alone::with(5);
    let actions = alone.pass(ms(20_000), &[1, 2, 3, 4, 5]);
    let accused = actions
        .iter()
        .filter(|action| matches!(action, Action::Accuse { .. }));
    assert_eq!(accused.count(), 0);
    assert!(alone.machine.health() > 0);
}

fn accuses(actions: &[Action<u32>], whom: u32) -> bool {
    let accusation =
        |action: &Action<u32>| matches!(action, Action::Accuse { accused, .. } if *accused == whom);
    actions.iter().any(accusation)
}

#[test]
fn after_a_stall_it_objects_before_it_hears_of_an_accusation() {
    let ping = |seq| Message::Ping {
        seq,
        version_of_you: 1,
    };
    let mut alone = Alone::with(5);
    alone.pass(ms(2_000), &[]);
    alone.now = alone.machine.next_timer() + ms(1_000);
    let short = alone.hear(1, ping(1));
    assert!(!short.contains(&Action::Refute { above: 1 }), "{short:?}");

    alone.pass(ms(2_000), &[]);
    alone.now = alone.machine.next_timer() + ms(2_000);
    let long = alone.hear(1, ping(2));
    assert_eq!(long[0], Action::Refute { above: 1 });

    let key = Key::Node(0);
    alone.facts.put(key, 2, 0);
    let actions = alone.handle(Input::Published { key });
    for to in 1..=5 {
        assert!(actions.contains(&Action::Tell { to, key }), "{actions:?}");
        // A message takes the fact along at once.
        let message = Message::Neighbor { urgent: false };
        assert!(
            actions.contains(&Action::Send { to, message }),
            "{actions:?}"
        );
    }
    alone.facts.put(key, 3, 0);
    let actions = alone.handle(Input::Published { key });
    assert!(
        actions
            .iter()
            .all(|action| matches!(action, Action::Tell { .. })),
        "{actions:?}"
    );
}

/// It waits long between two probes then, but must still see how long it stalled.
#[test]
fn a_node_in_doubt_looks_at_the_time_often() {
    let mut alone = Alone::with(5);
    for _ in 0..4 {
        alone.now = alone.machine.next_timer() + ms(5_000);
        alone.handle(Input::Timer);
    }
    assert_eq!(alone.machine.health(), 8);
    let mut steps = 0;
    while alone.machine.health() > 2 {
        let next = alone.machine.next_timer();
        assert!(next <= alone.now + ms(500), "{:?}", next.since(alone.now));
        alone.pass(next.since(alone.now), &[]);
        steps += 1;
    }
    assert!(steps > 10, "{steps}");
}

/// Passes time until the helpers are asked about `target`, which is silent.
fn ask_about(alone: &mut Alone, target: u32) {
    for _ in 0..200 {
        let actions = alone.pass(ms(50), &[target]);
        if requests(&actions, target) > 0 {
            return;
        }
    }
    panic!("the helpers are never asked");
}

fn requests(actions: &[Action<u32>], about: u32) -> usize {
    let request = |action: &&Action<u32>| match action {
        Action::Send {
            message: Message::PingRequest { target, .. },
            ..
        } => *target == about,
        _ => false,
    };
    actions.iter().filter(request).count()
}

#[test]
fn a_check_ends_when_its_target_says_something_new() {
    let accused_after = |speaks: bool| {
        let mut alone = Alone::with(5);
        ask_about(&mut alone, 3);
        if speaks {
            alone.heard(2, Key::Node(3), 2);
        }
        accuses(&alone.pass(ms(1_300), &[3]), 3)
    };
    assert!(accused_after(false));
    assert!(!accused_after(true));
}

#[test]
fn a_neighbour_that_is_heard_but_does_not_answer_gets_more_time() {
    let accused_after = |speaks: bool| {
        let mut alone = Alone::with(5);
        ask_about(&mut alone, 3);
        let asked = alone.now;
        while alone.now < asked + ms(20_000) {
            if accuses(&alone.pass(ms(100), &[3]), 3) {
                return alone.now.since(asked);
            }
            if speaks {
                alone.hear(3, Message::Neighbor { urgent: false });
            }
        }
        panic!("it is never accused");
    };
    let (silent, heard) = (accused_after(false), accused_after(true));
    assert!(silent <= ms(1_300), "{silent:?}");
    // Not for ever: perhaps it does not hear.
    assert!(heard >= ms(5_000) && heard <= ms(10_000), "{heard:?}");
}

#[test]
fn helpers_that_had_no_answer_are_asked_again() {
    let mut alone = Alone::with(5);
    let mut asked = 0;
    for _ in 0..100 {
        let actions = alone.pass(ms(50), &[3]);
        asked += requests(&actions, 3);
        if accuses(&actions, 3) {
            break;
        }
        for action in actions {
            if let Action::Send {
                to,
                message: Message::PingRequest { seq, target },
            } = action
            {
                let alive = false;
                alone.hear(to, Message::IndirectAck { seq, target, alive });
            }
        }
    }
    assert!(asked >= 9, "{asked}");
}

#[test]
fn a_pinged_suspect_is_told_what_it_is_accused_of() {
    let mut alone = Alone::with(5);
    let key = Key::Suspicion {
        accused: 9,
        accuser: 8,
    };
    alone.heard(1, key, 1);
    alone.handle(Input::LinkUp { peer: 9 });
    alone.pass(ms(1_500), &[]);
    let ping = Message::Ping {
        seq: 1,
        version_of_you: 1,
    };
    assert!(alone.hear(9, ping).contains(&Action::Tell { to: 9, key }));
}

#[test]
fn a_larger_version_refutes_and_an_accusation_of_an_older_one_does_not_count() {
    let mut alone = Alone::with(5);
    alone.heard(
        1,
        Key::Suspicion {
            accused: 9,
            accuser: 8,
        },
        1,
    );
    assert_eq!(alone.machine.liveness(&9), Liveness::Suspect);
    alone.heard(2, Key::Node(9), 2);
    assert_eq!(alone.machine.liveness(&9), Liveness::Alive);
    alone.heard(
        1,
        Key::Suspicion {
            accused: 9,
            accuser: 7,
        },
        1,
    );
    assert_eq!(alone.machine.liveness(&9), Liveness::Alive);
}

#[test]
fn the_own_death_is_objected_to_once_a_second() {
    let mut alone = Alone::with(5);
    let first = alone.heard(
        1,
        Key::Suspicion {
            accused: 0,
            accuser: 8,
        },
        1,
    );
    assert!(first.contains(&Action::Refute { above: 1 }));
    let second = alone.heard(
        1,
        Key::Suspicion {
            accused: 0,
            accuser: 7,
        },
        1,
    );
    assert!(
        !second
            .iter()
            .any(|action| matches!(action, Action::Refute { .. }))
    );
    let later = alone.pass(ms(2_500), &[]);
    assert!(
        later.contains(&Action::Refute { above: 1 }),
        "nothing was published"
    );
}

#[test]
fn an_incredible_accusation_does_not_use_the_versions_up() {
    let mut alone = Alone::with(5);
    let (key, version) = (
        Key::Suspicion {
            accused: 0,
            accuser: 8,
        },
        u64::MAX,
    );
    let outcome = Outcome::New { hops: 1 };
    let actions = alone.handle(Input::Heard {
        from: 1,
        key,
        version,
        outcome,
    });
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::Refute { .. }))
    );
}

#[test]
fn facts_flood_to_all_but_the_sender_and_not_without_end() {
    let mut alone = Alone::with(5);
    let key = Key::Node(10);
    let told = |actions: Vec<Action<u32>>| -> Vec<u32> {
        let mut to: Vec<u32> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Tell { to, key: told } if *told == key => Some(*to),
                _ => None,
            })
            .collect();
        to.sort_unstable();
        to
    };
    let outcome = |hops| Outcome::New { hops };
    let near = Input::Heard {
        from: 2,
        key,
        version: 2,
        outcome: outcome(15),
    };
    assert_eq!(told(alone.handle(near)), [1, 3, 4, 5]);
    let far = Input::Heard {
        from: 2,
        key,
        version: 3,
        outcome: outcome(16),
    };
    assert!(told(alone.handle(far)).is_empty());
    let again = Input::Heard {
        from: 3,
        key,
        version: 3,
        outcome: Outcome::Duplicate,
    };
    assert_eq!(alone.handle(again), [Action::Untell { to: 3, key }]);
}

#[test]
fn a_neighbour_that_answers_only_through_others_is_replaced() {
    let mut alone = Alone::with(5);
    for _ in 0..200 {
        let step = alone.pass(ms(100), &[3]);
        for action in step {
            if let Action::Send {
                to,
                message: Message::PingRequest { seq, target },
            } = action
            {
                let message = Message::IndirectAck {
                    seq,
                    target,
                    alive: true,
                };
                alone.hear(to, message);
            }
        }
    }
    assert!(!alone.machine.active().any(|peer| peer == 3));
    assert_eq!(alone.machine.liveness(&3), Liveness::Alive);
}

#[test]
fn an_acceptance_that_a_decline_has_overtaken_does_not_count() {
    // far-and-bursty, seed 1: it asked whether they are neighbours still, then let go.
    let mut alone = Alone::with(5);
    alone.hear(3, Message::Decline);
    let decline = Action::Send {
        to: 3,
        message: Message::Decline,
    };
    assert!(alone.hear(3, Message::Accept).contains(&decline));
    assert!(!alone.machine.active().any(|peer| peer == 3));
}

#[test]
fn asked_by_many_it_takes_in_no_more_than_it_may() {
    let mut alone = Alone::with(30);
    assert_eq!(alone.machine.active().count(), 8);
    assert!(
        alone
            .hear(20, Message::Neighbor { urgent: false })
            .contains(&Action::Send {
                to: 20,
                message: Message::Decline
            })
    );
    alone.now = alone.now + ms(2_000);
    assert!(
        alone
            .hear(20, Message::Neighbor { urgent: true })
            .contains(&Action::Send {
                to: 20,
                message: Message::Accept
            })
    );
    assert_eq!(alone.machine.active().count(), 8);
}

#[test]
fn lives_of_announcements_grow_with_the_mesh() {
    assert_eq!(renewal_ttl(0), Duration::from_mins(5));
    assert_eq!(renewal_ttl(1_000), Duration::from_mins(50));
    assert_eq!(renewal_ttl(10_000), Duration::from_mins(500));
    assert_eq!(renewal_ttl(usize::MAX), Duration::from_hours(24));
}

/// Asks the machine to look for a node that it must dial for that.
fn request(alone: &mut Alone, from: u32, seq: u32, target: u32) -> Vec<Action<u32>> {
    alone.hear(from, Message::PingRequest { seq, target })
}

#[test]
fn a_link_that_was_dialled_twice_is_given_back() {
    let mut alone = Alone::with(5);
    for seq in 1..=2 {
        assert!(request(&mut alone, 1, seq, 7).contains(&Action::Dial { peer: 7 }));
        alone.handle(Input::LinkUp { peer: 7 });
        alone.pass(ms(1_000), &[]);
        if seq == 1 {
            alone.handle(Input::LinkDown { peer: 7 });
        }
    }
    let actions = alone.pass(ms(15_000), &[]);
    assert!(actions.contains(&Action::Release { peer: 7 }));
}

/// However many nodes the neighbours want to have looked for, this node can dial for itself.
#[test]
fn errands_leave_dials_for_the_own_checks() {
    let mut alone = Alone::with(5);
    for peer in 100..400 {
        alone.facts.accept(Key::Node(peer), 1, 1);
    }
    let mut targets = 100..400;
    for seq in 0..20 {
        for (from, target) in (1..=5).zip(targets.by_ref()) {
            request(&mut alone, from, seq, target);
        }
        alone.pass(ms(500), &[]);
    }
    let actions = alone.handle(Input::LinkDown { peer: 2 });
    assert!(actions.contains(&Action::Dial { peer: 2 }), "{actions:?}");
}

/// A node that says farewell and objects to its death, again and again, would use up what others take
/// of this node's accusations.
#[test]
fn a_farewell_is_believed_once() {
    let mut alone = Alone::with(5);
    let accused = |actions: &[Action<u32>]| {
        let accusation =
            |action: &&Action<u32>| matches!(action, Action::Accuse { accused: 3, .. });
        actions.iter().filter(accusation).count()
    };
    let mut accusations = 0;
    for version in 2..10 {
        accusations += accused(&alone.hear(3, Message::Leave));
        alone.heard(3, Key::Node(3), version);
        alone.hear(3, Message::Neighbor { urgent: false });
        accusations += accused(&alone.pass(ms(1_000), &[]));
    }
    assert_eq!(accusations, 1);
    accusations += accused(&alone.pass(ms(40_000), &[]));
    accusations += accused(&alone.hear(3, Message::Leave));
    assert_eq!(accusations, 2);
}

/// The ledger keeps the smallest three of many accusers, whoever was heard first.
#[test]
fn a_suspect_with_many_accusers_is_told_of_those_that_the_ledger_keeps() {
    let mut alone = Alone::with(9);
    let accused = 15;
    for accuser in [8, 7, 6, 5, 3, 4] {
        alone.heard(2, Key::Suspicion { accused, accuser }, 1);
    }
    let actions = alone.handle(Input::LinkUp { peer: accused });
    for accuser in 3..=5 {
        let key = Key::Suspicion { accused, accuser };
        assert!(
            actions.contains(&Action::Tell { to: accused, key }),
            "{actions:?}"
        );
    }
}

#[test]
fn endless_figures_are_bounded() {
    let config = MembershipConfig {
        suspicion_min: Duration::MAX,
        suspicion_max: Duration::MAX,
        probe_timeout: Duration::MAX,
        linger: Duration::MAX,
        ..MembershipConfig::default()
    };
    let mut alone = Alone::with(5);
    alone.machine = Membership::new(0, config, Vec::new(), Moment::ZERO, &mut Seeded(1));
    for peer in 1..=5 {
        alone.handle(Input::LinkUp { peer });
        alone.hear(peer, Message::Neighbor { urgent: false });
    }
    alone.heard(
        2,
        Key::Suspicion {
            accused: 3,
            accuser: 4,
        },
        1,
    );
    alone.pass(ms(5_000), &[3]);
    assert_eq!(alone.machine.liveness(&3), Liveness::Suspect);
}
