//! The operations of the API: for each route its method, request body and answers.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::PATH;
use super::errors::Errors;
use crate::server::anthropic::reply::{MessageEvent, MessageReply, TokenCount};
use crate::server::anthropic::types::{CountTokensWire, MessagesWire};
use crate::server::field_table::{Table, object_schema};
use crate::server::health::{ALIASES, HealthReply, Probe};
use crate::server::info_reply::{
    DetokenizeReply, ModelList, ModelReply, TokenizeReply, TokenizerInfoReply, VersionReply,
};
use crate::server::page::{FILES, PageFile};
use crate::server::reply::{ChatChoice, ChatChunkChoice, Reply, TextChoice};
use crate::server::responses::reply::{NumberedEvent, ResponseReply};
use crate::server::responses::types::ResponsesWire;
use crate::server::types::{ChatWire, CompletionWire, DetokenizeWire, TokenizeWire};
use crate::server::unsupported::RefusedNames;

/// One method of a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// The path as the router writes it.
    pub(super) path: &'static str,
    /// Group of operations on the page.
    pub(super) tag: &'static str,
    pub(super) summary: String,
    pub(super) body: Option<RequestBody>,
    pub(super) answer: Answer,
    /// `None` for probes, which answer with their own body always.
    pub(super) errors: Option<Errors>,
}

/// The body of a request.
pub(super) struct RequestBody {
    /// Name of the schema.
    pub(super) name: &'static str,
    pub(super) schema: Value,
    pub(super) example: Value,
}

/// The successful answer.
pub(super) enum Answer {
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// A reply, or events with chunks if the request asks for a stream.
    JsonOrEvents(fn(&mut SchemaGenerator) -> Schema, fn(&mut SchemaGenerator) -> Schema),
    /// A reply, or events with names and without `[DONE]` if the request asks for a stream.
    JsonOrNamedEvents(fn(&mut SchemaGenerator) -> Schema, fn(&mut SchemaGenerator) -> Schema),
    /// Text of this type.
    Text(&'static str),
}

/// All operations, in the order of the page.
pub(super) fn operations() -> Vec<Operation> {
    let mut all = vec![chat(), completion(), response(), message(), count_tokens()];
    all.extend([tokenize(), detokenize(), tokenizer_info()]);
    all.extend([models(), model(), version(), metrics()]);
    all.extend(ALIASES.map(probe));
    all.extend(description());
    all
}

fn chat() -> Operation {
    let mut schema = object_schema(ChatWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().chat);
    let messages = json!([{ "role": "user", "content": "Name three fruits." }]);
    Operation {
        errors: Some(Errors::Generation),
        ..post(
            "/v1/chat/completions",
            "Generates the next message of a conversation.",
            RequestBody {
                name: "ChatCompletionRequest",
                schema,
                example: json!({ "messages": messages, "max_completion_tokens": 50 }),
            },
            Answer::JsonOrEvents(
                |schemas| schemas.subschema_for::<Reply<'static, ChatChoice>>(),
                |schemas| schemas.subschema_for::<Reply<'static, ChatChunkChoice>>(),
            ),
        )
    }
}

fn completion() -> Operation {
    let mut schema = object_schema(CompletionWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().completions);
    Operation {
        errors: Some(Errors::Generation),
        ..post(
            "/v1/completions",
            "Continues a text or token ids.",
            RequestBody {
                name: "CompletionRequest",
                schema,
                example: json!({ "prompt": "Three fruits:", "max_tokens": 20 }),
            },
            Answer::JsonOrEvents(
                |schemas| schemas.subschema_for::<Reply<'static, TextChoice>>(),
                |schemas| schemas.subschema_for::<Reply<'static, TextChoice>>(),
            ),
        )
    }
}

fn response() -> Operation {
    let mut schema = object_schema(ResponsesWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().responses);
    Operation {
        errors: Some(Errors::Generation),
        ..post(
            "/v1/responses",
            "Generates a response: messages and function calls. Nothing is stored.",
            RequestBody {
                name: "ResponseRequest",
                schema,
                example: json!({ "input": "Name three fruits.", "max_output_tokens": 50 }),
            },
            Answer::JsonOrNamedEvents(
                |schemas| schemas.subschema_for::<ResponseReply>(),
                |schemas| schemas.subschema_for::<NumberedEvent<'static>>(),
            ),
        )
    }
}

fn message() -> Operation {
    let mut schema = object_schema(MessagesWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().messages);
    let messages = json!([{ "role": "user", "content": "Name three fruits." }]);
    Operation {
        errors: Some(Errors::Generation),
        ..post(
            "/v1/messages",
            "Generates the next message of a conversation, in the form of Anthropic's API.",
            RequestBody {
                name: "MessageRequest",
                schema,
                example: json!({ "messages": messages, "max_tokens": 50 }),
            },
            Answer::JsonOrNamedEvents(
                |schemas| schemas.subschema_for::<MessageReply>(),
                |schemas| schemas.subschema_for::<MessageEvent<'static>>(),
            ),
        )
    }
}

fn count_tokens() -> Operation {
    let messages = json!([{ "role": "user", "content": "Name three fruits." }]);
    post(
        "/v1/messages/count_tokens",
        "Counts the tokens of a conversation, in the form of Anthropic's API.",
        RequestBody {
            name: "CountTokensRequest",
            schema: object_schema(CountTokensWire::body_rows()),
            example: json!({ "messages": messages }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<TokenCount>()),
    )
}

fn tokenize() -> Operation {
    post(
        "/tokenize",
        "Returns the token ids that a completion would use for a text or for messages.",
        RequestBody {
            name: "TokenizeRequest",
            schema: TokenizeWire::schema(),
            example: json!({ "prompt": "Three fruits:", "return_token_strs": true }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<TokenizeReply>()),
    )
}

fn detokenize() -> Operation {
    post(
        "/detokenize",
        "Returns the text of token ids, special tokens included.",
        RequestBody {
            name: "DetokenizeRequest",
            schema: DetokenizeWire::schema(),
            example: json!({ "tokens": [1, 2, 3] }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<DetokenizeReply>()),
    )
}

fn tokenizer_info() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<TokenizerInfoReply>());
    get("/tokenizer_info", "tokens", "Returns the tokenizer's configuration and the chat template.", answer)
}

fn models() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<ModelList>());
    get("/v1/models", "models", "Lists the model under each of its names.", answer)
}

