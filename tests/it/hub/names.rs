//! Names, revisions, access, and repositories that hold no model.

use std::fs;

use super::test_hub::{Fault, Host};
use super::*;

#[test]
fn a_name_that_cannot_be_one_has_status_2() {
    let setup = Setup::new();
    let neither = |name: &str| {
        format!(
            "expected a directory, or a model's name ORG/NAME[@REVISION] in which ORG and NAME are letters, \
             digits, `-`, `_` and `.`, got `{name}`, which is neither"
        )
    };
    let revision = |got: &str| format!("expected a branch, a tag or a commit behind `org/tiny@`, got {got}");
    let long = format!("org/{}", "a".repeat(97));
    for (name, message) in [
        ("org/ti ny", neither("org/ti ny")),
        ("org/tiny.git", neither("org/tiny.git")),
        ("org/-tiny", neither("org/-tiny")),
        ("org/a..b", neither("org/a..b")),
        ("o--g/tiny", neither("o--g/tiny")),
        ("org/tïny", neither("org/tïny")),
        (&long, neither(&long)),
        ("https://huggingface.co/org", neither("org")),
        ("org/tiny@", revision("nothing")),
        ("org/tiny@../main", revision("`../main`")),
        ("org/tiny@a b", revision("`a b`")),
        ("org/tiny@/x", revision("`/x`")),
    ] {
        for (args, flag) in [
            (["serve", "--model", name], "--model: "),
            (["plan", "--config", name], "--config: "),
            (["serve", name, "--port=0"], ""),
        ] {
            let error = error_of(&setup.command(&args, &[]).output().unwrap(), 2);
            assert!(error.starts_with(flag) && error.ends_with(&message), "{args:?}: {error}");
        }
    }
    assert!(setup.hub.seen().is_empty());
}

#[test]
fn a_directory_is_preferred_to_a_name() {
    let setup = Setup::new();
    let dir = setup.home.path().join("org/tiny");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.json"), setup.hub.bytes("config.json")).unwrap();
    succeeds(&setup.command(&["plan", "--config", "org/tiny"], &[]).output().unwrap());
    fs::remove_dir_all(&dir).unwrap();
    // Paths are no names.
    for path in ["./org/tiny", "org/tiny/", "a/b/c", "/org/tiny"] {
        let error = error_of(&setup.command(&["plan", "--config", path], &[]).output().unwrap(), 1);
        assert!(error.starts_with(&format!("{path}: no such directory")), "{error}");
    }
    assert!(setup.hub.seen().is_empty());
}

#[test]
fn revisions_are_branches_tags_refs_and_commits() {
    let setup = Setup::new();
    for (name, file) in [
        ("org/tiny@v1", Some("v1")),
        ("org/tiny@refs/pr/1", Some("refs/pr/1")),
        (&format!("org/tiny@{COMMIT}"), None),
        ("https://huggingface.co/org/tiny/tree/v1", Some("v1")),
        ("hf://org/tiny", Some("main")),
    ] {
        succeeds(&setup.command(&["plan", "--config", name], &[]).output().unwrap());
        let refs = setup.cache().join("refs");
        match file {
            Some(file) => assert_eq!(fs::read_to_string(refs.join(file)).unwrap(), COMMIT, "{name}"),
            None => assert!(!refs.exists(), "{name}"),
        }
        succeeds(&setup.command(&["plan", "--config", name], &[("HF_HUB_OFFLINE", "1")]).output().unwrap());
        fs::remove_dir_all(setup.cache()).unwrap();
    }
    let output = setup.command(&["plan", "--config", "org/tiny@v2"], &[]).output().unwrap();
    let page = format!("http://{}/org/tiny", setup.hub.address);
    assert_eq!(error_of(&output, 1), format!("org/tiny@v2: no revision `v2` of {page}"));
}

