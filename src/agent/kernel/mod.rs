//! Kernels: their records, the actor that drives each, and their output.

pub(crate) mod actor;
pub(crate) mod output;
pub(crate) mod plan;
pub(crate) mod record;

use std::sync::{Arc, Mutex};

use meshwork_proto::kernel::{KernelState, KernelView};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::journal::JournalError;
use crate::shared::Shared;
use record::{Ended, Ending, Record};

/// One kernel in memory: its record as the journal has it, and the ways to its actor.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Changed only by [`Kernel::update`], after the change is on disk.
    record: watch::Sender<Record>,
    /// Held while a change is written: changes follow one another.
    writing: Mutex<()>,
    /// Set when it is decided that the kernel ends.
    pub ending: CancellationToken,
    /// Set when nobody wants to wait any longer for a polite end.
    pub kill_now: CancellationToken,
    /// Asks the actor to look whether its container still runs.
    pub poke: Notify,
}

impl Kernel {
    /// The kernel of a record that is on disk.
    pub(crate) fn new(record: Record) -> Arc<Self> {
        let ending = CancellationToken::new();
        if record.ending.is_some() {
            ending.cancel();
        }
        Arc::new(Self {
            record: watch::Sender::new(record),
            writing: Mutex::new(()),
            ending,
            kill_now: CancellationToken::new(),
            poke: Notify::new(),
        })
    }

    /// What it is now.
    pub(crate) fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    /// Part of what it is now, without copying the rest. `at` must be quick: changes wait for it.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Record) -> T) -> T {
        at(&self.record.borrow())
    }

    /// What it is now, for callers.
    pub(crate) fn view(&self) -> KernelView {
        self.look(Record::view)
    }

    /// Follows its changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Record> {
        self.record.subscribe()
    }

    /// Waits until nothing is left of it but its record.
    pub(crate) async fn over(&self) {
        // The sender lives as long as `self`.
        drop(self.watch().wait_for(Record::is_over).await);
    }

    /// Changes the record, on disk first, with an event when its state changes. Blocks on the disk.
    pub(crate) fn update(
        &self,
        shared: &Shared,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), JournalError> {
        let _turn = self
            .writing
            .lock()
            .expect("nothing panics while it writes a record");
        let before = self.record();
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            let announce = after.state != before.state;
            shared
                .journal
                .store(&after, announce, shared.clock.now(), || {
                    self.record.send_replace(after.clone());
                })?;
        }
        Ok(())
    }

    /// Decides that the kernel ends; the first reason stays, and the shortest grace. `ended` is how
    /// its container ended where that is known. Blocks on the disk.
    pub(crate) fn end(
        &self,
        shared: &Shared,
        ending: Ending,
        ended: Option<Ended>,
    ) -> Result<(), JournalError> {
        self.update(shared, |record| {
            if record.is_over() {
                return;
            }
            record.ended = record.ended.or(ended);
            record.state = KernelState::Terminating;
            match &mut record.ending {
                Some(first) => first.grace = first.grace.min(ending.grace),
                none => *none = Some(ending),
            }
        })?;
        self.ending.cancel();
        Ok(())
    }
}
