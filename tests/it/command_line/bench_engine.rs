//! `octant bench throughput`, `octant bench latency` and `octant bench host` with a tiny model.

use serde_json::Value;

use super::{error_of, octant, parsed};
use crate::simulation::binary;

/// The tiny model with a tokenizer.
fn model() -> tempfile::TempDir {
    let dir = binary::model();
    let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden/nemotron/model.safetensors");
    std::fs::copy(weights, dir.path().join("model.safetensors")).unwrap();
    dir
}

/// Standard output of a benchmark of the tiny model, and its figures in JSON.
fn bench(args: &[&str]) -> (String, Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let directory = model();
    let (model, json) = (directory.path().to_str().unwrap(), file.path().to_str().unwrap());
    let lengths = ["--input-len", "20", "--output-len", "5", "--threads", "1", "--output-json", json];
    let output = octant(&[&["bench"], args, &[model], &lengths].concat(), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    (String::from_utf8(output.stdout).unwrap(), figures)
}

#[test]
fn throughput_counts_every_token_of_every_request() {
    // More requests than run at once, and than the queue of a server takes.
    let (text, figures) = bench(&["throughput", "--num-prompts", "9", "--max-num-seqs", "4"]);
    assert_eq!(figures["num_requests"], 9);
    assert_eq!(figures["total_num_tokens"], 9 * 25);
    assert_eq!(figures["total_output_tokens"], 9 * 5);
    let number = |name: &str| figures[name].as_f64().unwrap();
    let rate = 9.0 * 25.0 / number("elapsed_time");
    assert!((number("tokens_per_second") / rate - 1.0).abs() < 1e-9, "{figures}");
    assert!(text.starts_with("Throughput: ") && text.contains("Total num output tokens:  45"), "{text}");
}

#[test]
fn latency_times_whole_batches() {
    let iterations = ["--num-iters", "3", "--num-iters-warmup", "1"];
    let (text, figures) = bench(&[&["latency", "--batch-size", "2"][..], &iterations].concat());
    let latencies: Vec<f64> = serde_json::from_value(figures["latencies"].clone()).unwrap();
    assert_eq!(latencies.len(), 3);
    let mean = latencies.iter().sum::<f64>() / 3.0;
    assert!((figures["avg_latency"].as_f64().unwrap() / mean - 1.0).abs() < 1e-9, "{figures}");
    let mut ordered = latencies;
    ordered.sort_by(f64::total_cmp);
    assert_eq!(figures["percentiles"]["50"], ordered[1]);
    assert!(text.starts_with("Avg latency: ") && text.contains("99% percentile latency: "), "{text}");
}

/// The server runs simulated steps of the given length, then steps of length 0.
#[test]
fn host_costs_are_those_of_a_server_with_steps_of_one_length() {
    let directory = binary::model();
    let model = directory.path().to_str().unwrap();
    // The tiny model's sequences are too short for the prompts.
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct");
    let load = ["--streams", "2", "--tokens", "60", "--step", "5", "--json"];
    let models = ["bench", "host", "--model", model, "--simulate-config", config];
    let output = octant(&[&models[..], &load].concat(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let json = text.find("\n{\n").expect("the figures are an object at the end");
    let figures: Value = serde_json::from_str(&text[json..]).unwrap();
    assert_eq!(figures["gap"][0]["rows"], 2);
    assert_eq!(figures["growth"].as_array().unwrap().len(), 11);
    let rate = |server: usize| figures["server"][server]["tokens_per_second"].as_f64().unwrap();
    // Two streams have at most one token each in 5 ms.
    assert!(rate(0) > 0.0 && rate(0) < 405.0 && rate(1) > rate(0), "{figures}");
    assert!(figures["bare"][0]["cpu_us"].as_f64().unwrap() > 0.0, "{figures}");
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let no_server = "octant bench has no such setting here, since it is no server";
    for (line, error) in [
        ("throughput DIR --port 9", format!("--port: {no_server}")),
        ("latency DIR --max-ttft 1", format!("--max-ttft: {no_server}")),
        (
            "throughput",
            "--model: missing; expected a directory or a name: octant bench throughput MODEL".to_owned(),
        ),
        ("latency DIR --batch-size 0", "--batch-size: expected at least 1, got 0".to_owned()),
    ] {
        assert_eq!(parsed(&format!("bench {line}")), Err(error), "{line}");
    }
    let directory = model();
    let model = directory.path().to_str().unwrap();
    let refused = |args: &[&str]| error_of(&octant(&[&["bench", "latency", model], args].concat(), &[]), 1);
    let error = refused(&["--batch-size", "9", "--max-num-seqs", "8"]);
    assert!(error.contains("--batch-size: expected at most --max-num-seqs, 8, got 9"), "{error}");
    let error = refused(&["--input-len", "100000"]);
    assert!(error.contains("--input-len and --output-len: expected at most"), "{error}");
    let spelt = parsed("bench throughput DIR -tp 2 --max_num_seqs 7").unwrap();
    assert!(spelt.contains("tensor_parallel_size: Some(2)") && spelt.contains("max_num_seqs: 7"), "{spelt}");
}
