//! Flags that Octant does not have, and values that a flag does not take: errors say what to write instead.

use super::parsed;

#[test]
fn several_keys_get_the_flag_that_takes_them_and_are_not_quoted() {
    let expected = "--api-key: expected one key, got several; --api-keys FILE takes several keys, each in a \
                    table [[keys]] with name and key";
    for line in [
        "DIR --api-key k1 k2",
        "DIR --api-key k1 k2 k3 --port 5",
        "DIR --api-key=k1 k2",
        "DIR --api_key k1 k2",
        "--api-key k1 k2 k3",
        "--api-key k1 k2 --model DIR",
        "DIR --api-key k1 --api-key k2",
    ] {
        assert_eq!(parsed(&format!("serve {line}")), Err(expected.to_owned()), "{line}");
    }
    assert!(parsed("serve --api-key k1 DIR").is_ok());
    for (line, error) in [
        ("DIR --port 5 OTHER", "OTHER: expected no further argument here"),
        ("--api-key k1 tests OTHER", "OTHER: expected no further argument here"),
    ] {
        assert_eq!(parsed(&format!("serve {line}")), Err(error.to_owned()), "{line}");
    }
}

#[test]
fn flags_of_other_servers_say_what_to_do_instead() {
    for (line, part) in [
        ("--trust-remote-code", "--trust-remote-code: Octant never runs code of a model directory"),
        ("--trust_remote_code", "--trust_remote_code: Octant never runs code of a model directory"),
        ("-dp 2", "-dp: expected 1; start one server for each replica behind a load balancer, got `2`"),
        ("--data-parallel-size=2", "--data-parallel-size: expected 1; start one server for each replica"),
        ("-pp 4", "-pp: expected 1; --tensor-parallel-size divides a model"),
        ("--dtype float16", "--dtype: expected auto; --quantization none computes"),
        ("--dtype", "--dtype: expected auto; --quantization none computes"),
        ("--chat-template x.jinja", "--chat-template: write the template to chat_template.jinja"),
        ("--ctx-size 4096", "--ctx-size: use --max-model-len"),
        ("-c 4096", "-c: use --max-model-len"),
        ("-ngl 99", "-ngl: --device cuda puts all layers on GPUs"),
        ("--chunked-prefill-size 2048", "--chunked-prefill-size: use --max-num-batched-tokens"),
        ("--ssl-keyfile k", "--ssl-keyfile: Octant speaks plain HTTP"),
        ("--seed 1", "--seed: a seed belongs to one request"),
        ("--reasoning-parser", "--reasoning-parser: reasoning"),
        (
            "--chat-template-content-format string",
            "--chat-template-content-format: expected auto, got `string`",
        ),
        ("--max-input-tokens 9", "--max-input-tokens: use --max-model-len"),
        ("--api-key-file f", "--api-key-file: use --api-keys FILE"),
        ("--watchdog-timeout 300", "--watchdog-timeout: use --step-timeout"),
        ("--graceful-termination-timeout 9", "--graceful-termination-timeout: use --drain-timeout"),
        ("--json-output", "--json-output: use --log-format json"),
        ("--uvicorn-log-level debug", "--uvicorn-log-level: use --log-level"),
        ("-v", "-v: use --log-level"),
        ("--random-seed 3", "--random-seed: a seed belongs to one request"),
        ("--sharded true", "--sharded: use --tensor-parallel-size"),
        ("--allow-credentials", "--allow-credentials: use --allowed-origins"),
        (
            "--speculative-config {}",
            "--speculative-config: write --speculate ngram or --speculate DIR for a draft model, and",
        ),
        (
            "--speculative-algorithm EAGLE",
            "--speculate: expected off, ngram, or the directory or name of a draft model, got `EAGLE`",
        ),
        ("--speculate 3", "--speculate: expected off, ngram, or the directory or name of a draft model"),
        ("--speculate org/-x", "--speculate: expected a directory, or a model's name ORG/NAME"),
        ("--speculative-tokens 17", "--speculative-tokens: expected a whole number from 1 to 16, got `17`"),
    ] {
        let error = parsed(&format!("serve DIR {line}")).unwrap_err();
        assert!(error.starts_with(part), "{line}: {error}");
        assert!(!error.contains('\n'), "{line}: {error}");
    }
    // A flag that asks for Octant's default is dropped with a note.
    for (line, note) in [
        ("--enable-chunked-prefill", "--enable-chunked-prefill: prompts are always computed in chunks"),
        ("--dtype auto", "--dtype: --quantization chooses the number format; its default is fp8"),
        ("--dtype=auto", "--dtype: --quantization chooses the number format; its default is fp8"),
        ("-pp 1", "-pp: every rank has a part of every layer"),
        (
            "--disable-log-requests",
            "--disable-log-requests: neither requests' texts nor statistics are logged",
        ),
        ("--load-format safetensors", "--load-format: weights are read from safetensors files"),
        ("--enable-deterministic-inference", "--enable-deterministic-inference: --deterministic is true"),
        ("--chat-template-content-format auto", "--chat-template-content-format: the chat template gets"),
    ] {
        let found =
            parsed(&format!("serve {line} DIR --port 5")).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(found.contains(&format!("notes: [\"{note}")), "{line}: {found}");
        assert!(found.contains("model: \"DIR\"") && found.contains("port: 5"), "{line}: {found}");
    }
}

