//! Fetching an image: many layers' messages become one progress.

use std::collections::BTreeMap;

use bollard::Docker;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::{StreamExt, future, stream};
use meshwork_proto::agent::PullProgress;
use meshwork_proto::service::BoxStream;

use super::blame;
use crate::backend::BackendError;

/// Layers whose progress is summed up. Images have at most 127.
const MAX_LAYERS: usize = 256;

pub(super) fn pull(docker: &Docker, image: &str) -> BoxStream<Result<PullProgress, BackendError>> {
    let (name, tag) = reference(image);
    let options = CreateImageOptionsBuilder::default()
        .from_image(&name)
        .tag(&tag)
        .build();
    let mut layers = Layers::default();
    let progress = docker
        .create_image(Some(options), None, None)
        .filter_map(move |message| {
            future::ready(match message {
                Ok(message) => layers.update(message).map(Ok),
                Err(error) => Some(Err(blame(error))),
            })
        });
    // The error is the last thing told; without one the image is there.
    let ended = progress.scan(false, |failed, item| {
        let stop = *failed;
        *failed |= item.is_err();
        future::ready((!stop).then_some(item))
    });
    Box::pin(chain_done(Box::pin(ended)))
}

/// `Done` after the last item, unless that is an error.
fn chain_done(
    progress: BoxStream<Result<PullProgress, BackendError>>,
) -> impl futures_util::Stream<Item = Result<PullProgress, BackendError>> {
    stream::unfold(Some((progress, false)), |state| async {
        let (mut progress, failed) = state?;
        match progress.next().await {
            Some(item) => {
                let failed = failed || item.is_err();
                Some((item, Some((progress, failed))))
            }
            None if failed => None,
            None => Some((Ok(PullProgress::Done), None)),
        }
    })
}

/// Name, and tag or digest; without either Docker would fetch every tag there is.
fn reference(image: &str) -> (String, String) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name.into(), digest.into());
    }
    match image.rsplit_once(':') {
        // A port of the registry is no tag.
        Some((name, tag)) if !tag.contains('/') => (name.into(), tag.into()),
        _ => (image.into(), "latest".into()),
    }
}

/// Bytes so far and in all, by layer.
#[derive(Debug, Default)]
struct Layers(BTreeMap<String, (u64, u64)>);

impl Layers {
    /// The progress over all layers, when the message changes it.
    fn update(&mut self, message: CreateImageInfo) -> Option<PullProgress> {
        let (id, status) = (message.id?, message.status?);
        if !self.0.contains_key(&id) && self.0.len() >= MAX_LAYERS {
            return None;
        }
        let layer = self.0.entry(id).or_default();
        let before = *layer;
        match status.as_str() {
            "Downloading" => {
                let detail = message.progress_detail?;
                let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
                layer.1 = bytes(detail.total).max(layer.1);
                // A failed layer starts again: what is shown does not go back.
                layer.0 = bytes(detail.current).clamp(layer.0, layer.1.max(layer.0));
            }
            "Download complete" | "Pull complete" => layer.0 = layer.1,
            _ => return None,
        }
        if *layer == before {
            return None;
        }
        let (current, total) = self.0.values().fold((0, 0), |(c, t), l| (c + l.0, t + l.1));
        Some(PullProgress::Fetching { current, total })
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    #[test]
    fn references_split() {
        for (image, name, tag) in [
            ("busybox", "busybox", "latest"),
            ("busybox:1.36", "busybox", "1.36"),
            ("localhost:5000/a/b", "localhost:5000/a/b", "latest"),
            ("localhost:5000/a/b:2", "localhost:5000/a/b", "2"),
            ("a/b@sha256:12", "a/b", "sha256:12"),
            ("h:1/a/b:t@sha256:12", "h:1/a/b:t", "sha256:12"),
        ] {
            assert_eq!(
                reference(image),
                (name.to_owned(), tag.to_owned()),
                "{image}"
            );
        }
    }

    #[test]
    fn layers_add_up_and_never_go_back() {
        let mut layers = Layers::default();
        let mut tell = |id: &str, status: &str, current, total| {
            layers.update(CreateImageInfo {
                id: Some(id.into()),
                status: Some(status.into()),
                progress_detail: Some(ProgressDetail {
                    current: Some(current),
                    total: Some(total),
                }),
                ..CreateImageInfo::default()
            })
        };
        assert_eq!(tell("a", "Pulling fs layer", 0, 0), None);
        let at = |current, total| Some(PullProgress::Fetching { current, total });
        assert_eq!(tell("a", "Downloading", 10, 100), at(10, 100));
        assert_eq!(tell("b", "Downloading", 5, 50), at(15, 150));
        assert_eq!(tell("a", "Downloading", 3, 100), None, "started again");
        assert_eq!(tell("a", "Download complete", 0, 0), at(105, 150));
        assert_eq!(tell("b", "Downloading", -1, -1), None);
    }
}
