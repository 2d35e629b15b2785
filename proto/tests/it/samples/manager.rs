//! The service `manager`.

use std::time::Duration;

use meshwork_proto::agent::PullProgress;
use meshwork_proto::manager::{self, *};
use meshwork_proto::query::ScopeFilter;
use meshwork_proto::session::{SessionState, SessionUpdate, SessionView};

use super::agent::{capacity, exec_items, exits, log_chunks};
use super::orders::{exec_order, session, session_order, warrant};
use super::{Sample, announcement, method};
use crate::fixture::{NOW, identity};

pub(super) fn session_view(state: SessionState) -> SessionView {
    SessionView {
        session: session(),
        name: Some("train".into()),
        owner: identity(3).node_id(),
        image: "busybox:1".into(),
        command: vec!["echo".into()],
        state,
        node: identity(1).node_id(),
        node_name: "lab-1".into(),
        gpus: vec!["GPU 1 (A100 80GB)".into()],
        node_reachable: true,
        created_at: NOW,
        started_at: Some(NOW),
        ended_at: None,
    }
}

pub(super) fn session_states() -> Vec<SessionState> {
    let mut states = vec![
        SessionState::Scheduled,
        SessionState::Preparing,
        SessionState::Pulling,
        SessionState::Creating,
        SessionState::Running,
        SessionState::Terminating,
    ];
    states.extend(exits().into_iter().map(SessionState::Terminated));
    states
}

pub(super) fn manager_service() -> Vec<Sample> {
    let create = CreateSession {
        warrant: warrant(&session_order()),
        dry_run: true,
    };
    let running = session_view(SessionState::Running);
    let created = CreatedSession {
        view: running.clone(),
        plan: "lab-1 GPU 1".into(),
    };
    let one = SessionRef {
        session: "train".into(),
    };
    let list = ListSessions {
        ended: true,
        everyone: false,
    };
    let stop = StopSession {
        session: "train".into(),
        grace: None,
    };
    let logs = SessionLogs {
        session: "train".into(),
        tail: None,
        follow: false,
        since: Some(NOW),
    };
    let exec = SessionExec {
        session: session(),
        warrant: warrant(&exec_order()),
    };
    let updates = [
        SessionUpdate::View(running.clone()),
        SessionUpdate::Pull(PullProgress::Fetching {
            current: 1,
            total: 2,
        }),
    ];
    let node = |state| NodeView {
        node: identity(1).node_id(),
        state,
        path: "direct".into(),
        rtt: Some(Duration::from_millis(3)),
        announcement: announcement(),
        capacity: Some(capacity()),
        kernels: 1,
        seen: Duration::from_secs(2),
    };
    let states = [
        NodeState::Ready,
        NodeState::Suspect,
        NodeState::Lost,
        NodeState::Online,
    ];
    let nodes = ListNodes {
        query: Some("gpus > 0".into()),
    };
    let scoped = FindNodes {
        query: None,
        scope: ScopeFilter::SameSubnet,
    };
    let every = session_states().into_iter().map(session_view).collect();
    [
        method::<manager::Create>(&create, &[created]),
        method::<manager::Get>(&one, std::slice::from_ref(&running)),
        method::<manager::List>(&list, &[every]),
        method::<manager::Stop>(&stop, &[running]),
        method::<manager::Remove>(&one, &[()]),
        method::<manager::Watch>(&one, &updates),
        method::<manager::Logs>(&logs, &log_chunks()),
        method::<manager::Exec>(&exec, &exec_items()),
        method::<manager::Nodes>(&nodes, &[states.map(node).into()]),
        method::<manager::ScopedNodes>(&scoped, &[vec![]]),
    ]
    .into_iter()
    .flatten()
    .collect()
}
