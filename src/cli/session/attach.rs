//! An attached run: shows how the session comes up, its output, and how it ended.

use std::cell::RefCell;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use meshwork_proto::agent::PullProgress;
use meshwork_proto::kernel::{Exit, ExitReason};
use meshwork_proto::manager::{Remove, SessionRef, Stop, StopSession, Watch};
use meshwork_proto::session::{SessionState, SessionUpdate, SessionView};
use meshwork_proto::{RpcError, SessionId};
use tokio::sync::watch;

use super::super::client::{Client, may_pass};
use super::super::error::{CliError, Code};
use super::super::out::{Out, span};
use super::follow::{FIRST_PAUSE, Follow, LONGEST_PAUSE, TRIES};
use super::{exit_code, reason_text};

/// Time for the rest of the output to arrive after the session ended.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

/// Stays with a session until it ends; the exit code is the container's. `remove`: forget it then.
pub(in super::super) async fn attach(
    client: &Client,
    view: &SessionView,
    remove: bool,
) -> Result<ExitCode, CliError> {
    let session = view.session;
    let began = Instant::now();
    let line = Line::new(client.out, session);
    let (exit, before) = tokio::select! {
        end = to_its_end(client, session, &line) => end?,
        () = interrupted_twice(client, session, &line) => {
            line.end();
            client.out.note(format_args!("not waited for: meshwork logs -f {}", session.short()));
            return Ok(ExitCode::from(130));
        }
    };
    let end = match exit.reason {
        ExitReason::SelfTerminated => "done".to_owned(),
        reason => reason_text(reason),
    };
    let code = exit
        .code
        .map_or_else(String::new, |code| format!(" exit {code}"));
    line.add(&format!("{end}{code} ({})", span(began.elapsed())));
    line.end();
    if remove {
        forget(client, session).await?;
    }
    outcome(view, exit, before.as_ref())
}

/// The manager forgets such a session by itself some time after its end; all of it was shown here, so
/// it need not wait.
async fn forget(client: &Client, session: SessionId) -> Result<(), CliError> {
    let request = SessionRef {
        session: session.to_string(),
    };
    match client.call::<Remove>(&request).await {
        Err(error) if error.code != Code::NOT_FOUND => Err(error),
        _ => Ok(()),
    }
}

/// `before`: what the session was before it ended.
fn outcome(
    view: &SessionView,
    exit: Exit,
    before: Option<&SessionState>,
) -> Result<ExitCode, CliError> {
    let message = exit.message.unwrap_or_else(|| exit.reason.to_string());
    match (exit.reason, exit.code) {
        (ExitReason::FailedToStart | ExitReason::DeadlineExceeded, None)
            if before == Some(&SessionState::Pulling) =>
        {
            let text = format!("image `{}` was not fetched: {message}", view.image);
            Err(CliError::new(Code::IMAGE, text).fix(format_args!(
                "check its name, and that {} reaches its registry",
                view.node_name
            )))
        }
        (ExitReason::FailedToStart | ExitReason::DeadlineExceeded, None) => {
            Err(CliError::new(Code::NOT_STARTED, message))
        }
        (_, Some(code)) => Ok(exit_code(code)),
        (ExitReason::UserRequested, None) => Ok(ExitCode::from(130)),
        (_, None) => Err(CliError::new(Code::LOST, message)),
    }
}

/// Follows state and output together.
async fn to_its_end(
    client: &Client,
    session: SessionId,
    line: &Line,
) -> Result<(Exit, Option<SessionState>), CliError> {
    let (started, is_started) = watch::channel(false);
    let mut output = pin!(output(client, session, is_started));
    let mut watching = pin!(Progress::new(client, line, started).watch(session));
    let mut shown = None;
    let (exit, before) = loop {
        tokio::select! {
            end = &mut watching => break end?,
            result = &mut output, if shown.is_none() => shown = Some(result),
        }
    };
    let shown = match shown {
        Some(result) => result,
        None if exit.code.is_none() => Ok(()),
        None => tokio::time::timeout(LAST_OUTPUT, output)
            .await
            .unwrap_or_else(|_| {
                client
                    .out
                    .note("! the rest of the output did not arrive: meshwork logs shows it later");
                Ok(())
            }),
    };
    shown.map(|()| (exit, before))
}

/// Shows the output from the moment that there may be some.
async fn output(
    client: &Client,
    session: SessionId,
    mut started: watch::Receiver<bool>,
) -> Result<(), CliError> {
    if started.wait_for(|started| *started).await.is_err() {
        // Nobody will say any more that it started: it never did.
        return Ok(());
    }
    Follow::new(session.to_string(), None, None, true)
        .run(client)
        .await
}

