//! The document at `/openapi.json` says what the server does: its routes, the fields that it reads, their
//! types, ranges and defaults. `/docs` shows it.

use std::collections::BTreeSet;

use octant::server::error::ApiError;
use octant::server::fields::Fields;
use octant::server::routes::routes;
use octant::server::validate::{self, Limits, ValidRequest};
use serde_json::{Value, json};

use super::client::send;
use super::rewards::{self, FIVE, turns};
use super::test_server::{Setup, TestServer, merged};

/// A way to read a body.
type Read = fn(Fields, &Limits, u64) -> Result<ValidRequest, ApiError>;

/// A conversation as text.
const QUERY: &str = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n";

/// A server that generates, and one that scores.
fn servers() -> [TestServer; 2] {
    [Setup::new().launch(), rewards::launch(&FIVE)]
}

/// The server of the kind that answers a route.
fn of_route<'s>(servers: &'s [TestServer; 2], path: &str) -> &'s TestServer {
    let scores = ["/v1/reward", "/pooling", "/classify", "/get_reward"];
    &servers[usize::from(scores.contains(&path))]
}

async fn document(server: &TestServer) -> Value {
    server.get("/openapi.json").await.json()
}

/// Name, method and least body of each route that reads a body.
fn bodies() -> [(&'static str, &'static str, Value); 11] {
    let messages = json!([{ "role": "user", "content": "a" }]);
    let scored = turns(&["a", "b"]);
    [
        ("ChatCompletionRequest", "/v1/chat/completions", json!({ "messages": messages, "max_tokens": 1 })),
        ("CompletionRequest", "/v1/completions", json!({ "prompt": "a", "max_tokens": 1 })),
        ("ResponseRequest", "/v1/responses", json!({ "input": "a", "max_output_tokens": 1 })),
        ("MessageRequest", "/v1/messages", json!({ "messages": messages, "max_tokens": 1 })),
        ("CountTokensRequest", "/v1/messages/count_tokens", json!({ "messages": messages })),
        ("TokenizeRequest", "/tokenize", json!({ "prompt": "a" })),
        ("DetokenizeRequest", "/detokenize", json!({ "tokens": [] })),
        ("RewardRequest", "/v1/reward", json!({ "messages": scored })),
        ("PoolingRequest", "/pooling", json!({ "messages": scored })),
        ("ClassifyRequest", "/classify", json!({ "messages": scored })),
        ("GetRewardRequest", "/get_reward", json!({ "query": [QUERY] })),
    ]
}

/// The two bodies that have ranges and defaults, each with its reader.
fn readers(document: &Value) -> Vec<(Value, Value, Read)> {
    let schema = |name: &str| document["components"]["schemas"][name]["properties"].clone();
    let [(chat, _, chat_body), (text, _, text_body), ..] = bodies();
    vec![(schema(chat), chat_body, validate::chat), (schema(text), text_body, validate::completion)]
}

fn read(read: Read, body: &Value) -> Result<ValidRequest, ApiError> {
    let limits = Limits {
        models: vec!["parrot".to_owned()],
        model_paths: Vec::new(),
        vocab_size: 100,
        eos_ids: vec![99],
        tools: None,
        defaults: Default::default(),
        template_fields: Vec::new(),
        scoring: None,
        takes_system: true,
        own_markers: Vec::new(),
        reject_unknown_fields: false,
        keys_have_priorities: false,
    };
    read(Fields::new(body.as_object().unwrap().clone()), &limits, 7)
}

/// The types that a schema allows; `None` if it allows any.
fn types(schema: &Value) -> Option<BTreeSet<String>> {
    match (&schema["type"], &schema["anyOf"]) {
        (Value::String(one), _) => Some(BTreeSet::from([one.clone()])),
        (Value::Array(several), _) => several.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        (_, Value::Array(options)) => {
            let all: Option<Vec<_>> = options.iter().map(types).collect();
            Some(all?.into_iter().flatten().collect())
        }
        _ => None,
    }
}

