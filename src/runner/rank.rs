//! One rank: takes plans, runs them, answers. Everything that lives on the device lives on this thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::inputs;
use super::memory::graph_rows;
use super::sampler::{self, SamplerSlots};
use super::{RankFailure, RankOutcome, StepOutput};
use crate::comm::{Communicator, PEER};
use crate::device::{CacheSpec, Device, DeviceError, StepInputs};
use crate::model::{LOGIT_ROWS, Model, Pass, RowsToSample, Workspace};
use crate::scheduler::step_plan::{Row, RowOutput, SlotStart, StepPlan, TokenSource};

/// What a rank is made of.
#[derive(Debug)]
pub struct RankParts<D: Device, C: Communicator<D>> {
    /// Its device.
    pub device: D,
    /// Its end of the group.
    pub comm: C,
    /// Those near its device, on which its thread runs; nothing for any.
    pub processors: Vec<usize>,
    /// Its shard of the model.
    pub model: Model<D>,
    /// Its KV cache, allocated when the rank starts.
    pub cache: CacheSpec,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens per step.
    pub max_num_batched_tokens: usize,
    /// Ids below this may be drawn: the tokenizer's vocabulary, at most the model's.
    pub vocab: usize,
}

/// A rank at work.
pub(super) struct RankWorker<D: Device, C: Communicator<D>> {
    // Dropped in this order: NCCL waits for the graphs that use it, and other ranks hear of this one's end before its
    // memory is freed, which waits for what still runs.
    /// Layers over steps of so many rows, of which each is another sequence's, fewest first.
    graphs: Vec<(usize, D::Recording)>,
    comm: C,
    device: D,
    model: Model<D>,
    vocab: usize,
    space: Workspace<D>,
    cache: D::Cache,
    slots: SamplerSlots,
}

/// A step whose tokens have been drawn and not asked for.
struct LaunchedStep {
    plan: Arc<StepPlan>,
    rows: Vec<RowOutput>,
    /// Rows that draw, as they were sampled together, with who has their slots.
    drawing: Vec<Vec<(usize, Arc<SlotStart>)>>,
}

/// Runs plans until there are no more, or one fails. The next step is launched before the results of the one before
/// are waited for, if its plan is there, so that a device that runs by itself never waits for the host.
pub(super) fn live<D: Device, C: Communicator<D>>(
    parts: RankParts<D, C>,
    plans: &flume::Receiver<Arc<StepPlan>>,
    outcomes: &flume::Sender<RankOutcome>,
    prepared: flume::Sender<()>,
) {
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), DeviceError> {
        stay_on(&parts.processors);
        let mut rank = RankWorker::new(parts)?;
        let _nobody_asks = prepared.send(());
        let mut before: Option<LaunchedStep> = None;
        loop {
            let next = if before.is_some() { plans.try_recv().ok() } else { plans.recv().ok() };
            if next.is_none() && before.is_none() {
                return Ok(());
            }
            let mut outputs = Vec::new();
            if next.as_deref().is_some_and(|plan| rank.needs_last_tokens(plan)) {
                outputs.extend(before.take().map(|step| rank.finish(step)));
            }
            let launched = next.map(|plan| rank.launch(plan)).transpose()?;
            outputs.extend(before.take().map(|step| rank.finish(step)));
            before = launched;
            for output in outputs {
                if outcomes.send(Ok(output?)).is_err() {
                    return Ok(());
                }
            }
        }
    }));
    let failure = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(error)) if error.op == PEER => RankFailure::Peer(error.to_string()),
        Ok(Err(error)) => RankFailure::Own(error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            RankFailure::Own(format!("panicked: {text}"))
        }
    };
    let _nobody_waits = outcomes.send(Err(failure));
}

/// Keeps this thread on some processors, as far as it may be there. That is for speed only, and may fail.
fn stay_on(processors: &[usize]) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut set = CpuSet::new();
    processors.iter().filter(|n| **n < CpuSet::MAX_CPU && allowed.is_set(**n)).for_each(|n| set.set(*n));
    if set.count() > 0 {
        let _anywhere = sched_setaffinity(None, &set);
    }
}

impl<D: Device, C: Communicator<D>> RankWorker<D, C> {
    fn new(parts: RankParts<D, C>) -> Result<Self, DeviceError> {
        let (rows, slots) = (parts.max_num_batched_tokens, parts.max_num_seqs);
        parts.comm.prepare(&parts.device, rows, parts.model.config().hidden)?;
        let space = Workspace::new(&parts.device, &parts.comm, &parts.model, rows, slots)?;
        let mut rank = Self {
            space,
            cache: parts.device.cache(parts.cache)?,
            slots: SamplerSlots::new(parts.max_num_seqs),
            vocab: parts.vocab.min(parts.model.vocab()),
            device: parts.device,
            comm: parts.comm,
            model: parts.model,
            graphs: Vec::new(),
        };
        // Nobody launches what waits for others while these still allocate: a driver may do one thing at a time.
        rank.comm.meet()?;
        if D::CAPTURES && rank.comm.captures() {
            rank.record(parts.max_num_seqs.min(parts.max_num_batched_tokens))?;
        }
        Ok(rank)
    }

    /// Records decode steps of some numbers of rows, at most so many.
    fn record(&mut self, most: usize) -> Result<(), DeviceError> {
        for rows in graph_rows(most) {
            let pass = Pass { device: &self.device, comm: &self.comm, cache: &mut self.cache };
            self.graphs.push((rows, self.model.record(rows, &mut self.space, pass)?));
        }
        Ok(())
    }

