//! An HTTP/1.1 client that returns status, headers and body, and tells if the body is complete.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::HANG_GUARD;

/// A response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// False if the connection ended before the body.
    pub complete: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("bodies are UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Data of each server-sent event; comments, which a slow stream has, are left out.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        assert!(text.is_empty() || text.ends_with("\n\n"), "events end with an empty line: {text:?}");
        let data =
            |event: &str| event.strip_prefix("data: ").expect("an event is one line of data").to_owned();
        text.split_terminator("\n\n").filter(|event| !event.starts_with(':')).map(data).collect()
    }

    /// Name and JSON of each server-sent event; comments are left out.
    pub fn named_events(&self) -> Vec<(String, Value)> {
        let text = self.text();
        assert!(text.is_empty() || text.ends_with("\n\n"), "events end with an empty line: {text:?}");
        let named = |event: &str| {
            let (name, data) =
                event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: "))?;
            Some((name.to_owned(), serde_json::from_str(data).expect("an event is JSON")))
        };
        let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        events.map(|event| named(event).unwrap_or_else(|| panic!("no name and data: {event}"))).collect()
    }

    /// JSON of each event except `[DONE]`, in order.
    pub fn chunks(&self) -> Vec<Value> {
        let json = self.events().into_iter().filter(|data| data != "[DONE]");
        json.map(|data| serde_json::from_str(&data).expect("an event is JSON")).collect()
    }

    /// Returns status, `error.code` and `error.param`. Fails if the error lacks one of its four keys.
    pub fn error(&self) -> (u16, Option<String>, Option<String>) {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no error in {json}"));
        for key in ["message", "type", "param", "code"] {
            assert!(error.contains_key(key), "no {key} in {json}");
        }
        assert!(error["message"].is_string() && error["type"].is_string(), "{json}");
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        (self.status, text("code"), text("param"))
    }
}

/// An open connection, with the bytes received and not yet used.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        Self { stream, buffer: Vec::new() }
    }

    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    pub async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
        if method == "POST" || !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let bytes = [head.as_bytes(), b"\r\n", body].concat();
        // A server that refuses a large request may close the connection before it has read all of it.
        let _refused = self.write(&bytes).await;
    }

    /// Reads more bytes. Returns false at the end of the connection.
    async fn read_more(&mut self) -> bool {
        let read = timeout(HANG_GUARD, self.stream.read_buf(&mut self.buffer)).await;
        matches!(read.expect("the server answers in time"), Ok(1..))
    }

    /// Reads until the server closes the connection, and returns all bytes.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.read_more().await {}
        std::mem::take(&mut self.buffer)
    }

    /// Reads until the received bytes contain `text`, and takes them up to the end of it.
    pub async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = find(&self.buffer, text.as_bytes()) {
                let taken: Vec<u8> = self.buffer.drain(..at + text.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let received = String::from_utf8_lossy(&self.buffer).into_owned();
            assert!(self.read_more().await, "the connection ended without {text:?}: {received}");
        }
    }

    /// Reads one response.
    pub async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    /// Reads the response to a request with this method. A response to HEAD has no body.
    pub async fn reply_to(&mut self, method: &str) -> Reply {
        let head = self.until("\r\n\r\n").await;
        let mut lines = head.trim_end().lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let status = status.parse().expect("a status is a number");
        let mut reply =
            Reply { status, headers: lines.map(header).collect(), body: Vec::new(), complete: true };
        if method == "HEAD" {
            return reply;
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.complete = self.read_chunks(&mut reply.body).await;
        } else {
            let length = reply.header("content-length").map_or(0, |length| length.parse().expect("a length"));
            while self.buffer.len() < length && self.read_more().await {}
            reply.complete = self.buffer.len() >= length;
            let taken = length.min(self.buffer.len());
            reply.body = self.buffer.drain(..taken).collect();
        }
        reply
    }

    /// Reads a chunked body. Returns false if the connection ended before its last chunk.
    async fn read_chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = find(&self.buffer, b"\r\n") else {
                if self.read_more().await {
                    continue;
                }
                return false;
            };
            let text = std::str::from_utf8(&self.buffer[..line]).expect("a length");
            let length = usize::from_str_radix(text, 16).expect("a length in hexadecimal");
            while self.buffer.len() < line + 2 + length + 2 {
                if !self.read_more().await {
                    return false;
                }
            }
            body.extend_from_slice(&self.buffer[line + 2..line + 2 + length]);
            self.buffer.drain(..line + 2 + length + 2);
            if length == 0 {
                return true;
            }
        }
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

/// Sends a request on a new connection and returns the response.
pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut connection = Connection::open(address).await;
    connection.request(method, path, headers, body).await;
    connection.reply_to(method).await
}

pub async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, "GET", path, &[], b"").await
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    send(address, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes()).await
}
