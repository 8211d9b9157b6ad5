//! `OCTANT_REQUIRE_GPU=1` turns a GPU that does not open into a failure. Without it a test of a GPU that is
//! missing would be counted as passed.

use std::process::{Command, Output};

/// Runs a test of this binary in a process that sees no GPU.
fn run(test: &str, required: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env("OCTANT_REQUIRE_GPU", required).env("CUDA_VISIBLE_DEVICES", "-1").output().unwrap()
}

/// Tests that open a GPU in different ways.
const TESTS: [&str; 3] = [
    "stream_read::every_word_is_read_once",
    "device::linear::embedding_reads_back_the_packed_rows",
    "cublaslt_linear::library_products_agree_with_the_kernel_and_choices_are_kept",
];

#[test]
fn a_gpu_that_does_not_open_is_a_failure_if_it_is_required() {
    for test in TESTS {
        let output = run(test, "1");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{test} passes without a GPU: {text}");
        assert!(text.contains("OCTANT_REQUIRE_GPU is 1, and this test cannot run on a GPU: "), "{text}");
    }
}

#[test]
fn a_gpu_that_is_not_required_may_be_missing() {
    let output = run(TESTS[0], "0");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("not run on a GPU: "), "{text}");
}
