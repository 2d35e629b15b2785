//! A kernel's output: read from its container while there is one, from a file afterwards, and
//! followed from the one into the other without a gap or a repetition.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use meshwork_identity::Timestamp;
use meshwork_proto::agent::{KernelLogs, LogChunk, Output};
use meshwork_proto::rpc::RpcError;
use meshwork_proto::service::{BoxStream, ItemStream};
use tokio::sync::mpsc;
use tracing::debug;

use super::Kernel;
use super::record::Record;
use crate::backend::{BackendError, Line, LogQuery};
use crate::shared::Shared;

/// Lines on their way to a reader before the container's output waits for it.
const READ_AHEAD: usize = 64;
/// Time before output that broke off is asked for again.
const RETRY: Duration = Duration::from_secs(1);
/// Largest line in a file, in bytes: Docker cuts lines at 16 KiB.
const MAX_LINE: u32 = 1 << 20;
const NAME: &str = "output";

/// Copies the output of a stopped container into the kernel's file. May be repeated.
pub(crate) async fn keep(shared: &Shared, record: &Record) -> Result<(), BackendError> {
    let mut lines = shared
        .backend
        .logs(&record.container(&shared.node), LogQuery::default());
    let (mut kept, mut bytes) = (std::collections::VecDeque::new(), 0);
    while let Some(line) = lines.next().await {
        let line = line?;
        bytes += weight(&line);
        kept.push_back(line);
        while bytes > shared.config.bounds.log_bytes {
            let Some(oldest) = kept.pop_front() else {
                break;
            };
            bytes -= weight(&oldest);
        }
    }
    if kept.is_empty() {
        // As good as an empty file, and two writes cheaper.
        return Ok(());
    }
    let dir = shared.logs(&record.kernel);
    tokio::task::spawn_blocking(move || write(&dir, kept.iter()))
        .await
        .map_err(io::Error::other)
        .and_then(|written| written)
        .map_err(|error| BackendError::Failed(format!("{}: {error}", "output file")))
}

/// Bytes that a line takes in memory, so that a million empty ones are not free.
fn weight(line: &Line) -> u64 {
    (line.data.len() + size_of::<Line>()) as u64
}

/// Size of the file in bytes.
pub(crate) fn size(dir: &Path) -> u64 {
    std::fs::metadata(dir.join(NAME)).map_or(0, |file| file.len())
}

/// Writes the file anew, all or nothing.
fn write<'a>(dir: &Path, lines: impl Iterator<Item = &'a Line>) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let temporary = dir.join("output.new");
    let mut file = BufWriter::new(File::create(&temporary)?);
    for line in lines {
        let length = u32::try_from(line.data.len()).map_err(io::Error::other)?;
        file.write_all(&[u8::from(line.output == Output::Stderr)])?;
        file.write_all(&line.at.to_be_bytes())?;
        file.write_all(&length.to_be_bytes())?;
        file.write_all(&line.data)?;
    }
    file.into_inner()?.sync_all()?;
    std::fs::rename(temporary, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

/// What [`keep`] wrote; nothing when there is no file.
fn read(dir: &Path) -> io::Result<Vec<Line>> {
    let bytes = match std::fs::read(dir.join(NAME)) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let (mut lines, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        lines.push(take_line(&mut rest).ok_or(io::ErrorKind::InvalidData)?);
    }
    Ok(lines)
}

fn take_line(rest: &mut Bytes) -> Option<Line> {
    let head = rest.get(..13)?;
    let output = if head[0] == 0 {
        Output::Stdout
    } else {
        Output::Stderr
    };
    let at = u64::from_be_bytes(head[1..9].try_into().ok()?);
    let length = u32::from_be_bytes(head[9..13].try_into().ok()?);
    let end = 13
        + usize::try_from(length)
            .ok()
            .filter(|_| length <= MAX_LINE)?;
    let data = (rest.len() >= end).then(|| rest.split_to(end).slice(13..))?;
    Some(Line { output, data, at })
}

/// The kernel's output as asked for. The task that reads ends with the stream.
pub(crate) fn stream(
    shared: &Arc<Shared>,
    kernel: Arc<Kernel>,
    query: KernelLogs,
) -> ItemStream<LogChunk> {
    let (lines, receiver) = mpsc::channel(READ_AHEAD);
    let reader = Reader {
        shared: Arc::clone(shared),
        kernel,
        query,
        place: Place::default(),
        lines: lines.clone(),
    };
    let stop = shared.stop.clone();
    shared.tasks.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let going = RpcError::new(meshwork_proto::Status::Cancelled, "the agent stops");
                // A reader that is not waiting will see the stream's end.
                drop(lines.try_send(Err(going)));
            }
            () = lines.closed() => {}
            () = reader.run() => {}
        }
    });
    Box::pin(stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|line| (line, receiver))
    }))
}

