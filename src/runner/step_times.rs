//! Measures how long steps of few rows take, so that the scheduler knows what a draft costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{EngineError, Executor};
use crate::request::SamplingParams;
use crate::scheduler::step_plan::{BLOCK_TOKENS, Row, SlotStart, StepPlan, TokenSource};
use crate::scheduler::{SchedulerConfig, StepTime, StepTimes};

/// Steps of each number of rows. The shortest one counts: others were interrupted.
const REPEATS: usize = 3;
/// No further numbers of rows are measured after this time, so that a slow device delays the start little.
const LONGEST: Duration = Duration::from_secs(2);

/// Runs steps of one sequence of a few tokens and returns their times. No other step may be in flight. The
/// contents of the first KV block are overwritten.
///
/// # Errors
/// A step fails.
pub fn measure_step_times(
    executor: &mut dyn Executor,
    config: &SchedulerConfig,
) -> Result<StepTimes, EngineError> {
    let began = Instant::now();
    let most = config.max_num_batched_tokens.min(BLOCK_TOKENS).min(config.max_model_len);
    let mut times = Vec::new();
    // The first step is slower than those after it.
    step(executor, 1)?;
    for rows in StepTimes::rows_to_measure(most) {
        let mut shortest = step(executor, rows)?;
        for _ in 1..REPEATS {
            shortest = shortest.min(step(executor, rows)?);
        }
        times.push(StepTime { rows, seconds: shortest.as_secs_f64() });
        if began.elapsed() > LONGEST {
            break;
        }
    }
    let milliseconds = |time: &StepTime| format!("{} {:.2}", time.rows, time.seconds * 1e3);
    let shown: Vec<String> = times.iter().map(milliseconds).collect();
    tracing::info!("rows and milliseconds of a step, for speculative decoding: {}", shown.join(", "));
    Ok(StepTimes::new(times))
}

/// Runs a step that feeds `rows` tokens and samples after each of them.
fn step(executor: &mut dyn Executor, rows: usize) -> Result<Duration, EngineError> {
    let start = SlotStart {
        sampling: SamplingParams::greedy().into(),
        prompt_len: 1,
        tokens: vec![0],
        prompt_logprobs: None,
        grammar: None,
    };
    let row = Row {
        slot: 0,
        start: Some(Arc::new(start)),
        tokens: TokenSource::Host(vec![0; rows]),
        position: 0,
        blocks: [0].into(),
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
