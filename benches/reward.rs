//! Measures scores of a reward model on the CPU: how much faster the prefix cache makes several answers to
//! one prompt, and how many pairs of answers keep their order in FP8.
//!
//!     cargo bench --bench reward -- DIR [--text FILE] [--threads N] [--reps N] [--cache-only]
//!
//! DIR is a reward model, or any other model, which gets a random head of 32 values in place of its LM head.
//! With `--text` the answers are passages of that file, by the model's tokenizer; without, random tokens
//! after the same question. With `--cache-only` no order is compared.
//!
//! The prefix cache is timed against an engine without one, in turn, after one untimed run of each. The
//! figure is the median of at least three repetitions.

mod cpu;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cpu::RunnerSettings;
use octant::engine::{Engine, SchedulerConfig, SubmitOptions};
use octant::model::{ModelConfig, Precision};
use octant::random::Random;
use octant::request::Request;
use octant::statistics::Distribution;
use octant::text::Tokenizer;
use serde_json::{Value, json};

/// Values of a random head: each is a reward model of its own.
const WIDTH: usize = 32;
/// Answers whose pairs are compared, and the tokens of each.
const ANSWERS: usize = 96;
const ANSWER_TOKENS: usize = 60;
/// Tokens of the question before random answers.
const QUESTION: usize = 40;
/// Tokens of the prompt that answers share, and the answers.
const SHARED: usize = 1000;
const SHARING: usize = 8;
/// The least number of timed repetitions.
const LEAST_REPS: usize = 3;
/// Ends of the ranges of margins, in standard deviations of a value.
const MARGINS: [f32; 6] = [0.05, 0.1, 0.25, 0.5, 1.0, f32::INFINITY];

struct Options {
    dir: PathBuf,
    text: Option<PathBuf>,
    threads: usize,
    /// How often the answers to one prompt are timed, at least [`LEAST_REPS`] times.
    reps: usize,
    cache_only: bool,
}

fn options() -> Options {
    let threads = octant::machine::cores();
    let mut o = Options { dir: PathBuf::new(), text: None, threads, reps: LEAST_REPS, cache_only: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number after the option");
        match arg.as_str() {
            "--threads" => o.threads = number(),
            "--reps" => o.reps = number(),
            "--text" => o.text = Some(args.next().expect("a file after --text").into()),
            "--cache-only" => o.cache_only = true,
            // Cargo passes this flag itself.
            "--bench" => {}
            other => o.dir = PathBuf::from(other),
        }
    }
    o
}

fn main() {
    let o = options();
    if o.dir.as_os_str().is_empty() {
        let options = "[--text FILE] [--threads N] [--reps N] [--cache-only]";
        println!("usage: cargo bench --bench reward -- DIR {options}");
        return;
    }
    let made = tempfile::tempdir().expect("a temporary directory");
    let dir = reward_model(&o.dir, made.path());
    let config = ModelConfig::from_dir(&dir).expect("a model directory");
    println!("{}: {} values, {} threads", o.dir.display(), config.reward_width(), o.threads);
    if !o.cache_only {
        agreement(&dir, &config, &o);
    }
    if config.max_positions < SHARED + ANSWER_TOKENS {
        println!("no room for a prompt of {SHARED} tokens: the prefix cache is not measured");
        return;
    }
    let bench = |prefix_caching| Bench::start(&dir, &config, Precision::Fp8, o.threads, prefix_caching);
    throughput(&config, o.reps.max(LEAST_REPS), [bench(true), bench(false)]);
}

