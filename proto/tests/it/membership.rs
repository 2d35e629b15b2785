//! What a mesh of membership machines does together, over links in memory.

use std::time::Duration;

use meshwork_proto::membership::{Input, Key, Ledger, Liveness, Outcome};

use crate::membership_harness::{World, ms};

const SETTLED: Duration = Duration::from_secs(20);

fn settled(count: u32, seed: u64) -> World {
    let mut world = World::acquainted(count, seed);
    world.run(SETTLED);
    world
}

fn dead_at(world: &World, of: u32) -> usize {
    let others = world.nodes.iter().filter(|(id, _)| **id != of);
    others
        .filter(|(_, node)| node.machine.liveness(&of) == Liveness::Dead)
        .count()
}

#[test]
fn views_are_symmetric_and_within_their_bounds() {
    for seed in 0..5 {
        let world = settled(40, seed);
        world.views_hold().unwrap();
        let sizes = world
            .nodes
            .values()
            .map(|node| node.machine.active().count());
        let (least, most) = sizes.fold((99, 0), |(least, most), size| {
            (size.min(least), size.max(most))
        });
        assert!(least >= 5 && most <= 8, "{least} to {most}");
    }
}

#[test]
fn in_a_small_mesh_all_are_neighbours() {
    for count in [2, 3, 8] {
        let world = settled(count, 1);
        for node in world.nodes.values() {
            assert_eq!(node.machine.active().count(), count as usize - 1);
        }
    }
}

#[test]
fn a_newcomer_with_one_link_gets_to_know_everybody() {
    let mut world = settled(12, 2);
    world.start(77, Vec::new());
    world.link(77, 3);
    world.run(SETTLED);
    assert_eq!(world.node(77).facts.nodes(), 12);
    assert!(world.node(77).machine.active().count() >= 5);
    for node in world.nodes.values() {
        assert!(node.facts.version(&Key::Node(77)).is_some());
    }
}

#[test]
fn a_node_that_dies_unnoticed_is_suspected_and_declared_by_all() {
    for loss in [0, 30] {
        let mut world = settled(30, 3);
        world.loss = loss;
        world.kill(4, false);
        world.run(ms(5_000));
        assert_eq!(
            world.since(4, Liveness::Suspect).iter().flatten().count(),
            29
        );
        world.run(ms(10_000));
        assert_eq!(dead_at(&world, 4), 29, "loss {loss}");
        assert!(world.ever(Liveness::Dead).iter().all(|(_, _, of)| *of == 4));
        assert!(
            world
                .nodes
                .values()
                .all(|node| !node.machine.active().any(|peer| peer == 4))
        );
    }
}

#[test]
fn of_two_the_survivor_declares_the_other_dead() {
    let mut world = settled(2, 4);
    world.kill(1, true);
    world.run(ms(15_000));
    assert_eq!(dead_at(&world, 1), 1);
}

#[test]
fn a_lost_link_alone_makes_nobody_suspect() {
    let mut world = settled(12, 5);
    let peer = world.node(0).machine.active().next().unwrap();
    world.input(0, Input::LinkDown { peer });
    world.input(peer, Input::LinkDown { peer: 0 });
    world.run(ms(5_000));
    assert_eq!(world.ever(Liveness::Suspect), []);
    world.views_hold().unwrap();
}

#[test]
fn a_node_that_stalls_objects_and_lives() {
    for seed in 0..10 {
        let mut world = settled(20, seed);
        world.loss = 30;
        world.stall(7, ms(5_000));
        world.run(ms(30_000));
        assert_eq!(world.ever(Liveness::Dead), [], "seed {seed}");
        assert!(
            world.node(7).machine.stats().own_refutations > 0,
            "seed {seed}"
        );
        let doubted = world
            .nodes
            .values()
            .any(|node| node.machine.suspects().any(|of| of == 7));
        assert!(!doubted, "seed {seed}");
    }
}

#[test]
fn a_node_that_stalls_again_and_again_lives() {
    for seed in 0..10 {
        let mut world = settled(20, seed);
        world.loss = 30;
        for _ in 0..4 {
            world.stall(7, ms(5_000));
            world.run(ms(5_150));
        }
        world.run(ms(30_000));
        assert_eq!(world.ever(Liveness::Dead), [], "seed {seed}");
    }
}

#[test]
fn an_observer_that_stalls_doubts_itself() {
    let mut world = settled(20, 6);
    for _ in 0..20 {
        world.stall(7, ms(4_000));
        world.run(ms(5_000));
        // The others may suspect it; it must not suspect them.
        let said = &world.node(7).statuses;
        assert_eq!(
            said.iter()
                .filter(|said| said.2 == Liveness::Suspect)
                .count(),
            0
        );
    }
    let machine = &world.node(7).machine;
    assert!(machine.health() > 0 && machine.stats().stalls >= 10);
    assert_eq!(world.ever(Liveness::Dead), []);
}

/// Puts a signed accusation into the mesh as a liar would.
fn accuse(world: &mut World, accuser: u32, accused: u32) {
    let facts = &mut world.node(accuser).facts;
    let version = facts.version(&Key::Node(accused)).unwrap();
    let key = Key::Suspicion { accused, accuser };
    if matches!(facts.accept(key, version, 0), Outcome::New { .. }) {
        world.input(accuser, Input::Published { key });
    }
}

