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
/// Numbers of sequences whose passes of a draft model are measured.
const DRAFTING: [usize; 5] = [1, 2, 4, 8, 12];
/// The least time of a draft model's pass, as a share of the time that a step takes for as many bytes of
/// weights.
const LEAST_OF_SHARE: f64 = 0.9;
/// Drafts of each sequence when a draft model's passes are measured.
const PASSES: usize = 4;

/// A kind of step: a number of rows of one sequence after a context.
#[derive(Debug, Clone, Copy)]
struct Kind {
    rows: usize,
    context: usize,
    /// The shortest time so far.
    shortest: Duration,
}

/// Runs steps of one sequence and returns their times. No other step may be in flight. The contents of the
/// first KV blocks are overwritten. `draft_share` is the size of the draft model's weights as a share of the
/// model's; 0 without a draft model.
///
/// # Errors
/// A step fails.
pub(crate) fn measure_step_times(
    executor: &mut dyn Executor,
    config: &SchedulerConfig,
    draft_share: f64,
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
    let drafting = if config.draft_model { measure_draft_model(executor, config)? } else { Vec::new() };
    let (short, long) = kinds.split_at(without);
    tracing::info!("rows and milliseconds of a step, for speculative decoding: {}", list(short));
    let time = |kind: &Kind| StepTime { rows: kind.rows, seconds: kind.shortest.as_secs_f64() };
    let times = StepTimes::new(short.iter().map(time).collect());
    let times = with_passes(times, &drafting, draft_share);
    let [one, several] = long else { return Ok(times) };
    tracing::info!("the same after {longest} positions: {}", list(long));
    let with = |kind: &Kind| ContextTime { context: kind.context, time: time(kind) };
    Ok(times.with_context([with(one), with(several)]))
}

/// Runs steps in which a draft model proposes [`PASSES`] drafts for each sequence, which the model computes.
fn measure_draft_model(
    executor: &mut dyn Executor,
    config: &SchedulerConfig,
) -> Result<Vec<StepTime>, EngineError> {
    let most = config.max_num_seqs.min(config.num_blocks).min(config.max_num_batched_tokens / (PASSES + 1));
    let mut times: Vec<StepTime> = Vec::new();
    if config.max_model_len <= PASSES {
        return Ok(times);
    }
    for sequences in DRAFTING.into_iter().filter(|sequences| *sequences <= most) {
        let row = |slot: usize| Row { proposals: PASSES, ..row(slot, 1, 0) };
        let rows: Vec<Row> = (0..sequences).map(row).collect();
        let mut shortest = Duration::MAX;
        for _ in 0..=REPEATS {
            shortest = shortest.min(timed(executor, rows.clone())?);
        }
        times.push(StepTime { rows: sequences, seconds: shortest.as_secs_f64() });
    }
    Ok(times)
}

/// Adds the times of a draft model's passes: those of the measured steps without the model's time. The two
/// were not measured at once, and another program may have disturbed one of them. Therefore a pass is never
/// taken to be faster than its share of the weights lets expect.
fn with_passes(times: StepTimes, steps: &[StepTime], draft_share: f64) -> StepTimes {
    let least = LEAST_OF_SHARE * draft_share * times.seconds(1);
    let pass = |step: &StepTime| {
        let without = times.seconds(step.rows * (PASSES + 1));
        let seconds = (step.seconds - without) / PASSES as f64;
        StepTime { rows: step.rows, seconds: seconds.max(least) }
    };
    let passes: Vec<StepTime> = steps.iter().map(pass).collect();
    if !passes.is_empty() {
        let shown = |pass: &StepTime| format!("{} {:.2}", pass.rows, pass.seconds * 1e3);
        let list: Vec<String> = passes.iter().map(shown).collect();
        tracing::info!("sequences and milliseconds of a pass of the draft model: {}", list.join(", "));
    }
    times.with_draft_model(passes)
}

/// Runs a step that samples after each of its rows.
fn run(executor: &mut dyn Executor, kind: Kind) -> Result<Duration, EngineError> {
    timed(executor, vec![row(0, kind.rows, kind.context)])
}

/// Runs a step and returns its time.
fn timed(executor: &mut dyn Executor, rows: Vec<Row>) -> Result<Duration, EngineError> {
    let began = Instant::now();
    executor.enqueue(&Arc::new(StepPlan { id: 0, rows }))?;
    executor.collect()?;
    Ok(began.elapsed())
}

/// A row that feeds tokens after a context and samples after each of them.
fn row(slot: usize, rows: usize, context: usize) -> Row {
    // Random choices take longer than greedy ones.
    let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
    let start = SlotStart {
        sampling: sampling.into(),
        prompt_len: 1,
        tokens: vec![0],
        prompt_logprobs: None,
        grammar: None,
    };
    // A sequence without a context has a block of its own.
    let first = if context == 0 { slot as u32 } else { 0 };
    Row {
        slot: slot as u32,
        start: Some(Arc::new(start)),
        tokens: TokenSource::Host(vec![0; rows]),
        position: context as u32,
        blocks: (first..first + (context + rows).div_ceil(BLOCK_TOKENS) as u32).collect(),
        sample: true,
        drafts: rows - 1,
        proposals: 0,
        score: Vec::new(),
        score_from: 0,
        reward: false,
    }
}
