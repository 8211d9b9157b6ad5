//! Log-probabilities of a prompt's tokens have the same bits from any token on, alone and beside other
//! requests, with the prompt in chunks, after a prefix hit and after preemption. Generated tokens have the
//! bits that they have as tokens of a prompt.

use std::path::Path;

use octant::engine::{EngineHandle, SchedulerConfig, SubmitOptions};
use octant::request::{Finish, Request, TokenLogprob};

use super::determinism::block_on;
use super::model::{engine, fixture, request};
use crate::dev;

/// Log-probabilities of an answer: of the prompt's tokens and of the generated ones.
#[derive(Debug, Default, PartialEq)]
struct Scored {
    prompt: Vec<TokenLogprob>,
    generated: Vec<TokenLogprob>,
}

/// The models of both families, or one where steps are slow.
fn models() -> &'static [&'static str] {
    if dev::FAST { &["nemotron", "llama"] } else { &["nemotron"] }
}

/// Prompts of up to three blocks. The last one shares two blocks with the first.
fn prompts() -> Vec<Vec<u32>> {
    let prompt = |seed: u32, len: u32| (0..len).map(|i| 3 + (i * 41 + seed * 103) % 380).collect();
    let lengths: &[u32] = if dev::FAST { &[150, 1, 2, 70, 64, 129, 65] } else { &[150, 2, 65] };
    let mut all: Vec<Vec<u32>> = (0..).zip(lengths).map(|(seed, len)| prompt(seed, *len)).collect();
    all.push([prompt(0, 130), vec![9, 8, 7]].concat());
    all
}

/// A request for the log-probabilities of a prompt's tokens from `start` on, and for no answer.
fn given(prompt: &[u32], start: usize) -> Request {
    Request { prompt_logprobs: Some(2), prompt_logprobs_start: start as u32, ..request(prompt, 0, 0.0, 0) }
}

/// Requests whose answers have log-probabilities. Every second one echoes its prompt's too.
fn generating() -> Vec<Request> {
    let one = |(i, prompt): (usize, &Vec<u32>)| {
        let asked = request(prompt, dev::GENERATED, (i % 3) as f32 * 0.5, i as u64);
        Request { prompt_logprobs: (i % 2 == 0).then_some(2), ..asked }
    };
    prompts().iter().enumerate().map(one).collect()
}

async fn scored(engine: &EngineHandle, request: Request) -> Scored {
    let permit = engine.enter(1).unwrap();
    let mut stream = permit.submit(vec![request], SubmitOptions::default()).await.unwrap().remove(0);
    let mut all = Scored::default();
    loop {
        let update = stream.next().await;
        all.prompt.extend(update.prompt_logprobs);
        all.generated.extend(update.tokens.into_iter().filter_map(|token| token.logprob).map(|score| *score));
        if let Some(finish) = update.finish {
            assert_eq!(finish, Finish::Length);
            return all;
        }
    }
}

/// Runs requests at once.
fn together(
    dir: &Path,
    requests: Vec<Request>,
    config: impl FnOnce(&mut SchedulerConfig),
    in_flight: usize,
) -> Vec<Scored> {
    let (handle, _thread) = engine(dir, config, in_flight);
    let all = requests.into_iter().map(|request| scored(&handle, request));
    block_on(futures_util::future::join_all(all))
}

/// The log-probabilities of a prompt's tokens, computed alone, in one step and without a prefix cache.
fn alone(dir: &Path, prompt: &[u32]) -> Vec<TokenLogprob> {
    let scores = together(dir, vec![given(prompt, 0)], |config| config.prefix_caching = false, 1).remove(0);
    assert_eq!(scores.prompt.iter().map(|score| score.token).collect::<Vec<u32>>(), prompt[1..]);
    assert!(scores.generated.is_empty());
    scores.prompt
}

