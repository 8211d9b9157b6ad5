//! Command lines as people type them: the settings that they give, or the exact error.

mod batch;
mod bench_engine;
mod bench_kernels;
mod chat;
mod draft_model;
mod flags;
mod interrupt;
mod models;
mod output_files;
mod scores;

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};

use octant::config::parse_from;

/// The settings of a command line, as Debug prints them, or the error.
fn parsed(line: &str) -> Result<String, String> {
    let words = line.split(' ').filter(|word| !word.is_empty());
    // A word in quotes may be empty or hold spaces, written as underscores.
    let unquoted = words.map(|word| match word.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(inner) => OsString::from(inner.replace('_', " ")),
        None => OsString::from(word),
    });
    let args = [OsString::from("octant")].into_iter().chain(unquoted).collect();
    parse_from(args).map(|cli| format!("{cli:?}")).map_err(|error| error.to_string())
}

/// Runs `octant` with only this environment. It must exit by itself.
fn octant(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
    command.env_clear().args(args).envs(env.iter().copied()).output().unwrap()
}

/// Standard error of a run that ends with this status.
fn error_of(output: &Output, status: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{text}");
    text
}

fn tiny() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/nemotron").to_string_lossy().into_owned()
}

#[test]
fn spellings_of_other_servers_give_the_same_settings() {
    for (line, settings) in [
        ("DIR", &["model: \"DIR\""][..]),
        ("--model DIR", &["model: \"DIR\""]),
        ("--model-path DIR", &["model: \"DIR\""]),
        ("-m DIR", &["model: \"DIR\""]),
        ("DIR --model DIR", &["model: \"DIR\""]),
        ("DIR/ --model=DIR", &["model: \"DIR"]),
        ("--port 9 DIR --host ::1", &["model: \"DIR\"", "port: 9", "host: Address(::1)"]),
        ("DIR -tp 8", &["tensor_parallel_size: Some(8)"]),
        ("DIR -tp=4", &["tensor_parallel_size: Some(4)"]),
        ("DIR --tp 2", &["tensor_parallel_size: Some(2)"]),
        ("DIR --tp-size=2", &["tensor_parallel_size: Some(2)"]),
        ("DIR --tensor_parallel_size 2", &["tensor_parallel_size: Some(2)"]),
        ("DIR --num-shard 2", &["tensor_parallel_size: Some(2)"]),
        ("DIR --gpu-memory-utilization 0.9", &["gpu_memory_utilization: Some(0.9)"]),
        ("DIR --mem-fraction-static .5", &["gpu_memory_utilization: Some(0.5)"]),
        ("DIR --max-model-len 4K", &["max_model_len: Some(4096)"]),
        ("DIR --max_model_len=1.5k", &["max_model_len: Some(1500)"]),
        ("DIR --context-length 2048", &["max_model_len: Some(2048)"]),
        ("DIR --max-running-requests 7", &["max_num_seqs: 7"]),
        ("DIR -np 7", &["max_num_seqs: 7"]),
        ("DIR --max-num-batched-tokens 8k", &["max_num_batched_tokens: 8000"]),
        ("DIR --kv-cache-memory-bytes 2G", &["kv_cache_memory: Some(Size(2147483648))"]),
        ("DIR --kv-cache-memory 2gb", &["kv_cache_memory: Some(Size(2000000000))"]),
        ("DIR --kv-cache-memory 2Gi", &["kv_cache_memory: Some(Size(2147483648))"]),
        ("DIR --kv-cache-memory '1_KiB'", &["kv_cache_memory: Some(Size(1024))"]),
        ("DIR --kv-cache-dtype fp8_e4m3", &["kv_cache_dtype: Some(Fp8)"]),
        ("DIR --kv-cache-dtype bfloat16", &["kv_cache_dtype: Some(Bf16)"]),
        ("DIR -q FP8", &["quantization: Fp8"]),
        ("DIR --lm-head-dtype BFLOAT16", &["lm_head_dtype: Some(Bf16)"]),
        ("DIR --lm_head_dtype=fp8", &["lm_head_dtype: Some(Fp8)"]),
        ("DIR --drain-timeout 5m", &["drain_timeout: 300s"]),
        ("DIR --step-timeout=90s", &["step_timeout: 90s"]),
    ] {
        let found = parsed(&format!("serve {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        for setting in settings {
            assert!(found.contains(setting), "{line}: `{found}` lacks `{setting}`");
        }
    }
    for line in
        ["plan --config DIR -tp 8", "plan --model DIR --tensor_parallel_size=8", "plan --config DIR --tp 8"]
    {
        assert!(parsed(line).unwrap().contains("tp: 8"), "{line}");
    }
}

#[test]
fn booleans_stand_without_a_value_too() {
    for (line, on) in [
        ("--enable-prefix-caching DIR", true),
        ("--enable-prefix-caching false DIR", false),
        ("DIR --enable-prefix-caching=off", false),
        ("DIR --enable-prefix-caching no", false),
        ("DIR --no-enable-prefix-caching", false),
        ("DIR --no_enable_prefix_caching", false),
        ("DIR --disable-radix-cache", false),
        ("DIR --enable-prefix-caching --port 1", true),
    ] {
        let found = parsed(&format!("serve {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(found.contains(&format!("enable_prefix_caching: {on}")), "{line}");
        assert!(found.contains("model: \"DIR\""), "{line}");
    }
    let error = parsed("serve DIR --enable-prefix-caching=maybe").unwrap_err();
    assert_eq!(error, "--enable-prefix-caching: expected true or false, got `maybe`");
    let error = parsed("serve DIR --no-enable-prefix-caching=false").unwrap_err();
    assert_eq!(error, "--no-enable-prefix-caching: expected no value, got `false`");
}

#[test]
fn names_are_trimmed_and_lists_take_commas_spaces_and_repetition() {
    for line in [
        "DIR --served-model-name a,b",
        "DIR --served-model-name a b",
        "DIR --served-model-name 'a,_b_' --port 1",
        "DIR --served-model-name a --served-model-name=b",
        "--alias a b --model DIR",
    ] {
        let found = parsed(&format!("serve {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(found.contains("served_model_name: Some([\"a\", \"b\"])"), "{line}: {found}");
    }
    for (line, error) in [
        ("DIR --served-model-name=", "--served-model-name: expected a name, got an empty value"),
        ("DIR --served-model-name a,,b", "--served-model-name: expected a name, got an empty value"),
        ("DIR --served-model-name '_'", "--served-model-name: expected a name, got an empty value"),
        ("DIR --served-model-name a,a", "--served-model-name: expected each name once, got `a` twice"),
        ("DIR --gpus 0,x", "--gpus: expected a whole number of at least 0, got `x`"),
    ] {
        assert_eq!(parsed(&format!("serve {line}")), Err(error.to_owned()), "{line}");
    }
    let found = parsed("serve DIR --device cuda --tp 2 --gpus '0,_1' --api-key '_k1_'").unwrap();
    assert!(found.contains("gpus: Some([0, 1])") && found.contains("api_key: Some(\"k1\")"), "{found}");
    let error = parsed(&format!("serve --served-model-name a {}", tiny())).unwrap_err();
    assert!(
        error.ends_with("was read as a name for --served-model-name: write the directory first"),
        "{error}"
    );
}

#[test]
fn counts_have_a_largest_value() {
    for (flag, most, above) in [
        ("--max-num-seqs", "65536", &["65537", "100000000", "5000000000", "99999999999999999999"][..]),
        ("--max-num-batched-tokens", "16777216", &["16777217", "17M", "1G", "99999999999999999999"]),
    ] {
        assert!(parsed(&format!("serve DIR {flag} {most}")).is_ok(), "{flag}");
        for got in above {
            let error = format!("{flag}: expected at most {most}, got `{got}`");
            assert_eq!(parsed(&format!("serve DIR {flag} {got}")), Err(error));
        }
    }
    assert!(parsed("serve DIR --max-num-batched-tokens 16M").is_ok());
    for (flag, most) in [
        ("--max-num-seqs", u32::MAX),
        ("--max-num-batched-tokens", u32::MAX),
        ("--max-model-len", u32::MAX),
        ("--max-queue-requests", u32::MAX),
        ("--max-queue-tokens", u32::MAX),
        ("--requests", 100_000_000),
    ] {
        let line = format!("simulate --config DIR --poisson 1 {flag}");
        assert!(parsed(&format!("{line} {most}")).is_ok(), "{flag}");
        for got in [&*(u64::from(most) + 1).to_string(), "18446744073709551615", "99999999999999999999"] {
            let error = format!("{flag}: expected at most {most}, got `{got}`");
            assert_eq!(parsed(&format!("{line} {got}")), Err(error));
        }
    }
}

#[test]
fn hosts_are_addresses_or_names() {
    for (host, expected) in [
        ("0.0.0.0", "Address(0.0.0.0)"),
        ("::", "Address(::)"),
        ("::1", "Address(::1)"),
        ("[::1]", "Address(::1)"),
        ("'_127.0.0.2_'", "Address(127.0.0.2)"),
        ("localhost", "Name(\"localhost\")"),
        ("gpu-7.cluster.local", "Name(\"gpu-7.cluster.local\")"),
        ("fe80::1%eth0", "Name(\"fe80::1%eth0\")"),
    ] {
        let found =
            parsed(&format!("serve DIR --host {host}")).unwrap_or_else(|error| panic!("{host}: {error}"));
        assert!(found.contains(&format!("host: {expected}, port")), "{host}: {found}");
    }
    let every = "; 0.0.0.0 listens on every IPv4 interface";
    let syntax = "expected an IPv4 address, an IPv6 address or a host name";
    for (host, expected) in [
        ("''", format!("expected an address or a host name, got an empty value{every}")),
        ("*", format!("expected an address or a host name, got `*`{every}")),
        (
            "localhost:80",
            "expected an address or a host name without a port, got `localhost:80`; \
                          --port sets the port"
                .to_owned(),
        ),
        (
            "[::1]:80",
            "expected an address or a host name without a port, got `[::1]:80`; \
                      --port sets the port"
                .to_owned(),
        ),
        ("http://a", "expected an address or a host name without a scheme, got `http://a`".to_owned()),
        ("1.2.3", format!("{syntax}, got `1.2.3`")),
        ("256.1.1.1", format!("{syntax}, got `256.1.1.1`")),
        ("a_b!", format!("{syntax}, got `a_b!`")),
        ("'a_b'", format!("{syntax}, got `a b`")),
    ] {
        assert_eq!(parsed(&format!("serve DIR --host {host}")), Err(format!("--host: {expected}")), "{host}");
    }
    let output = octant(&["serve", &tiny(), "--host", "no-such-host.invalid"], &[]);
    let error = error_of(&output, 1);
    assert!(error.contains("--host: cannot resolve `no-such-host.invalid`: "), "{error}");
}

#[test]
fn a_wrong_value_names_its_flag_and_what_was_expected() {
    for (line, error) in [
        ("DIR --port abc", "--port: expected a port from 0 to 65535, got `abc`"),
        ("DIR --port 70000", "--port: expected a port from 0 to 65535, got `70000`"),
        ("DIR --port=", "--port: expected a port from 0 to 65535, got an empty value"),
        ("DIR --port -1", "--port: expected a port from 0 to 65535, got `-1`"),
        ("DIR --port", "--port: expected a value, got none"),
        ("DIR --health-port 8k", "--health-port: expected a port from 0 to 65535, got `8k`"),
        ("DIR -tp 3", "--tensor-parallel-size: expected 1, 2, 4 or 8, got `3`"),
        ("DIR --tp=", "--tensor-parallel-size: expected 1, 2, 4 or 8, got an empty value"),
        ("DIR --max-num-seqs -1", "--max-num-seqs: expected a whole number of at least 1, got `-1`"),
        ("DIR --max-num-seqs 0", "--max-num-seqs: expected at least 1, got 0"),
        ("DIR --max-num-seqs 1e3", "--max-num-seqs: expected a whole number of at least 1, got `1e3`"),
        (
            "DIR --max-model-len 4T",
            "--max-model-len: expected a number of tokens of at least 1, such as 4096, 4k (4000) or \
             4K (4096), got `4T`",
        ),
        (
            "DIR --max-model-len -1",
            "--max-model-len: expected a number of tokens of at least 1, such as 4096, 4k (4000) or \
             4K (4096), got `-1`",
        ),
        ("DIR --kv-cache-memory 4X", "--kv-cache-memory: expected a size such as 4GiB, got `4X`"),
        (
            "DIR --drain-grace 5d",
            "--drain-grace: expected whole seconds, or a time such as 30s, 5m or 1h, got `5d`",
        ),
        (
            "DIR --gpu-memory-utilization 90",
            "--gpu-memory-utilization: expected a fraction above 0, at most 1, got `90`; 90 % is 0.9",
        ),
        (
            "DIR --gpu-memory-utilization 0",
            "--gpu-memory-utilization: expected a fraction above 0, at most 1, got `0`",
        ),
        ("DIR --kv-reserve 2", "--kv-reserve: expected a fraction from 0 to 1, got `2`"),
        ("DIR --target-itl 50ms", "--target-itl: expected seconds from 1e-6 to 1e9, auto or off, got `50ms`"),
        ("DIR --target-itl 0", "--target-itl: expected seconds from 1e-6 to 1e9, auto or off, got `0`"),
        ("DIR --quantization awq", "--quantization: got `awq`; possible values: fp8, none"),
        ("DIR --lm-head-dtype int8", "--lm-head-dtype: got `int8`; possible values: fp8, bf16"),
        ("DIR --kv-cache-dtype=", "--kv-cache-dtype: expected a value, got none; possible values: fp8, bf16"),
        ("DIR --device gpu", "--device: got `gpu`; possible values: cpu, cuda, simulate"),
        ("DIR --model OTHER", "--model: expected one model, got --model `OTHER` and the directory `DIR`"),
        ("", "--model: missing; expected a directory or a name: octant serve MODEL"),
        ("DIR OTHER", "OTHER: expected no further argument here"),
        ("DIR --max-ttft 1e10", "--max-ttft: expected a number from 1e-6 to 1e9, got `1e10`"),
        ("DIR --drain-grace 99999999999", "--drain-grace: expected at most 1000 years, got `99999999999`"),
        (
            "DIR --api-keys /nowhere",
            "--api-keys: cannot read /nowhere: No such file or directory (os error 2)",
        ),
    ] {
        assert_eq!(parsed(&format!("serve {line}")), Err(error.to_owned()), "{line}");
    }
    let twice = parsed("serve DIR --tp 2 -tp 4").unwrap_err();
    assert!(twice.contains("'--tensor-parallel-size <N>' cannot be used multiple times"), "{twice}");
    let error = parsed("simulate --config DIR --poisson 1 --max-num-seqs x").unwrap_err();
    assert_eq!(error, "--max-num-seqs: expected a whole number of at least 1, got `x`");
    let error = parsed("plan --config DIR --tp 9").unwrap_err();
    assert_eq!(error, "--tp: expected a whole number from 1 to 8, got `9`");
    let error = parsed("bench serving --rate 1 --warm-up many").unwrap_err();
    assert_eq!(error, "--warm-up: expected a whole number from 0 to 1099511627776, got `many`");
    let error = parsed("quantize IN OUT --threads 0").unwrap_err();
    assert_eq!(error, "--threads: expected a whole number from 1 to 1024, got `0`");
}

#[test]
fn variables_and_files_have_the_same_spellings() {
    let model = tiny();
    let refused = |env: &[(&str, &str)], expected: &str| {
        let error = error_of(&octant(&["serve", &model], env), 2);
        assert_eq!(error.lines().last().unwrap_or_default(), format!("error: {expected}"));
    };
    refused(&[("OCTANT_PORT", "abc")], "OCTANT_PORT: expected a port from 0 to 65535, got `abc`");
    refused(&[("OCTANT_TP", "3")], "OCTANT_TP: --tensor-parallel-size: expected 1, 2, 4 or 8, got `3`");
    refused(
        &[("OCTANT_ENABLE_PREFIX_CACHING", "2")],
        "OCTANT_ENABLE_PREFIX_CACHING: expected true or false, got `2`",
    );
    refused(&[("OCTANT_DEVICE", "tpu")], "OCTANT_DEVICE: got `tpu`; possible values: cpu, cuda, simulate");
    // A flag overrides a variable of any spelling, and a variable overrides the file.
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let length = |args: &[&str], env: &[(&str, &str)], got: &str| {
        let error = error_of(&octant(&[&["serve", &model, "--config", path], args].concat(), env), 1);
        assert!(error.contains(&format!("at most the model's 256, got {got}")), "{error}");
    };
    std::fs::write(file.path(), "max_model_len = 1003\n").unwrap();
    length(&[], &[], "1003");
    length(&[], &[("OCTANT_CONTEXT_LENGTH", "1k")], "1000");
    length(&["--max_model_len", "1001"], &[("OCTANT_CONTEXT_LENGTH", "1k")], "1001");
    std::fs::write(file.path(), "context-length = 1004\n").unwrap();
    length(&[], &[], "1004");
    for (text, part) in [
        ("tp = 3\n", "--tensor-parallel-size: expected 1, 2, 4 or 8, got `3`"),
        ("tp = 2\ntensor-parallel-size = 2\n", "both are --tensor-parallel-size; expected one of them"),
        ("trust_remote_code = true\n", "unknown field `trust_remote_code`: Octant never runs code"),
        ("max_seqs = 5\n", "unknown field `max_seqs`; did you mean max-num-seqs?"),
        (
            "trust-remote-cod = 1\n",
            "unknown field `trust-remote-cod`, like trust-remote-code of other servers: ",
        ),
        ("config = \"a\"\n", "unknown field `config`; a file cannot name another file"),
        ("allowed-origins = [\"a,b\"]\n", "allowed-origins: expected items without a comma, got `a,b`"),
        (
            "api-key = [\"k1\", \"k2\"]\n",
            "api-key: expected one key, got several; --api-keys FILE takes several",
        ),
        ("drain-timeout = \"5x\"\n", "--drain-timeout: expected whole seconds, or a time such as 30s"),
        ("host = \"\"\n", "--host: expected an address or a host name, got an empty value"),
        ("help = true\n", "unknown field `help`"),
    ] {
        std::fs::write(file.path(), text).unwrap();
        let error = error_of(&octant(&["serve", &model, "--config", path], &[]), 2);
        assert!(error.contains(path) && error.contains(part), "{text}: {error}");
    }
}

#[test]
fn variables_that_are_no_setting_are_reported() {
    // The invalid length ends the server after it has logged the notes.
    let args = ["serve", &tiny(), "--max-model-len", "1000"];
    let env = [
        ("OCTANT_PORT", "tcp://10.0.0.1:80"),
        ("OCTANT_SERVICE_HOST", "10.0.0.1"),
        ("OCTANT_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("OCTANT_MAX_MODEL_LENGTH", "9"),
    ];
    let error = error_of(&octant(&args, &env), 1);
    for part in [
        "OCTANT_PORT: not used: Kubernetes set it to `tcp://10.0.0.1:80` for a service named octant",
        "OCTANT_MAX_MODEL_LENGTH: not used: no setting has this variable",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("SERVICE_HOST") && !error.contains("TCP_ADDR"), "{error}");
}

#[test]
fn the_fraction_of_memory_limits_the_plan() {
    // The directory has no tokenizer, which is read after the memory is planned.
    for (fraction, part) in [("0.5", "are available"), ("0.9", "tokenizer.json")] {
        let args = ["--device", "simulate", "--tp", "1", "--kv-cache-memory", "60GB"];
        let output =
            octant(&[&["serve", &tiny(), "--gpu-memory-utilization", fraction], &args[..]].concat(), &[]);
        let error = error_of(&output, 1);
        assert!(error.contains(part), "{fraction}: {error}");
    }
}

#[test]
fn completions_know_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = octant(&["completions", shell], &[]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{shell}");
        for word in ["serve", "tensor-parallel-size", "gpu-memory-utilization", "quantize", "completions"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    let script = String::from_utf8(octant(&["completions", "bash"], &[]).stdout).unwrap();
    assert!(script.contains("--tp "), "aliases are completed too");
    assert_eq!(octant(&["completion", "fish"], &[]).stdout, octant(&["completions", "fish"], &[]).stdout);
    let error = error_of(&octant(&["completions", "tcsh"], &[]), 2);
    assert!(error.contains("got `tcsh`; possible values: bash, elvish, fish, powershell, zsh"), "{error}");
}

#[test]
fn the_help_fits_the_terminal() {
    for columns in [80, 100] {
        let output = octant(&["serve", "--help"], &[("COLUMNS", &columns.to_string())]);
        let help = String::from_utf8(output.stdout).unwrap();
        for heading in
            ["Arguments:", "Model:", "Network:", "Scheduling:", "Device:", "Timeouts and shutdown:"]
        {
            assert!(help.contains(&format!("\n{heading}\n")), "{heading}: {help}");
        }
        let widest = help.lines().max_by_key(|line| line.chars().count()).unwrap_or_default();
        assert!(widest.chars().count() <= columns, "{columns} columns: {widest}");
        assert!(help.starts_with("Serve a model"), "{help}");
        assert!(help.contains("Usage: octant serve [OPTIONS] [MODEL]"), "{help}");
    }
}
