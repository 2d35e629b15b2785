//! `meshwork log`: append to a log on this machine's disk, read and follow it, look after it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand};
use data_encoding::BASE64;
use meshwork_mesh::SystemClock;
use meshwork_mesh::log::{
    DiskFiles, Durability, Files, Inspection, Log, LogConfig, LogError, MAX_RECORD, Outline,
    Reader, Record, inspect, outline,
};
use meshwork_proto::ports::WallClock;
use serde::Serialize;

use super::Context;
use super::error::{CliError, Code, chain};
use super::out::{Format, Out, clean, exact_size};
use super::values;

/// Most lines that are appended, and wait for the disk, together.
const TOGETHER: usize = 1_000;
/// How often `tail -f` looks for more: a writer in another process does not wake it.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Append each line of standard input, or one file, as a record
    Append(AppendArgs),
    /// Print records, one a line; works while another process appends
    Tail(TailArgs),
    /// Show how long a log is, and who has it open
    Info(InfoArgs),
    /// Read all of a log, and tell what is damaged
    Verify(InfoArgs),
}

#[derive(Debug, Args)]
pub(super) struct AppendArgs {
    /// Folder of the log; made when it is missing
    dir: PathBuf,
    /// Append the whole of this file as one record, instead of standard input's lines
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// When a record must be on disk: `each` before this goes on, `every=N` each N records, `within=TIME` soon
    /// (within=100ms), `never` when the system likes
    #[arg(long, value_name = "WHEN", default_value = "each", value_parser = durability)]
    durability: Durability,
}

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// Folder of the log
    dir: PathBuf,
    /// Start with this record instead of the first one
    #[arg(long, value_name = "N", conflicts_with = "since")]
    from: Option<u64>,
    /// Start with the first record that is not older than this: 90s, 10m, 8h
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    since: Option<Duration>,
    /// Go on with what is appended later
    #[arg(short, long)]
    follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// Folder of the log
    dir: PathBuf,
}

pub(super) fn log(cx: &Context, command: &LogCommand) -> Result<(), CliError> {
    match command {
        LogCommand::Append(args) => append(cx.out, args),
        LogCommand::Tail(args) => tail(cx.out, args),
        LogCommand::Info(args) => info(cx.out, &args.dir),
        LogCommand::Verify(args) => verify(cx.out, &args.dir),
    }
}

/// What was appended.
#[derive(Debug, Default, Serialize)]
struct Appended {
    records: u64,
    first: Option<u64>,
    last: Option<u64>,
}

fn append(out: Out, args: &AppendArgs) -> Result<(), CliError> {
    // Before the log is made: a mistyped name shall not leave one.
    let whole = args.file.as_deref().map(record_of).transpose()?;
    let opened = Log::open(&args.dir, Arc::new(SystemClock), LogConfig::default());
    let log = opened.map_err(|error| failed(&args.dir, &error))?;
    let cut = log.info().recovered.cut;
    if cut > 0 {
        out.note(format_args!(
            "{cut} bytes that a crash had torn were cut off the end"
        ));
    }
    let mut appended = Appended::default();
    let done = match whole {
        Some(record) => put(&log, args, &[record], &mut appended),
        None => lines(&log, args, &mut appended),
    };
    let done = done.and_then(|()| log.close().map_err(|error| failed(&args.dir, &error)));
    done.map_err(|error| told(error, &appended))?;
    if out.quiet && !out.is_machine() {
        return out.data(
            &appended
                .last
                .map_or(String::new(), |last| format!("{last}\n")),
        );
    }
    let text = match (appended.first, appended.last) {
        (Some(first), Some(last)) if first == last => format!("appended record {first}"),
        (Some(first), Some(last)) => format!("appended records {first} to {last}"),
        _ => "nothing to append".to_owned(),
    };
    out.done(&appended, text)
}

fn record_of(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut record = Vec::new();
    let file = File::open(path).map_err(|error| CliError::file(path, &error))?;
    file.take(MAX_RECORD as u64 + 1)
        .read_to_end(&mut record)
        .map_err(|error| CliError::file(path, &error))?;
    if record.len() > MAX_RECORD {
        return Err(too_long(&path.display().to_string()));
    }
    Ok(record)
}

/// Lines as they come: those that have arrived together wait for the disk together.
fn lines(log: &Log, args: &AppendArgs, appended: &mut Appended) -> Result<(), CliError> {
    let mut input = BufReader::new(io::stdin().lock());
    loop {
        let mut together = Vec::new();
        while let Some(line) = line(&mut input)? {
            together.push(line);
            if together.len() == TOGETHER || !input.buffer().contains(&b'\n') {
                break;
            }
        }
        if together.is_empty() {
            return Ok(());
        }
        put(log, args, &together, appended)?;
    }
}

/// A line without its end. None: there are no more.
fn line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, CliError> {
    let mut line = Vec::new();
    let n = input
        .take(MAX_RECORD as u64 + 1)
        .read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() > MAX_RECORD {
        return Err(too_long("a line of standard input"));
    }
    Ok((n > 0).then_some(line))
}

