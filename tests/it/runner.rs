//! The ranks' threads, and what becomes of one that fails or hangs.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use octant::comm::Communicator;
use octant::device::cpu::{Cpu, Floats};
use octant::device::{CacheSpec, DeviceError, KvDtype};
use octant::engine::Executor;
use octant::model::Precision;
use octant::request::SamplingParams;
use octant::runner::{RankParts, Runner};
use octant::scheduler::plan::{Row, SlotStart, StepPlan, TokenSource};

use crate::device::model::{fixture, load};

/// A group of one whose reductions do as told: go on, fail, or hang.
struct Puppet(Mutex<Receiver<Result<(), String>>>);

impl Communicator<Cpu> for Puppet {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &Cpu, _: &mut Floats) -> Result<(), DeviceError> {
        let told = self.0.lock().unwrap().recv().unwrap_or(Ok(()));
        told.map_err(|message| DeviceError { op: "all_reduce", message })
    }

    fn all_gather(&self, _: &Cpu, _: &Floats, _: &mut Floats) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn runner(step_timeout: Duration) -> (Runner, Sender<Result<(), String>>) {
    let (strings, told) = channel();
    let (config, device, model) = load(&fixture("llama"), Precision::Fp8).unwrap();
    let parts = RankParts {
        device,
        comm: Puppet(Mutex::new(told)),
        model,
        cache: CacheSpec { layers: config.layers, blocks: 2, heads: config.heads, dtype: KvDtype::Fp8 },
        max_num_seqs: 1,
        max_num_batched_tokens: 8,
        vocab: config.vocab,
    };
    (Runner::start(vec![parts], step_timeout), strings)
}

fn plan() -> StepPlan {
    let start = SlotStart {
        sampling: SamplingParams::greedy().into(),
        prompt_len: 2,
        tokens: vec![5, 6],
        prompt_logprobs: None,
    };
    let row = Row {
        slot: 0,
        start: Some(start.into()),
        tokens: TokenSource::Host(vec![5, 6]),
        position: 0,
        blocks: vec![0],
        sample: true,
        score: Vec::new(),
    };
    StepPlan { id: 0, rows: vec![row] }
}

#[test]
fn a_rank_that_fails_says_where() {
    let (mut runner, strings) = runner(Duration::from_secs(60));
    strings.send(Ok(())).unwrap();
    strings.send(Err("the link is down".to_owned())).unwrap();
    runner.enqueue(&plan()).unwrap();
    assert_eq!(runner.collect().unwrap_err().message, "rank 0 failed: all_reduce: the link is down");
    // Whoever asks again hears of it again, in other words.
    assert!(runner.enqueue(&plan()).and_then(|()| runner.collect().map(|_| ())).is_err());
}

#[test]
fn a_rank_that_hangs_is_given_up_in_time_and_not_waited_for() {
    let (mut runner, strings) = runner(Duration::from_millis(200));
    let begun = Instant::now();
    runner.enqueue(&plan()).unwrap();
    assert_eq!(runner.collect().unwrap_err().message, "rank 0 failed: a step did not end within 0.2 s");
    drop(runner);
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(strings);
}
