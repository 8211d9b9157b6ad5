//! The operations of the API: for each route its method, request body and answers.

use schemars::Schema;
use serde_json::json;

use super::PATH;
use super::errors::Errors;
use super::operation::{Answer, JSON, Operation, QueryParameter, RequestBody, get, post};
use super::reward_operations;
use crate::batch::{MAX_FILE_BYTES, Purpose};
use crate::server::anthropic::reply::{MessageEvent, MessageReply, TokenCount};
use crate::server::anthropic::types::{CountTokensWire, MessagesWire};
use crate::server::batch_reply::{BatchReply, DeletedReply, FileReply, List};
use crate::server::field_table::{Table, object_schema};
use crate::server::health::{ALIASES, HealthReply, Probe};
use crate::server::info_reply::{
    DetokenizeReply, ModelList, ModelReply, TokenizeReply, TokenizerInfoReply, VersionReply,
};
use crate::server::page::{FILES, PageFile};
use crate::server::reply::{ChatChunkChoice, Reply, TextChoice};
use crate::server::responses::reply::{NumberedEvent, ResponseReply};
use crate::server::responses::types::ResponsesWire;
use crate::server::types::{BatchWire, ChatWire, CompletionWire, DetokenizeWire, TokenizeWire};
use crate::server::unsupported::RefusedNames;
use crate::server::{batches, files};

/// All operations, in the order of the page.
pub(super) fn operations() -> Vec<Operation> {
    let mut all = vec![chat(), completion(), response(), message(), count_tokens()];
    all.extend(reward_operations::operations());
    all.extend([tokenize(), detokenize(), tokenizer_info()]);
    all.extend([list_files(), upload_file(), file(), delete_file(), file_content()]);
    all.extend([list_batches(), create_batch(), batch(), cancel_batch()]);
    all.extend([models(), model(), version(), metrics()]);
    all.extend(ALIASES.map(|(path, question, software)| probe(path, question, software)));
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
            "Generates the next message of a conversation, or scores its last one with a reward model.",
            RequestBody {
                media_type: JSON,
                name: "ChatCompletionRequest",
                schema,
                example: json!({ "messages": messages, "max_completion_tokens": 50 }),
            },
            Answer::JsonOrEvents(reward_operations::chat_reply, |schemas| {
                schemas.subschema_for::<Reply<'static, ChatChunkChoice>>()
            }),
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
                media_type: JSON,
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
                media_type: JSON,
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
                media_type: JSON,
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
            media_type: JSON,
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
            media_type: JSON,
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
            media_type: JSON,
            name: "DetokenizeRequest",
            schema: DetokenizeWire::schema(),
            example: json!({ "tokens": [1, 2, 3] }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<DetokenizeReply>()),
    )
}

fn list_files() -> Operation {
    let purpose = QueryParameter {
        name: "purpose",
        schema: json!({ "type": "string", "enum": Purpose::ALL.map(Purpose::as_str) }),
        about: "Lists only files of this purpose.",
    };
    let answer = Answer::Json(|schemas| schemas.subschema_for::<List<FileReply>>());
    let summary = "Lists the caller's files. Needs --data-dir, like all routes of files and batches.";
    Operation {
        query: std::iter::once(purpose).chain(page(files::MAX_PAGE, files::MAX_PAGE)).collect(),
        ..get("/v1/files", "", summary, answer).of_files()
    }
}

fn upload_file() -> Operation {
    let file = json!({
        "type": "string", "contentMediaType": "application/octet-stream",
        "description": format!("The content, of at most {MAX_FILE_BYTES} bytes: a JSON object in each line, \
                                with custom_id, method, url and body."),
    });
    let purposes = [Purpose::UPLOADED.as_str()];
    let purpose = json!({ "type": "string", "enum": purposes, "description": "The use of the file." });
    let body = RequestBody {
        media_type: "multipart/form-data",
        name: "FileUpload",
        schema: json!({
            "type": "object",
            "properties": { "purpose": purpose, "file": file },
            "required": ["purpose", "file"],
            "x-octant-refused": ["expires_after"],
        }),
        example: json!({ "purpose": "batch", "file": "@requests.jsonl" }),
    };
    let answer = Answer::Json(|schemas| schemas.subschema_for::<FileReply>());
    Operation {
        errors: Some(Errors::Upload),
        ..post("/v1/files", "Stores a file of requests for a batch.", body, answer).of_files()
    }
}

fn file() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<FileReply>());
    get("/v1/files/{id}", "", "Describes a file.", answer).of_files()
}

fn delete_file() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<DeletedReply>());
    let summary = "Deletes a file that no unfinished batch uses.";
    let operation = get("/v1/files/{id}", "", summary, answer).of_files();
    Operation { method: "delete", errors: Some(Errors::ObjectChange), ..operation }
}

fn file_content() -> Operation {
    let answer = Answer::Text("application/octet-stream");
    get("/v1/files/{id}/content", "", "Returns the content of a file.", answer).of_files()
}

fn list_batches() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<List<BatchReply>>());
    let operation = get("/v1/batches", "", "Lists the caller's batches.", answer).of_files();
    let (usual, most) = batches::PAGE;
    Operation { query: page(usual, most).into(), ..operation }
}

fn create_batch() -> Operation {
    let mut schema = BatchWire::schema();
    schema["x-octant-refused"] = json!(RefusedNames::new().batches);
    let example = json!({
        "input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h",
    });
    let body = RequestBody { media_type: JSON, name: "BatchRequest", schema, example };
    let answer = Answer::Json(|schemas| schemas.subschema_for::<BatchReply>());
    let summary = "Runs the requests of a file behind live ones.";
    Operation { errors: Some(Errors::NewBatch), ..post("/v1/batches", summary, body, answer).of_files() }
}

fn batch() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<BatchReply>());
    get("/v1/batches/{id}", "", "Describes a batch and its progress.", answer).of_files()
}

fn cancel_batch() -> Operation {
    let answer = Answer::Json(|schemas| schemas.subschema_for::<BatchReply>());
    let summary = "Cancels a batch. Results that it has are kept.";
    let operation = get("/v1/batches/{id}/cancel", "", summary, answer).of_files();
    Operation { method: "post", errors: Some(Errors::ObjectChange), ..operation }
}

/// The parameters of a page. `usual` and `most` are limits of its length.
fn page(usual: usize, most: usize) -> [QueryParameter; 3] {
    [
        QueryParameter {
            name: "limit",
            schema: json!({ "type": "integer", "minimum": 1, "maximum": most, "default": usual }),
            about: "The most entries.",
        },
        QueryParameter {
            name: "after",
            schema: json!({ "type": "string" }),
            about: "The list begins after the entry with this id.",
        },
        QueryParameter {
            name: "order",
            schema: json!({ "type": "string", "enum": ["asc", "desc"], "default": "desc" }),
            about: "Order of the creation: oldest first, or newest first.",
        },
    ]
}

impl Operation {
    /// Makes it an operation on files and batches.
    fn of_files(self) -> Self {
        Self { tag: "files and batches", errors: Some(Errors::Object), ..self }
    }
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

fn probe(path: &'static str, probe: Probe, software: &str) -> Operation {
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