/// Returns `dir` if it holds a reward model; else makes one of its layers and a random head in `made`.
fn reward_model(dir: &Path, made: &Path) -> PathBuf {
    let dir = dir.canonicalize().expect("a model directory");
    let model = ModelConfig::from_dir(&dir).expect("a model directory");
    if model.reward.is_some() {
        return dir;
    }
    let weights = dir.join("model.safetensors");
    std::os::unix::fs::symlink(&weights, made.join("model.safetensors")).expect("a link to the weights");
    let text = std::fs::read_to_string(dir.join("config.json")).expect("a configuration");
    let mut config: Value = serde_json::from_str(&text).expect("a configuration in JSON");
    let name = config["architectures"][0].as_str().expect("an architecture");
    config["architectures"] = json!([name.replace("ForCausalLM", "ForSequenceClassification")]);
    std::fs::write(made.join("config.json"), config.to_string()).expect("a written configuration");
    let mut random = Random::new(20);
    let uniform = |random: &mut Random| random.bits() as f32 / u64::MAX as f32 - 0.5;
    // Values of about 1 where the norm's outputs are of about 1.
    let scale = (12.0 / model.hidden as f32).sqrt();
    let head = (0..WIDTH * model.hidden).map(|_| uniform(&mut random) * scale);
    let data: Vec<u8> = head.flat_map(f32::to_le_bytes).collect();
    let tensor = json!({"dtype": "F32", "shape": [WIDTH, model.hidden], "data_offsets": [0, data.len()]});
    let header = json!({"score.weight": tensor}).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(made.join("head.safetensors"), bytes).expect("a written head");
    let files = json!({"model.norm.weight": "model.safetensors", "score.weight": "head.safetensors"});
    let index = json!({"weight_map": files}).to_string();
    std::fs::write(made.join("model.safetensors.index.json"), index).expect("a written index");
    made.to_owned()
}

/// An engine with the reward model.
struct Bench {
    handle: octant::engine::EngineHandle,
    thread: octant::engine::EngineThread,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn start(
        dir: &Path,
        model: &ModelConfig,
        precision: Precision,
        threads: usize,
        prefix_caching: bool,
    ) -> Self {
        let scheduler = SchedulerConfig {
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            max_model_len: model.max_positions,
            num_blocks: 512,
            vocab_size: model.vocab,
            max_queue_requests: 1000,
            max_queue_tokens: 1_000_000,
            prefix_caching,
            reward_width: model.reward_width(),
            max_drafts: 0,
            draft_model: false,
            policy: Default::default(),
        };
        let settings = RunnerSettings {
            threads,
            precision,
            blocks: scheduler.num_blocks,
            max_num_seqs: scheduler.max_num_seqs,
            max_num_batched_tokens: scheduler.max_num_batched_tokens,
        };
        let runner = cpu::start(dir, model, &settings);
        let (handle, thread) = Engine::start(scheduler, 2, Box::new(runner)).expect("a thread");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        Self { handle, thread, runtime }
    }

    /// The values of the head after each prompt.
    fn scores(&self, prompts: &[Vec<u32>]) -> Vec<Arc<[f32]>> {
        self.runtime.block_on(async {
            let permit = self.handle.enter(prompts.len()).expect("room in the queue");
            let group = prompts.iter().map(|prompt| Request::score(prompt)).collect();
            let streams = permit.submit(group, SubmitOptions::default()).await.expect("valid requests");
            let mut scores = Vec::new();
            for mut stream in streams {
                scores.push(stream.next().await.reward.expect("values of the head"));
            }
            scores
        })
    }
}

/// The next random tokens.
fn tokens(random: &mut Random, vocab: usize, count: usize) -> Vec<u32> {
    (0..count).map(|_| (random.bits() % vocab as u64) as u32).collect()
}

/// Several random answers to a random prompt.
fn answers(random: &mut Random, vocab: usize) -> Vec<Vec<u32>> {
    let prompt = tokens(random, vocab, SHARED);
    (0..SHARING).map(|_| [&prompt[..], &tokens(random, vocab, ANSWER_TOKENS)].concat()).collect()
}

