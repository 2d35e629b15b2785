//! Who may see and do what.

use std::time::Duration;

use meshwork_identity::{Limits, Scope, Timestamp};
use meshwork_proto::manager::{
    self as api, CreateSession, ListSessions, SessionLogs, SessionRef, StopSession,
};
use meshwork_proto::rpc::Status;
use meshwork_proto::session::SessionSpec;
use meshwork_proto::slots::Resources;

use crate::world::{World, seal, spec};

#[tokio::test(start_paused = true)]
async fn others_see_nothing_and_learn_nothing() {
    let (world, [agent]) = World::with_agents([0]).await;
    let spec = SessionSpec {
        name: Some("lab".into()),
        ..spec(Resources::default())
    };
    let id = world.run(spec).await.unwrap().view.session;
    let stranger = world.add_user(7, [Scope::Call], Limits::none());
    for (text, absent) in [
        (id.to_string(), format!("{}x", &id.to_string()[..27])),
        ("lab".into(), "nix".into()),
    ] {
        let session = |text: &str| SessionRef {
            session: text.into(),
        };
        let errors = [
            world
                .call::<api::Get>(&stranger, &session(&text))
                .await
                .unwrap_err(),
            world
                .call::<api::Remove>(&stranger, &session(&text))
                .await
                .unwrap_err(),
            world
                .stream::<api::Watch>(&stranger, &session(&text))
                .await
                .err()
                .unwrap(),
            world
                .call::<api::Stop>(
                    &stranger,
                    &StopSession {
                        session: text.clone(),
                        grace: None,
                    },
                )
                .await
                .unwrap_err(),
            world
                .stream::<api::Logs>(
                    &stranger,
                    &SessionLogs {
                        session: text.clone(),
                        tail: None,
                        follow: false,
                        since: None,
                    },
                )
                .await
                .err()
                .unwrap(),
        ];
        let unknown = world
            .call::<api::Get>(&stranger, &session(&absent))
            .await
            .unwrap_err();
        for error in errors {
            assert_eq!(error.message.replace(&text, &absent), unknown.message);
            assert_eq!(
                (error.status, error.reason),
                (Status::NotFound, unknown.reason.clone())
            );
        }
    }
    assert!(world.list(&stranger).await.is_empty());
    let everyone = ListSessions {
        ended: true,
        everyone: true,
    };
    let denied = world
        .call::<api::List>(&stranger, &everyone)
        .await
        .unwrap_err();
    assert_eq!(denied.status, Status::Denied);
    assert_eq!(agent.living().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn admins_see_and_stop_everything() {
    let (world, [agent]) = World::with_agents([0]).await;
    let id = world.run_small().await;
    let admin = world.add_user(8, [Scope::Admin], Limits::none());
    let everyone = ListSessions {
        ended: false,
        everyone: true,
    };
    assert_eq!(
        world.call::<api::List>(&admin, &everyone).await.unwrap()[0].session,
        id
    );
    assert!(
        world.list(&admin).await.is_empty(),
        "without asking, one's own only"
    );
    let stop = StopSession {
        session: id.short(),
        grace: None,
    };
    world.call::<api::Stop>(&admin, &stop).await.unwrap();
    world.settle().await;
    assert!(agent.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_order_counts_only_from_its_signer_in_its_time_under_its_token() {
    let (world, [agent]) = World::with_agents([0]).await;
    let stranger = world.add_user(7, [Scope::Call], Limits::none());
    let order = world.order(spec(Resources::default()));
    let stolen = CreateSession {
        warrant: seal(&world.user, &order),
        dry_run: false,
    };
    let error = world
        .call::<api::Create>(&stranger, &stolen)
        .await
        .unwrap_err();
    assert_eq!(
        (error.status, error.reason.as_str()),
        (Status::Denied, "wrong_signer")
    );

    let announcer = world.add_user(6, [Scope::Announce], Limits::none());
    let error = world.submit(&announcer, &order).await.unwrap_err();
    assert_eq!(
        (error.status, error.reason.as_str()),
        (Status::Denied, "scope_exceeded")
    );

    for (issued_at, reason) in [
        (Timestamp::from_secs(1), "order_expired"),
        (
            order.issued_at.saturating_add(Duration::from_hours(1)),
            "order_from_future",
        ),
    ] {
        let order = meshwork_proto::session::SessionOrder {
            issued_at,
            ..order.clone()
        };
        assert_eq!(
            world.submit(&world.user, &order).await.unwrap_err().reason,
            reason
        );
    }
    let mut spec = spec(Resources::default());
    spec.kernel.image = "-x".into();
    assert_eq!(world.run(spec).await.unwrap_err().reason, "spec");
    assert_eq!(agent.called("kernel.create"), 0);
    assert!(world.list(&world.user).await.is_empty());
}