struct Reader {
    shared: Arc<Shared>,
    kernel: Arc<Kernel>,
    query: KernelLogs,
    place: Place,
    lines: mpsc::Sender<Result<LogChunk, RpcError>>,
}

impl Reader {
    async fn run(mut self) {
        let mut changes = self.kernel.watch();
        loop {
            let record = changes.borrow_and_update().clone();
            if record.is_over() {
                return self.read_file().await;
            }
            if record.started_at.is_some() || record.ending.is_some() {
                self.read_container(&record).await;
                if !self.query.follow {
                    return;
                }
            } else if !self.query.follow {
                return;
            }
            // The output broke off because the kernel ends, or because the backend is away.
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(RETRY), if record.ending.is_none() => {}
            }
        }
    }

    async fn read_container(&mut self, record: &Record) {
        let query = LogQuery {
            follow: self.query.follow,
            tail: self.query.tail.filter(|_| self.place.last.is_none()),
            since: self.since().max(self.place.second()),
        };
        self.place.seeking = self.place.last.is_some();
        let mut lines = self
            .shared
            .backend
            .logs(&record.container(&self.shared.node), query);
        while let Some(line) = self.next_of(&mut lines).await {
            match line {
                Ok(line) => self.tell(line).await,
                Err(error) if self.query.follow => {
                    debug!(kernel = %record.kernel, %error, "output broke off");
                    return;
                }
                Err(error) => return self.read_rest(error).await,
            }
        }
    }

    /// The next line: in time, when only what is there is wanted.
    async fn next_of(
        &self,
        lines: &mut BoxStream<Result<Line, BackendError>>,
    ) -> Option<Result<Line, BackendError>> {
        if self.query.follow {
            return lines.next().await;
        }
        let limit = self.shared.config.deadlines.ask;
        tokio::time::timeout(limit, lines.next())
            .await
            .unwrap_or_else(|_| {
                let late = format!("the output did not go on within {limit:?}");
                Some(Err(BackendError::Unavailable(late)))
            })
    }

    /// Where the container went while it was read, the rest is in the file. Else the reader hears
    /// that this is not all.
    async fn read_rest(&mut self, error: BackendError) {
        let going = match &error {
            BackendError::NotFound(_) => true,
            // A container that is being removed gives no output.
            BackendError::Failed(_) => self.kernel.look(|r| r.ending.is_some()),
            BackendError::Unavailable(_) => false,
        };
        if going {
            return self.read_file().await;
        }
        let error = RpcError::unavailable(format!("the output broke off: {error}"));
        drop(self.lines.send(Err(error)).await);
    }

    async fn read_file(&mut self) {
        let dir = self.shared.logs(&self.kernel.record().kernel);
        let lines = tokio::task::spawn_blocking(move || read(&dir)).await;
        let lines = match lines.map_err(io::Error::other).and_then(|lines| lines) {
            Ok(lines) => lines,
            Err(error) => {
                let error = RpcError::internal(format!("the kept output cannot be read: {error}"));
                drop(self.lines.send(Err(error)).await);
                return;
            }
        };
        let skip = match (&self.place.last, self.query.tail) {
            (Some(last), _) => after(last, &lines),
            (None, Some(n)) => lines
                .len()
                .saturating_sub(usize::try_from(n).unwrap_or(usize::MAX)),
            (None, None) => 0,
        };
        self.place.seeking = false;
        for line in lines.into_iter().skip(skip) {
            self.tell(line).await;
        }
    }

    async fn tell(&mut self, line: Line) {
        if !self.place.is_new(&line) {
            return;
        }
        let at = (line.at > 0).then(|| Timestamp::from_millis(line.at / 1_000_000));
        if self
            .query
            .since
            .is_some_and(|since| at.is_some_and(|at| at < since))
        {
            return;
        }
        let chunk = LogChunk {
            output: line.output,
            data: line.data,
            at,
        };
        // Without a reader the task ends at its next await.
        drop(self.lines.send(Ok(chunk)).await);
    }

    fn since(&self) -> u64 {
        self.query.since.map_or(0, Timestamp::as_secs)
    }
}

