//! Random requests and configurations, and the right answers.

use std::sync::Arc;

use octant::random::Random;
use octant::request::{Request, SamplingParams, Tenant};
use octant::scheduler::{Policy, SchedulerConfig};
use octant::simulator::SyntheticAnswers;

use crate::fake::{Answer, alone, request, scarce, scored_from};

pub use crate::fake::SCARCE_VOCAB as VOCAB;

/// The tenants: names and weights.
pub const TENANTS: [(&str, u32); 4] = [("", 1), ("bronze", 1), ("silver", 3), ("gold", 8)];

pub fn tenant(i: usize) -> Tenant {
    let (name, weight) = TENANTS[i];
    Tenant { name: name.into(), weight }
}

/// A random number below `limit`.
pub fn below(draws: &mut Random, limit: usize) -> usize {
    (draws.bits() % limit as u64) as usize
}

/// True with probability 1 / `sides`.
pub fn one_in(draws: &mut Random, sides: usize) -> bool {
    below(draws, sides) == 0
}

/// A random configuration: few slots, blocks and places in the queue, or rarely a large server.
pub fn config(draws: &mut Random) -> SchedulerConfig {
    let large = one_in(draws, 40);
    let sizes = match large {
        true => (48, 256, 200),
        false => (1 + below(draws, 6), 1 + below(draws, 150), 6 + below(draws, 10)),
    };
    let few = one_in(draws, 4).then(|| 1 + below(draws, 6));
    let short = one_in(draws, 6).then_some(400);
    let usual = scarce(sizes, !one_in(draws, 3));
    SchedulerConfig {
        max_queue_requests: few.unwrap_or(usual.max_queue_requests),
        max_queue_tokens: short.unwrap_or(usual.max_queue_tokens),
        ..usual
    }
}

/// A random policy: fast, slow or no ageing; many, few or no preemptions.
pub fn policy(draws: &mut Random) -> Policy {
    Policy {
        ageing_steps: [0, 1, 5, 40, 1000][below(draws, 5)],
        max_preemptions: below(draws, 4) as u32,
        kv_reserve: [0.0, 0.0, 0.25, 0.5, 1.0][below(draws, 5)],
    }
}

/// A random priority: mostly 0, 1 or -1.
pub fn priority(draws: &mut Random) -> i32 {
    match one_in(draws, 3) {
        true => below(draws, 11) as i32 - 5,
        false => [0, 0, 0, -1, 1][below(draws, 5)],
    }
}

pub fn voice() -> SyntheticAnswers {
    let eos = VOCAB as u32 - 1;
    SyntheticAnswers::new((0..eos).collect(), vec![eos], 60.0, VOCAB).unwrap()
}

/// A random prompt. Prompts of one family share a prefix.
fn prompt(draws: &mut Random) -> Vec<u32> {
    let (family, common, branch) = (below(draws, 2), below(draws, 200), below(draws, 3));
    let len = if one_in(draws, 8) { 1 + below(draws, 3) } else { 1 + below(draws, 260) };
    let token = |i: usize| if i < common { family * 7 + i } else { branch * 11 + 3 * i };
    (0..len).map(|i| (token(i) % VOCAB) as u32).collect()
}

/// A random request, which may be invalid. Its seed identifies it: no other request has the same answer.
pub fn any(draws: &mut Random, seed: u64, config: &SchedulerConfig) -> Request {
    let mut asked = request(prompt(draws), 1 + below(draws, 140) as u32);
    let len = asked.prompt.len();
    let room = config.max_sequence_tokens().saturating_sub(len) as u32;
    if one_in(draws, 6) {
        asked.prompt_logprobs = Some(below(draws, 3) as u8);
        asked.prompt_logprobs_start = if one_in(draws, 2) { below(draws, len) as u32 } else { 0 };
    }
    asked.stop.max_tokens = match below(draws, 24) {
        0 => 1,
        1 => room,
        2 => room + 1,
        // Valid only together with `prompt_logprobs`.
        3 => 0,
        _ => asked.stop.max_tokens,
    };
    if one_in(draws, 60) {
        asked.prompt = Arc::from([]);
    }
    if one_in(draws, 60) {
        asked.prompt = Arc::from([1, VOCAB as u32]);
    }
    if one_in(draws, 60) {
        // Valid only with `prompt_logprobs` and a longer prompt.
        asked.prompt_logprobs_start = 3;
    }
    let eos = VOCAB as u32 - 1;
    asked.stop.stop_ids = [vec![], vec![eos], vec![3], vec![5, 17, eos]][below(draws, 4)].clone();
    asked.sampling = Arc::new(SamplingParams {
        temperature: 1.0,
        seed,
        logprobs: one_in(draws, 5).then_some(2),
        min_tokens: (below(draws, 20) as u32).min(asked.stop.max_tokens),
        barred: asked.stop.stop_ids.clone(),
        ..SamplingParams::greedy()
    });
    asked.priority = priority(draws);
    asked.cache_salt = one_in(draws, 5).then(|| Arc::from("salt"));
    asked
}

/// Whether a server with this configuration can serve the request.
pub fn sound(asked: &Request, config: &SchedulerConfig) -> bool {
    let total = asked.prompt.len() + asked.stop.max_tokens as usize;
    !asked.prompt.is_empty()
        && asked.prompt.iter().all(|id| (*id as usize) < VOCAB)
        && (asked.stop.max_tokens > 0 || asked.prompt_logprobs.is_some())
        && (asked.prompt_logprobs.is_some() || asked.prompt_logprobs_start == 0)
        && (asked.prompt_logprobs_start as usize) < asked.prompt.len()
        && total <= config.max_model_len.min(config.num_blocks * 64)
}

/// The right answer, by the simulated model or by the fake model that reads its blocks.
pub fn answer(asked: &Request, voice: Option<&SyntheticAnswers>) -> Answer {
    let Some(voice) = voice else { return alone(asked, VOCAB) };
    let (tokens, finish) = voice.answer(asked);
    let scored = asked.prompt_logprobs.map_or(&[][..], |_| &asked.prompt[scored_from(asked)..]);
    let scores = scored.iter().map(|token| voice.score(*token, asked.prompt_logprobs.unwrap_or(0)));
    Answer { tokens, finish, scores: scores.collect() }
}
