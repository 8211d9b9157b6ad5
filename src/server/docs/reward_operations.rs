//! The operations of models with a reward head.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

use super::errors::Errors;
use super::operation::{Answer, JSON, Operation, RequestBody, post};
use crate::server::field_table::object_schema;
use crate::server::reply::{ChatChoice, Reply};
use crate::server::reward::reply::{
    ClassifyEntry, GetRewardReply, PoolingEntry, RewardEntry, ScoreChoice, ScoreList,
};
use crate::server::reward::types::{GetRewardWire, PoolingWire, RewardWire};
use crate::server::unsupported::RefusedNames;

/// The operations, in the order of the page.
pub(super) fn operations() -> [Operation; 4] {
    [reward(), pooling(), classify(), get_reward()]
}

/// The reply of a chat completion: an answer, or the values of a reward model.
pub(super) fn chat_reply(schemas: &mut SchemaGenerator) -> Schema {
    let answer = schemas.subschema_for::<Reply<'static, ChatChoice>>();
    let scores = schemas.subschema_for::<Reply<'static, ScoreChoice>>();
    json_schema!({ "anyOf": [answer, scores] })
}

fn of_scores(operation: Operation) -> Operation {
    Operation { tag: "scores", errors: Some(Errors::Generation), ..operation }
}

fn conversation() -> serde_json::Value {
    json!([
        { "role": "user", "content": "Name a fruit." },
        { "role": "assistant", "content": "An apple is a fruit." },
    ])
}

fn reward() -> Operation {
    let mut schema = object_schema(RewardWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().scores);
    of_scores(post(
        "/v1/reward",
        "Scores the answers of conversations. Needs a model with a reward head.",
        RequestBody {
            media_type: JSON,
            name: "RewardRequest",
            schema,
            example: json!({ "messages": conversation() }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<ScoreList<'static, RewardEntry<'static>>>()),
    ))
}

fn pooling() -> Operation {
    let mut schema = object_schema(PoolingWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().pooling);
    of_scores(post(
        "/pooling",
        "Scores conversations, in the form of vLLM. Needs a model with a reward head.",
        RequestBody {
            media_type: JSON,
            name: "PoolingRequest",
            schema,
            example: json!({ "messages": conversation() }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<ScoreList<'static, PoolingEntry>>()),
    ))
}

fn classify() -> Operation {
    let mut schema = object_schema(PoolingWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().pooling);
    of_scores(post(
        "/classify",
        "Scores conversations, in the form of vLLM's classification. Needs a model with a reward head.",
        RequestBody {
            media_type: JSON,
            name: "ClassifyRequest",
            schema,
            example: json!({ "messages": conversation(), "return_attributes": true }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<ScoreList<'static, ClassifyEntry>>()),
    ))
}

fn get_reward() -> Operation {
    let mut schema = object_schema(GetRewardWire::body_rows());
    schema["x-octant-refused"] = json!(RefusedNames::new().scores);
    let query = "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\nAn apple.<|im_end|>\n";
    of_scores(post(
        "/get_reward",
        "Scores texts as OpenRLHF asks for it. Needs a model with a reward head.",
        RequestBody {
            media_type: JSON,
            name: "GetRewardRequest",
            schema,
            example: json!({ "query": [query] }),
        },
        Answer::Json(|schemas| schemas.subschema_for::<GetRewardReply<'static>>()),
    ))
}
