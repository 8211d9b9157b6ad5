//! The demo model against transformers (`scripts/make_smollm2_reference.py`): ids of chat prompts, greedy
//! answers and perplexity. The tests print a line and pass if the demo model is absent; `tests/run` gets it
//! first.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use octant::comm::SingleDeviceGroup;
use octant::device::{CacheSpec, KvDtype};
use octant::engine::{Engine, EngineHandle, EngineThread, SchedulerConfig, SubmitOptions};
use octant::model::{Model, ModelConfig, Precision, Shard};
use octant::request::{Request, SamplingParams, StopRules, Update};
use octant::runner::{RankParts, Runner, RunnerOptions};
use octant::text::{ChatMessage, ChatTemplate, RenderOptions, Role, Tokenizer};
use serde::Deserialize;

use super::model::root;
use crate::dev;

/// Results of transformers for the demo model.
#[derive(Deserialize)]
struct DemoReference {
    /// The largest difference of a log-probability between transformers' bfloat16 and float32 runs.
    bf16_worst: f64,
    prompts: Vec<ChatPrompt>,
    /// Token ids of a text.
    text: Vec<u32>,
    /// Perplexity of `text` in float32.
    perplexity: f64,
}

/// A question with its greedy answer.
#[derive(Deserialize)]
struct ChatPrompt {
    question: String,
    ids: Vec<u32>,
    /// Token ids of the answer.
    greedy: Vec<u32>,
    /// The margin between the two largest logits at each token of `greedy`.
    margins: Vec<f64>,
}

fn reference() -> DemoReference {
    let path = root().join("tests/data/smollm2/reference.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The demo model's folder; prints a line and returns `None` if it is absent.
fn demo() -> Option<PathBuf> {
    let default = root().join("demo/smollm2-135m-instruct");
    let dir = std::env::var_os("OCTANT_DEMO_MODEL").map_or(default, PathBuf::from);
    if dir.join("model.safetensors").exists() {
        return Some(dir);
    }
    println!("skipped: no demo model at {}; scripts/demo_model.py gets it", dir.display());
    None
}

fn engine(dir: &std::path::Path, precision: Precision) -> (EngineHandle, EngineThread) {
    let config = ModelConfig::from_dir(dir).unwrap();
    let device = dev::one();
    let model = Model::load(dir, &config, Shard::WHOLE, precision, &device, &mut |_| {}).unwrap();
    let dtype = if precision == Precision::Fp8 { KvDtype::Fp8 } else { KvDtype::Bf16 };
    let scheduler = SchedulerConfig {
        max_num_seqs: 10,
        max_num_batched_tokens: 512,
        max_model_len: 512,
        num_blocks: 80,
        vocab_size: config.vocab,
        max_queue_requests: 10,
        max_queue_tokens: 10_000,
        prefix_caching: true,
        reward_width: 0,
        policy: Default::default(),
        max_drafts: 0,
        draft_model: false,
    };
    let rank = RankParts {
        device,
        comm: SingleDeviceGroup::alone(),
        processors: Vec::new(),
        model,
        cache: CacheSpec { layers: config.layers, blocks: 80, heads: config.heads, dtype },
        draft: None,
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        two_batch_tokens: None,
        vocab: config.vocab,
    };
    let options = RunnerOptions { step_timeout: Duration::from_secs(600), mask_threads: 0 };
    Engine::start(scheduler, 1, Box::new(Runner::start(vec![rank], options))).unwrap()
}

fn request(prompt: &[u32], max_tokens: u32, score: bool) -> Request {
    Request {
        prompt: prompt.into(),
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopRules { max_tokens, stop_ids: vec![2] },
        priority: 0,
        tenant: Default::default(),
        cache_salt: None,
        prompt_logprobs: score.then_some(0),
        prompt_logprobs_start: 0,
        reward: false,
        batch: false,
    }
}

async fn updates(engine: &EngineHandle, request: Request) -> Vec<Update> {
    let mut stream =
        engine.enter(1).unwrap().submit(vec![request], SubmitOptions::default()).await.unwrap().remove(0);
    let mut all = Vec::new();
    loop {
        all.push(stream.next().await);
        if all.last().is_some_and(|update| update.finish.is_some()) {
            return all;
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn chat_prompts_have_the_token_ids_of_transformers() {
    let Some(dir) = demo() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap().unwrap();
    for prompt in reference().prompts {
        let message = ChatMessage::new(Role::User, prompt.question.clone());
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let rendered = template.render(&[message], &options).unwrap();
        assert_eq!(tokenizer.encode_prompt(&rendered).unwrap(), prompt.ids, "{}", prompt.question);
    }
}

/// [`dev::SMOLLM2`] sets the number of prompts and of tokens per prompt.
#[test]
fn greedy_answers_are_equal_up_to_the_first_near_tie() {
    let Some(dir) = demo() else { return };
    let (engine, _thread) = engine(&dir, Precision::None);
    let mut reference = reference();
    let (prompts, tokens) = dev::SMOLLM2;
    reference.prompts.truncate(prompts);
    reference.prompts.iter_mut().for_each(|prompt| prompt.greedy.truncate(tokens));
    let answers = block_on(async {
        let all =
            reference.prompts.iter().map(|p| updates(&engine, request(&p.ids, p.greedy.len() as u32, false)));
        futures_util::future::join_all(all).await
    });
    let mut compared = 0;
    for (prompt, updates) in reference.prompts.iter().zip(answers) {
        let answer: Vec<u32> =
            updates.iter().flat_map(|update| &update.tokens).map(|token| token.id).collect();
        for (i, expected) in prompt.greedy.iter().enumerate() {
            if answer.get(i) != Some(expected) {
                let margin = prompt.margins[i];
                assert!(
                    margin < 2.0 * reference.bf16_worst,
                    "{}: token {i}, margin {margin}",
                    prompt.question
                );
                break;
            }
            compared += 1;
        }
    }
    let most: usize = reference.prompts.iter().map(|prompt| prompt.greedy.len()).sum();
    assert!(compared > most / 5, "only {compared} of {most} tokens were equal before near-ties");
}

/// The kernels on the host take minutes for the text, so this runs there only with `OCTANT_WHOLE_TEXTS=1`.
#[test]
fn fp8_changes_perplexity_little() {
    let Some(dir) = demo() else { return };
    if !dev::FAST && std::env::var_os("OCTANT_WHOLE_TEXTS").is_none_or(|value| value != "1") {
        println!("skipped: a whole text takes minutes on this device; OCTANT_WHOLE_TEXTS=1 scores it");
        return;
    }
    let reference = reference();
    let perplexity = |precision| {
        let (engine, _thread) = engine(&dir, precision);
        let updates = block_on(updates(&engine, request(&reference.text, 0, true)));
        let scores: Vec<f64> =
            updates.iter().flat_map(|u| &u.prompt_logprobs).map(|score| f64::from(score.logprob)).collect();
        assert_eq!(scores.len(), reference.text.len() - 1);
        (-scores.iter().sum::<f64>() / scores.len() as f64).exp()
    };
    let (plain, fp8) = (perplexity(Precision::None), perplexity(Precision::Fp8));
    println!("perplexity: float32 {}, unquantised {plain}, FP8 {fp8}", reference.perplexity);
    assert!(
        (plain / reference.perplexity - 1.0).abs() < 0.005,
        "unquantised {plain}, float32 {}",
        reference.perplexity
    );
    assert!((fp8 / plain - 1.0).abs() < dev::FP8_PERPLEXITY, "FP8 {fp8}, unquantised {plain}");
}