#[tokio::test]
async fn the_document_has_every_route_and_no_other() {
    let server = Setup::new().launch();
    let document = document(&server).await;
    let documented = document["paths"].as_object().unwrap();
    let expected: BTreeSet<String> = routes().into_iter().map(|(path, _)| path.replace("{*", "{")).collect();
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for (path, methods) in documented {
        let path = path.replace("{id}", "parrot");
        for method in ["get", "post", "put", "delete", "patch"] {
            let status = send(server.address, &method.to_uppercase(), &path, &[], b"").await.status;
            assert_eq!(status != 405, methods.get(method).is_some(), "{method} {path}: {status}");
        }
        let ids = methods.as_object().unwrap().values().map(|operation| &operation["operationId"]);
        assert!(ids.clone().all(Value::is_string), "{path}");
    }
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test]
async fn the_fields_of_every_json_body_are_compared_with_the_reader() {
    let document = document(&Setup::new().launch()).await;
    let mut documented = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            let Some(content) = operation.pointer("/requestBody/content/application~1json") else { continue };
            let name = content["schema"]["$ref"].as_str().unwrap_or_else(|| panic!("{path}: {content}"));
            documented.insert((name.rsplit('/').next().unwrap().to_owned(), path.clone()));
        }
    }
    // `files_and_batches_are_documented_as_they_are` has the body of batches.
    let batch = ("BatchRequest", "/v1/batches", Value::Null);
    let compared = bodies().into_iter().chain([batch]);
    let compared: BTreeSet<_> = compared.map(|(name, path, _)| (name.to_owned(), path.to_owned())).collect();
    assert_eq!(documented, compared, "`bodies` has a row for each");
}

/// Files and batches aside, whose faults are not those of requests.
#[test]
fn the_alert_on_errors_counts_every_route_that_reads_a_body() {
    let alerts = include_str!("../../../deploy/alerts.yml");
    let rule = alerts.split("alert: OctantErrors").nth(1).unwrap();
    let handlers = rule.split("handler=~\"").nth(1).unwrap().split('"').next().unwrap();
    let counted: BTreeSet<_> = handlers.split('|').collect();
    assert_eq!(counted, bodies().iter().map(|(_, path, _)| *path).collect());
}

#[tokio::test]
async fn every_reference_of_the_document_leads_to_a_schema() {
    let document = document(&Setup::new().launch()).await;
    let mut open = vec![&document];
    let mut found = 0;
    while let Some(value) = open.pop() {
        if let Some(Value::String(target)) = value.get("$ref") {
            let schema = document.pointer(target.trim_start_matches('#'));
            assert!(schema.is_some_and(|schema| schema.get("type").is_some()), "{target}");
            found += 1;
        }
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(map) => open.extend(map.values()),
            _ => {}
        }
    }
    assert!(found > 30, "{found} references");
}

#[tokio::test]
async fn every_field_of_the_document_is_read_and_has_a_description() {
    let servers = servers();
    let document = document(&servers[0]).await;
    let examples = [json!(true), json!(7), json!(1.5), json!("x"), json!([]), json!({})];
    let named = ["boolean", "integer", "number", "string", "array", "object"];
    for (name, path, body) in bodies() {
        let server = of_route(&servers, path);
        let schema = &document["components"]["schemas"][name];
        for (field, schema) in schema["properties"].as_object().unwrap() {
            assert!(schema["description"].as_str().is_some_and(|about| about.len() > 5), "{name}.{field}");
            let Some(types) = types(schema) else { panic!("{name}.{field} has no type") };
            let allowed = |kind: &str| types.contains(kind) || kind == "integer" && types.contains("number");
            let wrong = named.iter().zip(&examples).filter(|(kind, _)| !allowed(kind));
            for (_, wrong) in wrong {
                let reply = server.post(path, merged(body.clone(), json!({ field: wrong }))).await;
                let text = reply.json()["error"]["message"].as_str().unwrap().to_owned();
                let within = text.starts_with(field.as_str());
                assert!(reply.status == 400 && within, "{name}.{field} = {wrong}: {} {text}", reply.status);
            }
            let null = merged(json!({ field: null }), body.clone());
            assert_eq!(server.post(path, null).await.status, 200, "{name}.{field} = null");
        }
        for field in schema["x-octant-refused"].as_array().into_iter().flatten() {
            let field = field.as_str().unwrap();
            let reply = server.post(path, merged(body.clone(), json!({ field: 7 }))).await;
            let text = reply.json()["error"]["message"].as_str().unwrap().to_owned();
            assert_eq!(reply.status, 400, "{name}.{field}");
            assert!(
                text.starts_with(&format!("{field}: ")) && text.contains("not supported"),
                "{name}.{field}: {text}"
            );
        }
    }
}

