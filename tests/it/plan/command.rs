//! `octant plan` through the binary.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::dir_340b;
use crate::device::model::fixture;

fn plan(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
    command.env_clear().arg("plan").arg("--config").arg(dir).args(args).output().unwrap()
}

fn json(dir: &Path, args: &[&str]) -> Value {
    let output = plan(dir, &[args, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// The words of each line.
fn lines(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

/// The words of a table row, computed from a step of the JSON.
fn row(step: &Value, first: &str, second: &str) -> Vec<String> {
    let ms = |value: f64| format!("{:.2}", value * 1e3);
    let terms = &step["terms"];
    let term = |name: &str| terms[name].as_f64().unwrap();
    let mut words =
        vec![step[first].to_string(), step[second].to_string(), ms(step["seconds"].as_f64().unwrap())];
    words.extend(["weights", "staging", "products", "cuts"].map(|name| ms(term(name))));
    words.push(ms(term("head_weights").max(term("head_products"))));
    words.extend(["kv", "attention", "activations"].map(|name| ms(term(name))));
    words.push(ms(term("reduce") + term("gather")));
    words.push(ms(term("overhead")));
    words.push(format!("{:.1}", step["tokens_per_second"].as_f64().unwrap()));
    words.push(step["bound"].as_str().unwrap().to_owned());
    words
}

/// Asserts that the table has every figure of the JSON, rounded.
fn same_figures(dir: &Path, args: &[&str]) {
    let (json, output) = (json(dir, args), plan(dir, args));
    let text = String::from_utf8(output.stdout).unwrap();
    let (lines, mut rest) = (lines(&text), text.as_str());
    let gb = |value: &Value| format!("{:.3}", value.as_u64().unwrap() as f64 / 1e9);
    for line in json["memory"].as_array().unwrap() {
        let name: Vec<&str> = line["name"].as_str().unwrap().split(' ').collect();
        let shown = lines.iter().find(|words| words.starts_with(&name)).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(shown[name.len()], gb(&line["bytes"]), "{line}");
        assert_eq!(shown.contains(&"estimate:"), line["estimate"].as_bool().unwrap(), "{line}");
    }
    assert!(text.contains(&format!("({} of them usable)", gb(&json["available"]))));
    for kv in json["kv"].as_array().unwrap() {
        // The part of the text that begins with this title.
        let title =
            format!("{} KV cache: {} bytes per token", kv["dtype"].as_str().unwrap(), kv["token_bytes"]);
        rest = &rest[rest.find(&title).unwrap_or_else(|| panic!("{title}"))..];
        let part = self::lines(rest);
        let shows = |words: &[&str]| part.iter().any(|line| line.starts_with(words));
        assert!(shows(&["scratch", &gb(&kv["scratch"])]) && shows(&["KV", "cache", &gb(&kv["bytes"])]));
        let numbers = ["blocks", "tokens", "requests"].map(|name| kv[name].to_string());
        let room =
            format!("room for {} blocks = {} tokens = {} requests", numbers[0], numbers[1], numbers[2]);
        let lacks = format!("lacks {} bytes", kv["short_by"]);
        assert!(rest.contains(if kv["short_by"] == 0 { &room } else { &lacks }), "{room}, or {lacks}");
        let decodes = kv["decode"].as_array().unwrap().iter().map(|step| row(step, "batch", "context"));
        let prompts = kv["prefill"].as_array().unwrap().iter().map(|step| row(step, "steps", "tokens"));
        for row in decodes.chain(prompts) {
            let words: Vec<&str> = row.iter().map(String::as_str).collect();
            // The row of a step that does not fit ends with `, does not fit`.
            let line = |line: &Vec<&str>| line.iter().zip(&words).all(|(a, b)| a.trim_end_matches(',') == *b);
            assert!(part.iter().any(|words| words.len() >= row.len() && line(words)), "{row:?} in\n{rest}");
        }
    }
}

#[test]
fn tables_and_json_have_the_same_figures() {
    same_figures(&dir_340b(), &["--tp", "8"]);
    same_figures(&dir_340b(), &["--tp", "4"]);
    same_figures(
        &fixture("wide"),
        &["--tp", "2", "--quantization", "none", "--batch", "1,7", "--prefill", "90,3"],
    );
}

/// A draft model takes memory for its weights, and of every KV block.
#[test]
fn a_draft_model_is_part_of_the_plan() {
    let draft = fixture("wide");
    let with = ["--tp", "8", "--speculate", draft.to_str().unwrap()];
    same_figures(&dir_340b(), &with);
    let (plain, with, draft) =
        (json(&dir_340b(), &with[..2]), json(&dir_340b(), &with), json(&draft, &with[..2]));
    let bytes = |report: &Value, name: &str| {
        let lines = report["memory"].as_array().unwrap();
        lines.iter().find(|line| line["name"] == name).map(|line| line["bytes"].as_u64().unwrap())
    };
    assert_eq!(bytes(&plain, "draft model"), None);
    assert_eq!(bytes(&with, "draft model"), bytes(&draft, "weights"));
    for name in ["weights", "activations", "communication", "graphs"] {
        let sum = bytes(&plain, name).unwrap() + bytes(&draft, name).unwrap();
        // The buffers of a step have room for the longest sequence of each model.
        assert!(bytes(&with, name).unwrap() <= sum, "{name}");
        assert!(bytes(&with, name) > bytes(&plain, name), "{name}");
    }
    for index in 0..2 {
        let value = |report: &Value, key: &str| report["kv"][index][key].as_u64().unwrap();
        for key in ["token_bytes", "block_bytes"] {
            assert_eq!(value(&with, key), value(&plain, key) + value(&draft, key), "{key}");
        }
        assert!(value(&with, "blocks") < value(&plain, "blocks"));
    }
}

#[test]
fn speculation_without_a_draft_model_takes_no_memory() {
    let plain = json(&dir_340b(), &["--tp", "8"]);
    for method in ["off", "ngram"] {
        assert_eq!(json(&dir_340b(), &["--tp", "8", "--speculate", method]), plain, "{method}");
    }
}

#[test]
fn the_340b_fits_eight_gpus() {
    let report = json(&dir_340b(), &["--tp", "8"]);
    let kv = |index: usize, key: &str| report["kv"][index][key].as_u64().unwrap();
    // The driver takes 0.6 of 85.52 GB, and 8 % of the rest stay free. Weights and workspace take 44.29 GB.
    assert_eq!(report["available"], 78_127_145_185_u64);
    assert_eq!((kv(0, "token_bytes"), kv(1, "token_bytes")), (36_864, 73_728));
    assert_eq!((kv(0, "blocks"), kv(0, "tokens"), kv(0, "requests")), (14_327, 916_928, 223));
    assert_eq!((kv(1, "blocks"), kv(1, "tokens"), kv(1, "requests")), (7_166, 458_624, 111));
    // 32 requests of 4096 tokens.
    assert_eq!((kv(0, "server_blocks"), kv(1, "server_blocks")), (2048, 2048));
    // The parts of the weights add up to the line `weights`.
    let bytes = |name: &str| {
        let lines = report["memory"].as_array().unwrap();
        lines.iter().find(|line| line["name"] == name).unwrap()["bytes"].as_u64().unwrap()
    };
    let parts = ["QKV", "attention output", "MLP up", "MLP down", "scales", "embedding", "head", "norms"];
    assert_eq!(parts.map(bytes).iter().sum::<u64>(), bytes("weights"));
    // All lines add up to the memory of the GPU, except for less than one block.
    let lines = ["weights", "activations", "communication", "graphs", "context", "kept free"].map(bytes);
    let all = lines.iter().sum::<u64>() + kv(0, "scratch") + kv(0, "bytes");
    let left = (81_559_u64 << 20).checked_sub(all).unwrap();
    assert!(left < kv(0, "block_bytes"), "{left}");
}

#[test]
fn a_model_that_does_not_fit_shows_the_missing_bytes() {
    let output = plan(&dir_340b(), &["--tp", "4"]);
    assert_eq!(output.status.code(), Some(1));
    let report = json(&dir_340b(), &["--tp", "4"]);
    let line = |name: &str| {
        let lines = report["memory"].as_array().unwrap();
        lines.iter().find(|line| line["name"] == name).unwrap()["bytes"].as_u64().unwrap()
    };
    let kv = &report["kv"][0];
    let fixed = ["weights", "activations", "communication", "graphs"].map(line).iter().sum::<u64>();
    let needs = fixed + kv["scratch"].as_u64().unwrap() + 64 * kv["block_bytes"].as_u64().unwrap();
    assert_eq!(kv["short_by"].as_u64().unwrap(), needs - report["available"].as_u64().unwrap());
    assert_eq!((&kv["blocks"], &kv["server_blocks"]), (&Value::from(0), &Value::from(0)));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("does not fit: one request of 4096 tokens lacks "), "{text}");
    assert_eq!(plan(&dir_340b(), &["--tp", "8"]).status.code(), Some(0));
}

#[test]
fn every_setting_changes_the_plan() {
    let dir = dir_340b();
    let base = json(&dir, &["--tp", "8"]);
    let of = |report: &Value, pointer: &str| report.pointer(pointer).unwrap().as_f64().unwrap();
    let differs = |args: &[&str], pointer: &str| {
        let changed = json(&dir, &[&["--tp", "8"], args].concat());
        assert_ne!(of(&changed, pointer), of(&base, pointer), "{args:?} {pointer}");
        changed
    };
    differs(&["--max-model-len", "2048"], "/kv/0/requests");
    differs(&["--max-num-seqs", "64"], "/kv/0/server_blocks");
    differs(&["--max-num-batched-tokens", "2048"], "/kv/0/prefill/1/steps");
    differs(&["--max-num-batched-tokens", "2048"], "/kv/0/blocks");
    // The driver's context is no part of the memory that is free when a server starts.
    let smaller = differs(&["--gpu-memory-utilization", "0.8"], "/kv/0/blocks");
    assert_eq!(smaller["available"], (((81_559_u64 << 20) - 600_000_000) as f64 * 0.8) as u64);
    differs(&["--two-batch-tokens", "512"], "/kv/0/blocks");
    differs(&["--quantization", "none"], "/kv/0/decode/0/terms/products");
    // By the counts cuBLASLt is not faster for any product of this model; it takes scratch memory.
    let long = ["--tp", "8", "--max-num-batched-tokens", "2048"];
    let (own, library) =
        (json(&dir, &long), json(&dir, &[&long[..], &["--deterministic", "false"]].concat()));
    let seconds = |report: &Value| of(report, "/kv/0/prefill/1/seconds");
    assert_eq!(seconds(&library), seconds(&own));
    differs(&["--deterministic", "false"], "/kv/0/scratch");
    let listed = differs(&["--batch", "3,5", "--context", "77", "--prefill", "9"], "/kv/0/decode/0/batch");
    let steps = listed["kv"][1]["decode"].as_array().unwrap();
    let pairs: Vec<_> = steps.iter().map(|step| (step["batch"].clone(), step["context"].clone())).collect();
    assert_eq!(pairs, [(3.into(), 77.into()), (5.into(), 77.into())]);
    assert_eq!(listed["kv"][1]["prefill"][0]["tokens"], 9);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/h100-80gb.toml");
    assert_eq!(json(&dir, &["--tp", "8", "--gpu", file.to_str().unwrap()]), base);
    for gpu in ["h200-141gb", "h100-nvl"] {
        differs(&["--gpu", gpu], "/kv/0/blocks");
        differs(&["--gpu", gpu], "/kv/0/prefill/0/seconds");
    }
}

#[test]
fn every_figure_shows_its_source() {
    for gpu in ["h100-80gb", "h200-141gb", "h100-nvl"] {
        let args = ["--tp", "8", "--gpu", gpu];
        let (report, text) = (json(&dir_340b(), &args), plan(&dir_340b(), &args).stdout);
        let text = String::from_utf8(text).unwrap();
        let text = &text[text.find("figures of the GPU").unwrap()..];
        for figure in report["figures"].as_array().unwrap() {
            let (name, origin) = (figure["name"].as_str().unwrap(), figure["origin"].as_str().unwrap());
            let from = figure["from"].as_str().unwrap();
            assert!(from.len() > 5 && from != "no source given", "{gpu}: {figure}");
            let shown = text.lines().find(|line| line.starts_with(&format!("  {name}  ")));
            assert!(shown.is_some_and(|line| line.ends_with(&format!("{origin}: {from}"))), "{shown:?}");
        }
        assert!(text.contains("terms below that are measured: none\n"), "nothing was measured yet: {text}");
        let estimated = text.lines().find(|line| line.contains("terms below that are estimated: ")).unwrap();
        for origin in report["origins"].as_array().unwrap() {
            let term = origin["term"].as_str().unwrap();
            let listed = estimated.split([' ', ',']).any(|word| word == term);
            assert_eq!(listed, origin["origin"] == "estimated", "{gpu}: {term} in {estimated}");
        }
    }
}

#[test]
fn an_invalid_argument_names_its_flag() {
    let cases: [(&[&str], &[&str]); 13] = [
        (&["--two-batch-tokens", "768"], &["--two-batch-tokens", "--tp of at least 2, got 1"]),
        (
            &["--tp", "8", "--two-batch-tokens", "768", "--deterministic", "false"],
            &["--two-batch-tokens", "--deterministic true, got false"],
        ),
        (&["--tp", "8", "--two-batch-tokens", "768"], &["--two-batch-tokens", "at most", "512, got 768"]),
        (&["--gpu-memory-utilization", "90"], &["--gpu-memory-utilization", "at most 1, got `90`"]),
        (&["--tp", "3"], &["--tp", "expected a multiple of 3", "got 8"]),
        (&["--tp", "9"], &["--tp", "9"]),
        (&["--gpu", "b200"], &["--gpu", "h100-80gb, h200-141gb, h100-nvl", "`b200`"]),
        (&["--max-model-len", "4097"], &["--max-model-len", "at most the model's 4096", "got 4097"]),
        (&["--context", "4096"], &["--context", "at most 4095", "got 4096"]),
        (&["--prefill", "1,5000"], &["--prefill", "at most 4096", "got 5000"]),
        (&["--batch", "0"], &["--batch", "0"]),
        (&["--quantization", "int4"], &["--quantization", "int4", "fp8"]),
        (&["--speculate", "EAGLE"], &["--speculate: expected off, ngram, or the directory", "`EAGLE`"]),
    ];
    for (args, parts) in cases {
        let output = plan(&dir_340b(), args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}");
        assert!(parts.iter().all(|part| text.contains(part)), "{args:?}: {text}");
    }
    let nowhere = plan(Path::new("/nowhere"), &[]);
    assert_eq!(String::from_utf8_lossy(&nowhere.stderr), "error: /nowhere: no such directory\n");
}
