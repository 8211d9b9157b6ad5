//! Flags of vLLM, SGLang, TGI, TensorRT-LLM and llama.cpp's server for which Octant has no setting, and what
//! an operator does instead.
//!
//! A flag whose effect is Octant's default is dropped with a note. Any other flag is refused: a server that
//! ignored it would not do what its command line says. Other spellings of a setting that Octant has are not
//! in this table; they are aliases of the setting's field in `serve.rs`.

/// A row of the table.
pub(super) struct OtherFlag {
    /// Long names without their hyphens, short ones with theirs.
    names: &'static [&'static str],
    rule: Rule,
}

enum Rule {
    /// Always refused, with this sentence.
    Refuse(&'static str),
    /// A flag without a value, dropped with this note.
    Drop(&'static str),
    /// A flag with a value: dropped with the note if it has one of these values, else refused with the
    /// sentence.
    DropIf(&'static [&'static str], &'static str, &'static str),
}

impl OtherFlag {
    /// Whether the flag needs a value for [`OtherFlag::judge`].
    pub(super) fn takes_value(&self) -> bool {
        matches!(self.rule, Rule::DropIf(..))
    }

    /// The note with which the flag is dropped.
    ///
    /// # Errors
    /// The sentence with which the flag is refused.
    pub(super) fn judge(&self, value: &str) -> Result<&'static str, String> {
        match self.rule {
            Rule::Drop(note) => Ok(note),
            Rule::Refuse(sentence) => Err(sentence.to_owned()),
            Rule::DropIf(values, note, _) if values.contains(&value.to_ascii_lowercase().as_str()) => {
                Ok(note)
            }
            Rule::DropIf(_, _, sentence) if value.is_empty() => Err(sentence.to_owned()),
            Rule::DropIf(_, _, sentence) => Err(format!("{sentence}, got `{value}`")),
        }
    }
}

/// The row of a flag: a long name without its hyphens, or a short one with its hyphen.
pub(super) fn find(name: &str) -> Option<&'static OtherFlag> {
    flags().find(|(known, _)| *known == name).map(|(_, flag)| flag)
}

/// All names, each with its row.
pub(super) fn flags() -> impl Iterator<Item = (&'static str, &'static OtherFlag)> {
    let rows = TABLES.iter().flat_map(|table| table.iter());
    rows.flat_map(|flag| flag.names.iter().map(move |name| (*name, flag)))
}

const TABLES: [&[OtherFlag]; 5] = [&DEFAULTS, &MODEL, &PARALLEL, &SIZES, &SERVER];

const fn refuse(names: &'static [&'static str], sentence: &'static str) -> OtherFlag {
    OtherFlag { names, rule: Rule::Refuse(sentence) }
}

const fn default(names: &'static [&'static str], note: &'static str) -> OtherFlag {
    OtherFlag { names, rule: Rule::Drop(note) }
}

/// Flags, or values of flags, that ask for what Octant does by default.
const DEFAULTS: [OtherFlag; 18] = [
    default(&["enable-auto-tool-choice"], "requests with tools always may call them"),
    default(&["enable-chunked-prefill", "enable-mixed-chunk"], "prompts are always computed in chunks"),
    default(&["cont-batching", "-cb"], "requests are always batched continuously"),
    default(&["async-scheduling"], "the next step is always planned while one runs"),
    default(&["jinja"], "the model's Jinja template is always used"),
    default(&["metrics", "enable-metrics"], "/metrics is always served"),
    default(
        &["disable-log-requests", "no-enable-log-requests", "disable-log-stats"],
        "neither requests' texts nor statistics are logged unless a setting asks for them",
    ),
    default(&["enable-request-id-headers"], "every response has an x-request-id header"),
    default(&["enable-deterministic-inference"], "--deterministic is true by default"),
    default(&["disable-fastapi-docs"], "no documentation of the API is served"),
    OtherFlag {
        names: &["dtype"],
        rule: Rule::DropIf(
            &["auto"],
            "--quantization chooses the number format; its default is fp8",
            "expected auto; --quantization none computes with the checkpoint's weights and BF16 inputs, \
             --quantization fp8 with FP8",
        ),
    },
    OtherFlag {
        names: &["load-format"],
        rule: Rule::DropIf(
            &["auto", "safetensors"],
            "weights are read from safetensors files",
            "expected auto or safetensors, the only format that is read",
        ),
    },
    OtherFlag {
        names: &["tokenizer-mode"],
        rule: Rule::DropIf(&["auto", "hf"], "tokenizer.json is used", "expected auto"),
    },
    OtherFlag {
        names: &["chat-template-content-format"],
        rule: Rule::DropIf(
            &["auto"],
            "the chat template gets strings or lists of parts, whichever it prints",
            "expected auto",
        ),
    },
    OtherFlag {
        names: &["generation-config"],
        rule: Rule::DropIf(
            &["auto"],
            "sampling defaults come from the model's generation_config.json",
            "expected auto; edit or delete generation_config.json in the model directory instead",
        ),
    },
    OtherFlag {
        names: &["block-size", "page-size"],
        rule: Rule::DropIf(&["64"], "KV blocks have 64 tokens", "expected 64, the size of every KV block"),
    },
    OtherFlag {
        names: &["task", "runner"],
        rule: Rule::DropIf(&["auto", "generate"], "models generate text", "expected generate"),
    },
    OtherFlag {
        names: &["swap-space", "cpu-offload-gb"],
        rule: Rule::DropIf(
            &["0"],
            "nothing is moved between GPU and CPU memory",
            "expected 0; weights and KV cache stay in the memory of the device",
        ),
    },
];

