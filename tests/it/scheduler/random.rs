//! Random arrivals, aborts, lengths, priorities, salts and grammars, in KV caches small enough to force
//! preemption and eviction, with and without drafts of both kinds. Every request must get the same tokens as
//! alone, exactly once, and every block must be freed.

use std::sync::{Arc, LazyLock};

use octant::grammar::{Grammar, GrammarCompiler, GrammarSource, TokenRules, Vocabulary};

use octant::request::{Request, SamplingParams};
use octant::scheduler::{MAX_DRAFTS, SchedulerConfig};
use proptest::prelude::*;

use super::Bench;
use crate::fake::{REPETITIVE, REWARDS, SCARCE_VOCAB as VOCAB, alone, request, scarce};

/// An event before a step.
#[derive(Debug, Clone)]
pub enum Event {
    Nothing,
    Submit(Vec<Request>),
    /// Aborts the i-th request modulo their number, finished or not.
    Abort(usize),
}

/// The id that ends an answer of a grammar.
const END: u32 = VOCAB as u32 - 1;

/// Grammars over letters, of which token `i` is number `i` modulo 26. They count letters, so a run of tokens
/// that comes again is refused at another place.
static GRAMMARS: LazyLock<Vec<Arc<Grammar>>> = LazyLock::new(|| {
    let mut tokens: Vec<Vec<u8>> = (0..VOCAB).map(|id| vec![b'a' + (id % 26) as u8]).collect();
    tokens[END as usize] = b"<end>".to_vec();
    let special = (0..VOCAB).map(|id| id == END as usize).collect();
    let compiler = GrammarCompiler::new(Vocabulary { tokens, special, eos: vec![END] }).unwrap();
    let regexes = ["([a-y]{3,6}z)+", "([a-m]{7}[n-z]){9}", "[a-z]{2,40}"];
    let compile = |regex: &str| compiler.compile(&GrammarSource::Regex(regex.to_owned())).unwrap();
    let mut grammars: Vec<Arc<Grammar>> = regexes.iter().map(|regex| compile(regex)).collect();
    let rules = || TokenRules::new(VOCAB, None, vec![vec![3, 4], vec![5, 6, 7], vec![9]]);
    grammars.push(Arc::new(Grammar::with_rules(None, rules(), VOCAB)));
    grammars.push(Arc::new(Grammar::with_rules(Some(&grammars[0]), rules(), VOCAB)));
    grammars
});

/// Prompts of one family share their first `common` tokens, so that requests share prefixes.
fn any_prompt() -> impl Strategy<Value = Vec<u32>> {
    (0..2u32, 0..200usize, 0..3u32, 1..260usize).prop_map(|(family, common, branch, len)| {
        let token = |i: usize| if i < common { family * 7 + i as u32 } else { branch * 11 + 3 * i as u32 };
        (0..len).map(|i| token(i) % VOCAB as u32).collect()
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let stops = prop_oneof![2 => Just(vec![]), 1 => Just(vec![3]), 1 => Just(vec![5, 17])];
    let rules = (1..90u32, stops, 0..20u32);
    let kind = (-1..2i32, prop::option::weighted(0.2, 0..2u8), prop::option::weighted(0.15, 0..3u8), 0..9u32);
    let seeds = prop_oneof![0..3u64, REPETITIVE..REPETITIVE + 4];
    let grammar = prop::option::weighted(0.3, 0..5usize);
    (any_prompt(), rules, kind, seeds, grammar).prop_map(|(prompt, rules, kind, seed, grammar)| {
        let (max_tokens, stop_ids, min_tokens) = rules;
        let (priority, salt, prompt_logprobs, zero) = kind;
        let max_tokens = if zero == 0 && prompt_logprobs.is_some() { 0 } else { max_tokens };
        let mut request = request(prompt, max_tokens);
        let mut sampling = SamplingParams::greedy();
        sampling.seed = seed;
        sampling.min_tokens = min_tokens.min(max_tokens);
        sampling.barred = stop_ids.clone();
        sampling.grammar = grammar.map(|number| Arc::clone(&GRAMMARS[number]));
        request.sampling = Arc::new(sampling);
        request.stop.stop_ids = stop_ids;
        request.priority = priority;
        request.cache_salt = salt.map(|salt| Arc::from(salt.to_string()));
        request.prompt_logprobs = prompt_logprobs;
        if prompt_logprobs.is_some() && zero % 2 == 0 {
            request.prompt_logprobs_start =
                ((seed % 7) as u32 * 61 + zero * 17) % request.prompt.len() as u32;
        }
        request.batch = zero > 6;
        request
    })
}

pub fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Nothing),
        3 => any_request().prop_map(|request| Event::Submit(vec![request])),
        1 => (any_request(), 2..4usize).prop_map(|(r, n)| Event::Submit(vec![r; n])),
        1 => (0..20usize).prop_map(Event::Abort),
    ]
}

