//! A server of which the test knows every byte and every wait: the n-th request gets the n-th script.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What is done for a request.
#[derive(Clone)]
pub enum Step {
    Wait(u64),
    Send(Vec<u8>),
    /// The connection is broken off.
    Cut,
}

/// What was seen of a request.
#[derive(Clone)]
pub struct Seen {
    pub connection: usize,
    pub head: String,
    pub body: serde_json::Value,
}

/// What was seen of all.
#[derive(Default)]
pub struct Log {
    pub requests: Vec<Seen>,
    pub open: usize,
    /// Requests that were open at once, at most.
    pub most: usize,
    connections: usize,
}

pub struct Server {
    pub url: String,
    pub log: Arc<Mutex<Log>>,
}

impl Server {
    /// Serves these scripts in the order of requests, over and over.
    pub async fn start(scripts: Vec<Vec<Step>>) -> Self {
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

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Log>>, scripts: Arc<Vec<Vec<Step>>>) {
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
            log.most = log.most.max(log.open);
            log.requests.len() - 1
        };
        let (last, steps) = scripts[number % scripts.len()].split_last().unwrap();
        for step in steps {
            act(&mut stream, step).await;
        }
        // Before the last byte goes out: whoever has it may send the next request.
        log.lock().unwrap().open -= 1;
        if matches!(last, Step::Cut) {
            return;
        }
        act(&mut stream, last).await;
    }
}

async fn act(stream: &mut TcpStream, step: &Step) {
    match step {
        Step::Wait(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
        // The client may have given up.
        Step::Send(bytes) => drop(stream.write_all(bytes).await),
        Step::Cut => panic!("a cut is the last step"),
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
pub fn whole(status: &str, headers: &str, body: &str) -> Step {
    let length = body.len();
    Step::Send(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}").into_bytes())
}

pub fn head() -> Step {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
    Step::Send(head.as_bytes().to_vec())
}

/// Bytes as one piece of a chunked body.
pub fn piece(text: &str) -> Step {
    Step::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes())
}

pub fn token() -> Step {
    piece("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":null}]}\n\n")
}

/// The end of a good answer: why it ended, usage if there is any to tell, `[DONE]`.
pub fn end(tokens: Option<u64>) -> Vec<Step> {
    let mut steps =
        vec![piece("data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n")];
    steps.extend(tokens.map(|tokens| {
        let usage = format!("{{\"prompt_tokens\":7,\"completion_tokens\":{tokens}}}");
        piece(&format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n"))
    }));
    steps.push(piece("data: [DONE]\n\n"));
    steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
    steps
}

/// A good answer: its first token after so long, so many more, each after so long.
pub fn answer(first_ms: u64, tokens: usize, gap_ms: u64, usage: Option<u64>) -> Vec<Step> {
    let mut steps = vec![head(), Step::Wait(first_ms), token()];
    for _ in 1..tokens {
        steps.extend([Step::Wait(gap_ms), token()]);
    }
    steps.extend(end(usage));
    steps
}