#[test]
fn prompt_logprobs_have_the_same_bits_in_any_batch_and_in_chunks() {
    for name in models() {
        let dir = fixture(name);
        let expected: Vec<Vec<TokenLogprob>> = prompts().iter().map(|prompt| alone(&dir, prompt)).collect();
        // Answers are generated beside them.
        let run = |config: fn(&mut SchedulerConfig), in_flight: usize, what: &str| {
            let all = prompts().iter().map(|prompt| given(prompt, 0)).chain(generating()).collect();
            let scores = together(&dir, all, config, in_flight);
            for (i, scores) in scores.iter().take(expected.len()).enumerate() {
                assert!(scores.prompt == expected[i], "{name}: prompt {i} {what}");
            }
            for (i, echo) in scores[expected.len()..].iter().enumerate().step_by(2) {
                assert!(echo.prompt == expected[i], "{name}: the echo of prompt {i} {what}");
                assert_eq!(echo.generated.len(), dev::GENERATED as usize);
            }
        };
        run(|_| {}, 1, "in a full batch");
        run(|config| config.max_num_batched_tokens = 7, 2, "in chunks of 7");
        if dev::FAST {
            run(|_| {}, 2, "with two steps in flight");
            run(|config| config.max_num_batched_tokens = 1, 2, "in chunks of 1");
            run(|config| config.num_blocks = 4, 2, "with four blocks");
        }
    }
}

#[test]
fn prompt_logprobs_from_a_token_on_have_the_bits_of_the_whole_prompt() {
    for name in models() {
        let dir = fixture(name);
        let prompt = &prompts()[0];
        let whole = alone(&dir, prompt);
        let (handle, _thread) = engine(&dir, |config| config.max_num_batched_tokens = 96, 2);
        let cold = block_on(scored(&handle, given(prompt, 0)));
        assert!(cold.prompt == whole, "{name}: cold");
        assert_eq!(handle.stats().counts.prefix_hits, 0, "{name}");
        for start in [0, 1, 2, 64, 65, 66, 100, 128, 129, prompt.len() - 1] {
            let hits = handle.stats().counts.prefix_hits;
            let warm = block_on(scored(&handle, given(prompt, start)));
            let found = handle.stats().counts.prefix_hits - hits;
            // The token before the first is computed again: its logits are needed.
            let cached = start.saturating_sub(1) / 64 * 64;
            assert_eq!(found as usize, cached, "{name}: from token {start}");
            assert!(warm.prompt == whole[start.max(1) - 1..], "{name}: from token {start}");
        }
        let starts = [130, 1, 65, 149].map(|start| given(prompt, start));
        let scores = block_on(futures_util::future::join_all(starts.map(|asked| scored(&handle, asked))));
        for (scores, start) in scores.iter().zip([130, 1, 65, 149]) {
            assert!(scores.prompt == whole[start - 1..], "{name}: from token {start} beside others");
        }
    }
}

#[test]
fn generated_tokens_have_the_bits_of_given_ones() {
    for name in models() {
        let dir = fixture(name);
        let answers = together(&dir, generating(), |_| {}, 2);
        let (handle, _thread) = engine(&dir, |_| {}, 1);
        for ((answer, prompt), i) in answers.iter().zip(prompts()).zip(0..) {
            assert_eq!(answer.generated.len(), dev::GENERATED as usize);
            let ids = answer.generated.iter().map(|score| score.token);
            let tokens: Vec<u32> = prompt.iter().copied().chain(ids).collect();
            let cold = alone(&dir, &tokens);
            assert!(cold[prompt.len() - 1..] == answer.generated, "{name}: the answer to prompt {i}");
            // What lies before the answer comes from the prefix cache, if this prompt or one like it was run.
            for _ in 0..2 {
                let warm = block_on(scored(&handle, given(&tokens, prompt.len())));
                assert!(warm.prompt == answer.generated, "{name}: the answer to prompt {i}, warm");
            }
        }
        assert!(handle.stats().counts.prefix_hits > 0, "{name}");
    }
}
