//! The service `agent`, and what it says of kernels.

use std::time::Duration;

use bytes::Bytes;
use meshwork_proto::agent::{self, *};
use meshwork_proto::kernel::{Exit, ExitReason, KernelState, KernelView, PullPolicy};
use meshwork_proto::slots::{Allocation, Capacity, GpuGrant, GpuStatus, Health};

use super::orders::{exec_order, kernel, session, session_order, warrant};
use super::{Sample, method};
use crate::fixture::{NOW, identity};

pub(super) fn exits() -> Vec<Exit> {
    [
        ExitReason::SelfTerminated,
        ExitReason::UserRequested,
        ExitReason::OutOfMemory,
        ExitReason::FailedToStart,
        ExitReason::ContainerLost,
        ExitReason::Superseded,
        ExitReason::DeadlineExceeded,
    ]
    .into_iter()
    .map(|reason| Exit {
        reason,
        code: (reason == ExitReason::OutOfMemory).then_some(137),
        oom: reason == ExitReason::OutOfMemory,
        message: (reason == ExitReason::FailedToStart).then(|| "no such image".to_owned()),
    })
    .collect()
}

pub(super) fn kernel_states() -> Vec<KernelState> {
    let mut states = vec![
        KernelState::Preparing,
        KernelState::Pulling,
        KernelState::Creating,
        KernelState::Running,
        KernelState::Restarting,
        KernelState::Terminating,
    ];
    states.extend(exits().into_iter().map(KernelState::Terminated));
    states
}

pub(super) fn grant() -> GpuGrant {
    GpuGrant {
        index: 1,
        uuid: "GPU-1".into(),
        model: "A100".into(),
        vram: 80 << 30,
    }
}

pub(super) fn kernel_view(state: KernelState) -> KernelView {
    KernelView {
        kernel: kernel(),
        session: session(),
        attempt: 2,
        generation: 3,
        owner: identity(3).node_id(),
        image: "busybox:1".into(),
        state,
        allocation: Allocation {
            cpus: vec![0, 200],
            cpu_millis: 1500,
            mem: 1 << 30,
            gpus: vec![grant()],
        },
        created_at: NOW,
        started_at: Some(NOW),
        ended_at: None,
    }
}

pub(super) fn capacity() -> Capacity {
    let device = |health, kernel| GpuStatus {
        device: grant(),
        vendor: "nvidia".into(),
        vram_used: 5,
        kernel,
        health,
    };
    Capacity {
        cpu_millis: 128_000,
        cpu_free: 64_000,
        mem: 512 << 30,
        mem_free: 1,
        gpus: vec![
            device(Health::Ok, Some(kernel())),
            device(Health::Unknown, None),
        ],
    }
}

pub(super) fn heartbeat() -> Heartbeat {
    Heartbeat {
        at: NOW,
        last_seq: 9,
        capacity: capacity(),
        load_millis: 1500,
        kernels: vec![(kernel(), 3, KernelState::Running)],
    }
}

pub(super) fn log_chunks() -> [LogChunk; 2] {
    [
        LogChunk {
            output: Output::Stdout,
            data: Bytes::from_static(b"hi\n"),
            at: Some(NOW),
        },
        LogChunk {
            output: Output::Stderr,
            data: Bytes::new(),
            at: None,
        },
    ]
}

pub(super) fn exec_items() -> [ExecItem; 2] {
    [
        ExecItem::Output(log_chunks()[0].clone()),
        ExecItem::Exit(-1),
    ]
}

pub(super) fn pull_progress() -> [PullProgress; 3] {
    [
        PullProgress::Present,
        PullProgress::Fetching {
            current: 1,
            total: 300,
        },
        PullProgress::Done,
    ]
}

pub(super) fn agent_service() -> Vec<Sample> {
    let create = CreateKernel {
        kernel: kernel(),
        index: 0,
        attempt: 2,
        generation: 3,
        warrant: warrant(&session_order()),
    };
    let stop = StopKernel {
        kernel: kernel(),
        grace: Some(Duration::from_secs(1)),
    };
    let one = KernelRef { kernel: kernel() };
    let logs = KernelLogs {
        kernel: kernel(),
        tail: Some(10),
        follow: true,
        since: Some(NOW),
    };
    let pull = PullImage {
        image: "busybox".into(),
        policy: PullPolicy::None,
    };
    let event = |(seq, state)| {
        EventItem::Event(KernelEvent {
            seq,
            at: NOW,
            kernel: kernel(),
            session: session(),
            attempt: 2,
            generation: 3,
            state,
        })
    };
    let mut items: Vec<EventItem> = (1..).zip(kernel_states()).map(event).collect();
    items.push(EventItem::Progress {
        kernel: kernel(),
        progress: PullProgress::Done,
    });
    items.push(EventItem::Heartbeat(heartbeat()));
    let status = AgentStatus {
        backend: "docker 27.3.1".into(),
        heartbeat: heartbeat(),
    };
    let running = kernel_view(KernelState::Running);
    let every = kernel_states().into_iter().map(kernel_view).collect();
    [
        method::<agent::Create>(&create, std::slice::from_ref(&running)),
        method::<agent::Stop>(&stop, std::slice::from_ref(&running)),
        method::<agent::Remove>(&one, &[()]),
        method::<agent::Get>(&one, &[running]),
        method::<agent::List>(&(), &[every]),
        method::<agent::Logs>(&logs, &log_chunks()),
        method::<agent::Exec>(
            &ExecKernel {
                warrant: warrant(&exec_order()),
            },
            &exec_items(),
        ),
        method::<agent::Pull>(&pull, &pull_progress()),
        method::<agent::Watch>(&Events { after: 8 }, &items),
        method::<agent::Ack>(&AckEvents { up_to: 9 }, &[()]),
        method::<agent::Inspect>(&(), &[status]),
    ]
    .into_iter()
    .flatten()
    .collect()
}
