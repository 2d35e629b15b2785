//! A session's output on our own standard output and error, also across a manager's restart.

use std::io::{self, Write};
use std::time::Duration;

use futures_util::StreamExt;
use meshwork_identity::Timestamp;
use meshwork_proto::RpcError;
use meshwork_proto::agent::{LogChunk, Output};
use meshwork_proto::manager::{Logs, SessionLogs};

use super::super::client::{Client, may_pass};
use super::super::error::CliError;

/// Pause before the output is asked for again after a failure, the first time and at most.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Failures in a row after which following is given up: some two minutes.
pub(super) const TRIES: u32 = 30;

/// Output to follow, and how far it was shown. `on`: also what is still to come.
pub(super) struct Follow {
    session: String,
    tail: Option<u64>,
    since: Option<Timestamp>,
    on: bool,
    shown: Shown,
}

/// Where a repeated request goes on. The agent's time stamps are coarse, so what was shown with the
/// last of them is counted in bytes, and left out when it comes again.
#[derive(Default)]
struct Shown {
    last: Option<Timestamp>,
    at_last: [usize; 2],
    repeated: [usize; 2],
}

impl Follow {
    pub(super) fn new(
        session: String,
        tail: Option<u64>,
        since: Option<Timestamp>,
        on: bool,
    ) -> Self {
        Self {
            session,
            tail,
            since,
            on,
            shown: Shown::default(),
        }
    }

    /// Shows the output until it ends, or unless `on` until what is there is shown.
    pub(super) async fn run(mut self, client: &Client) -> Result<(), CliError> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            let before = self.shown.last;
            match self.once(client).await {
                Ok(()) => return Ok(()),
                Err(Failure::Ours(error)) => return Err(error),
                Err(Failure::Theirs(error)) => {
                    if self.shown.last != before {
                        (tries, pause) = (0, FIRST_PAUSE);
                    }
                    tries += 1;
                    // What is there already can be asked for again by hand.
                    let waits = self.on || error.reason != "node_unreachable";
                    if !waits || !may_pass(&error) || tries == TRIES {
                        return Err(error.into());
                    }
                    tracing::debug!(%error, "asking for the output again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn once(&mut self, client: &Client) -> Result<(), Failure> {
        let request = SessionLogs {
            session: self.session.clone(),
            tail: if self.shown.last.is_none() {
                self.tail
            } else {
                None
            },
            follow: self.on,
            since: self.shown.last.or(self.since),
        };
        self.shown.repeated = self.shown.at_last;
        let mut chunks = client
            .stream::<Logs>(&request)
            .await
            .map_err(Failure::Theirs)?;
        while let Some(chunk) = chunks.next().await {
            let mut chunk = chunk.map_err(Failure::Theirs)?;
            let skip = self.shown.note(&chunk);
            chunk.data = chunk.data.slice(skip..);
            show(&chunk).map_err(Failure::Ours)?;
        }
        Ok(())
    }
}

/// Whose fault it is that the output broke off.
enum Failure {
    Ours(CliError),
    Theirs(RpcError),
}

impl Shown {
    /// Counts a chunk; tells how many of its first bytes were shown before.
    fn note(&mut self, chunk: &LogChunk) -> usize {
        let output = usize::from(chunk.output == Output::Stderr);
        let Some(at) = chunk.at else { return 0 };
        if self.last.is_some_and(|last| at < last) {
            // The two outputs may interleave out of order within one answer; only an older chunk
            // of a repeated answer has been shown, and such answers start at `last`.
            return 0;
        }
        if self.last != Some(at) {
            self.last = Some(at);
            self.at_last = [0; 2];
            self.repeated = [0; 2];
        }
        let skip = self.repeated[output].min(chunk.data.len());
        self.repeated[output] -= skip;
        self.at_last[output] += chunk.data.len() - skip;
        skip
    }
}

/// Writes a chunk where the container wrote it. Raw: what a container says to a terminal is the
/// business of who runs it.
pub(super) fn show(chunk: &LogChunk) -> Result<(), CliError> {
    let write = |to: &mut dyn Write| to.write_all(&chunk.data).and_then(|()| to.flush());
    Ok(match chunk.output {
        Output::Stdout => write(&mut io::stdout().lock()),
        Output::Stderr => write(&mut io::stderr().lock()),
    }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(output: Output, at: u64, text: &'static str) -> LogChunk {
        LogChunk {
            output,
            data: text.into(),
            at: Some(Timestamp::from_millis(at)),
        }
    }

    /// What is shown of `chunks` by one answer.
    fn answer(shown: &mut Shown, chunks: &[LogChunk]) -> String {
        shown.repeated = shown.at_last;
        chunks
            .iter()
            .map(|c| String::from_utf8_lossy(&c.data[shown.note(c)..]).into_owned())
            .collect()
    }

    #[test]
    fn a_resumed_output_has_no_gap_and_no_repeat() {
        use Output::{Stderr, Stdout};
        let mut shown = Shown::default();
        let first = [
            chunk(Stdout, 1, "a\n"),
            chunk(Stdout, 2, "b\n"),
            chunk(Stderr, 2, "x\n"),
        ];
        assert_eq!(answer(&mut shown, &first), "a\nb\nx\n");
        // From `last` on: two lines of the same millisecond are there again, cut otherwise, and one
        // more has come.
        let second = [
            chunk(Stdout, 2, "b\nc\n"),
            chunk(Stderr, 2, "x\n"),
            chunk(Stdout, 3, "d\n"),
        ];
        assert_eq!(answer(&mut shown, &second), "c\nd\n");
        assert_eq!(answer(&mut shown, &[chunk(Stdout, 3, "d\n")]), "");
        assert_eq!(
            answer(
                &mut shown,
                &[chunk(Stdout, 3, "d\n"), chunk(Stdout, 4, "e\n")]
            ),
            "e\n"
        );
    }
}
