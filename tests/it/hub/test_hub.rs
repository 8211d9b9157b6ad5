//! A server that speaks the hub's paths, beside a second one that large files are redirected to, with faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The commit of every revision.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Hub,
    Storage,
}

/// A request that has arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub host: Host,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Bytes of the file that were sent.
    pub sent: usize,
}

/// A fault of one request whose path ends with a text.
pub enum Fault {
    /// An answer with this status and headers.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// The connection ends after these bytes of the file.
    Cut(usize),
    /// The connection stays open and silent after these bytes. The rest is sent when the channel says so; if
    /// the sender is dropped, the connection ends.
    Stall(usize, Receiver<()>),
    /// `Range` is ignored.
    WholeFile,
    /// Other bytes of the same length.
    WrongBytes,
    /// A redirect to this path of the same server.
    Moved(String),
}

struct File {
    bytes: Vec<u8>,
    /// Large files have their SHA-256 as ETag, and are on the other server.
    is_large: bool,
}

impl File {
    /// Its entry in the list of a repository's files, which `huggingface_hub` reads.
    fn entry(&self, name: &str) -> Value {
        let (hash, size) = (sha256(&self.bytes), self.bytes.len());
        let mut entry = json!({ "type": "file", "path": name, "size": size, "oid": hash[..40] });
        if self.is_large {
            entry["lfs"] = json!({ "oid": hash, "size": size, "pointerSize": 130 });
        }
        entry
    }
}

struct State {
    files: Mutex<BTreeMap<String, File>>,
    faults: Mutex<Vec<(Host, String, Fault)>>,
    seen: Mutex<Vec<Seen>>,
    /// Every request to the hub must have this token.
    token: Mutex<Option<&'static str>>,
    /// Size that the hub gives for large files, if it is not the true one.
    claimed: Mutex<Option<u64>>,
    storage: SocketAddr,
}

/// Both servers, until the end of the test.
pub struct TestHub {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl TestHub {
    pub fn start() -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, storage) = (listen(), listen());
        let address = hub.local_addr().unwrap();
        let state = Arc::new(State {
            files: Mutex::default(),
            faults: Mutex::default(),
            seen: Mutex::default(),
            token: Mutex::default(),
            claimed: Mutex::default(),
            storage: storage.local_addr().unwrap(),
        });
        for (host, listener) in [(Host::Hub, hub), (Host::Storage, storage)] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let state = Arc::clone(&state);
                    // The client may end a connection at any time.
                    thread::spawn(move || drop(state.answer(host, &stream.unwrap())));
                }
            });
        }
        Self { address, state }
    }

    /// Adds a file; safetensors are large.
    pub fn add(&self, name: &str, bytes: Vec<u8>) {
        let is_large = name.ends_with(".safetensors");
        self.state.files.lock().unwrap().insert(name.to_owned(), File { bytes, is_large });
    }

    pub fn remove(&self, name: &str) {
        self.state.files.lock().unwrap().remove(name).unwrap();
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.state.files.lock().unwrap()[name].bytes.clone()
    }

    pub fn sha256(&self, name: &str) -> String {
        sha256(&self.state.files.lock().unwrap()[name].bytes)
    }

    /// The next request to this server whose path ends so meets the fault.
    pub fn fail(&self, host: Host, path: &str, fault: Fault) {
        self.state.faults.lock().unwrap().push((host, path.to_owned(), fault));
    }

    /// The next request for a large file is silent after some bytes, until the sender is used or dropped.
    pub fn stall(&self, name: &str, after: usize) -> Sender<()> {
        let (sender, receiver) = channel();
        self.fail(Host::Storage, name, Fault::Stall(after, receiver));
        sender
    }

    pub fn require(&self, token: &'static str) {
        *self.state.token.lock().unwrap() = Some(token);
    }

    pub fn claim(&self, bytes: u64) {
        *self.state.claimed.lock().unwrap() = Some(bytes);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The reads of a large file: `Range` and the bytes that were sent.
    pub fn reads(&self, name: &str) -> Vec<(Option<String>, usize)> {
        let own =
            |seen: &Seen| seen.host == Host::Storage && seen.path.ends_with(name) && seen.method == "GET";
        self.seen().into_iter().filter(own).map(|seen| (seen.range, seen.sent)).collect()
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request's method, path and headers.
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let first = lines.next()?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let headers = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())))
            .collect();
        Some(Self { method, path, headers })
    }
}

