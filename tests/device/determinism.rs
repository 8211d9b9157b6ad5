//! A request has the same tokens and the same bits of log-probabilities alone, in a full batch, with its
//! prompt in chunks, after a prefix hit, after preemption, and with two steps in flight.

use std::path::Path;
use std::sync::Arc;

use octant::engine::{EngineHandle, SchedulerConfig, SubmitOptions, UpdateStream};
use octant::grammar::{Grammar, GrammarCompiler, GrammarSource, TokenRules, Vocabulary};
use octant::request::{Request, SamplingParams, TokenLogprob};

use super::model::{engine, fixture, request};
use crate::dev;

/// Token ids of the models.
const VOCAB: usize = 384;

/// The ids and log-probabilities of the generated tokens.
pub type Answer = Vec<(u32, TokenLogprob)>;

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Submits a request and collects its tokens.
pub async fn answer(engine: &EngineHandle, request: Request) -> Answer {
    let streams = engine.enter(1).unwrap().submit(vec![request], SubmitOptions::default()).await;
    read(streams.unwrap().remove(0)).await
}

/// Collects the tokens of a request.
pub async fn read(mut stream: UpdateStream) -> Answer {
    let mut answer = Vec::new();
    loop {
        let update = stream.next().await;
        answer.extend(update.tokens.into_iter().filter_map(|token| Some((token.id, *token.logprob?))));
        if let Some(finish) = update.finish {
            assert_eq!(finish, octant::request::Finish::Length);
            return answer;
        }
    }
}

/// A grammar of letters in pairs, for which token `i` is letter number `i` modulo 26. It has no end before
/// all tokens are generated.
pub fn pairs(vocab: usize) -> Arc<Grammar> {
    let letter = |id: usize| vec![b'a' + (id % 26) as u8];
    let mut tokens: Vec<Vec<u8>> = (0..vocab).map(letter).collect();
    tokens[0] = b"<end>".to_vec();
    let special = (0..vocab).map(|id| id == 0).collect();
    let compiler = GrammarCompiler::new(Vocabulary { tokens, special, eos: vec![0] }).unwrap();
    compiler.compile(&GrammarSource::Regex("([a-m][n-z]){500}".to_owned())).unwrap()
}

/// Sequences that [`few_tokens`] forbids. With so few tokens each of them would occur.
const FORBIDDEN: [&[u32]; 4] = [&[3, 3], &[4, 5], &[5, 3, 4], &[7]];

/// Rules that allow four tokens.
pub fn few_tokens() -> Arc<Grammar> {
    let sequences = FORBIDDEN.iter().map(|ids| ids.to_vec()).collect();
    let rules = TokenRules::new(VOCAB, Some(&[3, 4, 5, 6, 7]), sequences);
    Arc::new(Grammar::with_rules(None, rules, VOCAB))
}

#[test]
fn rules_on_tokens_hold_in_a_batch() {
    let (answers, _) = together(&fixture("nemotron"), |_| {}, 2);
    for answer in [&answers[4], &answers[5]] {
        let tokens: Vec<u32> = answer.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens.len(), dev::GENERATED as usize);
        assert!(tokens.iter().all(|token| (3..=6).contains(token)), "{tokens:?}");
        assert!(!FORBIDDEN.iter().any(|ids| tokens.windows(ids.len()).any(|run| run == *ids)), "{tokens:?}");
    }
}

/// Greedy and random requests with prompts of up to three blocks. The last prompt shares two blocks with the
/// first. Every second request has no penalties. Two requests follow a grammar, and two have rules on tokens.
pub fn requests() -> Vec<Request> {
    let prompt =
        |seed: u32, len: u32| -> Vec<u32> { (0..len).map(|i| 3 + (i * 37 + seed * 101) % 380).collect() };
    let lengths = [150, 3, 70, 64, 129, 20, 90, 65];
    let mut all: Vec<Request> = lengths
        .iter()
        .enumerate()
        .map(|(i, len)| request(&prompt(i as u32, *len), dev::GENERATED, (i % 2) as f32, i as u64))
        .collect();
    let mut shared = prompt(0, 130);
    shared.extend([9, 8, 7]);
    all.push(request(&shared, dev::GENERATED, 1.0, 99));
    for request in all.iter_mut().skip(1).step_by(2) {
        let plain = SamplingParams {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            ..SamplingParams::clone(&request.sampling)
        };
        request.sampling = Arc::new(plain);
    }
    let grammar = pairs(VOCAB);
    for i in [2, 8] {
        let grammar = Some(Arc::clone(&grammar));
        all[i].sampling = Arc::new(SamplingParams { grammar, ..SamplingParams::clone(&all[i].sampling) });
    }
    for i in [4, 5] {
        let grammar = Some(few_tokens());
        all[i].sampling = Arc::new(SamplingParams { grammar, ..SamplingParams::clone(&all[i].sampling) });
    }
    all
}

