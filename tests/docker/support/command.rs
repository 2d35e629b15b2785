//! One run of the binary: what it prints while it runs, and how it ends.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{eventually, so};

/// The binary, working on the data folder `home`, with nothing of this process's environment that
/// would change what it does.
pub(crate) fn meshwork(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshwork"));
    command.arg("--home").arg(home).args(args);
    for name in ["MESHWORK_HOME", "MESHWORK_SERVER", "NO_COLOR", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// Exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// What it printed, if it went well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Its error, if it failed with this exit code, this error code and these words.
    #[track_caller]
    pub(crate) fn fails(self, exit: i32, code: &str, words: &[&str]) -> String {
        assert_eq!(self.code, Some(exit), "{self:?}");
        assert!(
            self.err.contains(&format!("error[{code}]")),
            "{code}: {self:?}"
        );
        for word in words {
            assert!(self.err.contains(word), "`{word}`: {self:?}");
        }
        self.err
    }
}

/// A command under way. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    out: Pipe,
    err: Pipe,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let piped = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the binary starts");
        let out = Pipe::read(child.stdout.take().expect("piped"));
        let err = Pipe::read(child.stderr.take().expect("piped"));
        Self { child, out, err }
    }

    /// What it has printed until now.
    pub(crate) fn out(&self) -> String {
        self.out.text()
    }

    /// What it has told on standard error until now.
    pub(crate) fn err(&self) -> String {
        self.err.text()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Waits until it has printed this.
    #[track_caller]
    pub(crate) fn prints(&self, text: &str) {
        eventually(&format!("`{text}` in the output"), || {
            so(self.out().contains(text), (self.out(), self.err.text()))
        });
    }

    /// Whether a signal has ended it.
    pub(crate) fn was_killed(&mut self) -> bool {
        let ended = self.child.try_wait().expect("our own child");
        ended.is_some_and(|status| status.code().is_none())
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Done {
        let status = eventually("the end of a command", || {
            let status = self.child.try_wait().expect("our own child");
            status.ok_or_else(|| format!("{} {}", self.out.text(), self.err.text()))
        });
        Done {
            code: status.code(),
            out: self.out.rest(),
            err: self.err.rest(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What comes out of a pipe, gathered by a thread that ends with it.
struct Pipe {
    read: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let read = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&read);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self {
            read,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read.lock().unwrap()).into_owned()
    }

    /// Everything, once the other end is closed.
    fn rest(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        self.text()
    }
}
