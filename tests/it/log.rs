//! `meshwork log`: no mesh needed; real processes on a real disk.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::Value;

use crate::support::{Done, Home};

impl Home {
    fn log(&self) -> String {
        self.path().join("a log").display().to_string()
    }

    /// Runs `meshwork log` with this on its standard input.
    fn given(&self, args: &[&str], input: &[u8]) -> Done {
        let mut child = self.spawn(args);
        let mut stdin = child.stdin.take().unwrap();
        // One that refuses to start does not read it.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.wait_with_output().unwrap().into()
    }

    fn spawn(&self, args: &[&str]) -> Child {
        self.command(&[&["log"], args].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn tail(&self, args: &[&str]) -> String {
        self.ok(&[&["log", "tail", &self.log()], args].concat())
    }

    /// The error with the log's folder made `LOG`.
    fn refused(&self, args: &[&str]) -> String {
        let done = self.given(args, b"x\n");
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        done.err.trim_end().replace(&self.log(), "LOG")
    }

    fn segment(&self) -> PathBuf {
        PathBuf::from(self.log()).join(format!("{:020}.log", 0))
    }
}

/// A process that is killed when the test ends.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn new(home: &Home, args: &[&str]) -> Self {
        let mut child = home.spawn(args);
        Self {
            stdin: child.stdin.take(),
            lines: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn give(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_appended_is_read_again() {
    let home = Home::new();
    let done = home.given(&["append", &home.log()], "one\n\ntwo größe\n".as_bytes());
    assert_eq!(
        (done.code, done.out.as_str()),
        (0, "✔ appended records 0 to 2\n")
    );
    let done = home.given(
        &["append", &home.log(), "--durability", "never", "-o", "json"],
        b"three\n\xff\xfe",
    );
    let appended: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        appended,
        serde_json::json!({"records": 2, "first": 3, "last": 4})
    );

    assert_eq!(home.tail(&["--from", "1", "-q"]), "1\n2\n3\n4\n");
    let json = home.tail(&["-o", "json"]);
    let rows: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 5);
    assert_eq!(
        (&rows[2]["seq"], &rows[2]["text"]),
        (&2.into(), &"two größe".into())
    );
    assert_eq!(rows[4]["base64"], "//4=");
    assert_eq!(rows[4]["text"], Value::Null);
    assert_eq!(home.tail(&["--since", "1h", "-q"]).lines().count(), 5);
    assert!(!home.path().join("home").exists(), "it needs no folder");
}

#[test]
fn a_file_is_one_record() {
    let home = Home::new();
    let file = home.path().join("file");
    fs::write(&file, "a\nb\n").unwrap();
    let args = [
        "log",
        "append",
        &home.log(),
        "--file",
        &file.display().to_string(),
        "-q",
    ];
    assert_eq!(home.ok(&args), "0\n");
    let rows = home.tail(&["-o", "json"]);
    assert!(rows.contains(r#""text":"a\nb\n""#), "{rows}");
}

#[test]
fn a_tail_follows_another_process_and_needs_no_lock() {
    let home = Home::new();
    let log = home.log();
    let mut writer = Running::new(&home, &["append", &log]);
    writer.give("first\n");
    // The log is there once the first record is.
    home.eventually(&["log", "tail", &log], |done| done.out == "first\n");
    let mut tail = Running::new(&home, &["tail", &log, "-f"]);
    assert_eq!(tail.line(), "first");
    for n in 0..20 {
        writer.give(&format!("record {n}\n"));
        assert_eq!(tail.line(), format!("record {n}"));
    }
    let pid = writer.child.id();
    let info: Value = serde_json::from_str(&home.ok(&["log", "info", &log, "-o", "json"])).unwrap();
    assert_eq!((&info["next"], &info["open_in"]), (&21.into(), &pid.into()));
    let refused = home.refused(&["append", &log]);
    assert_eq!(
        refused,
        format!(
            "error[E206] the log in LOG is in use by process {pid}. fix: stop it, or use another directory"
        )
    );
    drop(writer.stdin.take());
    assert!(writer.child.wait().unwrap().success());
    let info = home.ok(&["log", "info", &log]);
    assert!(
        info.contains("records   21\n") && info.contains("nobody"),
        "{info}"
    );
}

#[test]
fn what_was_seen_outlives_kill_9() {
    let home = Home::new();
    let log = home.log();
    let mut expected = Vec::new();
    for life in 0..8 {
        let durability = ["each", "never", "every=3", "within=2ms"][life % 4];
        let mut writer = Running::new(&home, &["append", &log, "--durability", durability]);
        let start = expected.len();
        let given: Vec<String> = (0..200).map(|n| format!("life {life}, line {n}")).collect();
        writer.give(&(given.join("\n") + "\n"));
        // At least one is there; how many more is left to chance.
        let from = start.to_string();
        let seen = home.eventually(&["log", "tail", &log, "--from", &from], |done| {
            done.code == 0 && !done.out.is_empty()
        });
        writer.child.kill().unwrap();
        writer.child.wait().unwrap();
        home.ok(&["log", "verify", &log]);
        let left = home.tail(&["--from", &from]);
        let left: Vec<String> = left.lines().map(str::to_owned).collect();
        assert!(left.len() >= seen.out.lines().count(), "life {life}");
        assert_eq!(left, given[..left.len()], "life {life}");
        expected.extend(left);
    }
    let done = home.given(&["append", &log], b"last\n");
    assert_eq!(
        done.out,
        format!("✔ appended record {}\n", expected.len()),
        "{done:?}"
    );
}

#[test]
fn damage_is_told_with_file_and_place() {
    let home = Home::new();
    let log = home.log();
    let lines: Vec<String> = (0..100).map(|n| format!("line {n:02}")).collect();
    let lines = lines.join("\n");
    assert_eq!(home.given(&["append", &log], lines.as_bytes()).code, 0);
    let whole = home.ok(&["log", "verify", &log]);
    assert_eq!(whole, "✔ 100 records are whole, 0 to 99\n");

    let mut bytes = fs::read(home.segment()).unwrap();
    let at = bytes
        .windows(7)
        .position(|text| text == b"line 40")
        .unwrap();
    bytes[at] ^= 1;
    fs::write(home.segment(), bytes).unwrap();
    // The record starts with a header of 16 bytes.
    let told = format!("{:020}.log is damaged at byte {}", 0, at - 16);
    let error = home.refused(&["verify", &log]);
    for part in [
        "error[E107] log LOG: 99 records can be read",
        &told,
        "again from record 41",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let done = home.run(&["log", "verify", &log, "-o", "json"]);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(done.code, 1);
    assert_eq!(found["damage"][0]["record"], 40);
    assert_eq!(found["damage"][0]["again_from"], 41);

    let done = home.run(&["log", "tail", &log]);
    assert_eq!((done.code, done.out.lines().count()), (1, 40), "{done:?}");
    assert!(done.err.contains(&told), "{done:?}");
    assert_eq!(home.tail(&["--from", "41"]).lines().next(), Some("line 41"));
    // It does not keep the log from going on.
    assert_eq!(home.given(&["append", &log, "-q"], b"next\n").out, "100\n");
    assert_eq!(home.tail(&["--from", "99"]), "line 99\nnext\n");
}

#[test]
fn what_cannot_be_is_refused() {
    let home = Home::new();
    let log = home.log();
    for args in [["tail", &log], ["info", &log], ["verify", &log]] {
        let error = home.refused(&args);
        assert_eq!(
            error,
            "error[E203] there is no log in LOG. fix: meshwork log append makes one"
        );
    }
    let error = home.refused(&["append", &log, "--file", "/nowhere/x"]);
    assert!(error.starts_with("error[E107] /nowhere/x: "), "{error}");
    assert!(!PathBuf::from(&log).exists(), "nothing was made");
    assert_eq!(home.given(&["append", &log], b"x\n").code, 0);
    let error = home.refused(&["tail", &log, "--from", "5"]);
    assert_eq!(
        error,
        "error[E203] log LOG: record 5 is not there yet; the next one is 1. fix: --from 1"
    );
    let error = home.refused(&["append", &log, "--durability", "always"]);
    assert!(error.starts_with("error[E100] "), "{error}");
}