#[tokio::test]
async fn the_ranges_of_the_document_are_those_of_the_server() {
    let document = document(&Setup::new().launch()).await;
    let mut bounds = 0;
    for (properties, body, reader) in readers(&document) {
        for (field, schema) in properties.as_object().unwrap() {
            let whole = types(schema).is_some_and(|types| types.contains("integer"));
            let exclusive = schema.get("exclusiveMinimum").is_some();
            let least = schema.get("minimum").or(schema.get("exclusiveMinimum"));
            let [Some(least), Some(most)] = [least, schema.get("maximum")] else { continue };
            let step = if whole { 1.0 } else { 0.001 };
            let next = |bound: &Value, step: f64| match bound.as_i64() {
                Some(bound) if whole => json!(i128::from(bound) as i64 + step as i64),
                _ => json!(bound.as_f64().unwrap() + step),
            };
            let is_refused = |value: &Value| {
                let result = read(reader, &merged(body.clone(), json!({ field: value })));
                let ranged = |error: &ApiError| error.to_string().contains(" to ") || exclusive;
                result.is_err_and(|error| error.param() == Some(field) && ranged(&error))
            };
            // The seed has all integers of 64 bits.
            if field != "seed" {
                assert!(is_refused(&next(least, -step)), "{field} below {least}");
                assert!(is_refused(&next(most, step)), "{field} above {most}");
            }
            assert_eq!(is_refused(least), exclusive, "{field} = {least}");
            let most_alone = field == "min_tokens" || field == "best_of";
            assert!(most_alone || !is_refused(most), "{field} = {most}");
            bounds += 2;
        }
    }
    assert!(bounds >= 50, "{bounds} bounds");
}

#[tokio::test]
async fn the_defaults_of_the_document_change_nothing() {
    let document = document(&Setup::new().launch()).await;
    let mut defaults = 0;
    for (properties, body, reader) in readers(&document) {
        let plain = format!("{:?}", read(reader, &body).unwrap());
        for (field, schema) in properties.as_object().unwrap() {
            let Some(default) = schema.get("default") else { continue };
            // The least body sets this field.
            if field == "max_tokens" {
                continue;
            }
            let set = read(reader, &merged(body.clone(), json!({ field: default })));
            assert_eq!(format!("{:?}", set.unwrap()), plain, "{field} = {default}");
            defaults += 1;
        }
    }
    assert!(defaults >= 20, "{defaults} defaults");
    let limit = |body: Value| read(validate::completion, &body).unwrap().ask.max_tokens;
    let documented = &document["components"]["schemas"]["CompletionRequest"]["properties"]["max_tokens"];
    let set = limit(json!({ "prompt": "a", "max_tokens": documented["default"] }));
    assert_eq!(format!("{set:?}"), "Exactly(16)");
    assert_eq!(format!("{:?}", limit(json!({ "prompt": "a" }))), "UpTo(16)");
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere_and_needs_no_key() {
    let mut setup = Setup::new();
    setup.settings.api_key = Some("secret".to_owned());
    let server = setup.launch();
    for (path, kind) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/docs.js", "text/javascript; charset=utf-8"),
        ("/docs/docs.css", "text/css; charset=utf-8"),
        ("/openapi.json", "application/json"),
    ] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{path}");
        if path != "/openapi.json" {
            let policy = reply.header("content-security-policy").unwrap();
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; "),
                "{policy}"
            );
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        }
        let text = reply.text();
        assert!(
            !["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("]
                .iter()
                .any(|word| text.contains(word))
        );
        assert!(path == "/openapi.json" || !text.contains("://"), "{path} names another server");
    }
}

#[tokio::test]
async fn files_and_batches_are_documented_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let server = super::batches::setup(dir.path(), 1 << 30).launch();
    let document = document(&server).await;
    let fields = |name: &str| {
        let properties = document["components"]["schemas"][name]["properties"].as_object();
        properties.unwrap_or_else(|| panic!("{name} has no fields")).keys().cloned().collect::<BTreeSet<_>>()
    };
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let id = super::batches::created(&server, &super::batches::many(1)).await;
    let batch = super::batches::until_status(&server, &id, "completed").await;
    assert_eq!(keys(&batch), fields("Batch"));
    let counts = document.pointer("/components/schemas/Batch/properties/request_counts/$ref").unwrap();
    assert_eq!(counts, "#/components/schemas/BatchRequestCounts");
    for (path, list, entry) in [("/v1/files", "ListOfFile", "File"), ("/v1/batches", "ListOfBatch", "Batch")]
    {
        let reply = server.get(path).await.json();
        assert_eq!((keys(&reply), keys(&reply["data"][0])), (fields(list), fields(entry)));
        for parameter in document["paths"][path]["get"]["parameters"].as_array().unwrap() {
            let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            let ok = match (&schema["maximum"], &schema["enum"]) {
                (Value::Number(most), _) => {
                    let above = most.as_u64().unwrap() + 1;
                    let reply = server.get(&format!("{path}?{name}={above}")).await;
                    assert_eq!(reply.error().2.as_deref(), Some(name), "{path}");
                    most.to_string()
                }
                (_, Value::Array(words)) => words[0].as_str().unwrap().to_owned(),
                _ => reply["first_id"].as_str().unwrap().to_owned(),
            };
            assert_eq!(server.get(&format!("{path}?{name}={ok}")).await.status, 200, "{path} {name}");
        }
    }
    let body = &document["components"]["schemas"]["BatchRequest"];
    assert_eq!(body["required"], json!(["input_file_id", "endpoint", "completion_window"]));
    assert_eq!(body["x-octant-refused"], json!(["output_expires_after"]));
    let content = &document["paths"]["/v1/files"]["post"]["requestBody"]["content"];
    assert_eq!(content["multipart/form-data"]["schema"]["$ref"], "#/components/schemas/FileUpload");
    for (path, method, status) in [
        ("/v1/files", "post", "413"),
        ("/v1/files/{id}", "delete", "409"),
        ("/v1/batches", "post", "404"),
        ("/v1/batches/{id}/cancel", "post", "409"),
    ] {
        let responses = &document["paths"][path][method]["responses"];
        assert!(responses[status].is_object(), "{method} {path} {status}: {responses}");
    }
}

