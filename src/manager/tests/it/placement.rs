//! Which node is chosen, what is free between two heartbeats, and what people are told when
//! nothing fits.

use meshwork_identity::{Limits, Scope};
use meshwork_proto::announcement::Role;
use meshwork_proto::manager::{
    self as api, CreateSession, FindNodes, ListNodes, NodeState, STATUS_NOT_PLACED,
};
use meshwork_proto::rpc::{RpcError, Status};
use meshwork_proto::session::{SessionSpec, SessionState};
use meshwork_proto::slots::Resources;

use crate::agent::GB;
use crate::world::{World, gpu_spec, seal, spec};

#[tokio::test(start_paused = true)]
async fn two_orders_for_the_last_gpu_one_is_placed() {
    let (world, [agent]) = World::with_agents([1]).await;
    let (one, two) = tokio::join!(world.run(gpu_spec("1")), world.run(gpu_spec("1")));
    let error = [one, two]
        .into_iter()
        .filter_map(Result::err)
        .collect::<Vec<_>>();
    assert_eq!(error.len(), 1);
    assert_eq!(error[0].status, Status::App(STATUS_NOT_PLACED));
    assert_eq!(agent.living().len(), 1);
    assert_eq!(
        agent.called("kernel.create"),
        1,
        "the second was never sent"
    );
    assert_eq!(
        world.list(&world.user).await.len(),
        1,
        "the refusal was told, not listed"
    );
}

