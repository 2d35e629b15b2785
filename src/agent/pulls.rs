//! Fetching images: one fetch per image at a time, shared by all who want it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, stream};
use meshwork_proto::agent::PullProgress;
use meshwork_proto::kernel::PullPolicy;
use meshwork_proto::service::BoxStream;
use tokio::sync::watch;

use crate::backend::BackendError;
use crate::shared::Shared;

/// Images fetched at the same time.
const MAX_PULLS: usize = 16;

/// Progress of a fetch, ending with `Present` or `Done`, or with an error.
pub(crate) type Pull = BoxStream<Result<PullProgress, BackendError>>;
type Progress = Result<PullProgress, BackendError>;

/// The fetches that go on now, by image.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<BTreeMap<String, watch::Receiver<Progress>>>);

impl Shared {
    /// Fetches `image` when `policy` asks for it.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        image: &str,
        policy: PullPolicy,
    ) -> Result<Pull, BackendError> {
        // A name with a digest cannot come to mean another image.
        let settled = policy != PullPolicy::Digest || image.contains('@');
        if settled && self.backend.has_image(image).await? {
            return Ok(Box::pin(stream::iter([Ok(PullProgress::Present)])));
        }
        if policy == PullPolicy::None {
            return Err(BackendError::NotFound(format!(
                "image `{image}` is not on this node, and the pull policy `none` fetches none"
            )));
        }
        Ok(follow(self.fetch(image)?))
    }

    /// Joins the fetch of `image`, or starts it.
    fn fetch(self: &Arc<Self>, image: &str) -> Result<watch::Receiver<Progress>, BackendError> {
        let mut pulls = self
            .pulls
            .0
            .lock()
            .expect("nothing panics under the pull lock");
        pulls.retain(|_, progress| progress.has_changed().is_ok());
        if let Some(progress) = pulls.get(image) {
            return Ok(progress.clone());
        }
        if pulls.len() >= MAX_PULLS {
            return Err(BackendError::Unavailable(format!(
                "{MAX_PULLS} images are being fetched"
            )));
        }
        let start = PullProgress::Fetching {
            current: 0,
            total: 0,
        };
        let (tell, progress) = watch::channel(Ok(start));
        pulls.insert(image.to_owned(), progress.clone());
        let mut items = self.backend.pull(image);
        let (stop, limit) = (self.stop.clone(), self.config.deadlines.pull);
        self.tasks.spawn(async move {
            let fetch = async {
                while let Some(item) = items.next().await {
                    drop(tell.send_replace(item));
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                // Nobody wants it any more.
                () = tell.closed() => {}
                fetched = tokio::time::timeout(limit, fetch) => if fetched.is_err() {
                    let late = format!("fetching took longer than {limit:?}");
                    drop(tell.send_replace(Err(BackendError::Failed(late))));
                }
            }
        });
        Ok(progress)
    }
}

/// The progress as it changes, until its end.
fn follow(progress: watch::Receiver<Progress>) -> Pull {
    let items = stream::unfold(Some((progress, true)), |state| async move {
        let (mut progress, first) = state?;
        if !first && progress.changed().await.is_err() {
            let cut = BackendError::Unavailable("the fetch was broken off".into());
            return Some((Err(cut), None));
        }
        let item = progress.borrow_and_update().clone();
        let over = !matches!(item, Ok(PullProgress::Fetching { .. }));
        Some((item, (!over).then_some((progress, false))))
    });
    Box::pin(items)
}