/// The model and its files.
const MODEL: [OtherFlag; 20] = [
    refuse(
        &["trust-remote-code"],
        "Octant never runs code of a model directory; leave this flag out (the supported architectures \
         need none)",
    ),
    refuse(
        &["chat-template", "chat-template-file"],
        "write the template to chat_template.jinja in the model directory, which replaces the model's own",
    ),
    refuse(
        &["tokenizer", "tokenizer-path", "tokenizer-config-path", "hf-config-path"],
        "tokenizer.json and config.json are read from the model directory; put the file there",
    ),
    refuse(
        &[
            "hf-overrides",
            "json-model-override-args",
            "rope-scaling",
            "rope-scale",
            "rope-factor",
            "rope-theta",
            "rope-freq-base",
        ],
        "edit config.json in the model directory",
    ),
    refuse(
        &["revision", "hf-repo", "-hf", "-hfr"],
        "write the model as `octant serve ORG/NAME@REVISION`; without @REVISION it is `main`",
    ),
    refuse(
        &["tokenizer-revision", "code-revision"],
        "the tokenizer is the model's own; write the model as `octant serve ORG/NAME@REVISION`",
    ),
    refuse(
        &["download-dir", "huggingface-hub-cache"],
        "set HF_HUB_CACHE to the directory for downloads, or HF_HOME to the one that holds `hub`",
    ),
    refuse(&["hf-token", "-hft"], "set HF_TOKEN, or run `hf auth login`"),
    refuse(&["offline"], "set HF_HUB_OFFLINE=1"),
    refuse(
        &["hf-file", "-hff", "model-url", "-mu"],
        "Octant downloads whole models: write `octant serve ORG/NAME`",
    ),
    refuse(
        &["enable-lora", "lora-modules", "lora-paths", "lora", "max-loras", "max-lora-rank", "lora-adapters"],
        "LoRA adapters are not supported; merge the adapter into the weights",
    ),
    refuse(
        &[
            "speculative-config",
            "speculative-num-steps",
            "prompt-lookup-max",
            "prompt-lookup-min",
            "ngram-prompt-lookup-max",
            "ngram-prompt-lookup-min",
        ],
        "write --speculate ngram or --speculate DIR for a draft model, and --speculative-tokens N for the \
         number of drafts",
    ),
    refuse(
        &["tool-parser-plugin"],
        "see --tool-call-parser for the formats of tool calls; leave this flag out",
    ),
    refuse(
        &["reasoning-parser", "reasoning-format"],
        "reasoning is not parsed from answers yet; leave this flag out",
    ),
    refuse(
        &[
            "guided-decoding-backend",
            "structured-outputs-config",
            "grammar-backend",
            "grammar",
            "grammar-file",
            "json-schema",
            "json-schema-file",
            "-j",
            "disable-grammar-support",
            "constrained-json-whitespace-pattern",
        ],
        "answers cannot be constrained to a grammar or schema yet; leave this flag out",
    ),
    refuse(
        &["limit-mm-per-prompt", "mmproj", "enable-multimodal"],
        "models take text only; leave this flag out",
    ),
    refuse(
        &["cache-type-k", "cache-type-v", "-ctk", "-ctv"],
        "use --kv-cache-dtype for keys and values together",
    ),
    refuse(
        &["embedding", "embeddings", "is-embedding", "rerank", "reranking", "pooling"],
        "embeddings and rerankings are not served; leave this flag out",
    ),
    refuse(
        &["seed", "random-seed", "-s"],
        "a seed belongs to one request: send it in the request's `seed` field",
    ),
    refuse(
        &[
            "override-generation-config",
            "temp",
            "temperature",
            "top-k",
            "top-p",
            "min-p",
            "repeat-penalty",
            "presence-penalty",
            "frequency-penalty",
            "ignore-eos",
            "predict",
            "n-predict",
            "-n",
        ],
        "send it in the request, or set it in generation_config.json of the model directory",
    ),
];