#[tokio::test(start_paused = true)]
async fn two_orders_spread_over_two_gpus_on_two_nodes() {
    let (world, [first, second]) = World::with_agents([1, 1]).await;
    let (one, two) = tokio::join!(world.run(gpu_spec("1")), world.run(gpu_spec("1")));
    assert_ne!(one.unwrap().view.node, two.unwrap().view.node);
    assert_eq!((first.living().len(), second.living().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_ended_is_free_before_the_next_heartbeat() {
    let (world, [agent]) = World::with_agents([1]).await;
    for _ in 0..3 {
        let id = world.run(gpu_spec("1")).await.unwrap().view.session;
        world.pass(6).await;
        assert!(
            world.run(gpu_spec("1")).await.is_err(),
            "the last heartbeat tells of it"
        );
        agent.exit(id, 0);
        world.pass(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_is_free_before_the_next_heartbeat() {
    let (world, [agent]) = World::with_agents([1]).await;
    let all = || {
        let mut spec = gpu_spec("1");
        spec.kernel.resources.cpu_millis = 8_000;
        spec.kernel.resources.mem = 32 * GB;
        world.run(spec)
    };
    for seconds in 5..15 {
        let id = all().await.unwrap().view.session;
        // Heartbeats tell of it.
        world.pass(seconds).await;
        agent.exit(id, 0);
        world.blink().await;
        world.remove(id).await.unwrap();
        world.blink().await;
        assert!(agent.remembered().is_empty());
    }
    all().await.unwrap();
    assert!(all().await.is_err(), "no more is free than there is");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_covers_no_node_is_denied_not_unplaced() {
    let (world, [first, _second]) = World::with_agents([1, 1]).await;
    let user = world.add_user_for(9, "manager/*");
    let order = world.order(gpu_spec("1"));
    let error = world.submit(&user, &order).await.unwrap_err();
    assert_eq!(
        (error.status, error.reason.as_str()),
        (Status::Denied, "wrong_resource")
    );
    insta::assert_snapshot!(error.message, @"your token covers `manager/*`, not `agent/kernel.create`, which excludes all 2 nodes that could run this");
    assert_eq!(
        error.fix.unwrap(),
        "ask whoever issued the token for one that covers `agent/kernel.create` on a node as well, such as `*`"
    );
    let limits = Limits {
        node_tags: "tag-nix".parse().unwrap(),
        ..Limits::none()
    };
    let user = world.add_user(10, [Scope::Call], limits);
    let spec = SessionSpec {
        place: Some("tags has \"tag-n100\"".into()),
        ..gpu_spec("1")
    };
    let error = world.submit(&user, &world.order(spec)).await.unwrap_err();
    assert_eq!(
        (error.status, error.reason.as_str()),
        (Status::Denied, "limits")
    );
    insta::assert_snapshot!(error.message, @"your token allows only nodes tagged tag-nix, which excludes the only node that could run this");
    assert!(first.living().is_empty());
    assert!(world.list(&user).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn more_than_the_tokens_limits_is_denied_with_the_limits_name() {
    let (world, [_agent]) = World::with_agents([2]).await;
    let limits = Limits {
        gpus: Some(1),
        cpu_millis: Some(500),
        mem_bytes: Some(GB),
        ..Limits::none()
    };
    let user = world.add_user(9, [Scope::Call], limits);
    let small = Resources {
        cpu_millis: 100,
        mem: GB / 2,
        ..Resources::default()
    };
    let (mut cpu, mut mem) = (small.clone(), small.clone());
    cpu.cpu_millis = 2_000;
    mem.mem = 2 * GB;
    let gpu = Resources {
        gpu: Some("2".parse().unwrap()),
        ..small
    };
    for (resources, fix) in [
        (
            gpu,
            "ask for at most 1 gpu, or ask whoever issued the token for a higher gpu limit",
        ),
        (
            cpu,
            "ask for at most 0.5 cpu, or ask whoever issued the token for a higher cpu limit",
        ),
        (
            mem,
            "ask for at most 1GB of memory, or ask whoever issued the token for a higher memory limit",
        ),
    ] {
        let error = world
            .submit(&user, &world.order(spec(resources)))
            .await
            .unwrap_err();
        assert_eq!(
            (error.status, error.reason.as_str(), error.fix.as_deref()),
            (Status::Denied, "limits", Some(fix))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_room_after_all_passes_the_order_on() {
    let (world, [first, second]) = World::with_agents([2, 1]).await;
    first.faults().refuse = 1;
    let created = world.run(gpu_spec("1")).await.unwrap();
    assert_eq!(created.view.node, second.node);
    assert_eq!(created.plan, "n101 GPU 0 (A100 80GB, 79GB free)");
    world.settle().await;
    assert_eq!(
        world.view(created.view.session).await.state,
        SessionState::Running
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_are_itemised() {
    let (world, [small, busy, lost]) = World::with_agents([0, 1, 1]).await;
    busy.faults().refuse = 1;
    lost.set_unreachable(true);
    world.pass(20).await;
    let outside = world.add_agent(120, 8);
    world.settle().await;
    let spec = SessionSpec {
        place: Some("not tags has \"tag-n120\"".into()),
        ..gpu_spec("40GB..")
    };
    let order = world.order(spec);
    let error = world.submit(&world.user, &order).await.unwrap_err();
    assert_eq!(error.reason, "not_placed");
    let mut text = error.message.clone();
    for agent in [&small, &busy, &lost] {
        text = text.replace(&agent.node.short(), "<id>");
    }
    insta::assert_snapshot!(text);
    assert!(outside.living().is_empty());
    assert!(world.list(&world.user).await.is_empty());
    // The same order may be sent again when something has changed.
    let again = world.submit(&world.user, &order).await.unwrap();
    assert_eq!(again.view.node, busy.node);
}

#[tokio::test(start_paused = true)]
async fn an_empty_mesh_says_so() {
    let world = World::new().await;
    let error = world.run(spec(Resources::default())).await.unwrap_err();
    insta::assert_snapshot!(error.message, @r"
    no node fits now
    * no agent is known
    ");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_query_shows_where() {
    let (world, [_agent]) = World::with_agents([0]).await;
    let spec = SessionSpec {
        place: Some("gpu.vram >> 3".into()),
        ..spec(Resources::default())
    };
    let error = world.run(spec).await.unwrap_err();
    assert_eq!(
        (error.status, error.reason.as_str()),
        (Status::Invalid, "query")
    );
    assert!(error.message.contains('^'), "{}", error.message);
    let request = ListNodes {
        query: Some("gpu.vram >> 3".into()),
    };
    assert_eq!(
        world
            .call::<api::Nodes>(&world.user, &request)
            .await
            .unwrap_err()
            .reason,
        "query"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_plans_and_starts_nothing() {
    let (world, [agent]) = World::with_agents([1]).await;
    let order = world.order(gpu_spec("1"));
    let request = CreateSession {
        warrant: seal(&world.user, &order),
        dry_run: true,
    };
    let planned = world
        .call::<api::Create>(&world.user, &request)
        .await
        .unwrap();
    assert_eq!(planned.plan, "n100 GPU 0 (A100 80GB, 79GB free)");
    world.settle().await;
    assert_eq!(agent.called("kernel.create"), 0);
    assert!(world.list(&world.user).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_tokens_limits_narrow_the_choice() {
    let (world, [_first, second]) = World::with_agents([1, 1]).await;
    let limits = Limits {
        gpus: Some(1),
        mem_bytes: Some(2 * GB),
        node_tags: "tag-n101".parse().unwrap(),
        ..Limits::none()
    };
    let user = world.add_user(9, [Scope::Call], limits);
    let created = world
        .submit(&user, &world.order(gpu_spec("1")))
        .await
        .unwrap();
    assert_eq!(created.view.node, second.node);
    let error = world
        .submit(&user, &world.order(gpu_spec("2")))
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, error.reason.as_str()),
        (Status::Denied, "limits")
    );
    let error = world
        .submit(&user, &world.order(gpu_spec("1")))
        .await
        .unwrap_err();
    assert!(
        error
            .message
            .contains("your token allows only nodes tagged tag-n101"),
        "{}",
        error.message
    );
}

#[tokio::test(start_paused = true)]
async fn nodes_are_listed_by_name_with_what_was_heard() {
    let (world, [agent]) = World::with_agents([2]).await;
    world.announce(world.user.id(), "desk", Role::Relay);
    world.run_small().await;
    world.pass(6).await;
    let nodes = world
        .call::<api::Nodes>(&world.user, &ListNodes::default())
        .await
        .unwrap();
    let names: Vec<_> = nodes
        .iter()
        .map(|n| (n.announcement.name.as_str(), n.state))
        .collect();
    assert_eq!(
        names,
        [("desk", NodeState::Online), ("n100", NodeState::Ready)]
    );
    assert_eq!((nodes[1].node, nodes[1].kernels), (agent.node, 1));
    assert_eq!(nodes[1].capacity.as_ref().unwrap().cpu_free, 7_000);
    assert!(nodes[0].capacity.is_none());
    let request = ListNodes {
        query: Some("tags has \"tag-desk\"".into()),
    };
    assert_eq!(
        world
            .call::<api::Nodes>(&world.user, &request)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn nodes_are_listed_by_scope() {
    let (world, [_agent]) = World::with_agents([0]).await;
    world.announce(world.user.id(), "desk", Role::Relay);
    world.retag(world.user.id(), &["scope:tenant:acme"]);
    let names = async |user, scope: &str| {
        let request = FindNodes {
            query: None,
            scope: scope.parse().unwrap(),
        };
        let nodes = world.call::<api::ScopedNodes>(user, &request).await?;
        let names = nodes.into_iter().map(|n| n.announcement.name);
        Ok::<Vec<String>, RpcError>(names.collect())
    };
    let user = &world.user;
    for (scope, shown) in [
        ("any", &["desk", "n100"][..]),
        ("tenant:acme", &["desk", "n100"]),
        ("tenant:other", &["n100"]),
        ("global-only", &["n100"]),
        ("own", &["n100"]),
        ("region:eu", &["n100"]),
        ("same-subnet", &["desk", "n100"]),
    ] {
        assert_eq!(names(user, scope).await.unwrap(), shown, "{scope}");
    }
    let refused = names(user, "everything").await.unwrap_err();
    assert_eq!(
        (refused.status, &*refused.reason),
        (Status::Denied, "scope_exceeded")
    );
    let admin = world.add_user(9, [Scope::Admin], Limits::none());
    assert_eq!(names(&admin, "everything").await.unwrap().len(), 2);
}
