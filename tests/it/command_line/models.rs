//! Paths that are no model directory: each gets one sentence that says what to do.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::{error_of, octant, tiny};

/// The error of serving a path, without its prefix.
fn refused(model: &str) -> String {
    let error = error_of(&octant(&["serve", model], &[]), 1);
    let (_, message) = error.trim_end().split_once("--model: ").unwrap_or_else(|| panic!("{error}"));
    assert!(!message.contains('\n') && !message.contains("os error"), "{message}");
    message.strip_prefix(&format!("{model}: ")).unwrap_or_else(|| panic!("{message}")).to_owned()
}

#[test]
fn an_address_of_another_place_is_refused() {
    assert_eq!(
        refused("s3://bucket/model"),
        "expected a local directory or ORG/NAME on Hugging Face, got a URL"
    );
}

#[test]
fn a_missing_path_is_named_once() {
    assert_eq!(refused("/nowhere"), "no such directory");
    assert_eq!(refused("/nowhere/at/all"), "no such directory");
    let current = std::env::current_dir().unwrap();
    let hint = "a model on Hugging Face is named ORG/NAME";
    assert_eq!(refused("gpt2"), format!("no such directory in {}; {hint}", current.display()));
    assert_eq!(refused("./a/b"), format!("no such directory in {}", current.display()));
    assert_eq!(refused("~/model"), "no such directory: the shell did not replace `~`; write the whole path");
    // The same words for every command that reads a model directory.
    for args in [&["plan", "--config", "/nowhere"][..], &["quantize", "/nowhere", "/nowhere-either"]] {
        let error = error_of(&octant(args, &[]), 1);
        assert_eq!(error, "error: /nowhere: no such directory\n", "{args:?}");
    }
}

#[test]
fn a_directory_without_a_configuration_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = dir.path().to_str().unwrap();
    let expected = "expected a Hugging Face directory with config.json, *.safetensors and tokenizer.json";
    assert_eq!(refused(text), format!("an empty directory; {expected}"));
    fs::write(path("weights.bin"), "").unwrap();
    assert_eq!(refused(text), format!("no config.json here; {expected}"));
    fs::create_dir(path("inner")).unwrap();
    fs::write(path("inner/config.json"), "{}").unwrap();
    assert_eq!(refused(text), format!("no config.json here; there is one in {text}/inner"));
    fs::write(path("model.gguf"), "GGUF").unwrap();
    assert_eq!(
        refused(text),
        format!("GGUF files without config.json, which Octant does not read; {expected}")
    );
    fs::write(path("model_config.yaml"), "").unwrap();
    assert_eq!(refused(text), "a NeMo directory; convert it with `octant import-nemo IN OUT`, and serve OUT");
    fs::create_dir_all(path("snapshots/abc")).unwrap();
    fs::write(path("snapshots/abc/config.json"), "{}").unwrap();
    assert_eq!(
        refused(text),
        format!("a directory of Hugging Face's cache; give the one in its snapshots: {text}/snapshots/abc")
    );
}

#[test]
fn a_file_in_place_of_a_directory_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let expected = "expected a Hugging Face directory with config.json, *.safetensors and tokenizer.json";
    for (name, contents) in [("model.gguf", "x"), ("model.bin", "GGUFabc")] {
        fs::write(path(name), contents).unwrap();
        assert_eq!(refused(&path(name)), format!("a GGUF file, which Octant does not read; {expected}"));
    }
    fs::write(path("notes.txt"), "a").unwrap();
    assert_eq!(refused(&path("notes.txt")), format!("a file; {expected}"));
    fs::write(path("config.json"), "{}").unwrap();
    assert_eq!(refused(&path("notes.txt")), format!("a file; give its directory: {}", dir.path().display()));
}

#[test]
fn links_without_a_target_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().to_str().unwrap();
    symlink("../../blobs/abc", dir.path().join("config.json")).unwrap();
    let error = error_of(&octant(&["serve", text], &[]), 1);
    assert!(
        error.contains(
            "config.json: a symbolic link to ../../blobs/abc, which does not exist; copy the files themselves"
        ),
        "{error}"
    );
    let link = dir.path().join("link");
    symlink("gone", &link).unwrap();
    assert_eq!(refused(link.to_str().unwrap()), "a symbolic link to gone, which does not exist");
}

#[test]
fn a_directory_that_may_not_be_read_names_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::copy(Path::new(&tiny()).join("config.json"), closed.join("config.json")).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
    command.env_clear().arg("serve").arg(&closed);
    // Permissions do not hold for root, which therefore runs the server as another user.
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let output = command.output().unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
    let user = if is_root { 65534 } else { rustix::process::geteuid().as_raw() };
    let message = format!("permission denied: the user of this process, {user}, cannot read it");
    let error = error_of(&output, 1);
    assert!(error.trim_end().ends_with(&format!("--model: {}: {message}", closed.display())), "{error}");
}