fn put(
    log: &Log,
    args: &AppendArgs,
    records: &[Vec<u8>],
    appended: &mut Appended,
) -> Result<(), CliError> {
    let seqs = log
        .append_batch(records, args.durability)
        .map_err(|error| failed(&args.dir, &error))?;
    appended.records += seqs.end - seqs.start;
    appended.first = appended.first.or(Some(seqs.start));
    appended.last = Some(seqs.end - 1);
    Ok(())
}

/// A record as programs get it: text where it is UTF-8, base64 where not.
#[derive(Debug, Serialize)]
struct Shown {
    seq: u64,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl From<&Record> for Shown {
    fn from(record: &Record) -> Self {
        let text = std::str::from_utf8(&record.payload).ok().map(str::to_owned);
        let base64 = text.is_none().then(|| BASE64.encode(&record.payload));
        Self {
            seq: record.seq,
            time: record.time.to_string(),
            text,
            base64,
        }
    }
}

fn tail(out: Out, args: &TailArgs) -> Result<(), CliError> {
    let files = existing(&args.dir)?;
    let fail = |error| failed(&args.dir, &error);
    let reader = match (args.from, args.since) {
        (Some(seq), _) => Ok(Reader::from_seq(files, seq)),
        (None, Some(ago)) => Reader::from_time(files, SystemClock.now().saturating_sub(ago)),
        (None, None) => Reader::from_first(files),
    };
    let mut reader = reader.map_err(fail)?;
    loop {
        let records = reader.next_batch().map_err(fail)?;
        if records.is_empty() {
            if !args.follow {
                return Ok(());
            }
            thread::sleep(LOOK);
            continue;
        }
        show(out, &records)?;
    }
}

/// Payloads as they are, so that they can go through a pipe; on a terminal without what could steer it.
fn show(out: Out, records: &[Record]) -> Result<(), CliError> {
    if out.format == Format::Yaml {
        return out.value(&records.iter().map(Shown::from).collect::<Vec<_>>());
    }
    let mut bytes = Vec::new();
    for record in records {
        match out.format {
            Format::Json => {
                let row = serde_json::to_vec(&Shown::from(record)).map_err(io::Error::from)?;
                bytes.extend(row);
            }
            _ if out.quiet => bytes.extend(record.seq.to_string().bytes()),
            format => {
                if format == Format::Wide {
                    bytes.extend(format!("{}  {}  ", record.seq, record.time).bytes());
                }
                if io::stdout().is_terminal() {
                    let text = String::from_utf8_lossy(&record.payload);
                    bytes.extend(clean(&text).bytes());
                } else {
                    bytes.extend_from_slice(&record.payload);
                }
            }
        }
        bytes.push(b'\n');
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes)?;
    Ok(stdout.flush()?)
}

#[derive(Debug, Serialize)]
struct Info {
    first: u64,
    next: u64,
    records: u64,
    segments: usize,
    bytes: u64,
    /// The process that appends, if one has the log open.
    open_in: Option<u32>,
}

fn info(out: Out, dir: &Path) -> Result<(), CliError> {
    let disk = Arc::new(disk(dir)?);
    let open_in = disk.holder().map_err(|error| CliError::file(dir, &error))?;
    let files: Arc<dyn Files> = disk;
    let found = outline(&files).map_err(|error| failed(dir, &error))?;
    let Outline {
        first,
        next,
        segments,
        bytes,
    } = found.ok_or_else(|| no_log(dir))?;
    let records = next.saturating_sub(first);
    let info = Info {
        first,
        next,
        records,
        segments,
        bytes,
        open_in,
    };
    let holder = open_in.map_or("nobody".to_owned(), |pid| format!("process {pid}"));
    let facts = [
        ("records", records.to_string()),
        ("first", first.to_string()),
        ("next", next.to_string()),
        ("segments", segments.to_string()),
        ("on disk", exact_size(bytes)),
        ("open in", holder),
    ];
    out.facts(&info, &next.to_string(), &facts)
}

#[derive(Debug, Serialize)]
struct Verified {
    first: Option<u64>,
    last: Option<u64>,
    records: u64,
    segments: usize,
    damage: Vec<Damaged>,
}

#[derive(Debug, Serialize)]
struct Damaged {
    file: String,
    offset: u64,
    /// The first record that cannot be read.
    record: u64,
    /// The first one after it that can.
    again_from: Option<u64>,
}

fn verify(out: Out, dir: &Path) -> Result<(), CliError> {
    let files = existing(dir)?;
    let (mut first, mut last) = (None, None);
    let found = inspect(&*files, |record| {
        first = first.or(Some(record.seq));
        last = Some(record.seq);
    });
    let Inspection { segments, damage } = found.map_err(|error| failed(dir, &error))?;
    let records: u64 = segments.iter().map(|segment| segment.records).sum();
    let damaged = damage.iter().map(|damage| Damaged {
        file: damage.file.clone(),
        offset: damage.offset,
        record: damage.seq,
        again_from: damage.resume,
    });
    let verified = Verified {
        first,
        last,
        records,
        segments: segments.len(),
        damage: damaged.collect(),
    };
    if damage.is_empty() {
        let range = first.zip(last);
        let range = range.map_or(String::new(), |(first, last)| {
            format!(", {first} to {last}")
        });
        return out.done(
            &verified,
            format_args!("{records} records are whole{range}"),
        );
    }
    if out.is_machine() {
        out.value(&verified)?;
    }
    let each: Vec<String> = damage.iter().map(ToString::to_string).collect();
    let text = format!(
        "log {}: {records} records can be read\n{}",
        dir.display(),
        each.join("\n")
    );
    Err(CliError::new(Code::IO, text).fix(restore(damage[0].resume)))
}

/// `each`, `never`, `every=100`, `within=50ms`.
fn durability(text: &str) -> Result<Durability, String> {
    let fail = || format!("`{text}` is none of each, every=N, within=TIME, never");
    match text.split_once('=') {
        None if text == "each" => Ok(Durability::Each),
        None if text == "never" => Ok(Durability::Never),
        Some(("every", n)) => n
            .parse::<NonZeroU64>()
            .map(Durability::Every)
            .map_err(|_| fail()),
        Some(("within", time)) => values::duration(time).map(Durability::Within),
        _ => Err(fail()),
    }
}

fn disk(dir: &Path) -> Result<DiskFiles, CliError> {
    DiskFiles::for_reading(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => no_log(dir),
        _ => CliError::file(dir, &error),
    })
}

