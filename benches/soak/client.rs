//! A client: the request that it sends, how it reads the response, and the check of the response's text.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use octant::launch::simulated::words;
use octant::random::Random;
use octant::request::SamplingParams;
use octant::simulator::SyntheticAnswers;
use octant::text::Tokenizer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Time limit of a client, from the first byte sent to the last byte read.
const LIMIT: Duration = Duration::from_secs(300);

/// Counts of clients by outcome, and every error.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub streamed: u64,
    pub slow: u64,
    pub whole: u64,
    pub left: u64,
    pub refused: u64,
    pub tokens: u64,
    pub wrong: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.streamed += other.streamed;
        self.slow += other.slow;
        self.whole += other.whole;
        self.left += other.left;
        self.refused += other.refused;
        self.tokens += other.tokens;
        self.wrong.extend(other.wrong);
    }

    pub fn all(&self) -> u64 {
        self.streamed + self.slow + self.whole + self.left + self.refused + self.wrong.len() as u64
    }
}

/// Computes the text that the simulated model generates for a prompt.
pub struct Book {
    tokenizer: Tokenizer,
    voice: SyntheticAnswers,
    words: Vec<u32>,
}

impl Book {
    pub fn new() -> Self {
        let tokenizer = Tokenizer::from_dir(&super::server::tokenizer()).expect("the tokenizer is there");
        let vocab = tokenizer.vocab_size();
        let words = words(&tokenizer, vocab);
        let voice = SyntheticAnswers::new(words.clone(), Vec::new(), 1.0, vocab).expect("it has words");
        Self { tokenizer, voice, words }
    }

    /// Text of a completion that ends at `max_tokens`.
    fn text(&self, prompt: &[u32], max_tokens: usize) -> String {
        let greedy = SamplingParams::greedy();
        let key = SyntheticAnswers::key(prompt, &greedy);
        let tokens: Vec<u32> = (0..max_tokens).map(|i| self.voice.token(key, i, &greedy)).collect();
        self.tokenizer.decode(&tokens, true)
    }

    /// Prompt of 8 to 63 random words, so that prompts differ. Only tokens with whole characters: an
    /// incomplete character at its end would change the completion's text.
    fn prompt(&self, draws: &mut Random) -> Vec<u32> {
        let len = 8 + draws.bits() % 56;
        (0..len).map(|_| self.words[(draws.bits() % self.words.len() as u64) as usize]).collect()
    }
}

/// Behaviour of a client.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Stream,
    /// Reads at most 512 bytes of the stream at a time, with pauses.
    Slow,
    /// Requests a response without streaming.
    Whole,
    /// Disconnects after this number of bytes.
    Leave(usize),
}

fn way(draws: &mut Random) -> Way {
    match draws.bits() % 100 {
        0..20 => Way::Leave((draws.bits() % 6000) as usize),
        20..30 => Way::Slow,
        30..35 => Way::Whole,
        _ => Way::Stream,
    }
}

/// Runs one client and returns its outcome.
pub async fn visit(address: SocketAddr, book: &Arc<Book>, draws: &mut Random) -> Tally {
    let mut tally = Tally::default();
    let outcome = tokio::time::timeout(LIMIT, async {
        if draws.bits().is_multiple_of(20) {
            return nonsense(address, draws, &mut tally).await;
        }
        ask(address, book, draws, &mut tally).await
    });
    match outcome.await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tally.wrong.push(why),
        Err(_) => tally.wrong.push(format!("no complete response within {LIMIT:?}")),
    }
    tally
}

async fn ask(
    address: SocketAddr,
    book: &Arc<Book>,
    draws: &mut Random,
    tally: &mut Tally,
) -> Result<(), String> {
    let (way, prompt) = (way(draws), book.prompt(draws));
    let max_tokens = 1 + (draws.bits() % 80) as usize;
    let body = json!({
        "model": "soak", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
        "stream": way != Way::Whole,
    });
    let mut stream = send(address, &post(&body.to_string())).await?;
    let Some(bytes) = read(&mut stream, way).await? else {
        tally.left += 1;
        return Ok(());
    };
    let (status, body) = response(&bytes)?;
    let text = match (status, way) {
        (200, Way::Whole) => whole(&body)?,
        (200, _) => streamed(&body)?,
        _ => return Err(format!("status {status}: {}", body.chars().take(300).collect::<String>())),
    };
    let expected = book.text(&prompt, max_tokens);
    if text != expected {
        return Err(format!("got `{text}`, expected `{expected}`"));
    }
    tally.tokens += max_tokens as u64;
    *match way {
        Way::Whole => &mut tally.whole,
        Way::Slow => &mut tally.slow,
        // `Leave`: the response was complete before the client disconnected.
        Way::Stream | Way::Leave(_) => &mut tally.streamed,
    } += 1;
    Ok(())
}