/// A form of text fields, and of files where a name follows.
fn form(fields: &[(&str, Option<&str>, &str)]) -> Vec<u8> {
    let part = |(name, file, content): &(&str, Option<&str>, &str)| {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n")
    };
    let parts: String = fields.iter().map(part).collect();
    format!("{parts}--x--\r\n").into_bytes()
}

#[tokio::test]
async fn the_form_of_an_upload_is_documented_as_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = super::batches::setup(dir.path(), 1 << 30).launch();
    let schema = document(&server).await["components"]["schemas"]["FileUpload"].clone();
    let headers = [("content-type", "multipart/form-data; boundary=x")];
    let upload = async |fields: &[(&str, Option<&str>, &str)]| {
        send(server.address, "POST", "/v1/files", &headers, &form(fields)).await
    };
    let words = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let (required, properties) = (words(&schema["required"]), schema["properties"].as_object().unwrap());
    let purposes = words(&properties["purpose"]["enum"]);
    let file = ("file", Some("in.jsonl"), "{}\n");
    for purpose in &purposes {
        let reply = upload(&[("purpose", None, purpose), file]).await;
        assert_eq!((reply.status, reply.json()["purpose"].as_str()), (200, Some(purpose.as_str())));
    }
    let all = [("purpose", None, purposes[0].as_str()), file];
    assert_eq!(properties.len(), all.len());
    for absent in properties.keys() {
        let rest: Vec<_> = all.into_iter().filter(|(name, ..)| name != absent).collect();
        let reply = upload(&rest).await;
        let is_refused = reply.status == 400 && reply.error().2.as_deref() == Some(absent.as_str());
        assert_eq!(is_refused, required.contains(absent), "without {absent}: {}", reply.text());
    }
    for purpose in ["", "fine-tune", "batch_output"] {
        assert!(!purposes.iter().any(|known| known == purpose));
        assert_eq!(upload(&[("purpose", None, purpose), file]).await.error().2.as_deref(), Some("purpose"));
    }
    for refused in words(&schema["x-octant-refused"]) {
        for name in [refused.clone(), format!("{refused}[anchor]")] {
            assert_eq!(
                upload(&[all[0], file, (&name, None, "7")]).await.error().2.as_deref(),
                Some(&*refused),
                "{name}"
            );
        }
    }
    let reply = upload(&[all[0], file, ("other", None, "7")]).await;
    assert_eq!((reply.status, reply.header("x-ignored-fields")), (200, Some("other")));
}

#[tokio::test]
async fn the_range_of_the_deadline_header_is_the_documented_one() {
    let servers = servers();
    let document = document(&servers[0]).await;
    let mut routes = 0;
    for (_, path, body) in bodies() {
        let parameters = document["paths"][path]["post"]["parameters"].as_array().unwrap();
        let Some(header) = parameters.iter().find(|parameter| parameter["in"] == "header") else { continue };
        let name = header["name"].as_str().unwrap();
        let [least, most] = ["minimum", "maximum"].map(|bound| header["schema"][bound].as_i64().unwrap());
        assert_eq!(header["schema"]["type"], "integer");
        // A millisecond is valid, but can end a request.
        for (value, is_valid) in [
            ((least - 1).to_string(), false),
            (most.to_string(), true),
            ((most + 1).to_string(), false),
            ("1.5".to_owned(), false),
        ] {
            let headers = [("content-type", "application/json"), (name, &*value)];
            let server = of_route(&servers, path);
            let reply = send(server.address, "POST", path, &headers, body.to_string().as_bytes()).await;
            let refused = reply.status == 400 && reply.text().contains(name);
            assert_eq!((reply.status == 200, refused), (is_valid, !is_valid), "{path} {value}");
        }
        routes += 1;
    }
    assert_eq!(routes, 8);
}