pub fn any_config() -> impl Strategy<Value = SchedulerConfig> {
    let sizes = (1..6usize, 1..150usize, 6..20usize);
    let drafts = prop_oneof![Just(0), 1..=MAX_DRAFTS];
    (sizes, any::<bool>(), drafts, any::<bool>()).prop_map(
        |(sizes, prefix_caching, max_drafts, draft_model)| SchedulerConfig {
            max_drafts,
            draft_model,
            ..scarce(sizes, prefix_caching)
        },
    )
}

/// The same trace for a model with a reward head: every request asks for its values.
pub fn scored(config: SchedulerConfig, mut events: Vec<Event>) -> (SchedulerConfig, Vec<Event>) {
    for event in &mut events {
        let Event::Submit(group) = event else { continue };
        for request in group {
            (request.reward, request.stop.max_tokens) = (true, 0);
            (request.prompt_logprobs, request.prompt_logprobs_start) = (None, 0);
            let sampling = SamplingParams::clone(&request.sampling);
            request.sampling = Arc::new(SamplingParams { min_tokens: 0, grammar: None, ..sampling });
        }
    }
    (SchedulerConfig { reward_width: REWARDS, ..config }, events)
}

/// Runs a trace to its end. Returns the bench, the submitted (id, request, aborted), and the number of steps.
fn play(
    config: SchedulerConfig,
    events: Vec<Event>,
    in_flight: usize,
    prompt_tokens: Option<usize>,
) -> (Bench, Vec<(u64, Request, bool)>, usize) {
    let mut bench = Bench::new(config);
    bench.prompt_tokens = prompt_tokens;
    let mut all: Vec<(u64, Request, bool)> = Vec::new();
    let mut steps = 0;
    for event in events {
        match event {
            Event::Nothing => {}
            Event::Submit(group) => {
                let ids = bench.submit_group(group.clone()).expect("every generated request fits");
                all.extend(ids.into_iter().zip(group).map(|(id, request)| (id, request, false)));
            }
            Event::Abort(i) if !all.is_empty() => {
                let i = i % all.len();
                bench.abort(all[i].0);
                all[i].2 |= bench.finish(all[i].0).is_none();
            }
            Event::Abort(_) => {}
        }
        while bench.in_flight() < in_flight && bench.plan().is_some() {
            steps += 1;
        }
        if bench.in_flight() > 0 {
            bench.commit();
        }
    }
    steps += bench.run(in_flight);
    (bench, all, steps)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_the_same_answer_as_alone(
        config in any_config(),
        events in prop::collection::vec(any_event(), 1..60),
        in_flight in 1..3usize,
        prompt_tokens in prop::option::of(1..100usize),
    ) {
        let (bench, all, steps) = play(config, events, in_flight, prompt_tokens);
        for (id, request, aborted) in &all {
            let expected = alone(request, VOCAB);
            match bench.answer(*id) {
                Some(answer) => {
                    prop_assert!(!aborted, "request {id} was answered after its abort");
                    prop_assert_eq!(answer, expected, "request {}", id);
                }
                None => {
                    prop_assert!(aborted, "request {id} was never answered");
                    prop_assert!(expected.tokens.starts_with(&bench.tokens(*id)), "request {}", id);
                }
            }
        }
        let counts = bench.scheduler.counts();
        prop_assert_eq!(counts.blocks_used, 0);
        prop_assert_eq!(counts.blocks_free + counts.blocks_cached, counts.blocks_total);
        let work: usize = all.iter().map(|(_, r, _)| r.prompt.len() + r.stop.max_tokens as usize + 2).sum();
        prop_assert!(steps <= 2 * work, "{steps} steps for {work} tokens");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_the_same_score_as_alone(
        config in any_config(),
        events in prop::collection::vec(any_event(), 1..60),
        in_flight in 1..3usize,
    ) {
        let (config, events) = scored(config, events);
        let (bench, all, _) = play(config, events, in_flight, None);
        for (id, request, aborted) in &all {
            match bench.answer(*id) {
                Some(answer) => prop_assert_eq!(answer, alone(request, VOCAB), "request {}", id),
                None => prop_assert!(aborted, "request {id} was never answered"),
            }
        }
        let counts = bench.scheduler.counts();
        prop_assert_eq!(counts.blocks_used, 0);
        prop_assert_eq!(counts.generated_tokens, 0);
    }
}

/// Random traces may contain no draft that a grammar refuses; this one contains some. They are not fed.
#[test]
fn drafts_that_a_grammar_refuses_are_not_fed() {
    let all = (0..GRAMMARS.len()).flat_map(|grammar| [(grammar, false), (grammar, true)]);
    let mut refused = [0; 2];
    for (grammar, draft_model) in all {
        let config = SchedulerConfig { max_drafts: 6, draft_model, ..scarce((4, 100, 40), true) };
        let ask = |seed: u64| {
            let mut request = request((0..40).map(|i| (seed as u32 + i) % 26).collect(), 90);
            let grammar = Some(Arc::clone(&GRAMMARS[grammar]));
            request.sampling = Arc::new(SamplingParams { seed, grammar, ..SamplingParams::greedy() });
            request
        };
        let asked = (REPETITIVE..REPETITIVE + 6).map(|seed| Event::Submit(vec![ask(seed)]));
        let (bench, all, _) = play(config, asked.collect(), 2, None);
        for (id, request, _) in &all {
            assert_eq!(bench.answer(*id), Some(alone(request, VOCAB)), "request {id}, grammar {grammar}");
        }
        let counts = bench.scheduler.counts().speculation;
        assert!(counts.all_accepted() > 0, "{counts:?}");
        // The fake model fails if it has fed a draft that the grammar refuses.
        refused[usize::from(draft_model)] += bench.model.refused;
    }
    assert!(refused.iter().all(|count| *count > 10), "{refused:?} drafts were refused");
}

/// Random traces may contain no preemption, no shared blocks and no accepted drafts; this trace must contain
/// all of them.
#[test]
fn small_pools_force_preemption_and_sharing() {
    let all = [(1, 0, false), (2, 0, false), (1, 5, false), (2, 5, false), (1, 5, true), (2, 5, true)];
    for (in_flight, max_drafts, draft_model) in all {
        let config = SchedulerConfig { max_drafts, draft_model, ..scarce((5, 100, 8), true) };
        let long = |first: u32| {
            let mut request = request((0..130).map(|i| (first + i) % VOCAB as u32).collect(), 100);
            let sampling = SamplingParams { seed: REPETITIVE, ..SamplingParams::greedy() };
            request.sampling = Arc::new(sampling);
            request
        };
        let events = [0, 0, 1, 0, 2, 0].map(|first| Event::Submit(vec![long(first)])).to_vec();
        let (bench, all, _) = play(config, events, in_flight, None);
        for (id, request, _) in &all {
            let of = format!("request {id}, {in_flight} in flight, {max_drafts} drafts, {draft_model}");
            assert_eq!(bench.answer(*id), Some(alone(request, VOCAB)), "{of}");
        }
        let counts = bench.scheduler.counts();
        assert!(counts.preemptions > 0, "nothing was preempted");
        assert!(counts.prefix_hits > 0, "nothing was shared");
        let (fed, accepted) = (counts.speculation.drafts, counts.speculation.all_accepted());
        assert_eq!(accepted > 0, max_drafts > 0, "{accepted} drafts of {fed} were accepted");
        assert!(accepted < fed || max_drafts == 0, "no draft was rejected");
    }
}
