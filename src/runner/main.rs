//! The small program that Meshwork puts into containers: std only, statically linked, so that it
//! runs in an empty image. The demo and the tests use it as their workload.
//!
//! It is process 1 of its container: the kernel gives process 1 no default signal actions, so a
//! signal that it does not handle does nothing.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, hint, thread};

const USAGE: &str = "usage: meshwork-runner hello | lines N INTERVAL_MS | exit CODE | eat BYTES | \
                     sleep SECONDS | stubborn | env";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["hello"] => hello(),
        ["lines", count, interval] => parse(count).and_then(|n| lines(n, parse(interval)?)),
        ["exit", code] => return parse::<u8>(code).map_or_else(|e| usage(&e), ExitCode::from),
        ["eat", bytes] => parse(bytes).and_then(eat),
        ["sleep", seconds] => match parse(seconds) {
            Ok(seconds) => return sleep(seconds),
            Err(error) => Err(error),
        },
        ["stubborn"] => stubborn(),
        ["env"] => environment(),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, USAGE)),
    };
    done.map_or_else(|e| usage(&e), |()| ExitCode::SUCCESS)
}

fn usage(error: &io::Error) -> ExitCode {
    // Standard error may be gone; there is nobody else to tell.
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::from(64)
}

fn parse<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{text}` does not fit\n{USAGE}"),
        )
    })
}

/// Says who it is and what it was given.
fn hello() -> io::Result<()> {
    let var = |name: &str| env::var(name).unwrap_or_else(|_| "none".to_owned());
    let mut out = io::stdout().lock();
    writeln!(out, "hello from kernel {}", var("MESHWORK_KERNEL_ID"))?;
    // `void` is what the NVIDIA runtime calls none.
    writeln!(
        out,
        "gpus {}",
        var("NVIDIA_VISIBLE_DEVICES").replace("void", "none")
    )?;
    let threads = thread::available_parallelism().map_or(0, usize::from);
    writeln!(out, "cpus {threads}")?;
    writeln!(
        out,
        "mem {}",
        memory_limit().unwrap_or_else(|| "unlimited".to_owned())
    )?;
    out.flush()
}

/// The memory limit in bytes, from whichever cgroup version is mounted.
fn memory_limit() -> Option<String> {
    [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| fs::read_to_string(path).ok())
    .map(|text| text.trim().to_owned())
}

/// Numbered lines: odd ones on standard output, every fifth also on standard error.
fn lines(count: u64, interval_ms: u64) -> io::Result<()> {
    for n in 1..=count {
        writeln!(io::stdout(), "line {n}")?;
        if n % 5 == 0 {
            writeln!(io::stderr(), "five more: {n}")?;
        }
        if n < count {
            thread::sleep(Duration::from_millis(interval_ms));
        }
    }
    Ok(())
}

/// Takes so much memory and touches every page of it.
fn eat(bytes: usize) -> io::Result<()> {
    const PAGE: usize = 4096;
    let mut memory = vec![0u8; bytes];
    for byte in memory.iter_mut().step_by(PAGE) {
        *byte = 1;
    }
    hint::black_box(&memory);
    writeln!(io::stdout(), "ate {bytes} bytes")
}

/// Waits; a polite stop ends it at once with the code that a shell would report.
fn sleep(seconds: u64) -> ExitCode {
    const TERMINATED: u8 = 128 + 15;
    term::listen();
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        if term::asked() {
            return ExitCode::from(TERMINATED);
        }
        thread::sleep(Duration::from_millis(20));
    }
    ExitCode::SUCCESS
}

/// Hears no polite stop: only a kill ends it.
fn stubborn() -> io::Result<()> {
    term::listen();
    writeln!(io::stdout(), "here I stay")?;
    loop {
        thread::sleep(Duration::from_hours(1));
    }
}

fn environment() -> io::Result<()> {
    let mut vars: Vec<_> = env::vars_os().collect();
    vars.sort();
    let mut out = io::stdout().lock();
    for (name, value) in vars {
        writeln!(
            out,
            "{}={}",
            name.to_string_lossy(),
            value.to_string_lossy()
        )?;
    }
    out.flush()
}

/// The one thing that std cannot do: hear SIGTERM.
mod term {
    use super::{AtomicBool, Ordering};

    static ASKED: AtomicBool = AtomicBool::new(false);
    const SIGTERM: i32 = 15;

    #[expect(
        unsafe_code,
        reason = "std has no signal handling and this program has no dependencies"
    )]
    mod libc {
        // `signal(2)` of the C library that std links anyway; glibc and musl give it BSD
        // semantics: the handler stays installed.
        unsafe extern "C" {
            pub(super) safe fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        }
    }

    /// Storing to an atomic is all that a signal handler may safely do, and all that this does.
    extern "C" fn note(_: i32) {
        ASKED.store(true, Ordering::Relaxed);
    }

    pub(crate) fn listen() {
        libc::signal(SIGTERM, note);
    }

    pub(crate) fn asked() -> bool {
        ASKED.load(Ordering::Relaxed)
    }
}