/// The first Ctrl-C stops the session, whose end then ends the run; the second ends this.
async fn interrupted_twice(client: &Client, session: SessionId, line: &Line) {
    if tokio::signal::ctrl_c().await.is_err() {
        return std::future::pending().await;
    }
    line.end();
    client
        .out
        .note("stopping (Ctrl-C again: do not wait for it)");
    let request = StopSession {
        session: session.to_string(),
        grace: None,
    };
    let stop = client.call::<Stop>(&request);
    tokio::select! {
        result = stop => if let Err(error) = result {
            client.out.note(error);
        },
        _ = tokio::signal::ctrl_c() => return,
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// The line that grows with a session: `job s-7f3a  pulling → creating → running`. On standard
/// error, as all that is not the container's own standard output.
struct Line {
    out: Out,
    head: String,
    states: RefCell<Vec<String>>,
}

impl Line {
    fn new(out: Out, session: SessionId) -> Self {
        Self {
            out,
            head: format!("job {}  ", session.short()),
            states: RefCell::default(),
        }
    }

    /// What stands there now.
    fn text(&self) -> String {
        format!("{}{}", self.head, self.states.borrow().join(" → "))
    }

    fn add(&self, state: &str) {
        let mut states = self.states.borrow_mut();
        let gap = if states.is_empty() {
            &self.head
        } else {
            " → "
        };
        self.out.part(format_args!("{gap}{state}"));
        states.push(state.to_owned());
    }

    /// Writes it anew, where a progress bar was drawn over it.
    fn redraw(&self) {
        self.out.part(self.text());
    }

    /// Ends it, if one was begun. What is added later begins another.
    fn end(&self) {
        if !self.states.take().is_empty() {
            self.out.note("");
        }
    }
}

/// An error that follows begins a line of its own.
impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

/// What is shown of a session on its way up.
struct Progress<'a> {
    client: &'a Client,
    line: &'a Line,
    bar: Option<ProgressBar>,
    state: Option<SessionState>,
    started: watch::Sender<bool>,
}

impl<'a> Progress<'a> {
    fn new(client: &'a Client, line: &'a Line, started: watch::Sender<bool>) -> Self {
        Self {
            client,
            line,
            bar: None,
            state: None,
            started,
        }
    }

    /// Watches until the end, again and again while the manager can come back.
    async fn watch(mut self, session: SessionId) -> Result<(Exit, Option<SessionState>), CliError> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            let error = match self.once(session).await {
                Ok(Some(exit)) => return Ok((exit, self.state)),
                Ok(None) => RpcError::unavailable("the manager stopped telling about the session"),
                Err((heard, error)) => {
                    if heard {
                        (tries, pause) = (0, FIRST_PAUSE);
                    }
                    error
                }
            };
            tries += 1;
            if !may_pass(&error) || tries == TRIES {
                return Err(error.into());
            }
            tracing::debug!(%error, "watching the session again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One watch: how the session ended, or with an error whether something was heard before it.
    async fn once(&mut self, session: SessionId) -> Result<Option<Exit>, (bool, RpcError)> {
        let request = SessionRef {
            session: session.to_string(),
        };
        let mut updates = self
            .client
            .stream::<Watch>(&request)
            .await
            .map_err(|e| (false, e))?;
        let mut heard = false;
        while let Some(update) = updates.next().await {
            match update.map_err(|e| (heard, e))? {
                SessionUpdate::Pull(progress) => self.pull(&progress),
                SessionUpdate::View(view) => {
                    if let Some(exit) = self.state(&view.state) {
                        return Ok(Some(exit));
                    }
                }
            }
            heard = true;
        }
        Ok(None)
    }

    fn state(&mut self, state: &SessionState) -> Option<Exit> {
        if self.state.as_ref() != Some(state)
            && let Some(bar) = self.bar.take()
        {
            bar.finish_and_clear();
            self.line.redraw();
        }
        let exit = state.exit().cloned();
        // Between failure and end it is cleaned up: that does not tell what failed.
        if self.state.as_ref() != Some(state)
            && exit.is_none()
            && *state != SessionState::Terminating
        {
            self.line.add(state.name());
            self.state = Some(state.clone());
        }
        if *state == SessionState::Running || exit.as_ref().is_some_and(|e| e.code.is_some()) {
            // Its output has the terminal now.
            self.line.end();
            self.started.send_replace(true);
        }
        exit
    }

    fn pull(&mut self, progress: &PullProgress) {
        if !self.client.out.is_live() {
            return;
        }
        // Before the sizes are known there is nothing to draw.
        let PullProgress::Fetching {
            current,
            total: total @ 1..,
        } = *progress
        else {
            return;
        };
        let bar = self.bar.get_or_insert_with(|| {
            let style =
                ProgressStyle::with_template("{prefix} {bytes}/{total_bytes} {bar:20} {elapsed}");
            // It draws from here on, over what stands in the line.
            self.client.out.part('\r');
            ProgressBar::new(0)
                .with_style(
                    style
                        .expect("the template is well formed")
                        .progress_chars("▇▇▁"),
                )
                .with_prefix(self.line.text())
        });
        bar.set_length(total);
        bar.set_position(current);
    }
}
