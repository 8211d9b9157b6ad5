//! Random requests with every sampling field. They arrive and are cancelled at random times, in KV caches
//! small enough to force preemption, with drafts of each kind. Each has the bits that it has alone without
//! drafts.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use octant::engine::{EngineHandle, SchedulerConfig, SubmitOptions};
use octant::request::{Finish, Request, SamplingParams, StopRules, TokenLogprob};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::determinism::{few_tokens, pairs};
use super::model::{engine, engine_with_draft_model, fixture, request};
use crate::dev;

/// Token ids of the models.
const VOCAB: u32 = 384;

/// The two models. Each is a draft model for itself and for the other one.
const MODELS: [&str; 2] = ["nemotron", "llama"];

/// Where drafts come from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Drafts {
    None,
    Lookup,
    /// A copy of the model, whose drafts are accepted, or the other model, whose drafts are mostly rejected.
    Copy,
    Other,
}

/// A request among others.
#[derive(Debug, Clone)]
struct Arrival {
    request: Request,
    /// Microseconds after the start.
    at: u64,
    /// The number of updates after which the client leaves, if it does.
    cancelled_after: Option<usize>,
}

#[derive(Debug, Clone)]
struct Trace {
    model: usize,
    drafts: Drafts,
    max_drafts: usize,
    blocks: usize,
    tokens_per_step: usize,
    in_flight: usize,
    arrivals: Vec<Arrival>,
}

/// All that a client sees of an answer. `finish` is `None` if it has left.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    tokens: Vec<(u32, Option<TokenLogprob>)>,
    prompt: Vec<TokenLogprob>,
    finish: Option<Finish>,
}

/// Prompts repeat themselves, so that lookups find drafts, and share prefixes.
fn any_prompt() -> impl Strategy<Value = Vec<u32>> {
    (0..3u32, 1..9u32, 1..150u32).prop_map(|(family, period, len)| {
        (0..len).map(|i| 3 + (i % (period * 5) * 37 + family * 101) % (VOCAB - 4)).collect()
    })
}

fn any_sampling() -> impl Strategy<Value = SamplingParams> {
    let draw = (
        prop_oneof![Just(0.0f32), Just(0.2), Just(0.7), Just(1.3)],
        prop_oneof![Just(1.0f32), Just(0.9), Just(0.5)],
        prop_oneof![Just(0u32), Just(1), Just(5), Just(50)],
        prop_oneof![Just(0.0f32), Just(0.05)],
        0..5u64,
    );
    let penalties = (
        prop_oneof![2 => Just(1.0f32), 1 => Just(1.2)],
        prop_oneof![2 => Just(0.0f32), 1 => Just(0.4)],
        prop_oneof![2 => Just(0.0f32), 1 => Just(-0.3)],
    );
    let bias = prop::option::weighted(0.3, (3..VOCAB, -4.0..4.0f32));
    let logprobs = prop::option::weighted(0.7, 0..6u8);
    let grammar = prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(2)];
    (draw, penalties, bias, logprobs, grammar).prop_map(|(draw, penalties, bias, logprobs, grammar)| {
        let (temperature, top_p, top_k, min_p, seed) = draw;
        let (repetition_penalty, presence_penalty, frequency_penalty) = penalties;
        SamplingParams {
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: bias.into_iter().collect(),
            seed,
            logprobs,
            min_tokens: 0,
            barred: Vec::new(),
            grammar: match grammar {
                0 => None,
                1 => Some(pairs(VOCAB as usize)),
                _ => Some(few_tokens()),
            },
        }
    })
}

fn any_arrival() -> impl Strategy<Value = Arrival> {
    let stop = (1..40u32, prop::option::weighted(0.2, 3..VOCAB), 0..9u32);
    let prompt_logprobs = prop::option::weighted(0.2, 0..3u8);
    let client = (0..2000u64, prop::option::weighted(0.25, 0..12usize));
    (any_prompt(), any_sampling(), stop, prompt_logprobs, client).prop_map(
        |(prompt, mut sampling, (max_tokens, stop, min_tokens), prompt_logprobs, client)| {
            let stop_ids: Vec<u32> = stop.into_iter().collect();
            sampling.min_tokens = min_tokens.min(max_tokens);
            sampling.barred = stop_ids.clone();
            let request = Request {
                sampling: Arc::new(sampling),
                stop: StopRules { max_tokens, stop_ids },
                prompt_logprobs,
                ..request(&prompt, max_tokens, 0.0, 0)
            };
            let (at, cancelled_after) = client;
            Arrival { request, at, cancelled_after }
        },
    )
}

