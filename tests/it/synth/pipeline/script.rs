//! A server with OpenAI's API and `/v1/reward` whose answers are a function of the request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Its number, from 0, in the order of arrival.
    pub number: usize,
    pub path: String,
    pub body: Value,
}

impl Call {
    /// The text of the last message.
    pub fn last(&self) -> &str {
        self.body["messages"].as_array().and_then(|all| all.last()?["content"].as_str()).unwrap_or_default()
    }

    /// The number of items that a list is asked for.
    pub fn list(&self) -> Option<usize> {
        let items = &self.body["response_format"]["json_schema"]["schema"]["properties"]["items"];
        items["maxItems"].as_u64().map(|count| count as usize)
    }
}

/// An answer: status, `Retry-After`, body.
pub struct Reply {
    pub status: u16,
    pub retry_after: Option<&'static str>,
    pub body: Value,
}

impl Reply {
    pub fn error(status: u16, message: &str) -> Self {
        Self { status, retry_after: None, body: json!({ "error": { "message": message } }) }
    }

    pub fn text(text: &str) -> Self {
        Self::finished(text, "stop")
    }

    pub fn finished(text: &str, reason: &str) -> Self {
        let message = json!({ "role": "assistant", "content": text });
        let choice = json!({ "index": 0, "message": message, "finish_reason": reason });
        let usage = json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 });
        Self { status: 200, retry_after: None, body: json!({ "choices": [choice], "usage": usage }) }
    }

    pub fn list(items: &[String]) -> Self {
        Self::text(&json!({ "items": items }).to_string())
    }
}

/// Eight hexadecimal digits that stand for a text.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// A number from 0 to 4 that stands for a conversation.
pub fn worth(messages: &Value) -> f64 {
    let number = u32::from_str_radix(&digest(&messages.to_string()), 16).unwrap();
    f64::from(number % 401) / 100.0
}

/// Full lists, texts that depend on prompt and seed, and scores that depend on the conversation.
pub fn usual(call: &Call) -> Reply {
    if call.path == "/v1/reward" {
        return Reply { status: 200, retry_after: None, body: rewards(call, &worth) };
    }
    let about = digest(&call.body.to_string());
    match call.list() {
        Some(count) => {
            Reply::list(&(0..count).map(|number| format!("item {number} {about}")).collect::<Vec<_>>())
        }
        None => Reply::text(&format!("Text {about}.")),
    }
}

/// The answer of `/v1/reward` with this score of each conversation.
pub fn rewards(call: &Call, score: &dyn Fn(&Value) -> f64) -> Value {
    let reward = |index: usize, messages: &Value| {
        let score = score(messages);
        json!({ "object": "reward", "index": index, "score": score,
                "values": { "helpfulness": score, "verbosity": 1.0 } })
    };
    let data: Vec<Value> = match call.body["messages_list"].as_array() {
        Some(list) => list.iter().enumerate().map(|(index, messages)| reward(index, messages)).collect(),
        None => {
            let messages = call.body["messages"].as_array().unwrap();
            let ends = (2..=messages.len()).step_by(2);
            let turns: Vec<Value> = ends.map(|end| reward(0, &json!(messages[..end]))).collect();
            let mut last = turns.last().unwrap().clone();
            last["turns"] = json!(turns);
            vec![last]
        }
    };
    json!({ "object": "list", "data": data, "usage": { "prompt_tokens": 20, "completion_tokens": 1 } })
}

type Script = dyn Fn(&Call) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    calls: Mutex<Vec<Call>>,
}

/// The server, which ends when it is dropped.
pub struct ScriptServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

impl ScriptServer {
    pub fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared { script: Box::new(script), calls: Mutex::default() });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, shared, _runtime: runtime }
    }

    /// The requests so far.
    pub fn calls(&self) -> Vec<Call> {
        calls(&self.shared).clone()
    }
}

fn calls(shared: &Shared) -> MutexGuard<'_, Vec<Call>> {
    shared.calls.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn handle(State(shared): State<Arc<Shared>>, uri: Uri, body: Bytes) -> Response {
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let call = {
        let mut calls = calls(&shared);
        let call = Call { number: calls.len(), path: uri.path().to_owned(), body };
        calls.push(call.clone());
        call
    };
    let reply = (shared.script)(&call);
    let mut response = (StatusCode::from_u16(reply.status).unwrap(), axum::Json(reply.body)).into_response();
    if let Some(seconds) = reply.retry_after {
        response.headers_mut().insert("retry-after", seconds.parse().unwrap());
    }
    response
}