#[test]
fn a_model_without_access_names_the_token_and_the_page() {
    let setup = Setup::new();
    let page = format!("http://{}/org/tiny", setup.hub.address);
    setup.hub.require("hf_secret");
    let why = "(status 401: Access to model org/tiny is restricted.)";
    let expected = format!(
        "org/tiny: the hub refuses access without a token {why}: accept the terms at {page} and set HF_TOKEN \
         to a token of your account"
    );
    assert_eq!(setup.refused(&[]), expected);
    let with = |from: &str| {
        format!(
            "org/tiny: the hub refuses access with the token in {from} {why}: the token's account must have \
             accepted the terms at {page}"
        )
    };
    assert_eq!(setup.refused(&[("HF_TOKEN", "hf_other")]), with("HF_TOKEN"));
    let file = setup.home.path().join("a-token");
    fs::write(&file, "hf_other\n").unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(setup.refused(&[("HF_TOKEN_PATH", path)]), with(path));
    let error = setup.refused(&[("HF_TOKEN", "hf_s\u{e9}cret")]);
    assert_eq!(error, "HF_TOKEN: expected a token in visible ASCII characters");
    // The file that `hf auth login` writes.
    let home = setup.home.path().join(".cache/huggingface");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("token"), "hf_secret\n").unwrap();
    succeeds(&setup.download(&[]));
    let disabled = setup.refused(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
    assert_eq!(disabled, expected);
}

#[test]
fn a_model_that_does_not_exist_is_named() {
    let setup = Setup::new();
    let endpoint = format!("http://{}", setup.hub.address);
    let expected = format!(
        "no such directory, and no model `org/none` at {endpoint}, or it is private; then set HF_TOKEN"
    );
    let args = ["serve", "org/none", "--port", "0"];
    let error = error_of(&setup.command(&args, &[]).output().unwrap(), 1);
    assert!(error.ends_with(&format!("--model: org/none: {expected}")), "{error}");
    // The hub does not tell strangers whether a model exists.
    let code = vec![("x-error-code", "RepoNotFound"), ("x-error-message", "Invalid username")];
    setup.hub.fail(Host::Hub, "/revision/main", Fault::Status(401, code));
    let error = setup.refused(&[]);
    assert_eq!(error, format!("org/tiny: {}", expected.replace("org/none", "org/tiny")));
    let error = setup.refused(&[("HF_ENDPOINT", "huggingface.co")]);
    assert_eq!(error, "HF_ENDPOINT: expected https://HOST or http://HOST, got `huggingface.co`");
}

#[test]
fn a_repository_without_a_model_says_what_it_has() {
    let setup = Setup::new();
    let index = setup.hub.bytes(INDEX);
    for bad in ["../../../etc/passwd.safetensors", "/tmp/a.safetensors", "model.bin", ".hidden.safetensors"] {
        setup.hub.add(INDEX, json!({ "weight_map": { "a": bad } }).to_string().into());
        let error = setup.refused(&[]);
        let expected =
            format!("org/tiny: {INDEX}: `weight_map`: expected *.safetensors beside the index, got {bad:?}");
        assert_eq!(error, expected);
    }
    setup.hub.add(INDEX, index);
    setup.hub.remove(SECOND);
    let error = setup.refused(&[]);
    assert_eq!(error, format!("org/tiny: {INDEX} names {SECOND}, which is not in the repository"));
    setup.hub.remove(INDEX);
    let weights = "expected weights in model.safetensors or in the files that model.safetensors.index.json \
                   names, got";
    let error = setup.refused(&[]);
    assert_eq!(error, format!("org/tiny: {weights} {FIRST}, original/model.safetensors, pytorch_model.bin"));
    setup.hub.remove("config.json");
    let error = setup.refused(&[]);
    assert_eq!(
        error,
        "org/tiny: no config.json in the repository; expected config.json, *.safetensors and tokenizer.json"
    );
    setup.hub.add("model_config.yaml", Vec::new());
    let error = setup.refused(&[]);
    let convert = "run `hf download org/tiny --local-dir IN`, convert it with `octant import-nemo IN OUT`, \
                   and serve OUT";
    assert_eq!(error, format!("org/tiny: a NeMo repository without config.json: {convert}"));
}
