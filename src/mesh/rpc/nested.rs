//! What a call hands on to the calls that its handler makes: the time that is left, and the trace.

use std::time::Duration;

use meshwork_proto::rpc::TraceContext;
use meshwork_proto::service::CallOptions;
use tokio::time::Instant;

/// What a handler inherits from the call that it serves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inherited {
    /// When the call must have ended.
    pub(super) deadline: Option<Instant>,
    /// Trace that it belongs to.
    pub(super) trace: Option<TraceContext>,
}

tokio::task_local! {
    static INHERITED: Inherited;
}

impl Inherited {
    /// Runs `work` so that calls made within inherit this.
    pub(super) async fn within<F: Future>(self, work: F) -> F::Output {
        INHERITED.scope(self, work).await
    }

    /// The same for a piece of work that does not wait.
    pub(super) fn within_sync<T>(self, work: impl FnOnce() -> T) -> T {
        INHERITED.sync_scope(self, work)
    }
}

/// The options, narrowed to what the call that is being served in this task has left. Work that a
/// handler gives to other tasks inherits nothing.
pub(crate) fn narrowed(mut options: CallOptions) -> CallOptions {
    let Ok(inherited) = INHERITED.try_with(|inherited| *inherited) else {
        return options;
    };
    if let Some(deadline) = inherited.deadline {
        options.deadline = options.deadline.min(left(deadline));
    }
    options.trace = options.trace.or(inherited.trace);
    options
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