/// Parallel work on several devices or machines.
const PARALLEL: [OtherFlag; 10] = [
    OtherFlag {
        names: &["data-parallel-size", "dp-size", "dp", "-dp", "data-parallel-size-local"],
        rule: Rule::DropIf(
            &["1"],
            "one server is one replica",
            "expected 1; start one server for each replica behind a load balancer",
        ),
    },
    OtherFlag {
        names: &["pipeline-parallel-size", "pp-size", "pp", "-pp"],
        rule: Rule::DropIf(
            &["1"],
            "every rank has a part of every layer",
            "expected 1; --tensor-parallel-size divides a model between up to 8 devices of one machine",
        ),
    },
    OtherFlag {
        names: &["nnodes", "node-rank"],
        rule: Rule::DropIf(
            &["0", "1"],
            "a server runs on one machine",
            "expected one machine; --tensor-parallel-size divides a model between up to 8 devices of it",
        ),
    },
    refuse(
        &[
            "expert-parallel-size",
            "enable-expert-parallel",
            "ep-size",
            "ep",
            "-ep",
            "decode-context-parallel-size",
            "-dcp",
            "dist-init-addr",
            "master-addr",
            "master-port",
        ],
        "only tensor parallelism on one machine is supported: --tensor-parallel-size N",
    ),
    refuse(&["distributed-executor-backend"], "ranks are always threads of one process; leave this flag out"),
    refuse(
        &[
            "n-gpu-layers",
            "gpu-layers",
            "-ngl",
            "split-mode",
            "-sm",
            "tensor-split",
            "-ts",
            "main-gpu",
            "-mg",
        ],
        "--device cuda puts all layers on GPUs; --tensor-parallel-size and --gpus choose how many and which",
    ),
    refuse(
        &["enable-dbo", "enable-two-batch-overlap", "dbo-prefill-token-threshold"],
        "use --two-batch-tokens TOKENS, the size from which a step is computed as two batches",
    ),
    refuse(&["sharded"], "use --tensor-parallel-size N, the number of shards"),
    refuse(&["base-gpu-id", "gpu-id-step"], "use --gpus, the number of each GPU"),
    refuse(&["disable-custom-all-reduce"], "use --communicator nccl with --deterministic false"),
];

