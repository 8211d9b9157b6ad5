//! Scores of a simulated model with a reward head.

use octant::engine::Engine;
use octant::request::Request;
use octant::scheduler::SchedulerConfig;
use octant::simulator::{SimulatedModel, Simulator, SyntheticAnswers};

use super::cost;
use crate::device::determinism::block_on;
use crate::device::reward::score;
use crate::fake::config;

/// The values that `src/simulator/answers.rs` documents, for the prompt 7, 8.
fn documented(i: u64) -> f32 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |x: u64| {
        let x = x.wrapping_add(STEP);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let key = mix(mix(mix(2) ^ 7) ^ 8);
    (mix(key.wrapping_add(STEP.wrapping_mul(i + 1))) >> 40) as f32 / 4_194_304.0
}

#[test]
fn a_score_depends_on_the_prompt_alone() {
    let answers = SyntheticAnswers::new((1..99).collect(), vec![0], 10.0, 100).unwrap();
    let model = SimulatedModel::new(cost(), answers).with_reward_head(5);
    let simulator = Simulator::new(model, 0.0).unwrap();
    let config = SchedulerConfig { reward_width: 5, max_num_seqs: 2, ..config() };
    let (handle, _thread) = Engine::start(config, 2, Box::new(simulator)).unwrap();
    let prompts: Vec<Vec<u32>> =
        (0..12).map(|i| (0..1 + 13 * i).map(|t| (t * 7 + i) % 100).collect()).collect();
    let got = block_on(async {
        let all = prompts.iter().map(|prompt| score(&handle, Request::score(prompt)));
        futures_util::future::join_all(all).await
    });
    for (got, prompt) in got.iter().zip(&prompts) {
        assert_eq!(*got, SyntheticAnswers::rewards(prompt, 5));
        assert!(got.iter().all(|value| (0.0..4.0).contains(value)));
    }
    let got = block_on(score(&handle, Request::score(&[7, 8])));
    assert_eq!(*got, [0, 1, 2, 3, 4].map(documented));
}