fn any_trace() -> impl Strategy<Value = Trace> {
    let drafts =
        prop_oneof![Just(Drafts::None), Just(Drafts::Lookup), Just(Drafts::Copy), Just(Drafts::Other)];
    let arrivals = prop::collection::vec(any_arrival(), 3..10);
    let sizes = (1..9usize, 4..8usize, prop_oneof![Just(24usize), Just(100), Just(512)], 1..3usize);
    (0..MODELS.len(), drafts, sizes, arrivals).prop_map(|(model, drafts, sizes, arrivals)| {
        let (max_drafts, blocks, tokens_per_step, in_flight) = sizes;
        Trace { model, drafts, max_drafts, blocks, tokens_per_step, in_flight, arrivals }
    })
}

/// Submits a request and reads its updates, at most `most` if the client leaves.
async fn read(engine: &EngineHandle, request: Request, most: Option<usize>) -> Seen {
    let streams = engine.enter(1).unwrap().submit(vec![request], SubmitOptions::default()).await;
    let mut stream = streams.unwrap().remove(0);
    let (mut seen, mut updates) = (Seen::default(), 0);
    while seen.finish.is_none() && most != Some(updates) {
        let update = stream.next().await;
        seen.prompt.extend(update.prompt_logprobs);
        seen.tokens.extend(update.tokens.into_iter().map(|token| (token.id, token.logprob.map(|l| *l))));
        seen.finish = update.finish;
        updates += 1;
    }
    seen
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// The answers of a trace, and the engine that gave them.
fn play(trace: &Trace) -> (Vec<Seen>, EngineHandle) {
    let configure = |config: &mut SchedulerConfig| {
        config.max_drafts = if trace.drafts == Drafts::None { 0 } else { trace.max_drafts };
        (config.num_blocks, config.max_num_batched_tokens) = (trace.blocks, trace.tokens_per_step);
    };
    let dir = fixture(MODELS[trace.model]);
    let draft = match trace.drafts {
        Drafts::None | Drafts::Lookup => None,
        Drafts::Copy => Some(trace.model),
        Drafts::Other => Some(1 - trace.model),
    };
    let (handle, thread) = match draft {
        None => engine(&dir, configure, trace.in_flight),
        Some(draft) => engine_with_draft_model(&dir, &fixture(MODELS[draft]), configure, trace.in_flight),
    };
    let answers = runtime().block_on(async {
        let all = trace.arrivals.iter().map(async |arrival| {
            tokio::time::sleep(Duration::from_micros(arrival.at)).await;
            read(&handle, arrival.request.clone(), arrival.cancelled_after).await
        });
        futures_util::future::join_all(all).await
    });
    drop(thread);
    (answers, handle)
}

/// The answers of each request alone, without drafts and without prefix caching.
fn alone(trace: &Trace) -> Vec<Seen> {
    let (handle, _thread) = engine(&fixture(MODELS[trace.model]), |config| config.prefix_caching = false, 1);
    let one = |arrival: &Arrival| runtime().block_on(read(&handle, arrival.request.clone(), None));
    trace.arrivals.iter().map(one).collect()
}

#[test]
fn random_requests_have_the_bits_of_each_alone() {
    if !dev::FAST {
        println!("skipped: random traces take too long on this device");
        return;
    }
    let (preemptions, left) = (Cell::new(0), Cell::new(0));
    // Drafts that were accepted and rejected, of each kind.
    let drafts = RefCell::new([(0, 0); 4]);
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() });
    let tested = runner.run(&any_trace(), |trace| {
        let (answers, handle) = play(&trace);
        for (i, (got, expected)) in answers.into_iter().zip(alone(&trace)).enumerate() {
            if got.finish.is_some() {
                prop_assert_eq!(got, expected, "request {}", i);
                continue;
            }
            prop_assert!(trace.arrivals[i].cancelled_after.is_some(), "request {} did not end", i);
            prop_assert!(expected.tokens.starts_with(&got.tokens), "request {}: {:?}", i, got);
            prop_assert!(expected.prompt.starts_with(&got.prompt), "request {}: {:?}", i, got);
            left.set(left.get() + 1);
        }
        let counts = handle.stats().counts;
        preemptions.set(preemptions.get() + counts.preemptions);
        let accepted = counts.speculation.all_accepted();
        let sums = &mut drafts.borrow_mut()[trace.drafts as usize];
        *sums = (sums.0 + accepted, sums.1 + counts.speculation.drafts - accepted);
        Ok(())
    });
    tested.unwrap();
    let (preemptions, left, [_, lookup, copy, other]) = (preemptions.get(), left.get(), drafts.into_inner());
    println!("{preemptions} preemptions, {left} left, accepted and rejected: {lookup:?} {copy:?} {other:?}");
    assert!(preemptions > 3 && left > 10, "{preemptions} preemptions, {left} left");
    // A sampled token that a lookup expects is rare in these models.
    assert!(lookup.0 > 0 && lookup.1 > 0 && copy.0 > 10 && other.1 > 10, "{lookup:?} {copy:?} {other:?}");
}
