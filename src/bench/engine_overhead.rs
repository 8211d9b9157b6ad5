//! Times of the scheduler and of the engine without a server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::engine::{Engine, EngineError, Executor, RequestId, SchedulerConfig, SubmitOptions};
use crate::request::{Request, SampledToken, SamplingParams, StopRules, Tenant};
use crate::scheduler::step_plan::{BLOCK_TOKENS, Row, RowOutput, StepOutput, StepPlan};
use crate::scheduler::{PlannedStep, Policy, Scheduler};
use crate::statistics::{percentile, sorted};

/// Size of the vocabulary.
pub(super) const VOCAB: usize = 256_000;

/// Steps per median.
const STEPS: usize = 101;

/// Load of the scheduler.
#[derive(Debug, Clone, Copy)]
pub(super) struct SchedulerLoad {
    /// Sequences that decode.
    pub(super) running: usize,
    /// Waiting requests.
    pub(super) waiting: usize,
    /// Tokens of each prompt.
    pub(super) prompt: usize,
}

/// Median microseconds of a plan and of a commit of a decode step of all running sequences.
pub(super) fn scheduler(load: SchedulerLoad) -> (f64, f64) {
    let mut scheduler = Scheduler::new(config(load.running, load.prompt, load.waiting));
    let submit = |scheduler: &mut Scheduler, ids: std::ops::Range<usize>| {
        for id in ids {
            let request = request(id, load.prompt, 4 * STEPS as u32);
            scheduler.submit(vec![(RequestId(id as u64), request)]).expect("the queue has room");
        }
    };
    submit(&mut scheduler, 0..load.running);
    while scheduler.counts().waiting > 0 {
        let step = scheduler.plan(None).expect("a request waits");
        let output = output(&step.plan);
        scheduler.commit(step.rows, output).expect("the output is the plan's");
    }
    submit(&mut scheduler, load.running..load.running + load.waiting);
    let (mut plans, mut commits) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        let start = Instant::now();
        let PlannedStep { plan, rows } = scheduler.plan(None).expect("a sequence runs");
        plans.push(start.elapsed());
        assert_eq!(plan.rows.len(), load.running, "each step has all running sequences and no other");
        let output = output(&plan);
        let start = Instant::now();
        let updates = scheduler.commit(rows, output).expect("the output is the plan's");
        commits.push(start.elapsed());
        assert_eq!(updates.len(), load.running);
    }
    (median(plans), median(commits))
}

fn median(times: Vec<Duration>) -> f64 {
    percentile(&sorted(times.iter().map(|time| time.as_secs_f64() * 1e6).collect()), 0.5)
}

/// A configuration with room for `running` and `waiting` requests.
pub(super) fn config(running: usize, prompt: usize, waiting: usize) -> SchedulerConfig {
    let len = prompt + 8 * STEPS;
    SchedulerConfig {
        max_num_seqs: running,
        max_num_batched_tokens: 8192.max(running),
        max_model_len: len.max(4096),
        num_blocks: (running + 1) * (len / BLOCK_TOKENS + 2) * 101 / 100 + 1,
        vocab_size: VOCAB,
        max_queue_requests: running + waiting,
        max_queue_tokens: (running + waiting) * prompt,
        prefix_caching: true,
        reward_width: 0,
        policy: Policy::default(),
        max_drafts: 0,
        draft_model: false,
    }
}

/// A request whose prompt has no prefix in common with another.
pub(super) fn request(id: usize, prompt: usize, max_tokens: u32) -> Request {
    Request {
        prompt: (0..prompt).map(|i| ((id * 7919 + i * 31) % VOCAB) as u32).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopRules { max_tokens, stop_ids: vec![0] },
        priority: 0,
        cache_salt: None,
        prompt_logprobs: None,
        prompt_logprobs_start: 0,
        reward: false,
        batch: false,
        tenant: Tenant::default(),
    }
}

/// An output with a token for each row that samples one.
fn output(plan: &StepPlan) -> StepOutput {
    let row = |row: &Row| RowOutput {
        tokens: row.sample.then(|| SampledToken::new(1 + row.slot)).into_iter().collect(),
        ..RowOutput::default()
    };
    StepOutput { id: plan.id, rows: plan.rows.iter().map(row).collect(), ..StepOutput::default() }
}

/// An executor with steps of one length. It measures the time from the results of a step to the next launch.
struct FixedLengthSteps {
    step: Duration,
    free_at: Instant,
    outstanding: VecDeque<(StepOutput, Instant)>,
    collected: Option<Instant>,
    gaps: flume::Sender<Duration>,
    rows: usize,
}

impl Executor for FixedLengthSteps {
    fn enqueue(&mut self, plan: &Arc<StepPlan>) -> Result<(), EngineError> {
        let now = Instant::now();
        // Only steps with all streams count.
        let whole = plan.rows.len() == self.rows;
        if let Some(collected) = self.collected.take().filter(|_| whole) {
            let _receiver_dropped = self.gaps.send(now - collected);
        }
        self.free_at = self.free_at.max(now) + self.step;
        self.outstanding.push_back((output(plan), self.free_at));
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let (output, end) = self.outstanding.pop_front().expect("a step was enqueued");
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        self.collected = Some(Instant::now());
        Ok(output)
    }
}

/// Microseconds from the results of a step to the next launch, for each step of `rows` streams. Each stream
/// is read by its own task.
pub(super) fn gaps(rows: usize, tokens: u32, step: f64) -> anyhow::Result<Vec<f64>> {
    let (gaps, measured) = flume::unbounded();
    let executor = FixedLengthSteps {
        step: Duration::from_secs_f64(step),
        free_at: Instant::now(),
        outstanding: VecDeque::new(),
        collected: None,
        gaps,
        rows,
    };
    let (engine, thread) = Engine::start(config(rows, 512, rows), 2, Box::new(executor))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let streams = (0..rows).map(|id| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let mut streams =
                    engine.enter(1)?.submit(vec![request(id, 512, tokens)], SubmitOptions::default()).await?;
                while streams[0].next().await.finish.is_none() {}
                anyhow::Ok(())
            })
        });
        let streams: Vec<_> = streams.collect();
        for stream in streams {
            stream.await.context("a client failed")??;
        }
        anyhow::Ok(())
    })?;
    engine.stop();
    thread.join().map_err(anyhow::Error::msg)?;
    let micros: Vec<f64> = measured.try_iter().map(|gap| gap.as_secs_f64() * 1e6).collect();
    anyhow::ensure!(!micros.is_empty(), "--tokens: too few for a step of all {rows} streams");
    Ok(micros)
}
