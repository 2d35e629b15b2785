//! Runs the system's tools, and tells what they said when they fail.

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs a command line that must go well; tells what it printed.
#[track_caller]
pub(crate) fn run(line: &[&str]) -> String {
    try_run(line).unwrap_or_else(|why| panic!("{}: {why}", line.join(" ")))
}

/// Runs a command line; tells what it printed, or why it failed.
pub(crate) fn try_run(line: &[&str]) -> Result<String, String> {
    let output = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}: {}", output.status, text(&output.stderr)))
    }
}

/// Gives `input` to a command that must go well.
#[track_caller]
pub(crate) fn feed(line: &[&str], input: &str) {
    let mut child = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", line[0]));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("the tool reads");
    drop(stdin);
    let output = child.wait_with_output().expect("our own child");
    assert!(
        output.status.success(),
        "{} with\n{input}\n{}",
        line.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
