//! Letting a kernel in: known already, refused with what is short, or reserved, written down and
//! begun.

use std::sync::Arc;
use std::time::Duration;

use meshwork_proto::kernel::{ExitReason, KernelView};
use meshwork_proto::rpc::{RpcError, Status};

use crate::journal::JournalError;
use crate::kernel::Kernel;
use crate::kernel::record::{Ending, Order, Record};
use crate::orders;
use crate::shared::Shared;
use crate::slots::Refusal;

/// What a create command comes to.
enum Admission {
    /// It is in, now or from an earlier command.
    In(Box<KernelView>),
    /// An older placement of it must end first.
    After(Arc<Kernel>),
}

/// How an order stands to the kernel of its name that is there.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// The command was given before.
    Repeat,
    /// The kernel that is there gives way; it may still be alive.
    Newer,
}

/// Admits the kernel of a verified order. Repeats return what the kernel is now; an older placement
/// of it is stopped first.
pub(crate) async fn admit(
    shared: &Arc<Shared>,
    order: Order,
    wait: Duration,
) -> Result<KernelView, RpcError> {
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let (owned, copy) = (Arc::clone(shared), order.clone());
        match shared.blocking(move || try_admit(&owned, copy)).await? {
            Admission::In(view) => return Ok(*view),
            Admission::After(older) => {
                let (owned, kernel) = (Arc::clone(shared), Arc::clone(&older));
                shared.blocking(move || supersede(&owned, &kernel)).await?;
                if tokio::time::timeout_at(deadline, older.over())
                    .await
                    .is_err()
                {
                    let text = "an older placement of the kernel is still being stopped";
                    return Err(RpcError::unavailable(text).reason("superseding"));
                }
            }
        }
    }
}

fn try_admit(shared: &Arc<Shared>, order: Order) -> Result<Admission, RpcError> {
    let _turn = shared
        .admission
        .lock()
        .expect("nothing panics while it admits a kernel");
    if let Some(kernel) = shared.kernel(&order.kernel) {
        let record = kernel.record();
        match standing(&record, &order)? {
            Standing::Repeat => return Ok(Admission::In(Box::new(record.view()))),
            Standing::Newer if !record.is_over() => return Ok(Admission::After(kernel)),
            Standing::Newer => {}
        }
    } else if shared.journal.was_removed(&order.kernel)? {
        return Err(conflict(
            "the kernel was removed; sign a new order",
            "removed",
        ));
    }
    let now = shared.clock.now();
    orders::check_time(&order, now)?;
    if !shared.journal.has_room()? {
        let text = "no manager has acknowledged this agent's events for very long";
        return Err(RpcError::new(Status::Backpressure, text).reason("events"));
    }
    let allocation = shared
        .slots
        .reserve(
            order.kernel,
            order.owner,
            &order.spec.resources,
            &order.limits,
        )
        .map_err(|refusal| refused(&refusal))?;
    let record = Record::new(order, allocation, now);
    shared.drop_logs(&record);
    let kernel = Kernel::new(record.clone());
    let begin = || shared.adopt(Arc::clone(&kernel), None);
    if let Err(error) = shared.journal.store(&record, true, now, begin) {
        shared.slots.release(&record.kernel);
        return Err(error.into());
    }
    Ok(Admission::In(Box::new(kernel.view())))
}

/// Whether `order` repeats what made `record`, or comes after it; else it is out of date.
fn standing(record: &Record, order: &Order) -> Result<Standing, RpcError> {
    if record.owner != order.owner || record.session != order.session {
        return Err(conflict(
            "the kernel belongs to another order",
            "other_order",
        ));
    }
    let known = (record.generation, record.attempt);
    let given = (order.generation, order.attempt);
    if given == known {
        return if record.spec == order.spec {
            Ok(Standing::Repeat)
        } else {
            Err(conflict(
                "the kernel was ordered with another specification",
                "other_order",
            ))
        };
    }
    if order.generation < record.generation || order.attempt < record.attempt {
        let text = format!(
            "the kernel is at generation {}, attempt {}",
            record.generation, record.attempt
        );
        return Err(conflict(text, "stale"));
    }
    // An order is carried out until its owner says stop; a manager cannot begin it again.
    let stopped = record
        .ending
        .as_ref()
        .is_some_and(|e| e.reason == ExitReason::UserRequested);
    if stopped {
        return Err(conflict(
            "the kernel was stopped on request; sign a new order",
            "stopped",
        ));
    }
    if !record.is_over() && order.generation == record.generation {
        let text = format!("attempt {} of this generation goes on", record.attempt);
        return Err(conflict(text, "running"));
    }
    Ok(Standing::Newer)
}

