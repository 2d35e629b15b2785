//! `meshwork down`: stops the node that runs from this data folder.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Context;
use super::error::{CliError, Code};
use super::up::{DRAIN, LOOK};
use crate::home::{Home, HomeError};

/// Time for the node to end: it finishes running calls first.
const END: Duration = DRAIN.saturating_add(Duration::from_secs(5));

/// Stopping what does not run is done already, so that scripts may repeat it.
pub(super) fn down(cx: &Context) -> Result<(), CliError> {
    cx.home.mesh()?;
    let Some(pid) = running(&cx.home)? else {
        let value = serde_json::json!({ "pid": null });
        return cx.out.done(&value, "no node runs here");
    };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let sent = process.map(|process| kill_process(process, Signal::TERM));
    match sent {
        // Without such a process it ended meanwhile.
        Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => {}
        Some(Err(error)) => {
            let text = format!("process {pid} cannot be stopped: {error}");
            return Err(
                CliError::new(Code::IO, text).fix("meshwork down as the user who started the node")
            );
        }
        None => {
            let text = format!("run/node.addr names no process: {pid}");
            return Err(CliError::new(Code::IO, text));
        }
    }
    let began = Instant::now();
    while is_held(&cx.home)? {
        if began.elapsed() > END {
            let text = format!("process {pid} has not ended yet");
            return Err(CliError::new(Code::TIMEOUT, text)
                .fix("meshwork down again stops it at once; its containers go on"));
        }
        std::thread::sleep(LOOK);
    }
    let value = serde_json::json!({ "pid": pid });
    cx.out.done(
        &value,
        format_args!("process {pid} ended; containers go on"),
    )
}

/// The process of the node that holds the folder.
fn running(home: &Home) -> Result<Option<u32>, CliError> {
    if !is_held(home)? {
        return Ok(None);
    }
    match home.running()? {
        Some(run) => Ok(Some(run.pid)),
        None if !is_held(home)? => Ok(None),
        None => Err(
            CliError::new(Code::RUNNING, "a node is just starting or ending here")
                .fix("try again in a moment"),
        ),
    }
}

/// Whether a node holds the folder. Another user's cannot be asked for, and is an error.
fn is_held(home: &Home) -> Result<bool, HomeError> {
    if !home.path("run/lock").exists() {
        return Ok(false);
    }
    match home.lock() {
        Ok(_free) => Ok(false),
        Err(HomeError::Running(_)) => Ok(true),
        Err(error) => Err(error),
    }
}