/// Times the scores of several answers to one prompt with and without the prefix cache. Every repetition has
/// a prompt of its own, and the engine that is first changes with it. An untimed run of each comes before.
fn throughput(config: &ModelConfig, reps: usize, [cached, uncached]: [Bench; 2]) {
    let mut random = Random::new(7);
    let time = |bench: &Bench, answers: &[Vec<u32>]| {
        let start = Instant::now();
        let scores = bench.scores(answers);
        (scores, start.elapsed().as_secs_f64())
    };
    let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for rep in 0..=reps {
        let answers = answers(&mut random, config.vocab);
        let first = (rep % 2 == 1).then(|| time(&uncached, &answers));
        let (scores, seconds) = time(&cached, &answers);
        let (expected, longer) = first.unwrap_or_else(|| time(&uncached, &answers));
        assert!(scores == expected, "the cache changed a score");
        if rep > 0 {
            println!("  repetition {rep}: {seconds:.3} s with the prefix cache, {longer:.3} s without");
            with.push(seconds);
            without.push(longer);
            ratios.push(longer / seconds);
        }
    }
    let [with, without, ratio] = [with, without, ratios].map(|values| Distribution::of(values).p50);
    let found = cached.handle.stats().counts.prefix_hits as usize / (reps + 1);
    println!("{SHARING} answers of {ANSWER_TOKENS} tokens to one prompt of {SHARED}, medians of {reps}:");
    println!("  with the prefix cache     {with:8.3} s  ({found} tokens found each time)");
    println!("  without the prefix cache  {without:8.3} s  ({ratio:.2} times as long)");
    drop((cached.thread, uncached.thread));
}

/// Prompts whose scores are compared.
fn prompts(o: &Options, config: &ModelConfig) -> Vec<Vec<u32>> {
    let Some(file) = &o.text else {
        let mut random = Random::new(1);
        let question = tokens(&mut random, config.vocab, QUESTION);
        let mut prompt = || [&question[..], &tokens(&mut random, config.vocab, ANSWER_TOKENS)].concat();
        return (0..ANSWERS).map(|_| prompt()).collect();
    };
    let text = std::fs::read_to_string(file).expect("a text");
    let tokenizer = Tokenizer::from_dir(&o.dir).expect("a tokenizer");
    let ids = tokenizer.encode(&text).expect("a text that can be encoded");
    let passages: Vec<Vec<u32>> =
        ids.chunks_exact(ANSWER_TOKENS).take(ANSWERS).map(<[u32]>::to_vec).collect();
    assert!(passages.len() > 1, "{} has at most one passage of {ANSWER_TOKENS} tokens", file.display());
    passages
}

/// Compares the order of each pair of answers in BF16 and in FP8, by its margin in BF16.
fn agreement(dir: &Path, config: &ModelConfig, o: &Options) {
    let prompts = prompts(o, config);
    let scores = |precision| Bench::start(dir, config, precision, o.threads, true).scores(&prompts);
    let (exact, quantised) = (scores(Precision::None), scores(Precision::Fp8));
    let (mut pairs, mut kept) = ([0usize; MARGINS.len()], [0usize; MARGINS.len()]);
    let mut errors = Vec::new();
    for value in 0..config.reward_width() {
        let column = |scores: &[Arc<[f32]>]| scores.iter().map(|row| row[value]).collect::<Vec<f32>>();
        let (exact, quantised) = (column(&exact), column(&quantised));
        let count = exact.len() as f32;
        let mean = exact.iter().sum::<f32>() / count;
        let deviation = (exact.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count).sqrt();
        for i in 0..exact.len() {
            errors.push(f64::from((exact[i] - quantised[i]).abs() / deviation));
            for j in 0..i {
                let (before, after) = (exact[i] - exact[j], quantised[i] - quantised[j]);
                let margin = before.abs() / deviation;
                let range = MARGINS.iter().position(|end| margin < *end).expect("a finite margin");
                pairs[range] += 1;
                kept[range] += usize::from(before * after > 0.0);
            }
        }
    }
    let error = errors.iter().sum::<f64>() / errors.len() as f64;
    println!("{} answers, FP8 against BF16, in standard deviations of a value:", prompts.len());
    println!("  mean error of a value {error:.4}");
    let mut start = 0.0;
    for ((end, pairs), kept) in MARGINS.iter().zip(pairs).zip(kept) {
        let share = 100.0 * kept as f64 / pairs as f64;
        println!("  margin from {start:<4} to {end:<4} {pairs:7} pairs, {share:6.2} % keep their order");
        start = *end;
    }
    let (pairs, kept): (usize, usize) = (pairs.iter().sum(), kept.iter().sum());
    println!("  all                      {pairs:7} pairs, {:6.2} %", 100.0 * kept as f64 / pairs as f64);
}
