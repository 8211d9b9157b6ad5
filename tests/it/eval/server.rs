//! A server on a free port whose answers a function gives.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A request with a JSON body, or null without one.
pub struct ScriptedRequest {
    pub path: String,
    pub body: Value,
}

type Answer = Box<dyn FnMut(&ScriptedRequest) -> (u16, Value) + Send>;

/// A server that answers one request after the other.
pub struct ScriptedServer {
    address: SocketAddr,
    paths: Arc<Mutex<Vec<String>>>,
}

impl ScriptedServer {
    pub fn start(answer: impl FnMut(&ScriptedRequest) -> (u16, Value) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let paths = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&paths), Arc::new(Mutex::new(Box::new(answer) as Answer)));
        // The threads end with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream.unwrap(), &seen, &answer));
            }
        });
        Self { address, paths }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Paths of all requests.
    pub fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<String>>, answer: &Mutex<Answer>) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        seen.lock().unwrap().push(request.path.clone());
        let (status, body) = match request.path.as_str() {
            "/v1/models" => (200, serde_json::json!({ "data": [{ "id": "scripted" }] })),
            _ => (answer.lock().unwrap())(&request),
        };
        let body = body.to_string();
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nretry-after: 0\r\n\r\n");
        if writer.write_all(format!("{head}{body}").as_bytes()).is_err() {
            return;
        }
    }
}

/// The next request of a connection; nothing at its end.
fn read(reader: &mut BufReader<TcpStream>) -> Option<ScriptedRequest> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(ScriptedRequest { path, body: serde_json::from_slice(&body).unwrap_or_default() })
}
