//! Writes the OpenAPI 3.1 document.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::errors::Errors;
use super::operation::{Answer, Operation};
use super::operations::operations;
use crate::server::anthropic::{self, reply::AnthropicErrorBody};
use crate::server::error::ErrorBody;
use crate::server::types::{DEADLINE_HEADER, MAX_DEADLINE_MS};

/// Where the document has its schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// The document.
pub(super) fn document() -> Value {
    let mut schemas = reply_schemas();
    let mut bodies = Map::new();
    let mut paths: Map<String, Value> = Map::new();
    schemas.subschema_for::<ErrorBody>();
    schemas.subschema_for::<AnthropicErrorBody<'static>>();
    for operation in operations() {
        let path = paths.entry(operation.path.replace("{*", "{")).or_insert_with(|| json!({}));
        path[operation.method] = describe(&operation, &mut schemas);
        if let Some(body) = operation.body {
            bodies.insert(body.name.to_owned(), body.schema);
        }
    }
    bodies.extend(schemas.take_definitions(true));
    let key =
        json!({ "type": "http", "scheme": "bearer", "description": "Needed if the server has --api-key." });
    json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Octant",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "A field that is null counts as absent. An unknown field is named in the \
                            response header x-ignored-fields, or refused if it looks like a constraint on \
                            the answer.",
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": bodies, "securitySchemes": { "key": key } },
    })
}

/// A generator of the schemas of replies.
fn reply_schemas() -> SchemaGenerator {
    let place = |settings: &mut SchemaSettings| settings.definitions_path = "/components/schemas".into();
    SchemaSettings::draft2020_12().for_serialize().with(place).into_generator()
}

fn describe(operation: &Operation, schemas: &mut SchemaGenerator) -> Value {
    let name = format!("{} {}", operation.method, operation.path.trim_matches('/'));
    let mut described = json!({
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"),
        "parameters": parameters(operation),
        "responses": responses(operation, schemas),
    });
    if let Some(body) = &operation.body {
        let schema = json!({ "$ref": format!("{SCHEMAS}{}", body.name) });
        let content = json!({ body.media_type: { "schema": schema, "example": body.example } });
        described["requestBody"] = json!({ "required": true, "content": content });
    }
    if operation.errors.is_some() {
        described["security"] = json!([{}, { "key": [] }]);
    }
    described
}

fn parameters(operation: &Operation) -> Value {
    let mut all = Vec::new();
    if operation.path.contains("id}") {
        let slashes = operation.path.contains("{*id}");
        let about = if slashes { "A name of the model. It may contain slashes." } else { "The id." };
        all.push(json!({
            "name": "id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 },
            "description": about,
        }));
    }
    all.extend(operation.query.iter().map(|parameter| {
        json!({
            "name": parameter.name, "in": "query", "schema": parameter.schema,
            "description": parameter.about,
        })
    }));
    if operation.errors == Some(Errors::Generation) {
        all.push(json!({
            "name": DEADLINE_HEADER, "in": "header",
            "schema": { "type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS },
            "description": "Milliseconds within which the whole answer must be sent.",
        }));
    }
    json!(all)
}

fn responses(operation: &Operation, schemas: &mut SchemaGenerator) -> Value {
    let body = if anthropic::is_path(operation.path) { "AnthropicErrorBody" } else { "ErrorBody" };
    let body = format!("{SCHEMAS}{body}");
    let mut all = operation.errors.map(|errors| errors.responses(&body)).unwrap_or_default();
    let mut ok = json!({ "description": "Success.", "content": content(&operation.answer, schemas) });
    if matches!(operation.errors, Some(Errors::Generation | Errors::NewBatch | Errors::Upload)) {
        let about = "Names of the request's fields that were ignored, separated by commas.";
        ok["headers"] =
            json!({ "x-ignored-fields": { "schema": { "type": "string" }, "description": about } });
    }
    if operation.errors.is_none() {
        let mut failed = ok.clone();
        failed["description"] = json!("The answer is no; the body says why.");
        all.insert("503".to_owned(), failed);
    }
    all.insert("200".to_owned(), ok);
    json!(all)
}

/// The media types of an answer, with their schemas.
fn content(answer: &Answer, schemas: &mut SchemaGenerator) -> Value {
    match answer {
        Answer::Json(schema) => json!({ "application/json": { "schema": schema(schemas) } }),
        Answer::Text(kind) => json!({ *kind: { "schema": { "type": "string" } } }),
        Answer::JsonOrEvents(reply, chunk) => {
            let about = "Server-sent events, each of this form: a chunk as JSON, and `[DONE]` at the end. If \
                         the generation fails, the last event is an error instead.";
            let data = json!({ "type": "string", "anyOf": [
                { "const": "[DONE]" },
                json_string(chunk(schemas)),
                json_string(schemas.subschema_for::<ErrorBody>()),
            ] });
            json_or_events(reply(schemas), about, &[("data", data)])
        }
        Answer::JsonOrNamedEvents(reply, event) => {
            let about = "Server-sent events, each of this form: the type of the event, and the event as \
                         JSON. The last event says whether the answer is complete, was cut off or failed.";
            let name = json!({ "type": "string" });
            json_or_events(reply(schemas), about, &[("event", name), ("data", json_string(event(schemas)))])
        }
    }
}

/// The media types of an answer that can be a stream of events with these fields.
fn json_or_events(reply: Schema, about: &str, fields: &[(&str, Value)]) -> Value {
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let events =
        json!({ "type": "object", "description": about, "properties": properties, "required": names });
    json!({ "application/json": { "schema": reply }, "text/event-stream": { "schema": events } })
}

/// A string that holds JSON of this schema.
fn json_string(schema: Schema) -> Value {
    json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": schema })
}
