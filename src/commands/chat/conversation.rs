//! The messages of a conversation, and the request for the next answer.

use serde_json::{Map, Value, json};

use super::visible::visible;
use crate::config::ChatArgs;

/// The reason why there is nothing to answer.
#[derive(Debug)]
pub(super) struct NothingToDo(pub(super) &'static str);

/// The messages so far, and the fields of every request.
pub(super) struct Conversation {
    system: Option<String>,
    /// Messages of the user and answers in turn, the user's first. A message without an answer may stand at
    /// the end only until its answer has ended.
    messages: Vec<String>,
    /// The last message that failed or got no text, for another try.
    failed: Option<String>,
    /// Whether the next answer continues the last one.
    resumes: bool,
    /// Whether answers have log-probabilities.
    logprobs: bool,
    model: String,
    fields: Map<String, Value>,
}

impl Conversation {
    pub(super) fn new(args: &ChatArgs, model: String) -> Self {
        let given = [
            ("temperature", args.temperature.map(Value::from)),
            ("top_p", args.top_p.map(Value::from)),
            ("top_k", args.top_k.map(Value::from)),
            ("min_p", args.min_p.map(Value::from)),
            ("max_tokens", args.max_tokens.map(Value::from)),
            ("seed", args.seed.map(Value::from)),
        ];
        let mut fields: Map<String, Value> =
            given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        fields.extend(args.extra_body.clone().unwrap_or_default());
        let system = args.system.clone().filter(|text| !text.is_empty());
        Self { system, messages: Vec::new(), failed: None, resumes: false, logprobs: false, model, fields }
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Adds a message of the user.
    pub(super) fn ask(&mut self, text: String) {
        self.failed = None;
        self.resumes = false;
        self.messages.push(text);
    }

    /// Asks the last message again, and forgets its answer.
    ///
    /// # Errors
    /// There is no message yet.
    pub(super) fn retry(&mut self) -> Result<(), NothingToDo> {
        if let Some(text) = self.failed.take() {
            self.ask(text);
            return Ok(());
        }
        self.resumes = false;
        self.messages.pop().map(|_answer| ()).ok_or(NothingToDo("there is no message to answer again"))
    }

    /// Lets the next answer continue the last one.
    ///
    /// # Errors
    /// There is no answer yet.
    pub(super) fn resume(&mut self) -> Result<(), NothingToDo> {
        self.resumes = !self.messages.is_empty();
        if self.resumes { Ok(()) } else { Err(NothingToDo("there is no answer to continue")) }
    }

    /// Forgets all messages.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.failed = None;
    }

    pub(super) fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    pub(super) fn set_logprobs(&mut self, on: bool) {
        self.logprobs = on;
    }

    pub(super) fn describe_system(&self) -> String {
        match &self.system {
            Some(text) => format!("System prompt: {}", visible(text)),
            None => "There is no system prompt.".to_owned(),
        }
    }

    /// Takes the text of the answer that has ended. A message that got none is kept for another try alone:
    /// the turns of a conversation alternate.
    pub(super) fn answered(&mut self, text: &str) {
        if self.resumes {
            if let Some(answer) = self.messages.last_mut() {
                answer.push_str(text);
            }
        } else if text.is_empty() {
            self.failed = self.messages.pop();
        } else {
            self.messages.push(text.to_owned());
        }
    }

    /// The body of the request for the next answer.
    pub(super) fn request(&self) -> Map<String, Value> {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let turns = self.messages.iter().zip(["user", "assistant"].into_iter().cycle());
        let turns = turns.map(|(text, role)| json!({ "role": role, "content": text }));
        let mut body = Map::new();
        body.insert("model".to_owned(), self.model.clone().into());
        body.insert("messages".to_owned(), system.chain(turns).collect());
        body.insert("stream".to_owned(), true.into());
        body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        if self.logprobs {
            body.insert("logprobs".to_owned(), true.into());
        }
        if self.resumes {
            body.insert("continue_final_message".to_owned(), true.into());
            body.insert("add_generation_prompt".to_owned(), false.into());
        }
        body.extend(self.fields.clone());
        body
    }
}
