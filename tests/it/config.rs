//! Settings of the binary: precedence, invalid values, and memory plans that do not fit.

use std::path::Path;
use std::process::{Command, Output};

/// Runs `octant serve` with only the environment `env`, on any free port unless it names one. It must exit by
/// itself.
fn serve(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
    command.env_clear().env("OCTANT_PORT", "0").arg("serve").args(args).envs(env.iter().copied());
    command.output().unwrap()
}

/// Asserts the exit status, and that standard error contains all parts.
fn refuses(output: &Output, status: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{text}` lacks `{part}`");
    }
}

fn tiny() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/nemotron").to_string_lossy().into_owned()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Asserts which value of `--max-model-len` takes effect. The model has 256 positions, so the error names it.
fn refused_len(args: &[&str], env: &[(&str, &str)], len: &str) {
    let model = tiny();
    let args = [&["--model", &model], args].concat();
    refuses(&serve(&args, env), 1, &["--max-model-len", "at most the model's 256", &format!("got {len}")]);
}

#[test]
fn a_flag_overrides_the_environment_and_the_environment_the_file() {
    let file = file("max-model-len = 1003\n");
    let path = file.path().to_str().unwrap();
    refused_len(&["--config", path], &[], "1003");
    refused_len(&[], &[("OCTANT_CONFIG", path)], "1003");
    refused_len(&["--config", path], &[("OCTANT_MAX_MODEL_LEN", "1002")], "1002");
    refused_len(&["--config", path, "--max-model-len", "1001"], &[("OCTANT_MAX_MODEL_LEN", "1002")], "1001");
}

#[test]
fn every_flag_is_also_an_environment_variable_and_a_key_of_the_file() {
    let help = Command::new(env!("CARGO_BIN_EXE_octant")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: Vec<&str> = help.lines().filter_map(|line| line.trim_start().strip_prefix("--")).collect();
    let flags = flags.iter().filter_map(|line| line.split(' ').next());
    let mut count = 0;
    for flag in flags {
        count += 1;
        let name = if flag == "log-level" { "log" } else { flag };
        let variable = format!("OCTANT_{}", name.to_uppercase().replace('-', "_"));
        assert!(help.contains(&format!("[env: {variable}")), "{flag} has no variable {variable}");
        if flag != "config" {
            // The value is invalid for every key, but the error must not be `unknown field`.
            let file = file(&format!("{flag} = [[1]]\n"));
            let output = serve(&["--config", file.path().to_str().unwrap()], &[]);
            assert!(!String::from_utf8_lossy(&output.stderr).contains("unknown field"), "{flag}: not a key");
        }
    }
    assert!(count >= 15, "only {count} flags found in the help");
}

#[test]
fn an_invalid_value_in_the_file_names_the_file_and_the_key() {
    let model = tiny();
    for (text, parts) in [
        ("port = 70000\n", ["--port", "70000"]),
        ("port = [1, 2]\n", ["port: expected", "array"]),
        ("port = \"8000\"\n", ["port: expected an integer", "got string"]),
        ("max-num-seqs = 4.0\n", ["max-num-seqs: expected an integer", "got float"]),
        ("reject-unknown-fields = \"true\"\n", ["reject-unknown-fields: expected a boolean", "got string"]),
        ("served-model-name = [\"a,b\"]\n", ["served-model-name: expected", "comma"]),
        ("served-model-name = \"a\"\n", ["served-model-name: expected an array", "got string"]),
        ("max-num-seqs = 0\n", ["--max-num-seqs", "expected at least 1, got 0"]),
        ("device = \"tpu\"\n", ["--device", "possible values: cpu, cuda, simulate"]),
        ("config = \"other.toml\"\n", ["unknown field", "config"]),
        ("port = \n", ["TOML", "line 1"]),
    ] {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        refuses(&serve(&["--model", &model, "--config", path], &[]), 2, &[&[path][..], &parts].concat());
    }
}

#[test]
fn a_setting_of_the_file_counts_as_given() {
    let model = tiny();
    let file = file(&format!("model = {model:?}\ngpus = [0, 1]\n"));
    let output = serve(&["--config", file.path().to_str().unwrap()], &[]);
    refuses(&output, 2, &["--gpus", "expected --device cuda, got cpu"]);
    let output = serve(&["--model", &model, "--gpu", "h100-80gb"], &[]);
    refuses(&output, 2, &["--gpu", "expected --device simulate, got cpu"]);
}

#[test]
fn the_help_shows_defaults() {
    let help = Command::new(env!("CARGO_BIN_EXE_octant")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, default) in [
        ("port", "8000"),
        ("max-num-seqs", "32"),
        ("max-num-batched-tokens", "512"),
        ("max-queue-tokens", "1048576"),
        ("ageing-steps", "1000"),
        ("quantization", "fp8"),
        ("step-timeout", "600"),
        ("gpu", "h100-80gb"),
        ("log-format", "text"),
        ("log-level", "info"),
    ] {
        let rest = &words[words.find(&format!(" --{flag} <")).unwrap()..];
        let rest = &rest[..rest[3..].find(" --").map_or(rest.len(), |end| end + 3)];
        assert!(rest.contains(&format!("[default: {default}")), "{flag}: {rest}");
    }
}

#[test]
fn an_invalid_setting_names_its_flag() {
    let model = tiny();
    let unknown = file("max-model-length = 5\n");
    let two_batches = ["--model", &model, "--two-batch-tokens", "768", "--device", "cuda"];
    let library = ["--tp", "2", "--deterministic", "false"];
    let small = ["--tp", "2", "--max-num-batched-tokens", "512"];
    let cases: [(&[&str], &[&str]); 21] = [
        (&["--model", &model, "--two-batch-tokens", "0"], &["--two-batch-tokens", "at least 1", "0"]),
        (&two_batches[..4], &["--two-batch-tokens", "--device cuda or simulate", "cpu"]),
        (&two_batches, &["--two-batch-tokens", "--tensor-parallel-size of at least 2, got 1"]),
        (&[&two_batches[..], &library].concat(), &["--two-batch-tokens", "--deterministic true, got false"]),
        (
            &[&two_batches[..], &library, &["--communicator", "nccl"]].concat(),
            &["--two-batch-tokens", "--communicator p2p, got nccl"],
        ),
        (&[&two_batches[..], &small].concat(), &["--two-batch-tokens", "at most", "512, got 768"]),
        (&["--model", &model, "--gpus", "0,1"], &["--gpus", "--device cuda", "cpu"]),
        (
            &["--model", &model, "--device", "cuda", "--gpus", "0,1"],
            &["--gpus", "one number for each rank of --tensor-parallel-size 1, got 2"],
        ),
        (&["--model", &model, "--communicator", "p2p"], &["--communicator", "--device cuda", "cpu"]),
        (
            &["--model", &model, "--device", "cuda", "--communicator", "nccl"],
            &["--communicator", "--deterministic false"],
        ),
        (&["--model", &model, "--admin-host", "::1"], &["--admin-host", "--admin-port"]),
        (&[], &["--model", "missing"]),
        (&["--model", &model, "--queue-full-status", "418"], &["--queue-full-status", "429 or 503", "418"]),
        (&["--model", &model, "--deterministic", "false"], &["--deterministic", "--device cpu", "false"]),
        (&["--model", &model, "--max-num-seqs", "0"], &["--max-num-seqs", "at least 1"]),
        (&["--model", &model, "--kv-cache-memory", "lots"], &["--kv-cache-memory", "4GiB", "lots"]),
        (&["--model", &model, "--kv-cache-dtype", "int4"], &["--kv-cache-dtype", "int4", "fp8"]),
        (&["--model", &model, "--port", "70000"], &["--port", "70000"]),
        (&["--model", &model, "--api-key", ""], &["--api-key"]),
        (&["--config", unknown.path().to_str().unwrap()], &["unknown field", "max-model-length"]),
        (&["--config", "/nowhere.toml"], &["/nowhere.toml"]),
    ];
    for (args, parts) in cases {
        refuses(&serve(args, &[]), 2, parts);
    }
}

#[test]
fn a_model_that_does_not_fit_names_needed_and_available_memory() {
    let model = tiny();
    let output = serve(&["--model", &model, "--kv-cache-memory", "900TB"], &[]);
    refuses(&output, 1, &["needs", "are available", "--kv-cache-memory"]);
    // One request of 256 positions needs 4 blocks of 2 layers x 2 x 16 x 64 bytes = 16 KiB.
    let output = serve(&["--model", &model, "--kv-cache-memory", "12KiB"], &[]);
    refuses(&output, 1, &["needs", "are available"]);
}

#[test]
fn a_missing_device_names_the_flag() {
    refuses(&serve(&["--model", &tiny(), "--device", "cuda"], &[]), 1, &["--device cuda"]);
}

#[test]
fn the_doctor_reports_cpu_memory_and_cuda() {
    let output = Command::new(env!("CARGO_BIN_EXE_octant")).arg("doctor").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["ok       cpu", "ok       memory", "cuda"] {
        assert!(text.contains(part), "`{text}` lacks `{part}`");
    }
    assert_eq!(output.status.code(), Some(i32::from(text.contains("missing"))));
}

#[test]
fn bench_rank_measures_any_tensor_parallel_size() {
    let bench = |tp: &str| {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/llama");
        let sizes = ["--batch", "1,3", "--context", "70", "--prefill", "65", "--reps", "2", "--warm-up", "1"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        command.args(["bench", "rank", "--json", "--tp", tp, "--config"]).arg(model).args(sizes);
        command.output().unwrap()
    };
    for tp in ["1", "4"] {
        let output = bench(tp);
        let text = String::from_utf8(output.stdout).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
        let steps: Vec<_> = report["steps"].as_array().unwrap().iter().collect();
        let kinds: Vec<_> =
            steps.iter().map(|step| (step["kind"].as_str().unwrap(), &step["batch"])).collect();
        assert_eq!(kinds, [("decode", &1.into()), ("decode", &3.into()), ("prefill", &1.into())]);
        assert!(steps.iter().all(|step| step["ratio"].as_f64().unwrap() > 0.0), "{report}");
    }
    refuses(&bench("3"), 1, &["query heads", "a multiple of 3 ranks, got 4"]);
}

#[test]
fn an_incomplete_model_directory_names_the_missing_file() {
    refuses(&serve(&["--model", "/nowhere"], &[]), 1, &["--model: /nowhere: no such directory"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(Path::new(&tiny()).join("config.json"), dir.path().join("config.json")).unwrap();
    refuses(&serve(&["--model", dir.path().to_str().unwrap()], &[]), 1, &["tokenizer.json"]);
}

#[test]
fn a_sampling_default_out_of_range_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(Path::new(&tiny()).join("config.json"), dir.path().join("config.json")).unwrap();
    let sampling = r#"{"top_p": 0, "top_k": -1, "temperature": -1}"#;
    std::fs::write(dir.path().join("generation_config.json"), sampling).unwrap();
    // The tokenizer is read after the sampling defaults.
    let output = serve(&["--model", dir.path().to_str().unwrap()], &[]);
    let warning = "generation_config.json: temperature: expected a number from 0 to 2, got -1; not used";
    refuses(&output, 1, &[warning, "tokenizer.json"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("top_p") && !text.contains("top_k"), "{text}");
}

#[test]
fn weights_of_scores_are_those_of_the_models_values() {
    refuses(
        &serve(&["--model", &tiny(), "--reward-weights", "helpfulness=1"], &[]),
        1,
        &["--reward-weights", "expected a model with a reward head"],
    );
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(Path::new(&tiny()).join("config.json")).unwrap();
    assert!(config.contains("NemotronForCausalLM"));
    let config = config.replace("NemotronForCausalLM", "NemotronForSequenceClassification");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let model = dir.path().to_str().unwrap();
    for (weights, status, part) in [
        ("beauty=1", 1, "expected names of helpfulness, correctness, coherence, complexity, verbosity"),
        ("humor=1", 1, "got `humor`"),
        ("helpfulness=1,helpfulness=2", 1, "got `helpfulness` twice"),
        ("helpfulness=1e300", 1, "expected a weight from -1000000"),
        ("helpfulness", 2, "expected NAME=WEIGHT with a finite number, got `helpfulness`"),
        ("=1", 2, "expected NAME=WEIGHT"),
        ("helpfulness=nan", 2, "expected NAME=WEIGHT with a finite number"),
    ] {
        let output = serve(&["--model", model, "--reward-weights", weights], &[]);
        refuses(&output, status, &["--reward-weights", part]);
    }
}

#[test]
fn a_reward_model_has_no_lm_head_with_a_type() {
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(Path::new(&tiny()).join("config.json")).unwrap();
    let config = config.replace("NemotronForCausalLM", "NemotronForSequenceClassification");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let output = serve(&["--model", dir.path().to_str().unwrap(), "--lm-head-dtype", "fp8"], &[]);
    refuses(&output, 1, &["--lm-head-dtype", "expected a model with an LM head; this one scores"]);
}

#[test]
fn errors_of_the_key_file_contain_no_key() {
    for (text, part) in [
        ("", "[[keys]]"),
        ("keys = []\n", "at least one key"),
        ("[[keys]]\nname = \"a\"\n", "line "),
        ("[[keys]]\nname = \"\"\nkey = \"sesame\"\n", "a name of 1 to 64 bytes"),
        ("[[keys]]\nname = \"a\"\nkey = \"sesame\"\nweight = 0\n", "a weight from 1 to 1000, got 0"),
        ("[[keys]]\nname = \"a\"\nkey = \"two words sesame\"\n", "visible ASCII"),
        ("[[keys]]\nname = \"a\"\nkey = \"sesame\"\nsesame = 1\n", "line "),
        (
            "[[keys]]\nname = \"a\"\nkey = \"sesame\"\n[[keys]]\nname = \"b\"\nkey = \"sesame\"\n",
            "also that of a",
        ),
    ] {
        let file = file(text);
        let output = serve(&["--model", &tiny(), "--api-keys", file.path().to_str().unwrap()], &[]);
        refuses(&output, 2, &["--api-keys", part]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("sesame"), "{text}");
    }
    for (flag, value) in
        [("--max-ttft", "0"), ("--max-ttft", "NaN"), ("--kv-reserve", "1.5"), ("--kv-reserve", "NaN")]
    {
        refuses(&serve(&["--model", &tiny(), flag, value], &[]), 2, &[flag, "expected"]);
    }
}

#[test]
fn limits_and_timeouts_must_be_at_least_1() {
    for flag in
        ["--max-queue-requests", "--max-queue-tokens", "--stall-timeout", "--step-timeout", "--write-timeout"]
    {
        let output = serve(&["--model", &tiny(), flag, "0"], &[]);
        refuses(&output, 2, &[flag, "expected at least 1, got 0"]);
    }
}

#[test]
fn origins_and_host_names_are_checked_at_start() {
    for (flag, value, part) in [
        ("--require-auth-for-metrics", "true", "expected --api-key or --api-keys"),
        ("--allowed-origins", "chat.example", "https://chat.example"),
        ("--allowed-origins", "https://a,b", "got `b`"),
        ("--allowed-origins", "http://a/b", "got `http://a/b`"),
        ("--allowed-origins", "http://*.a", "got `http://*.a`"),
        ("--allowed-origins", "", "expected an origin"),
        ("--allowed-hosts", "a,http://b", "got `http://b`"),
        ("--allowed-hosts", "a:8000", "without scheme and port"),
        ("--allowed-hosts", ".a", "got `.a`"),
        ("--allowed-hosts", "*.", "got `*.`"),
        ("--allowed-hosts", "a.*", "got `a.*`"),
    ] {
        refuses(&serve(&["--model", &tiny(), flag, value], &[]), 2, &[flag, part]);
    }
    // The second spelling is vLLM's.
    for value in ["https://a.example,http://localhost:3000/", r#"["https://a.example", "http://[::1]:80"]"#] {
        refused_len(&["--allowed-origins", value, "--max-model-len", "1004"], &[], "1004");
    }
    for value in ["*", r#"["*"]"#, "null", "tauri://localhost"] {
        refused_len(&["--allowed-origins", value, "--max-model-len", "1005"], &[], "1005");
    }
    refused_len(&["--allowed-hosts", "gpu-box, *.Example.com.,*", "--max-model-len", "1006"], &[], "1006");
}