/// Runs each request alone on its own engine, without prefix caching.
pub fn alone(dir: &Path) -> Vec<Answer> {
    alone_of(dir, requests())
}

/// The same with these requests.
pub fn alone_of(dir: &Path, requests: Vec<Request>) -> Vec<Answer> {
    requests
        .into_iter()
        .map(|request| {
            let (handle, _thread) = engine(dir, |config| config.prefix_caching = false, 1);
            block_on(answer(&handle, request))
        })
        .collect()
}

/// Runs all requests at once and returns their answers and the number of preemptions.
fn together(dir: &Path, config: impl FnOnce(&mut SchedulerConfig), in_flight: usize) -> (Vec<Answer>, u64) {
    run_at_once(dir, requests(), config, in_flight)
}

/// Runs `requests` at once and returns their answers and the number of preemptions.
fn run_at_once(
    dir: &Path,
    requests: Vec<Request>,
    config: impl FnOnce(&mut SchedulerConfig),
    in_flight: usize,
) -> (Vec<Answer>, u64) {
    let (handle, _thread) = engine(dir, config, in_flight);
    let answers = block_on(async {
        let all = requests.into_iter().map(|request| answer(&handle, request));
        futures_util::future::join_all(all).await
    });
    (answers, handle.stats().counts.preemptions)
}

#[test]
fn a_request_has_the_same_bits_in_any_batch() {
    for name in ["nemotron", "llama"] {
        let dir = fixture(name);
        let expected = alone(&dir);
        for constrained in [2, 8] {
            let letters = expected[constrained].iter().map(|(token, _)| token % 26);
            assert!(letters.enumerate().all(|(i, letter)| (letter < 13) == (i % 2 == 0)), "{name}: pairs");
        }
        assert!(together(&dir, |_| {}, 1).0 == expected, "{name}: in a full batch");
        assert!(together(&dir, |_| {}, 2).0 == expected, "{name}: with two steps in flight");
        // Without penalties, a step may be launched before the host knows its input tokens.
        let plain = requests().into_iter().skip(1).step_by(2).collect();
        let answers = run_at_once(&dir, plain, |_| {}, 2).0;
        assert!(
            answers.iter().eq(expected.iter().skip(1).step_by(2)),
            "{name}: input tokens from the device"
        );
        let chunked = together(&dir, |config| config.max_num_batched_tokens = 7, 1).0;
        assert!(chunked == expected, "{name}: with prompts in chunks of 7");
        let mut preemptions = 0;
        for blocks in dev::SCARCE {
            let (preempted, count) = together(&dir, |config| config.num_blocks = blocks, 1);
            assert!(preempted == expected, "{name}: {count} preemptions with {blocks} blocks");
            preemptions += count;
        }
        assert!(preemptions > 0, "{name}: too few blocks must force preemptions");
    }
}

#[test]
fn a_prefix_hit_does_not_change_the_bits() {
    for name in ["nemotron", "llama"] {
        let (handle, _thread) = engine(&fixture(name), |_| {}, 1);
        for request in requests() {
            let cold = block_on(answer(&handle, request.clone()));
            let hits = handle.stats().counts.prefix_hits;
            let warm = block_on(answer(&handle, request.clone()));
            assert!(cold == warm, "{name}: prompt of {}", request.prompt.len());
            let expected = (request.prompt.len() - 1) / 64 * 64;
            assert!(
                handle.stats().counts.prefix_hits - hits >= expected as u64,
                "{name}: the second run must hit the prefix cache"
            );
        }
    }
}
