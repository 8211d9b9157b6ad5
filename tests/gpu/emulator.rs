//! Tests of the emulator of asynchronous operations and of clusters, in programs of their own. One is the
//! probe of a GPU (`benches/gpu/probe.cu`), of which the emulator runs the checks.

use std::path::Path;
use std::process::Command;

use crate::device::model::root;

/// Runs a command and returns its exit status and output. The sanitizers of this test's process do not apply.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.env_remove("LD_PRELOAD").output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Compiles a program of the project.
fn compile(source: &str, to: &Path) {
    let mut compile = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    compile.args(["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-DOCTANT_HOST", "-Wno-unknown-pragmas"]);
    compile.args(["-x", "c++"]).arg(root().join(source)).arg("-o").arg(to);
    assert_eq!(run(&mut compile), (Some(0), String::new()));
}

#[test]
fn products_have_their_values_and_faults_of_a_pipeline_show() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("async");
    compile("tests/host/async.cpp", &program);
    let (status, report) = run(&mut Command::new(&program));
    assert!(status == Some(0) && report.ends_with("cases are as expected\n"), "{status:?}: {report}");
}

#[test]
fn rows_over_a_cluster_have_the_bits_of_one_block() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("slices");
    compile("tests/host/slices.cpp", &program);
    let (status, report) = run(&mut Command::new(&program));
    assert!(status == Some(0) && report.ends_with("have the bits of one block\n"), "{status:?}: {report}");
}

#[test]
fn the_probe_finds_what_the_kernels_assume() {
    let dir = tempfile::tempdir().unwrap();
    let (program, lines) = (dir.path().join("probe"), dir.path().join("probe.jsonl"));
    compile("benches/gpu/probe.cu", &program);
    let probe = |truncates: &str| run(Command::new(&program).env("OCTANT_HOST_TRUNCATES", truncates));
    let (status, report) = probe("1");
    assert!(status == Some(0) && report.ends_with("all checks passed\n"), "{status:?}: {report}");
    // Sums in F32 are not those of the tensor cores.
    let (status, report) = probe("0");
    let found = report.lines().any(|line| line.starts_with("FAIL") && line.contains("fraction bits"));
    assert!(status == Some(1) && found && report.ends_with("some checks FAILED\n"), "{status:?}: {report}");

    let (status, _) = run(Command::new(&program).arg("--json").arg(&lines).arg("fragments"));
    assert_eq!(status, Some(0));
    let text = std::fs::read_to_string(&lines).unwrap();
    for line in text.lines() {
        let check: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(check["ok"] == true && check["expected"] == check["got"], "{check}");
    }
    assert_eq!(text.lines().count(), 3);
}
