//! Sampling defaults of a model's `generation_config.json`, which have the ranges of a request's fields.

use octant::request::SamplingParams;
use octant::server::validate::{Defaults, Limits};
use serde_json::{Map, Value, json};

use super::{a_chat, chat, chat_within, limits};

const KEYS: [&str; 5] = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"];

/// The limits of a model whose `generation_config.json` has only these parameters, and the warnings.
fn model(sampling: Value) -> (Limits, Vec<String>) {
    let sampling: Map<String, Value> = serde_json::from_value(sampling).unwrap();
    let (defaults, warnings) = Defaults::of_model(&sampling);
    (Limits { defaults, ..limits() }, warnings)
}

/// The five parameters of a request.
fn five(sampling: &SamplingParams) -> (f32, f32, u32, f32, f32) {
    let SamplingParams { temperature, top_p, top_k, min_p, repetition_penalty, .. } = *sampling;
    (temperature, top_p, top_k, min_p, repetition_penalty)
}

#[test]
fn a_default_has_the_range_of_the_field_and_any_other_value_is_named() {
    let values = [
        "-2",
        "-1",
        "-0.5",
        "0",
        "0.0",
        "1e-8",
        "0.005",
        "0.5",
        "1",
        "1.0",
        "1.5",
        "2",
        "2.5",
        "40.0",
        "101",
        "1e39",
        "4294967296",
        "\"1\"",
        "true",
        "[]",
        "{}",
        "null",
    ];
    let plain = model(json!({})).0;
    for (key, text) in KEYS.into_iter().flat_map(|key| values.map(|text| (key, text))) {
        let value: Value = serde_json::from_str(text).unwrap();
        let asked = json!({ key: value });
        let (limits, warnings) = model(asked.clone());
        let used = chat_within(&a_chat(&json!({})), &limits).unwrap().ask.sampling;
        match chat_within(&a_chat(&asked), &plain) {
            Ok(request) => {
                assert_eq!(five(&used), five(&request.ask.sampling), "{asked}");
                assert!(warnings.is_empty(), "{asked}: {warnings:?}");
            }
            Err(error) => {
                assert_eq!(warnings, [format!("generation_config.json: {error}; not used")]);
                assert_eq!(limits.defaults, Defaults::default(), "{asked}");
            }
        }
    }
}

#[test]
fn a_value_that_is_not_used_leaves_the_others() {
    let (limits, warnings) = model(
        json!({ "temperature": -1, "top_p": 0.25, "top_k": 1.5, "min_p": 0.5, "repetition_penalty": 2 }),
    );
    assert_eq!(
        warnings,
        [
            "generation_config.json: temperature: expected a number from 0 to 2, got -1; not used",
            "generation_config.json: top_k: expected an integer, got 1.5; not used",
        ]
    );
    let sampling = chat_within(&a_chat(&json!({})), &limits).unwrap().ask.sampling;
    assert_eq!(five(&sampling), (1.0, 0.25, 0, 0.5, 2.0));
}

#[test]
fn a_default_top_p_of_0_is_greedy_until_a_request_has_its_own() {
    let (limits, warnings) = model(json!({ "top_p": 0, "temperature": 0.5, "top_k": -1 }));
    assert!(warnings.is_empty(), "{warnings:?}");
    for (more, used) in [
        (json!({}), (0.0, 1.0)),
        (json!({ "temperature": 0.75 }), (0.0, 1.0)),
        (json!({ "top_p": 0.25 }), (0.5, 0.25)),
        (json!({ "top_p": 0.25, "temperature": 0.75 }), (0.75, 0.25)),
    ] {
        let sampling = chat_within(&a_chat(&more), &limits).unwrap().ask.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (used.0, used.1, 0), "{more}");
    }
    assert_eq!(chat(&a_chat(&json!({}))).unwrap().ask.sampling.top_p, 0.9, "the model of the other tests");
}