impl State {
    fn answer(&self, host: Host, mut stream: &TcpStream) -> std::io::Result<()> {
        let Some(request) = Request::read(stream) else { return Ok(()) };
        let header = |name: &str| request.headers.get(name).cloned();
        let at = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(Seen {
                host,
                method: request.method.clone(),
                path: request.path.clone(),
                range: header("range"),
                authorization: header("authorization"),
                sent: 0,
            });
            seen.len() - 1
        };
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let own = |(on, path, _): &(Host, String, Fault)| *on == host && request.path.ends_with(path);
            // A question about a file meets no fault of its contents.
            let found = faults.iter().position(|fault| {
                own(fault)
                    && (request.method == "GET" || matches!(fault.2, Fault::Status(..) | Fault::Moved(_)))
            });
            found.map(|at| faults.remove(at).2)
        };
        match &fault {
            Some(Fault::Status(status, headers)) => {
                let headers: String = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
                return write!(
                    stream,
                    "HTTP/1.1 {status} Fault\r\n{headers}connection: close\r\ncontent-length: 0\r\n\r\n"
                );
            }
            Some(Fault::Moved(path)) => return redirect(stream, path, "etag: \"none\"\r\n"),
            _ => {}
        }
        if host == Host::Storage {
            let name = request.path.trim_start_matches('/').to_owned();
            let bytes = self.files.lock().unwrap()[&name].bytes.clone();
            return self.send(stream, &request, &bytes, "", (at, fault));
        }
        let token = self.token.lock().unwrap().map(|token| format!("Bearer {token}"));
        if token.is_some() && header("authorization") != token {
            let code =
                "x-error-code: GatedRepo\r\nx-error-message: Access to model org/tiny is restricted.\r\n";
            return write!(
                stream,
                "HTTP/1.1 401 Unauthorized\r\n{code}connection: close\r\ncontent-length: 0\r\n\r\n"
            );
        }
        self.answer_of_hub(stream, &request, (at, fault))
    }

    fn answer_of_hub(
        &self,
        mut stream: &TcpStream,
        request: &Request,
        (at, fault): (usize, Option<Fault>),
    ) -> std::io::Result<()> {
        let not_found = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        if let Some(revision) = request.path.strip_prefix("/api/models/org/tiny/revision/") {
            let known = ["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision);
            if !known {
                let code = "x-error-code: RevisionNotFound\r\n";
                return write!(
                    stream,
                    "HTTP/1.1 404 Not Found\r\n{code}connection: close\r\ncontent-length: 0\r\n\r\n"
                );
            }
            let files = self.files.lock().unwrap();
            let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
            let info = json!({ "id": "org/tiny", "sha": COMMIT, "siblings": siblings });
            return send_json(stream, &info);
        }
        if request.path.starts_with(&format!("/api/models/org/tiny/tree/{COMMIT}?")) {
            let files = self.files.lock().unwrap();
            let entries: Vec<_> = files.iter().map(|(name, file)| file.entry(name)).collect();
            return send_json(stream, &json!(entries));
        }
        let Some(name) = request.path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")) else {
            return stream.write_all(not_found.as_bytes());
        };
        let (bytes, is_large) = match self.files.lock().unwrap().get(name) {
            Some(file) => (file.bytes.clone(), file.is_large),
            None => return stream.write_all(not_found.as_bytes()),
        };
        let hash = sha256(&bytes);
        if !is_large {
            let headers = format!("etag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\n", &hash[..40]);
            return self.send(stream, request, &bytes, &headers, (at, fault));
        }
        let size = self.claimed.lock().unwrap().unwrap_or(bytes.len() as u64);
        let headers = format!(
            "x-linked-etag: \"{hash}\"\r\nx-linked-size: {size}\r\nx-repo-commit: {COMMIT}\r\n\
             etag: \"other\"\r\n"
        );
        redirect(stream, &format!("http://{}/{name}", self.storage), &headers)
    }

    /// Sends a file or its part, as far as the fault allows.
    fn send(
        &self,
        mut stream: &TcpStream,
        request: &Request,
        bytes: &[u8],
        headers: &str,
        (at, fault): (usize, Option<Fault>),
    ) -> std::io::Result<()> {
        let range = request.headers.get("range").filter(|_| !matches!(fault, Some(Fault::WholeFile)));
        let from = range.map_or(0, |range| {
            let text = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
            text.parse().unwrap()
        });
        let mut part = bytes[from..].to_vec();
        if matches!(fault, Some(Fault::WrongBytes)) {
            part.iter_mut().for_each(|byte| *byte = !*byte);
        }
        let size = part.len();
        if range.is_some() {
            let (last, all) = (bytes.len() - 1, bytes.len());
            let range = format!("content-range: bytes {from}-{last}/{all}\r\n");
            write!(
                stream,
                "HTTP/1.1 206 Partial\r\n{headers}{range}connection: close\r\ncontent-length: {size}\r\n\r\n"
            )?;
        } else {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\n{headers}connection: close\r\ncontent-length: {size}\r\n\r\n"
            )?;
        }
        if request.method == "HEAD" {
            return Ok(());
        }
        let end = match fault {
            Some(Fault::Cut(end) | Fault::Stall(end, _)) => end,
            _ => size,
        };
        stream.write_all(&part[..end])?;
        self.seen.lock().unwrap()[at].sent += end;
        if let Some(Fault::Stall(_, wait)) = fault {
            if wait.recv().is_err() {
                return Ok(());
            }
            stream.write_all(&part[end..])?;
            self.seen.lock().unwrap()[at].sent += size - end;
        }
        Ok(())
    }
}

fn send_json(mut stream: &TcpStream, value: &Value) -> std::io::Result<()> {
    let text = value.to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len())
}

fn redirect(mut stream: &TcpStream, to: &str, headers: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 302 Found\r\nlocation: {to}\r\n{headers}connection: close\r\ncontent-length: 0\r\n\r\n"
    )
}
