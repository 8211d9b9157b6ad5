//! Steps in which more rows are sampled than a rank samples at a time.

use octant::engine::{SchedulerConfig, SubmitOptions, UpdateStream};
use octant::request::{Finish, Request, SamplingParams, StopRules};

use super::{engine_with, scheduler};
use crate::device::determinism::block_on;
use crate::device::model::fixture;

/// Requests of each kind: greedy ones need the ranks' shortlists, the others all logits.
const EACH: u32 = 180;
const LENGTH: u32 = 12;

fn requests() -> Vec<Request> {
    let ask = |index: u32| {
        let temperature = (index % 2) as f32;
        Request {
            prompt: vec![3 + index * 37 % 300, 3 + index % 300].into(),
            sampling: SamplingParams { temperature, seed: u64::from(index), ..SamplingParams::greedy() }
                .into(),
            stop: StopRules { max_tokens: LENGTH, stop_ids: Vec::new() },
            reward: false,
            ..Request::score(&[1])
        }
    };
    (0..2 * EACH).map(ask).collect()
}

/// The answers of two ranks that run up to `most` sequences at once, and the number of steps.
fn answers(most: usize) -> (Vec<Vec<u32>>, u64) {
    let scheduler = SchedulerConfig {
        max_num_seqs: most,
        max_num_batched_tokens: 1024,
        num_blocks: 512,
        max_queue_requests: 1000,
        ..scheduler(384)
    };
    let (handle, _thread) = engine_with(&fixture("wide"), 2, scheduler);
    let requests = requests();
    let answer = async |mut stream: UpdateStream| {
        let mut ids = Vec::new();
        loop {
            let update = stream.next().await;
            ids.extend(update.tokens.iter().map(|token| token.id));
            match update.finish {
                None => {}
                Some(Finish::Length) => return ids,
                Some(finish) => panic!("{finish:?}"),
            }
        }
    };
    let answers = block_on(async {
        let permit = handle.enter(requests.len()).unwrap();
        let streams = permit.submit(requests, SubmitOptions::default()).await.unwrap();
        futures_util::future::join_all(streams.into_iter().map(answer)).await
    });
    (answers, handle.stats().counts.steps)
}

#[test]
fn rows_of_one_product_with_the_head_have_the_bits_of_others() {
    let (alone, _) = answers(8);
    assert!(alone.iter().all(|ids| ids.len() == LENGTH as usize));
    let (all, steps) = answers(400);
    assert_eq!(all, alone);
    // So few steps that most had more than 64 rows of each kind.
    assert!(steps < 2 * u64::from(LENGTH), "{steps} steps");
}