/// Where in the output a reader is, so that it finds its place when the output is read anew. Times
/// alone do not tell: lines of the two descriptors may be a little out of order.
#[derive(Debug, Default)]
struct Place {
    /// The last line that was read.
    last: Option<Line>,
    /// Whether the lines that come now were read before, until `last` comes.
    seeking: bool,
}

/// Lines this much later than the reader's place, in nanoseconds, are new even when the place
/// itself is gone (the oldest output was dropped meanwhile).
const DISORDER: u64 = 1_000_000_000;

/// Index of the first of `lines` that comes after `last`.
fn after(last: &Line, lines: &[Line]) -> usize {
    match lines.iter().rposition(|line| line == last) {
        Some(index) => index + 1,
        None => lines
            .iter()
            .position(|line| line.at > last.at)
            .unwrap_or(lines.len()),
    }
}

impl Place {
    /// A second since 1970 before which nothing is new.
    fn second(&self) -> u64 {
        self.last
            .as_ref()
            .map_or(0, |l| l.at.saturating_sub(DISORDER) / 1_000_000_000)
    }

    fn is_new(&mut self, line: &Line) -> bool {
        if let Some(last) = &self.last
            && self.seeking
        {
            if line == last {
                self.seeking = false;
                return false;
            }
            if line.at <= last.at + DISORDER {
                return false;
            }
            self.seeking = false;
        }
        self.last = Some(line.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: u64, text: &str) -> Line {
        Line {
            output: if text.starts_with('!') {
                Output::Stderr
            } else {
                Output::Stdout
            },
            data: Bytes::from(text.to_owned()),
            at,
        }
    }

    #[test]
    fn the_file_keeps_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let lines = [
            line(1, "a\n"),
            line(2, "!b"),
            line(2, ""),
            line(3, "\0\n\r"),
        ];
        assert_eq!(read(dir.path()).unwrap(), []);
        write(dir.path(), lines.iter()).unwrap();
        write(dir.path(), lines.iter()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), lines);
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(read(dir.path()).is_err(), "a cut file is no output");
    }

    #[test]
    fn a_reader_finds_its_place_again() {
        // Written at nearly the same time by two descriptors: out of order.
        let lines = [
            line(10, "a"),
            line(12, "!b"),
            line(11, "c"),
            line(13, "d"),
            line(13, "d"),
        ];
        for read in 1..=lines.len() {
            let mut place = Place::default();
            assert!(lines[..read].iter().all(|l| place.is_new(l)));
            let in_file = after(place.last.as_ref().unwrap(), &lines);
            place.seeking = true;
            let from_live: Vec<&Line> = lines.iter().filter(|l| place.is_new(l)).collect();
            // Two lines that are the same to the nanosecond cannot be told apart.
            let place_in_file = if read == 4 { 5 } else { read };
            assert_eq!(in_file, place_in_file);
            assert_eq!(from_live.len(), lines.len() - read.min(4));
        }
    }

    #[test]
    fn a_place_that_is_gone_is_passed_by_time() {
        let last = line(5 * DISORDER, "x");
        let lines = [line(4 * DISORDER, "old"), line(7 * DISORDER, "new")];
        assert_eq!(after(&last, &lines), 1);
        let mut place = Place {
            last: Some(last),
            seeking: true,
        };
        assert_eq!(lines.iter().filter(|l| place.is_new(l)).count(), 1);
    }
}
