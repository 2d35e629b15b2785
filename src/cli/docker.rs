//! The few words of Docker's HTTP interface that `doctor` and `demo` need; kernels are the agent's
//! business, and only it holds the full client.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Time for one answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Most bytes of one answer.
const MAX_ANSWER: u64 = 4 << 20;

/// Docker's socket.
#[derive(Debug, Clone)]
pub(super) struct Docker {
    socket: PathBuf,
}

/// Why Docker did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum DockerError {
    /// Nobody answers at the socket.
    #[error("no Docker answers at {}: {source}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `DOCKER_HOST` names something else than a unix socket.
    #[error("DOCKER_HOST is `{0}`, but only a unix socket (unix:///path) is used")]
    Host(String),
    /// It refused.
    #[error("Docker answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It answered something else than HTTP.
    #[error("Docker's answer is not understood")]
    Answer,
}

impl Docker {
    /// The socket given, else that of `DOCKER_HOST`, else the usual one.
    pub(super) fn find(given: Option<PathBuf>) -> Result<Self, DockerError> {
        if let Some(socket) = given {
            return Ok(Self { socket });
        }
        match std::env::var("DOCKER_HOST") {
            Ok(host) if !host.is_empty() => match host.strip_prefix("unix://") {
                Some(path) => Ok(Self {
                    socket: path.into(),
                }),
                None => Err(DockerError::Host(host)),
            },
            _ => Ok(Self {
                socket: "/var/run/docker.sock".into(),
            }),
        }
    }

    /// `GET` of a JSON document.
    pub(super) async fn get(&self, path: &str) -> Result<Value, DockerError> {
        let body = self.request("GET", path, "application/json", &[]).await?;
        serde_json::from_slice(&body).map_err(|_| DockerError::Answer)
    }

    /// Makes an image of one layer, a tar archive. `changes` are Dockerfile lines.
    pub(super) async fn import(
        &self,
        name: &str,
        changes: &str,
        layer: &[u8],
    ) -> Result<(), DockerError> {
        let changes = percent(changes);
        let path = format!(
            "/images/create?fromSrc=-&repo={}&changes={changes}",
            percent(name)
        );
        let body = self
            .request("POST", &path, "application/x-tar", layer)
            .await?;
        // Failures after the answer's head arrive as a line of the answer.
        let failed = body.split(|b| *b == b'\n').find_map(|line| {
            let line: Value = serde_json::from_slice(line).ok()?;
            line.get("error")?.as_str().map(str::to_owned)
        });
        match failed {
            Some(message) => Err(DockerError::Refused {
                status: 200,
                message,
            }),
            None => Ok(()),
        }
    }

    /// Removes an image; that there is none is fine.
    pub(super) async fn remove_image(&self, name: &str) -> Result<(), DockerError> {
        self.delete(&format!("/images/{}?force=true", percent(name)))
            .await
    }

    /// Removes a container with force; that there is none is fine.
    pub(super) async fn remove_container(&self, id: &str) -> Result<(), DockerError> {
        self.delete(&format!("/containers/{}?force=true&v=true", percent(id)))
            .await
    }

    /// Ids of all containers of this image.
    pub(super) async fn containers_of(&self, image: &str) -> Result<Vec<String>, DockerError> {
        let filter = serde_json::json!({ "ancestor": [image] }).to_string();
        let found = self
            .get(&format!(
                "/containers/json?all=true&filters={}",
                percent(&filter)
            ))
            .await?;
        let ids = found.as_array().into_iter().flatten();
        Ok(ids
            .filter_map(|c| c["Id"].as_str().map(str::to_owned))
            .collect())
    }

    async fn delete(&self, path: &str) -> Result<(), DockerError> {
        match self.request("DELETE", path, "application/json", &[]).await {
            Ok(_) | Err(DockerError::Refused { status: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One request on a connection of its own. HTTP/1.0, so that the answer's end is the
    /// connection's.
    async fn request(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, DockerError> {
        let unreachable = |source| DockerError::Unreachable {
            socket: self.socket.clone(),
            source,
        };
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            let head = format!(
                "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body).await?;
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
            Ok(answer)
        };
        let answer = tokio::time::timeout(ANSWER, exchange)
            .await
            .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
            .map_err(unreachable)?;
        read_answer(&answer)
    }
}

fn read_answer(answer: &[u8]) -> Result<Vec<u8>, DockerError> {
    const GAP: &[u8] = b"\r\n\r\n";
    let gap = answer
        .windows(GAP.len())
        .position(|w| w == GAP)
        .ok_or(DockerError::Answer)?;
    let head = String::from_utf8_lossy(&answer[..gap]);
    let status = head.split(' ').nth(1).and_then(|s| s.parse::<u16>().ok());
    let status = status.ok_or(DockerError::Answer)?;
    let body = answer[gap + GAP.len()..].to_vec();
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let message = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|v| v["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    Err(DockerError::Refused { status, message })
}

/// RFC 3986 §2.1, of everything but unreserved characters.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// A tar archive (POSIX ustar) with one executable file.
pub(super) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut head = [0u8; BLOCK];
    let mut field =
        |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, "0000755\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{:011o}\0", content.len()));
    field(136, "00000000000\0");
    // The checksum counts its own field as spaces.
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = head.iter().map(|b| u32::from(*b)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = head.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        assert_eq!(
            read_answer(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{}").unwrap(),
            b"{}"
        );
        let refused = read_answer(b"HTTP/1.0 409 Conflict\r\n\r\n{\"message\":\"in use\"}");
        assert_eq!(
            refused.unwrap_err().to_string(),
            "Docker answered 409: in use"
        );
        assert!(read_answer(b"garbage").is_err() && read_answer(b"x\r\n\r\n").is_err());
    }

    #[test]
    fn the_archive_unpacks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, tar("program", &[7; 700])).unwrap();
        let unpacked = std::process::Command::new("tar")
            .args(["-xvf", "a.tar"])
            .current_dir(folder.path())
            .status()
            .unwrap();
        assert!(unpacked.success());
        assert_eq!(
            std::fs::read(folder.path().join("program")).unwrap(),
            [7; 700]
        );
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(percent("a/b:c \"é"), "a%2Fb%3Ac%20%22%C3%A9");
    }
}
