//! A server with scripted bytes and delays: request n gets script n.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One step of the reply to a request.
#[derive(Clone)]
pub enum ScriptStep {
    /// Waits for a time in ms.
    Wait(u64),
    Send(Vec<u8>),
    /// Closes the connection.
    Cut,
}

/// A request as received.
#[derive(Clone)]
pub struct Seen {
    pub connection: usize,
    pub head: String,
    pub body: serde_json::Value,
}

/// All requests received so far.
#[derive(Default)]
pub struct Log {
    pub requests: Vec<Seen>,
    pub open: usize,
    /// Highest value of `open`.
    pub max_open: usize,
    connections: usize,
}

pub struct Server {
    pub url: String,
    pub log: Arc<Mutex<Log>>,
}

impl Server {
    /// Replies to requests with these scripts in order, repeated.
    pub async fn start(scripts: Vec<Vec<ScriptStep>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Log::default()));
        let (shared, scripts) = (Arc::clone(&log), Arc::new(scripts));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared), Arc::clone(&scripts)));
            }
        });
        Self { url, log }
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Log>>, scripts: Arc<Vec<Vec<ScriptStep>>>) {
    stream.set_nodelay(true).unwrap();
    let connection = {
        let mut log = log.lock().unwrap();
        log.connections += 1;
        log.connections
    };
    while let Some((head, body)) = read_request(&mut stream).await {
        let number = {
            let mut log = log.lock().unwrap();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            log.requests.push(Seen { connection, head, body });
            log.open += 1;
            log.max_open = log.max_open.max(log.open);
            log.requests.len() - 1
        };
        let (last, steps) = scripts[number % scripts.len()].split_last().unwrap();
        for step in steps {
            act(&mut stream, step).await;
        }
        // The count falls before the last bytes are sent, because the client may send its next request as
        // soon as it has received them.
        log.lock().unwrap().open -= 1;
        if matches!(last, ScriptStep::Cut) {
            return;
        }
        act(&mut stream, last).await;
    }
}

async fn act(stream: &mut TcpStream, step: &ScriptStep) {
    match step {
        ScriptStep::Wait(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
        // The client may have disconnected.
        ScriptStep::Send(bytes) => drop(stream.write_all(bytes).await),
        ScriptStep::Cut => panic!("a cut must be the last step"),
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, bytes[end..end + length].to_vec()))
}

/// A response with a body of known length.
pub fn whole(status: &str, headers: &str, body: &str) -> ScriptStep {
    let length = body.len();
    ScriptStep::Send(
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}").into_bytes(),
    )
}

pub fn head() -> ScriptStep {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    ScriptStep::Send(head.as_bytes().to_vec())
}

/// One chunk of a body in chunked transfer encoding.
pub fn piece(text: &str) -> ScriptStep {
    ScriptStep::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes())
}

pub fn token() -> ScriptStep {
    piece("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":null}]}\n\n")
}

/// End of a successful answer: finish reason, usage if given, `[DONE]`.
pub fn end(tokens: Option<u64>) -> Vec<ScriptStep> {
    let mut steps =
        vec![piece("data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n")];
    steps.extend(tokens.map(|tokens| {
        let usage = format!("{{\"prompt_tokens\":7,\"completion_tokens\":{tokens}}}");
        piece(&format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n"))
    }));
    steps.push(piece("data: [DONE]\n\n"));
    steps.push(ScriptStep::Send(b"0\r\n\r\n".to_vec()));
    steps
}

/// A successful answer of `tokens` tokens: the first after `first_ms`, each further one after `gap_ms`.
pub fn answer(first_ms: u64, tokens: usize, gap_ms: u64, usage: Option<u64>) -> Vec<ScriptStep> {
    let mut steps = vec![head(), ScriptStep::Wait(first_ms), token()];
    for _ in 1..tokens {
        steps.extend([ScriptStep::Wait(gap_ms), token()]);
    }
    steps.extend(end(usage));
    steps
}
