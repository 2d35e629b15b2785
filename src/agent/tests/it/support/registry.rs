//! An image registry as small as Docker accepts, on loopback, where Docker needs no TLS.
//! <https://distribution.github.io/distribution/spec/api/>

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// Bytes of a layer that go out between two short rests, so that a fetch has progress.
const PIECE: usize = 64 * 1024;

#[derive(Default)]
struct State {
    /// Manifests by digest.
    manifests: BTreeMap<String, Vec<u8>>,
    /// Digests by `name:tag`.
    tags: BTreeMap<String, String>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// Layers asked for, in order.
    fetched: Vec<String>,
}

/// A running registry; its thread ends with the test's process.
pub(crate) struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || drop(serve(connection.unwrap(), &state)));
            }
        });
        Self { address, state }
    }

    /// Puts an image of one layer there and returns its reference. With `broken`, what is sent is
    /// not what its digest says.
    pub(crate) fn push(&self, name: &str, tag: &str, layer: &[u8], broken: bool) -> String {
        let mut state = self.state.lock().unwrap();
        let mut put = |bytes: &[u8]| {
            let digest = digest(bytes);
            let mut bytes = bytes.to_vec();
            if broken {
                bytes.reverse();
            }
            state.blobs.insert(digest.clone(), bytes);
            digest
        };
        let layer_digest = put(layer);
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer_digest}"]}}}}"#
        );
        let config_digest = digest(config.as_bytes());
        state
            .blobs
            .insert(config_digest.clone(), config.clone().into_bytes());
        let kind = "application/vnd.docker";
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}.distribution.manifest.v2+json","config":{{"mediaType":"{kind}.container.image.v1+json","size":{},"digest":"{config_digest}"}},"layers":[{{"mediaType":"{kind}.image.rootfs.diff.tar.gzip","size":{},"digest":"{layer_digest}"}}]}}"#,
            config.len(),
            layer.len(),
        );
        let manifest_digest = digest(manifest.as_bytes());
        state
            .manifests
            .insert(manifest_digest.clone(), manifest.into_bytes());
        state.tags.insert(format!("{name}:{tag}"), manifest_digest);
        format!("{}/{name}:{tag}", self.address)
    }

    /// How many layers were asked for so far.
    pub(crate) fn fetched(&self) -> usize {
        self.state.lock().unwrap().fetched.len()
    }
}

fn digest(bytes: &[u8]) -> String {
    format!(
        "sha256:{}",
        data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
    )
}

fn serve(connection: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            header.clear();
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        answer(&mut writer, method, path, state)?;
    }
}

fn answer(
    writer: &mut TcpStream,
    method: &str,
    path: &str,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let (kind, digest, body) = {
        let mut state = state.lock().unwrap();
        let path = path.trim_start_matches("/v2/");
        if path.is_empty() {
            ("application/json", String::new(), Some(b"{}".to_vec()))
        } else if let Some((name, reference)) = path.split_once("/manifests/") {
            let tagged = state.tags.get(&format!("{name}:{reference}")).cloned();
            let digest = tagged.unwrap_or_else(|| reference.to_owned());
            let body = state.manifests.get(&digest).cloned();
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                digest,
                body,
            )
        } else if let Some((_, digest)) = path.split_once("/blobs/") {
            let body = state.blobs.get(digest).cloned();
            if body.as_ref().is_some_and(|b| b.first() != Some(&b'{')) {
                state.fetched.push(digest.to_owned());
            }
            ("application/octet-stream", digest.to_owned(), body)
        } else {
            ("text/plain", String::new(), None)
        }
    };
    let Some(body) = body else {
        return writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    write!(
        writer,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {digest}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\r\n",
        body.len()
    )?;
    if method != "HEAD" {
        for piece in body.chunks(PIECE) {
            writer.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
