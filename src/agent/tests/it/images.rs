//! Fetching images: when, how often, with what progress, and what a failure looks like.

use futures_util::StreamExt;
use meshwork_proto::agent::{self, PullImage, PullProgress};
use meshwork_proto::kernel::{ExitReason, PullPolicy};
use meshwork_proto::rpc::RpcError;

use crate::support::registry::Registry;
use crate::support::{self, Client, Orders, Place, docker, shell, tar};

/// A layer with a program and with `text`, and one that no Docker has yet.
fn layer(text: &str) -> Vec<u8> {
    let mut archive = tar::Archive::default();
    docker::busybox(&mut archive);
    archive.file("text", 0o644, text.as_bytes());
    archive.file(
        "unique",
        0o644,
        support::new_session().to_string().as_bytes(),
    );
    archive.finish()
}

async fn pull(
    manager: &Client,
    image: &str,
    policy: PullPolicy,
) -> Result<Vec<PullProgress>, RpcError> {
    let request = PullImage {
        image: image.to_owned(),
        policy,
    };
    let items: Vec<_> = manager
        .stream::<agent::Pull>(&request)
        .await?
        .collect()
        .await;
    items.into_iter().collect()
}

/// Removes an image of a test when it ends.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        docker::discard_image(&self.0);
    }
}

#[tokio::test]
async fn policies_decide_and_progress_is_told() {
    if support::skipped() {
        return;
    }
    let (place, registry) = (Place::new(), Registry::start());
    let local = place.agent().await;
    let manager = local.manager();
    let image = Image(registry.push("policies", "1", &layer("one"), false));
    let name = &image.0;

    let error = pull(&manager, name, PullPolicy::None).await.unwrap_err();
    assert!(error.message.contains("`none`"), "{error}");

    // Two at once are one.
    let (first, second) = tokio::join!(
        pull(&manager, name, PullPolicy::Tag),
        pull(&manager, name, PullPolicy::Digest)
    );
    for items in [first.unwrap(), second.unwrap()] {
        assert_eq!(items.last(), Some(&PullProgress::Done));
        let amounts: Vec<(u64, u64)> = items
            .iter()
            .filter_map(|item| match item {
                PullProgress::Fetching { current, total } => Some((*current, *total)),
                _ => None,
            })
            .collect();
        assert!(amounts.is_sorted(), "{amounts:?}");
        assert!(
            amounts
                .iter()
                .any(|(current, total)| *current > 0 && current <= total)
        );
    }
    assert_eq!(registry.fetched(), 1);
    assert!(local.agent.images().await.contains(name));

    for policy in [PullPolicy::Tag, PullPolicy::None] {
        assert_eq!(
            pull(&manager, name, policy).await.unwrap(),
            [PullProgress::Present]
        );
    }
    // The same name, another image: only `digest` asks. The first one stays without a name.
    let _first = Image(docker::run(&["images", "-q", "--no-trunc", name]));
    registry.push("policies", "1", &layer("two"), false);
    assert_eq!(
        pull(&manager, name, PullPolicy::Tag).await.unwrap(),
        [PullProgress::Present]
    );
    assert_eq!(registry.fetched(), 1);
    let items = pull(&manager, name, PullPolicy::Digest).await.unwrap();
    assert_eq!(items.last(), Some(&PullProgress::Done));
    assert_eq!(registry.fetched(), 2);
    assert_eq!(
        docker::run(&[
            "run",
            "--rm",
            "--network",
            "none",
            name,
            "/bin/cat",
            "/text"
        ]),
        "two"
    );
}

#[tokio::test]
async fn an_error_at_the_very_end_is_an_error() {
    if support::skipped() {
        return;
    }
    let (place, registry) = (Place::new(), Registry::start());
    let local = place.agent().await;
    let manager = local.manager();
    let image = Image(registry.push("broken", "1", &layer("x"), true));
    let error = pull(&manager, &image.0, PullPolicy::Tag).await.unwrap_err();
    assert!(error.message.contains("verification failed"), "{error}");

    let mut spec = shell("true");
    spec.image.clone_from(&image.0);
    let order = Orders::of(1).create(spec);
    manager.create(&order).await.unwrap();
    let exit = manager.exit(order.kernel).await;
    assert_eq!(exit.reason, ExitReason::FailedToStart);
    assert!(exit.message.unwrap().contains("verification failed"));
}

#[tokio::test]
async fn a_kernel_fetches_its_image_first() {
    if support::skipped() {
        return;
    }
    let (place, registry) = (Place::new(), Registry::start());
    let local = place.agent().await;
    let manager = local.manager();
    let image = Image(registry.push("fresh", "1", &layer("y"), false));
    let mut spec = shell("cat /text; exit 3");
    spec.image.clone_from(&image.0);
    let order = Orders::of(1).create(spec);
    manager.create(&order).await.unwrap();
    assert_eq!(manager.exit(order.kernel).await.code, Some(3));
    let events = manager.events_until(0, |e| e.state.exit().is_some()).await;
    let states: Vec<&str> = events.iter().map(|e| e.state.name()).collect();
    let whole = [
        "PREPARING",
        "PULLING",
        "CREATING",
        "RUNNING",
        "TERMINATING",
        "TERMINATED",
    ];
    assert_eq!(states, whole);
}