/// Sends an invalid request, which must get a 4xx status other than 429.
async fn nonsense(address: SocketAddr, draws: &mut Random, tally: &mut Tally) -> Result<(), String> {
    let oversized = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                     content-length: 999999999\r\nconnection: close\r\n\r\n{";
    let long = json!({ "model": "soak", "prompt": vec![40; 5000], "max_tokens": 5 }).to_string();
    let requests = [
        post("{ \"model\": \"soak\", \"prompt\": "),
        post("{ \"model\": \"soak\", \"prompt\": \"a\", \"max_tokens\": \"many\" }"),
        post("{ \"model\": \"soak\", \"prompt\": \"a\", \"temperature\": -7 }"),
        post("{ \"model\": \"another\", \"prompt\": \"a\" }"),
        post("[[[[[[]"),
        post(&long),
        oversized.to_owned(),
        "NONSENSE\r\n\r\n".to_owned(),
    ];
    let request = &requests[(draws.bits() % requests.len() as u64) as usize];
    let mut stream = send(address, request).await?;
    let bytes = read(&mut stream, Way::Stream).await?.unwrap_or_default();
    let (status, body) = response(&bytes)?;
    if !(400..500).contains(&status) || status == 429 {
        let first = request.lines().next().unwrap_or_default();
        return Err(format!("status {status} to nonsense `{first}`: {body}"));
    }
    tally.refused += 1;
    Ok(())
}

/// Bytes of a completion request with this body.
pub fn post(body: &str) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request and returns its connection unread.
pub async fn begin(address: SocketAddr, body: &str) -> TcpStream {
    send(address, &post(body)).await.expect("the server takes connections")
}

async fn send(address: SocketAddr, request: &str) -> Result<TcpStream, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|e| format!("no connection: {e}"))?;
    stream.write_all(request.as_bytes()).await.map_err(|e| format!("not sent: {e}"))?;
    Ok(stream)
}

/// Reads the whole response; `None` if the client disconnects before its end.
async fn read(stream: &mut TcpStream, way: Way) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let room = if way == Way::Slow { 512 } else { buffer.len() };
        match stream.read(&mut buffer[..room]).await {
            Ok(0) => return Ok(Some(bytes)),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) => return Err(format!("cut after {} bytes: {error}", bytes.len())),
        }
        match way {
            Way::Leave(after) if bytes.len() >= after => return Ok(None),
            Way::Slow => tokio::time::sleep(Duration::from_millis(60)).await,
            _ => {}
        }
    }
}

/// Status and body of a response, with a chunked body decoded.
fn response(bytes: &[u8]) -> Result<(u16, String), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a response that is not UTF-8".to_owned())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no complete head: `{text}`"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status")?;
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Ok((status, body.to_owned()));
    }
    let (mut rest, mut joined) = (body, String::new());
    loop {
        let cut = || format!("cut off after `{}`", joined.chars().rev().take(80).collect::<String>());
        let (size, after) = rest.split_once("\r\n").ok_or_else(cut)?;
        let size = usize::from_str_radix(size, 16).map_err(|_| format!("a chunk of size `{size}`"))?;
        if size == 0 {
            return Ok((status, joined));
        }
        let chunk = after.get(..size).ok_or_else(cut)?;
        joined.push_str(chunk);
        rest = after.get(size + 2..).ok_or_else(|| "a chunk without an end".to_owned())?;
    }
}

/// Text of a response without streaming.
fn whole(body: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(body).map_err(|e| format!("{e} in `{body}`"))?;
    let choice = &value["choices"][0];
    if choice["finish_reason"] != "length" {
        return Err(format!("another finish reason: {value}"));
    }
    Ok(choice["text"].as_str().unwrap_or_default().to_owned())
}

/// Text of a stream, which must have one finish reason and end with `[DONE]`.
fn streamed(body: &str) -> Result<String, String> {
    let (mut text, mut reasons, mut done) = (String::new(), Vec::new(), false);
    for data in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if done {
            return Err(format!("an event after [DONE]: {data}"));
        }
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let value: Value = serde_json::from_str(data).map_err(|e| format!("{e} in `{data}`"))?;
        let choice = &value["choices"][0];
        match (&choice["text"], reasons.is_empty()) {
            (Value::String(more), true) => text.push_str(more),
            (Value::String(more), false) if more.is_empty() => {}
            _ => return Err(format!("an unexpected event: {data}")),
        }
        reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
    }
    if !done || reasons != ["length"] {
        return Err(format!("an incomplete stream: `{text}`, {reasons:?}, done: {done}"));
    }
    Ok(text)
}