#[test]
fn speculation_has_the_names_of_other_servers() {
    for (line, method, tokens) in [
        ("", "Off", 8),
        ("--speculate ngram", "Ngram", 8),
        ("--speculative-algorithm NGRAM --speculative-num-draft-tokens 4", "Ngram", 4),
        ("--speculate ngram --num-speculative-tokens 3", "Ngram", 3),
        ("--spec-type ngram-simple --draft-max 16", "Ngram", 16),
        ("--speculative-draft-model-path ./D", r#"Draft("./D")"#, 8),
        ("--speculative-model org/draft --draft 5", r#"Draft("org/draft")"#, 5),
        ("-md /models/draft", r#"Draft("/models/draft")"#, 8),
    ] {
        let found = parsed(&format!("serve DIR {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        let expected = format!("speculate: {method}, speculative_tokens: {tokens}");
        assert!(found.contains(&expected), "{line}: {found}");
    }
}

#[test]
fn an_unknown_flag_gets_the_nearest_one() {
    for (line, error) in [
        ("DIR --max-model-length 5", "--max-model-length: unknown flag; did you mean --max-model-len?"),
        ("DIR --prot 5", "--prot: unknown flag; did you mean --port?"),
        ("DIR -port 5", "-port: unknown flag; did you mean --port?"),
        ("DIR -max_model_len 5", "-max_model_len: unknown flag; did you mean --max-model-len?"),
        ("DIR --Port 5", "--Port: unknown flag; did you mean --port?"),
        (
            "DIR --gpu-mem-utilization .9",
            "--gpu-mem-utilization: unknown flag; did you mean --gpu-memory-utilization?",
        ),
        ("DIR --max-tokens=5", "--max-tokens: unknown flag; did you mean --max-num-batched-tokens?"),
        ("DIR --max_seqs 5", "--max-seqs: unknown flag; did you mean --max-num-seqs?"),
        ("DIR --prefix-caching", "--prefix-caching: unknown flag; did you mean --enable-prefix-caching?"),
        ("DIR --quantisation fp8", "--quantisation: unknown flag; did you mean --quantization?"),
        ("DIR --log-levle info", "--log-levle: unknown flag; did you mean --log-level?"),
        (
            "DIR --trust-remote-cod",
            "--trust-remote-cod: unknown flag, like --trust-remote-code of other servers: Octant never runs \
             code of a model directory; leave this flag out (the supported architectures need none)",
        ),
        (
            "DIR --ctx-sizes 5",
            "--ctx-sizes: unknown flag, like --ctx-size of other servers: use --max-model-len for the tokens \
             of one sequence; llama.cpp divides its size between its slots",
        ),
        (
            "DIR --swap-spcae 4",
            "--swap-spcae: unknown flag, like --swap-space of other servers: expected 0; weights and KV \
             cache stay in the memory of the device",
        ),
        ("DIR --frobnicate", "--frobnicate: unknown flag; --help lists all flags"),
    ] {
        assert_eq!(parsed(&format!("serve {line}")), Err(error.to_owned()), "{line}");
    }
    for (line, error) in [
        ("plan --config DIR --gpu-mem-utilization 1", "--gpu-memory-utilization"),
        ("simulate --config DIR --max-seqs 1", "--max-num-seqs"),
        ("bench serving --rates 1", "--rate"),
        ("quantize IN OUT --thread 1", "--threads"),
        ("drain --waits 1", "--wait"),
    ] {
        let error = format!("unknown flag; did you mean {error}?");
        assert!(parsed(line).unwrap_err().ends_with(&error), "{line}");
    }
    // Flags of other servers are for `serve`.
    let error = parsed("plan --config DIR --enable-chunked-prefill").unwrap_err();
    assert_eq!(error, "--enable-chunked-prefill: unknown flag; --help lists all flags");
}