    /// All layers over a step, recorded ones if there are some for it.
    fn forward(&mut self, inputs: &mut StepInputs) -> Result<(), DeviceError> {
        let rows = inputs.tokens.len();
        let decodes = inputs.segments.iter().all(|segment| segment.len == 1);
        let fits = self.graphs.iter().find(|(most, _)| decodes && rows <= *most);
        if let Some((most, recording)) = fits {
            inputs.graph_rows = *most;
            if self.model.repeat(recording, inputs, &mut self.space, &self.device)? {
                return Ok(());
            }
            inputs.graph_rows = 0;
        }
        let pass = Pass { device: &self.device, comm: &self.comm, cache: &mut self.cache };
        self.model.forward(inputs, &mut self.space, pass)
    }

    /// Whether a plan cannot be launched before the tokens of the step before are known.
    fn needs_last_tokens(&self, plan: &StepPlan) -> bool {
        let feeds_last = |row: &&Row| row.tokens == TokenSource::LastSampled && row.start.is_none();
        plan.rows.iter().filter(feeds_last).any(|row| self.slots.get(row.slot).counts())
    }

    /// One step: forward, score prompt tokens, draw.
    fn launch(&mut self, plan: Arc<StepPlan>) -> Result<LaunchedStep, DeviceError> {
        self.slots.admit(&plan);
        let mut inputs = inputs::flatten(&plan);
        self.forward(&mut inputs)?;
        let mut rows = vec![RowOutput::default(); plan.rows.len()];
        let firsts: Vec<usize> = inputs.segments.iter().map(|segment| segment.first).collect();
        self.score(&plan, &firsts, &mut rows)?;
        let pieces = self.sample(&plan, &firsts)?;
        let drawing = |index: usize| (index, Arc::clone(self.slots.get(plan.rows[index].slot).start()));
        let drawing = pieces.into_iter().map(|piece| piece.into_iter().map(drawing).collect()).collect();
        Ok(LaunchedStep { drawing, plan, rows })
    }

    /// Waits for the tokens of a step.
    fn finish(&mut self, step: LaunchedStep) -> Result<StepOutput, DeviceError> {
        let LaunchedStep { plan, mut rows, drawing } = step;
        for piece in &drawing {
            let draws = self.device.take_sampled(&mut self.space.draws)?;
            for ((index, start), draw) in piece.iter().zip(draws) {
                self.slots.record(plan.rows[*index].slot, start, draw, &mut rows[*index]);
            }
        }
        self.comm.check()?;
        Ok(StepOutput { id: plan.id, rows })
    }

    /// Log-probabilities of prompt tokens, for the rows that ask for them.
    fn score(&mut self, plan: &StepPlan, firsts: &[usize], out: &mut [RowOutput]) -> Result<(), DeviceError> {
        for (index, row) in plan.rows.iter().enumerate() {
            for (piece, targets) in row.score.chunks(LOGIT_ROWS).enumerate() {
                let start = firsts[index] + piece * LOGIT_ROWS;
                let wanted: Vec<u32> = (start..start + targets.len()).map(|r| r as u32).collect();
                self.model.logits(&self.device, &self.comm, &wanted, &mut self.space)?;
                let top = self.slots.get(row.slot).prompt_top();
                let scores = self.device.score(&self.space.logits, self.vocab, targets, top)?;
                sampler::record_scores(targets, scores, &mut out[index]);
            }
        }
        Ok(())
    }

    /// Draws a token for each row that wants one. Says which rows were sampled together.
    fn sample(&mut self, plan: &StepPlan, firsts: &[usize]) -> Result<Vec<Vec<usize>>, DeviceError> {
        let wanting = (0..plan.rows.len()).filter(|index| plan.rows[*index].sample);
        // Ranks that share a vocabulary name their largest logits, where that is enough, rather than exchange all.
        let divided = self.model.is_divided();
        let is_short = |index: &usize| divided && self.slots.sample_row(&plan.rows[*index]).is_short();
        let (short, whole): (Vec<usize>, Vec<usize>) = wanting.partition(is_short);
        let short = short.chunks(LOGIT_ROWS).map(|piece| (piece, true));
        let pieces: Vec<_> = short.chain(whole.chunks(LOGIT_ROWS).map(|piece| (piece, false))).collect();
        for (piece, is_short) in &pieces {
            let last = |index: &usize| (firsts[*index] + plan.rows[*index].tokens.len() - 1) as u32;
            let wanted: Vec<u32> = piece.iter().map(last).collect();
            let rows: Vec<_> = piece.iter().map(|index| self.slots.sample_row(&plan.rows[*index])).collect();
            let space = &mut self.space;
            if *is_short {
                let wanted = RowsToSample { rows: &wanted, sampling: &rows, vocab: self.vocab };
                self.model.shortlists(&self.device, &self.comm, &wanted, space)?;
                let lists = space.shortlists.as_ref().expect("a divided model has them");
                self.device.pick(&lists.all, &rows, &mut space.draws)?;
            } else {
                self.model.logits(&self.device, &self.comm, &wanted, space)?;
                self.device.sample(&space.logits, self.vocab, &rows, &mut space.draws)?;
            }
        }
        Ok(pieces.into_iter().map(|(piece, _)| piece.to_vec()).collect())
    }
}
