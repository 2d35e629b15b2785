//! How loud nodes are.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};

/// Lines that are kept for people to read.
const MAX_KEPT: usize = 20;

/// Collects what this thread logs above `debug` while it is told to.
#[derive(Debug, Clone, Default)]
pub(super) struct LoudLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    on: AtomicBool,
    heard: Mutex<(u64, Vec<String>)>,
}

impl LoudLog {
    /// Hears this thread until the guard is dropped.
    pub(super) fn listen(&self) -> DefaultGuard {
        tracing::subscriber::set_default(Ear(self.clone()))
    }

    /// Counts from now on, or not.
    pub(super) fn count(&self, on: bool) {
        self.0.on.store(on, Ordering::Relaxed);
    }

    /// How many were counted, and the first of them.
    pub(super) fn heard(&self) -> (u64, Vec<String>) {
        self.0
            .heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note(&self, line: String) {
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.0 += 1;
        if heard.1.len() < MAX_KEPT {
            heard.1.push(line);
        }
    }
}

struct Ear(LoudLog);

impl Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() < Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if self.0.0.on.load(Ordering::Relaxed) {
            let metadata = event.metadata();
            let mut line = Line(format!("{} {}:", metadata.level(), metadata.target()));
            event.record(&mut line);
            self.0.note(line.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write;
        // Writing to a string cannot fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_loud_counts_and_only_while_asked() {
        let log = LoudLog::default();
        let _guard = log.listen();
        tracing::warn!("before");
        log.count(true);
        tracing::debug!("quiet");
        tracing::info!(peer = 7, "loud");
        log.count(false);
        tracing::warn!("after");
        let (count, lines) = log.heard();
        assert_eq!(count, 1);
        assert!(
            lines[0].contains("peer=7") && lines[0].contains("loud"),
            "{lines:?}"
        );
    }
}
