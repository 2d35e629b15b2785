//! Sessions: `ps`, `logs`, `exec`, `stop`, `rm`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use meshwork_identity::Warrant;
use meshwork_proto::agent::{ExecItem, ExecOrder};
use meshwork_proto::kernel::ExitReason;
use meshwork_proto::manager::{
    Exec, Get, List, ListSessions, Remove, SessionExec, SessionRef, Stop, StopSession,
};
use meshwork_proto::session::{SessionState, SessionView};
use serde::Serialize;

use super::client::Client;
use super::error::{CliError, Code};
use super::out::{Row, span};
use super::values;
use crate::ambient::{now, random};

mod attach;
mod follow;

pub(super) use attach::attach;
use follow::Follow;

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Also sessions that ended
    #[arg(short, long)]
    all: bool,
    /// Of every user (needs scope admin)
    #[arg(long)]
    all_users: bool,
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Go on until the session ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only what was written in this last while
    #[arg(long, value_parser = values::duration, value_name = "DURATION")]
    since: Option<Duration>,
    /// Id, prefix or name
    session: String,
}

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Variable of its environment: NAME=VALUE, or NAME to pass on the one set here
    #[arg(short, long, value_parser = values::variable, value_name = "NAME[=VALUE]")]
    env: Vec<(String, String)>,
    /// Working directory in the container
    #[arg(long)]
    workdir: Option<String>,
    /// Id, prefix or name
    session: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// Time between the stop signal and the kill [default: the session's own]
    #[arg(long, value_parser = values::duration, value_name = "DURATION")]
    grace: Option<Duration>,
    /// Ids, prefixes or names
    #[arg(required = true)]
    sessions: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// Ids, prefixes or names
    #[arg(required = true)]
    sessions: Vec<String>,
}

/// A session in a list.
#[derive(Debug, Serialize)]
pub(super) struct SessionRow {
    session: String,
    name: Option<String>,
    owner: String,
    state: String,
    reason: Option<String>,
    exit_code: Option<i32>,
    message: Option<String>,
    image: String,
    command: Vec<String>,
    node: String,
    node_name: String,
    node_reachable: bool,
    gpus: Vec<String>,
    created_at: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    #[serde(skip)]
    short: String,
    #[serde(skip)]
    age: Duration,
}

impl From<&SessionView> for SessionRow {
    fn from(view: &SessionView) -> Self {
        let exit = view.state.exit();
        Self {
            session: view.session.to_string(),
            name: view.name.clone(),
            owner: view.owner.to_string(),
            state: view.state.name().to_owned(),
            reason: exit.map(|e| e.reason.to_string()),
            exit_code: exit.and_then(|e| e.code),
            message: exit.and_then(|e| e.message.clone()),
            image: view.image.clone(),
            command: view.command.clone(),
            node: view.node.to_string(),
            node_name: view.node_name.clone(),
            node_reachable: view.node_reachable,
            gpus: view.gpus.clone(),
            created_at: view.created_at.to_string(),
            started_at: view.started_at.map(|t| t.to_string()),
            ended_at: view.ended_at.map(|t| t.to_string()),
            short: view.session.short(),
            age: now().duration_since(view.created_at),
        }
    }
}

impl SessionRow {
    /// `running`, `running?` while its node is not heard, `exit 0`, `out-of-memory`.
    fn state_text(&self) -> String {
        match (&self.reason, self.exit_code) {
            (Some(reason), Some(code)) if reason == "self-terminated" => format!("exit {code}"),
            (Some(reason), _) if reason == "user-requested" => "stopped".to_owned(),
            (Some(reason), _) => reason.clone(),
            (None, _) if self.node_reachable => self.state.clone(),
            (None, _) => format!("{}?", self.state),
        }
    }
}

/// Why a session ended, for people.
fn reason_text(reason: ExitReason) -> String {
    match reason {
        ExitReason::UserRequested => "stopped".to_owned(),
        reason => reason.to_string(),
    }
}