fn model() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<ModelReply>());
    let operation = get("/v1/models/{*id}", "models", "Describes the model under one of its names.", answer);
    Operation { errors: Some(Errors::Model), ..operation }
}

fn version() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<VersionReply>());
    get("/version", "server", "Returns the version of Octant. Needs no key.", answer)
}

fn metrics() -> Operation {
    let summary = "Returns the metrics in the text format of Prometheus.";
    get("/metrics", "server", summary, Answer::Text("text/plain"))
}

fn probe((path, probe, software): (&'static str, Probe, &'static str)) -> Operation {
    let question = match probe {
        Probe::Startup => "Has the server started?",
        Probe::Live => "Is the process healthy?",
        Probe::Ready => "Does the server accept requests?",
    };
    let answer = Answer::Json(|schemas| schemas.subschema_for::<HealthReply>());
    let summary = format!("{question} Needs no key. The path is that of {software}.");
    Operation { errors: None, summary, ..get(path, "health", "", answer) }
}

fn description() -> Vec<Operation> {
    let file = |file: &PageFile| {
        let summary = match file.path {
            "/" => "Returns a page for chatting with the model.",
            "/docs" => "Returns a page that shows this document.",
            _ => "Returns a script or a style of a page.",
        };
        get(file.path, "pages", &format!("{summary} Needs no key."), Answer::Text(file.content_type()))
    };
    let document =
        get(PATH, "server", "Returns this document. Needs no key.", Answer::Json(|_| Schema::default()));
    std::iter::once(document).chain(FILES.iter().map(file)).collect()
}

fn get(path: &'static str, tag: &'static str, summary: &str, answer: Answer) -> Operation {
    let (summary, errors) = (summary.to_owned(), Some(Errors::Head));
    Operation { method: "get", path, tag, summary, body: None, answer, errors }
}

fn post(path: &'static str, summary: &str, body: RequestBody, answer: Answer) -> Operation {
    let tag = if path.starts_with("/v1/") { "generation" } else { "tokens" };
    let (summary, errors) = (summary.to_owned(), Some(Errors::Body));
    Operation { method: "post", path, tag, summary, body: Some(body), answer, errors }
}
