//! Tests of the emulator of asynchronous operations, in programs of their own.

use std::path::Path;
use std::process::Command;

use crate::device::model::root;

/// Runs a command and returns its exit status and output. The sanitizers of this test's process do not apply.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.env_remove("LD_PRELOAD").output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Compiles `tests/host/async.cpp`.
fn compile(to: &Path) {
    let mut compile = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    compile.args(["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-DOCTANT_HOST", "-Wno-unknown-pragmas"]);
    compile.args(["-x", "c++"]).arg(root().join("tests/host/async.cpp")).arg("-o").arg(to);
    assert_eq!(run(&mut compile), (Some(0), String::new()));
}

#[test]
fn products_have_their_values_and_faults_of_a_pipeline_show() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("async");
    compile(&program);
    let (status, report) = run(&mut Command::new(&program));
    assert!(status == Some(0) && report.ends_with("cases are as expected\n"), "{status:?}: {report}");
}