impl Row for SessionRow {
    fn head(wide: bool) -> Vec<&'static str> {
        let mut head = vec!["SESSION", "NAME", "STATE", "NODE", "GPU", "IMAGE", "AGE"];
        if wide {
            head.extend(["COMMAND", "OWNER"]);
        }
        head
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            if wide { &self.session } else { &self.short }.clone(),
            self.name.clone().unwrap_or_else(|| "-".into()),
            self.state_text(),
            self.node_name.clone(),
            if self.gpus.is_empty() {
                "-".into()
            } else {
                self.gpus.join(", ")
            },
            self.image.clone(),
            span(self.age),
        ];
        if wide {
            cells.extend([self.command.join(" "), self.owner.clone()]);
        }
        cells
    }

    fn id(&self) -> String {
        self.session.clone()
    }
}

pub(super) async fn ps(client: &Client, args: PsArgs) -> Result<(), CliError> {
    let request = ListSessions {
        ended: args.all,
        everyone: args.all_users,
    };
    let views = client.call::<List>(&request).await.map_err(|error| {
        if args.all_users && error.code == Code::DENIED {
            return error.fix("ask an admin of the mesh for a token with scope admin");
        }
        error
    })?;
    client
        .out
        .list(&views.iter().map(SessionRow::from).collect::<Vec<_>>())
}

pub(super) async fn logs(client: &Client, args: LogsArgs) -> Result<(), CliError> {
    let since = args.since.map(|ago| now().saturating_sub(ago));
    Follow::new(args.session, args.tail, since, args.follow)
        .run(client)
        .await
}

pub(super) async fn exec(client: &Client, args: ExecArgs) -> Result<ExitCode, CliError> {
    let view = client
        .call::<Get>(&SessionRef {
            session: args.session,
        })
        .await?;
    let ends = match &view.state {
        SessionState::Terminating => Some("is ending".to_owned()),
        SessionState::Terminated(exit) => Some(format!("has ended ({})", reason_text(exit.reason))),
        _ => None,
    };
    if let Some(ends) = ends {
        let text = format!("session {} {ends}", view.session.short());
        return Err(CliError::new(Code::CONFLICT, text).fix("meshwork ps shows those that run"));
    }
    let order = ExecOrder {
        kernel: view.session.kernel(0),
        command: args.command,
        env: args.env.into_iter().collect(),
        workdir: args.workdir,
        issued_at: now(),
        nonce: random(),
    };
    let warrant = Warrant::seal(&client.user, client.token()?, &order)
        .map_err(|e| CliError::new(Code::SPEC, e))?;
    let request = SessionExec {
        session: view.session,
        warrant,
    };
    let mut items = client.stream::<Exec>(&request).await?;
    while let Some(item) = items.next().await {
        match item? {
            ExecItem::Output(chunk) => follow::show(&chunk)?,
            ExecItem::Exit(code) => return Ok(exit_code(code)),
        }
    }
    Err(CliError::new(
        Code::LOST,
        "the connection ended before the command did",
    ))
}

pub(super) async fn stop(client: &Client, args: StopArgs) -> Result<(), CliError> {
    let mut stopped = Vec::new();
    for session in args.sessions {
        let request = StopSession {
            session,
            grace: args.grace,
        };
        let view = client.call::<Stop>(&request).await?;
        if client.out.is_machine() {
            stopped.push(SessionRow::from(&view));
        } else {
            client.out.data(&format!("{}\n", view.session))?;
        }
    }
    if client.out.is_machine() {
        client.out.value(&stopped)?;
    }
    Ok(())
}

pub(super) async fn remove(client: &Client, args: RmArgs) -> Result<(), CliError> {
    let mut removed = Vec::new();
    for session in args.sessions {
        let view = client.call::<Get>(&SessionRef { session }).await?;
        let request = SessionRef {
            session: view.session.to_string(),
        };
        client.call::<Remove>(&request).await?;
        if client.out.is_machine() {
            removed.push(SessionRow::from(&view));
        } else {
            client.out.data(&format!("{}\n", view.session))?;
        }
    }
    if client.out.is_machine() {
        client.out.value(&removed)?;
    }
    Ok(())
}

/// A container's exit code as ours: the system keeps 8 bits of it.
fn exit_code(code: i32) -> ExitCode {
    u8::try_from(code & 0xff).map_or(ExitCode::FAILURE, ExitCode::from)
}
