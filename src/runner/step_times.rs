//! Measures how long steps of few rows take, so that the scheduler knows what a draft costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{EngineError, Executor};
use crate::request::SamplingParams;
use crate::scheduler::step_plan::{BLOCK_TOKENS, Row, SlotStart, StepPlan, TokenSource};
use crate::scheduler::{ContextTime, SchedulerConfig, StepTime, StepTimes};

/// Steps of each kind. The shortest one counts: the others were interrupted.
const REPEATS: usize = 3;
/// Steps are not repeated after this time, so that a slow device delays the start little.
const LONGEST: Duration = Duration::from_secs(2);
/// Positions of the context whose cost is measured, at most.
const CONTEXT: usize = 2048;

/// A kind of step: a number of rows of one sequence after a context.
#[derive(Debug, Clone, Copy)]
struct Kind {
    rows: usize,
    context: usize,
    /// The shortest time so far.
    shortest: Duration,
}

/// Runs steps of one sequence and returns their times. No other step may be in flight. The contents of the
/// first KV blocks are overwritten.
///
/// # Errors
/// A step fails.
pub(crate) fn measure_step_times(
    executor: &mut dyn Executor,
    config: &SchedulerConfig,
) -> Result<StepTimes, EngineError> {
    let most = config.max_num_batched_tokens.min(BLOCK_TOKENS).min(config.max_model_len);
    let longest = config.max_sequence_tokens().saturating_sub(BLOCK_TOKENS).min(CONTEXT);
    let kind = |rows: usize, context: usize| Kind { rows, context, shortest: Duration::MAX };
    let mut kinds: Vec<Kind> = StepTimes::rows_to_measure(most).map(|rows| kind(rows, 0)).collect();
    let without = kinds.len();
    if longest > 0 && StepTimes::WITH_CONTEXT.iter().all(|rows| *rows <= most) {
        kinds.extend(StepTimes::WITH_CONTEXT.map(|rows| kind(rows, longest)));
    }
    // The first step is slower than those after it.
    run(executor, kind(1, 0))?;
    let began = Instant::now();
    for _ in 0..REPEATS {
        for kind in &mut kinds {
            kind.shortest = kind.shortest.min(run(executor, *kind)?);
        }
        if began.elapsed() > LONGEST {
            break;
        }
    }
    let shown = |kind: &Kind| format!("{} {:.2}", kind.rows, kind.shortest.as_secs_f64() * 1e3);
    let list = |kinds: &[Kind]| kinds.iter().map(shown).collect::<Vec<_>>().join(", ");
    let (short, long) = kinds.split_at(without);
    tracing::info!("rows and milliseconds of a step, for speculative decoding: {}", list(short));
    let time = |kind: &Kind| StepTime { rows: kind.rows, seconds: kind.shortest.as_secs_f64() };
    let times = StepTimes::new(short.iter().map(time).collect());
    let [one, several] = long else { return Ok(times) };
    tracing::info!("the same after {longest} positions: {}", list(long));
    let with = |kind: &Kind| ContextTime { context: kind.context, time: time(kind) };
    Ok(times.with_context([with(one), with(several)]))
}

/// Runs a step that samples after each of its rows.
fn run(executor: &mut dyn Executor, kind: Kind) -> Result<Duration, EngineError> {
    let Kind { rows, context, .. } = kind;
    // Random choices take longer than greedy ones.
    let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
    let start = SlotStart {
        sampling: sampling.into(),
        prompt_len: 1,
        tokens: vec![0],
        prompt_logprobs: None,
        grammar: None,
    };
    let row = Row {
        slot: 0,
        start: Some(Arc::new(start)),
        tokens: TokenSource::Host(vec![0; rows]),
        position: context as u32,
        blocks: (0..(context + rows).div_ceil(BLOCK_TOKENS) as u32).collect(),
        sample: true,
        drafts: rows - 1,
        score: Vec::new(),
        score_from: 0,
        reward: false,
    };
    let began = Instant::now();
    executor.enqueue(&Arc::new(StepPlan { id: 0, rows: vec![row] }))?;
    executor.collect()?;
    Ok(began.elapsed())
}