/// Sizes of batches, queues and memory.
const SIZES: [OtherFlag; 9] = [
    refuse(
        &["ctx-size", "-c"],
        "use --max-model-len for the tokens of one sequence; llama.cpp divides its size between its slots",
    ),
    refuse(
        &[
            "chunked-prefill-size",
            "max-prefill-tokens",
            "max-batch-prefill-tokens",
            "batch-size",
            "-b",
            "ubatch-size",
            "-ub",
        ],
        "use --max-num-batched-tokens, which limits the tokens of a step: prompt chunks and decoded tokens",
    ),
    refuse(
        &[
            "max-total-num-tokens",
            "max-batch-total-tokens",
            "num-gpu-blocks-override",
            "max-tokens-in-paged-kv-cache",
        ],
        "use --kv-cache-memory SIZE, or --gpu-memory-utilization FRACTION",
    ),
    refuse(
        &["kv-cache-free-gpu-memory-fraction", "free-gpu-memory-fraction"],
        "use --gpu-memory-utilization, a fraction for weights, workspace and KV cache together",
    ),
    refuse(
        &["max-input-tokens", "max-input-length", "max-input-len"],
        "use --max-model-len, which limits prompt and answer together",
    ),
    refuse(
        &["max-concurrent-requests"],
        "use --max-num-seqs for running and --max-queue-requests for waiting requests",
    ),
    refuse(
        &[
            "no-enable-chunked-prefill",
            "disable-chunked-prefix-cache",
            "max-num-partial-prefills",
            "max-long-partial-prefills",
            "waiting-served-ratio",
            "max-waiting-tokens",
        ],
        "prompts are always computed in chunks; --max-num-batched-tokens limits the tokens of a step",
    ),
    refuse(
        &["scheduling-policy", "schedule-policy"],
        "requests are queued fairly between keys or users, and by their `priority`; leave this flag out",
    ),
    refuse(
        &[
            "enforce-eager",
            "disable-cuda-graph",
            "cuda-graphs",
            "cuda-graph-bs",
            "cuda-graph-max-bs",
            "max-seq-len-to-capture",
            "disable-overlap-schedule",
            "disable-custom-kernels",
            "skip-server-warmup",
            "warmup",
            "no-warmup",
            "compilation-config",
            "-cc",
            "-O",
            "enable-torch-compile",
            "attention-backend",
            "flash-attn",
            "-fa",
            "mlock",
            "no-mmap",
            "numa",
            "cpu-moe",
        ],
        "Octant has one way to run a step; leave this flag out",
    ),
];

/// HTTP and the process.
const SERVER: [OtherFlag; 21] = [
    refuse(
        &["ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "ssl-key-file", "ssl-cert-file"],
        "Octant speaks plain HTTP; put a proxy in front for TLS (deploy/haproxy.cfg, deploy/nginx.conf)",
    ),
    refuse(&["root-path", "api-prefix"], "let the proxy in front strip the prefix; leave this flag out"),
    refuse(&["uds"], "Octant listens on TCP: --host and --port"),
    refuse(&["api-key-file"], "use --api-keys FILE, a TOML file with a table [[keys]] for each key"),
    refuse(
        &["timeout", "-to"],
        "use --write-timeout for clients that do not read, or the request's `timeout`",
    ),
    refuse(&["watchdog-timeout"], "use --step-timeout, the longest step after which the process exits"),
    refuse(
        &["graceful-termination-timeout", "shutdown-timeout"],
        "use --drain-timeout, the seconds during which running requests may finish",
    ),
    refuse(&["allowed-methods", "allowed-headers", "allow-credentials"], "use --allowed-origins"),
    refuse(
        &["uvicorn-log-level", "log-level-http", "log-verbosity", "-lv", "verbosity", "verbose", "-v"],
        "use --log-level, such as --log-level debug",
    ),
    refuse(&["json-output"], "use --log-format json"),
    refuse(&["log-file"], "the log goes to standard error; redirect it to a file with 2>FILE"),
    refuse(&["log-disable"], "use --log-level off"),
    refuse(
        &["log-requests", "log-requests-level", "enable-log-requests", "max-log-len"],
        "each request has one line in the log, without its text; leave this flag out",
    ),
    refuse(
        &["otlp-traces-endpoint", "otlp-endpoint", "otlp-service-name", "enable-trace"],
        "no traces are exported; /metrics and the log have the times of requests; leave this flag out",
    ),
    refuse(&["prometheus-port"], "/metrics is served on --port"),
    refuse(
        &["api-server-count", "-asc", "headless", "threads-http", "tokenizer-worker-num"],
        "one process serves the model; leave this flag out",
    ),
    refuse(
        &["kv-transfer-config", "disaggregation-mode", "kv-offloading-size", "enable-hierarchical-cache"],
        "the KV cache stays on the devices of one server; leave this flag out",
    ),
    refuse(
        &["middleware", "static-path", "path", "webui", "no-webui", "slots", "no-slots", "props"],
        "Octant serves only its API",
    ),
    refuse(&["max-logprobs"], "the API's own limit of 20 holds; leave this flag out"),
    refuse(
        &["max-best-of", "max-stop-sequences", "max-top-n-tokens", "max-client-batch-size", "payload-limit"],
        "limits of a request are fixed; leave this flag out",
    ),
    refuse(
        &["chat-template-kwargs", "default-chat-template-kwargs"],
        "send it in the request's `chat_template_kwargs`",
    ),
];