#[test]
fn nobody_dies_on_anothers_word_alone() {
    // It answers, but can say nothing of itself: only that it is reached speaks for it.
    let mut world = settled(20, 7);
    world.node(5).mute = true;
    accuse(&mut world, 6, 5);
    world.run(Duration::from_mins(2));
    assert_eq!(dead_at(&world, 5), 0);
    assert_eq!(world.ever(Liveness::Dead), []);
}

#[test]
fn a_liar_that_accuses_everybody_kills_nobody() {
    let mut world = settled(20, 8);
    for _ in 0..60 {
        for accused in 1..20 {
            accuse(&mut world, 0, accused);
        }
        world.run(ms(1_000));
    }
    assert_eq!(world.ever(Liveness::Dead), []);
    world.run(SETTLED);
    assert!(
        world
            .nodes
            .values()
            .all(|node| node.machine.suspects().next().is_none())
    );
}

#[test]
fn a_node_alone_blames_itself_first() {
    let mut world = settled(12, 9);
    world.side.insert(3, 1);
    world.run(ms(25_000));
    assert_eq!(dead_at(&world, 3), 11);
    let lone = &world.node(3).machine;
    assert!(lone.health() > 0 && lone.stats().doubted > 0);
    assert!(world.node(3).statuses.is_empty(), "it accused others");
    world.side.clear();
    world.run(ms(10_000));
    assert_eq!(dead_at(&world, 3), 0);
    assert!(world.node(3).machine.active().count() > 0);
}

#[test]
fn a_node_that_stays_alone_gives_the_others_up() {
    let mut world = settled(5, 10);
    for id in 1..5 {
        world.kill(id, true);
    }
    world.run(Duration::from_mins(3));
    assert_eq!(world.node(0).machine.dead(), 4);
}

#[test]
fn a_node_that_leaves_is_missed_at_once() {
    let mut world = settled(12, 11);
    world.input(2, Input::Leave);
    world.run(ms(1_000));
    assert!(
        world
            .since(2, Liveness::Suspect)
            .iter()
            .all(Option::is_some)
    );
    assert_eq!(world.node(2).machine.active().count(), 0);
    world.kill(2, true);
    world.run(ms(14_000));
    assert_eq!(dead_at(&world, 2), 11);
}

#[test]
fn halves_that_were_apart_find_each_other() {
    for seed in 0..3 {
        let mut world = settled(16, seed);
        for id in 0..16 {
            world.side.insert(id, u8::from(id % 2 == 0));
        }
        world.run(Duration::from_mins(1));
        world.cut_sides();
        world.run(Duration::from_mins(2));
        assert!(world.nodes.values().all(|node| node.machine.dead() == 8));
        world.publish(0, 0);
        world.side.clear();
        world.run(ms(10_000));
        assert!(
            world.nodes.values().all(|node| node.machine.dead() == 0),
            "seed {seed}"
        );
        let summary = world.node(0).facts.summary();
        assert!(
            world
                .nodes
                .values()
                .all(|node| node.facts.summary() == summary)
        );
    }
}

#[test]
fn a_late_joiner_finds_out_itself_who_is_dead() {
    let mut world = settled(12, 12);
    world.kill(4, true);
    world.run(SETTLED);
    world.start(50, Vec::new());
    world.link(50, 0);
    world.run(ms(1_000));
    assert_eq!(world.node(50).machine.liveness(&4), Liveness::Suspect);
    world.run(SETTLED);
    assert_eq!(world.node(50).machine.liveness(&4), Liveness::Dead);
}

#[test]
fn a_node_that_lost_its_counter_gets_past_it() {
    let mut world = settled(12, 13);
    for _ in 0..7 {
        world.publish(4, 0);
    }
    world.run(SETTLED);
    world.kill(4, true);
    world.start(4, vec![1, 2, 3]);
    world.run(SETTLED);
    for (_, node) in world.nodes.iter().filter(|(id, _)| **id != 4) {
        assert!(node.facts.version(&Key::Node(4)) > Some(8));
        assert_eq!(node.machine.liveness(&4), Liveness::Alive);
    }
}

#[test]
fn a_whole_mesh_restarts_from_what_it_remembers() {
    let mut world = World::empty(14);
    for id in 0..20 {
        let met = (1..6).map(|step| (id + step * 3) % 20).collect();
        world.start(id, met);
    }
    world.run(Duration::from_mins(1));
    for node in world.nodes.values() {
        assert_eq!(node.facts.nodes(), 19);
    }
    world.views_hold().unwrap();
}

#[test]
fn a_fact_reaches_all_when_most_datagrams_and_many_packets_are_lost() {
    let mut world = settled(40, 15);
    world.loss = 30;
    world.publish(9, 0);
    world.run(ms(4_000));
    let behind = world
        .nodes
        .values()
        .filter(|node| node.facts.version(&Key::Node(9)) != Some(2));
    assert_eq!(behind.count(), 0);
}

#[test]
fn neighbours_are_replaced_but_not_at_once() {
    let mut world = settled(40, 16);
    let before: Vec<u32> = world.node(0).machine.active().collect();
    world.run(Duration::from_mins(30));
    let kept = before
        .iter()
        .filter(|peer| world.nodes[&0].machine.active().any(|held| held == **peer));
    assert!(kept.count() < before.len());
    assert_eq!(world.ever(Liveness::Suspect), []);
    let sizes = world
        .nodes
        .values()
        .map(|node| node.machine.active().count());
    assert!(sizes.clone().min() >= Some(4) && sizes.max() <= Some(8));
}