fn supersede(shared: &Shared, kernel: &Kernel) -> Result<(), RpcError> {
    let ending = Ending {
        reason: ExitReason::Superseded,
        message: Some("a newer placement of it starts here".into()),
        grace: shared.grace(&kernel.record(), None),
    };
    Ok(kernel.end(shared, ending, None)?)
}

fn conflict(text: impl Into<String>, reason: &str) -> RpcError {
    RpcError::new(Status::Conflict, text).reason(reason)
}

fn refused(refusal: &Refusal) -> RpcError {
    let text = refusal.to_string();
    match refusal {
        Refusal::Short(_) => RpcError::new(Status::ResourceExhausted, text).reason("slots"),
        Refusal::OverLimit { .. } => RpcError::denied(text).reason("token_limit"),
        Refusal::Held => RpcError::new(Status::Conflict, text),
    }
}

impl From<JournalError> for RpcError {
    fn from(error: JournalError) -> Self {
        if error.is_full() {
            return Self::new(Status::ResourceExhausted, "the agent's disk is full")
                .reason("disk_full");
        }
        Self::internal(error.to_string()).reason("journal")
    }
}

impl Shared {
    /// Runs what blocks on the disk. It runs to its end even when the caller goes away.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, RpcError> + Send + 'static,
    ) -> Result<T, RpcError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(RpcError::internal("the agent stops or has a fault")))
    }

    /// Time between a kernel's stop signal and its kill.
    pub(crate) fn grace(&self, record: &Record, asked: Option<Duration>) -> Duration {
        let deadlines = &self.config.deadlines;
        let grace = asked
            .or(record.spec.stop_grace)
            .unwrap_or(deadlines.stop_grace);
        grace.min(deadlines.max_stop_grace)
    }

    /// Forgets a kernel that is over, unless it was begun anew meanwhile. Blocks on the disk.
    pub(crate) fn forget(&self, kernel: &Arc<Kernel>) -> Result<(), JournalError> {
        let _turn = self
            .admission
            .lock()
            .expect("nothing panics while it admits a kernel");
        let record = &kernel.record();
        if !self
            .kernel(&record.kernel)
            .is_some_and(|known| Arc::ptr_eq(&known, kernel))
        {
            return Ok(());
        }
        self.drop_logs(record);
        self.journal.forget(record, self.clock.now())?;
        self.kernels().remove(&record.kernel);
        Ok(())
    }

    /// Removes the output of a kernel that is over.
    pub(crate) fn drop_logs(&self, record: &Record) {
        match std::fs::remove_dir_all(self.logs(&record.kernel)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(kernel = %record.kernel, %error, "output could not be removed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use meshwork_identity::{Identity, Limits, TokenId};
    use meshwork_proto::kernel::{Exit, KernelState};

    use super::*;
    use crate::kernel::record::tests::record;

    fn order(attempt: u32, generation: u64) -> Order {
        let record = record(1);
        Order {
            kernel: record.kernel,
            session: record.session,
            attempt,
            generation,
            owner: record.owner,
            token: TokenId::from_bytes([0; 32]),
            limits: Limits::none(),
            starts: record.created_at,
            ends: record.order_ends,
            spec: record.spec,
        }
    }

    #[test]
    fn a_repeat_is_known_and_an_old_command_is_refused() {
        let mut known = Record {
            attempt: 2,
            generation: 5,
            ..record(1)
        };
        let reason =
            |known: &Record, order: &Order| standing(known, order).map_err(|error| error.reason);
        assert_eq!(reason(&known, &order(2, 5)), Ok(Standing::Repeat));
        assert_eq!(reason(&known, &order(1, 5)), Err("stale".into()));
        assert_eq!(reason(&known, &order(2, 4)), Err("stale".into()));
        assert_eq!(reason(&known, &order(3, 4)), Err("stale".into()));
        assert_eq!(reason(&known, &order(3, 5)), Err("running".into()));
        assert_eq!(reason(&known, &order(2, 6)), Ok(Standing::Newer));
        let mut other = order(2, 5);
        other.spec.image = "other".into();
        assert_eq!(reason(&known, &other), Err("other_order".into()));
        other = order(9, 9);
        other.owner = Identity::from_seed(&[9; 32]).node_id();
        assert_eq!(reason(&known, &other), Err("other_order".into()));

        let ended = |reason| Ending {
            reason,
            message: None,
            grace: Duration::ZERO,
        };
        known.ending = Some(ended(ExitReason::FailedToStart));
        known.state = KernelState::Terminated(Exit {
            reason: ExitReason::FailedToStart,
            code: None,
            oom: false,
            message: None,
        });
        assert_eq!(reason(&known, &order(3, 5)), Ok(Standing::Newer));
        assert_eq!(reason(&known, &order(2, 5)), Ok(Standing::Repeat));
        known.ending = Some(ended(ExitReason::UserRequested));
        assert_eq!(reason(&known, &order(3, 6)), Err("stopped".into()));
    }
}
