//! Files for results are opened before a command begins.

use std::time::{Duration, Instant};

use super::{error_of, octant};

/// A command that would take long, or that lacks its server, ends at once if its file cannot be written.
#[test]
fn a_file_that_cannot_be_written_ends_a_command_at_once() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct");
    let prompts = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/eval_prompts.jsonl");
    let simulate = &["simulate", "--config", config, "--poisson", "10", "--requests", "1000000"][..];
    let serving = &["bench", "serving", "--url", "http://127.0.0.1:9", "--rate", "1"][..];
    for (command, option) in [
        (simulate, "--json"),
        (simulate, "--svg"),
        (simulate, "--target-itl-svg"),
        (simulate, "--forecast-svg"),
        (serving, "--json"),
        (serving, "--plot"),
        (&["bench", "throughput", config], "--output-json"),
        (&["bench", "latency", config], "--output-json"),
        (&["eval", "ifeval", prompts, "--url", "http://127.0.0.1:9"], "--output"),
    ] {
        let began = Instant::now();
        let output = octant(&[command, &[option, "no/such/folder/file"]].concat(), &[]);
        let error = error_of(&output, 1);
        assert!(error.contains(&format!("{option}: no/such/folder/file: No such file")), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{command:?} {option}");
    }
}

#[test]
fn a_command_that_fails_leaves_its_files_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (new, old) = (dir.path().join("new.json"), dir.path().join("old.svg"));
    std::fs::write(&old, "a plot").unwrap();
    let files = ["--json", new.to_str().unwrap(), "--plot", old.to_str().unwrap()];
    let command = ["bench", "serving", "--url", "http://127.0.0.1:9", "--rate", "1", "--requests", "1"];
    error_of(&octant(&[&command[..], &files].concat(), &[]), 1);
    assert!(!new.exists());
    let to_a_device = ["--json", "/dev/null"];
    error_of(&octant(&[&command[..], &to_a_device].concat(), &[]), 1);
    assert!(std::path::Path::new("/dev/null").exists());
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "a plot");
}

/// A shorter text replaces a longer one whole.
#[test]
fn results_replace_what_a_file_had() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    std::fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/models/nemotron-4-340b-instruct");
    let command = ["simulate", "--config", config, "--poisson", "10", "--requests", "3", "--json"];
    let output = octant(&[&command[..], &[file.to_str().unwrap()]].concat(), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert!(report["simulated"].is_object(), "{report}");
}