/// A log that is there, for reading.
fn existing(dir: &Path) -> Result<Arc<dyn Files>, CliError> {
    let files: Arc<dyn Files> = Arc::new(disk(dir)?);
    let listed = files.list().map_err(|error| CliError::file(dir, &error))?;
    if !listed.iter().any(|file| is_segment(&file.name)) {
        return Err(no_log(dir));
    }
    Ok(files)
}

fn is_segment(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|kind| kind == "log")
}

fn no_log(dir: &Path) -> CliError {
    let text = format!("there is no log in {}", dir.display());
    CliError::new(Code::NOT_FOUND, text).fix("meshwork log append makes one")
}

fn too_long(what: &str) -> CliError {
    let text = format!(
        "{what} is longer than a record can be, {}",
        exact_size(MAX_RECORD as u64)
    );
    CliError::new(Code::VALUE, text).fix("split it")
}

fn failed(dir: &Path, error: &LogError) -> CliError {
    let text = chain(error);
    // The error names the directory itself, where it is about all of it.
    let named = || format!("log {}: {text}", dir.display());
    match error {
        LogError::InUse { .. } => {
            let (text, fix) = text.split_once(": stop it").unwrap_or((&text, ""));
            let error = CliError::new(Code::CONFLICT, text);
            if fix.is_empty() {
                error
            } else {
                error.fix(format!("stop it{fix}"))
            }
        }
        LogError::Damaged(damage) => CliError::new(Code::IO, named()).fix(restore(damage.resume)),
        LogError::Trimmed { first } => {
            let text = format!(
                "log {}: what is before record {first} is dropped",
                dir.display()
            );
            CliError::new(Code::NOT_FOUND, text).fix(format!("--from {first}"))
        }
        LogError::Ahead { asked, next } => {
            let text = format!(
                "log {}: record {asked} is not there yet; the next one is {next}",
                dir.display()
            );
            CliError::new(Code::NOT_FOUND, text).fix(format!("--from {next}"))
        }
        LogError::Full { .. } => CliError::new(Code::IO, named()).fix("free space on its disk"),
        LogError::TooLarge { .. } | LogError::Config(_) => CliError::new(Code::VALUE, named()),
        _ => CliError::new(Code::IO, named()),
    }
}

fn restore(resume: Option<u64>) -> String {
    let rest = resume.map_or(String::new(), |seq| {
        format!("; `meshwork log tail --from {seq}` reads what is after the damage")
    });
    format!("put the file back from a copy{rest}")
}

/// An error after which some records are there all the same.
fn told(mut error: CliError, appended: &Appended) -> CliError {
    if let (Some(first), Some(last)) = (appended.first, appended.last)
        && !error.message.is_empty()
    {
        error.message = format!("{} (records {first} to {last} are appended)", error.message);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durabilities() {
        let every = NonZeroU64::new(100).unwrap();
        assert_eq!(durability("each"), Ok(Durability::Each));
        assert_eq!(durability("every=100"), Ok(Durability::Every(every)));
        let within = Durability::Within(Duration::from_millis(50));
        assert_eq!(durability("within=50ms"), Ok(within));
        for text in ["", "every", "every=0", "within=5", "each=1", "always"] {
            assert!(durability(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_lose_their_end_only() {
        let mut input = &b"a\n\nb\r\nc"[..];
        let mut got = Vec::new();
        while let Some(next) = line(&mut input).unwrap() {
            got.push(next);
        }
        assert_eq!(got, [&b"a"[..], b"", b"b\r", b"c"]);
    }
}
