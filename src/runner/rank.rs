//! The worker thread of one rank: takes step plans, runs them and returns their outputs. Everything that
//! lives on the device is owned by this thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::decoder::{Decoder, Limits, Links, ToSample};
use super::draft::{DraftModel, Proposed};
use super::inputs;
use super::mask_pool::{MaskJob, RankPlace};
use super::sampler::{self, SampledPosition, SamplerSlots};
use super::{RankFailure, RankOutcome, StepOutput};
use crate::comm::Communicator;
use crate::device::{CacheSpec, DECODE_ROWS, Device, DeviceError, PEER};
use crate::engine::panic_text;
use crate::grammar::TokenMask;
use crate::model::{HeadRows, LOGIT_ROWS, Model};
use crate::scheduler::step_plan::{Row, RowOutput, SlotStart, StepPlan, TokenSource};

/// The parts that a rank is built from.
#[derive(Debug)]
pub struct RankParts<D: Device, C: Communicator<D>> {
    /// The rank's device.
    pub device: D,
    /// The rank's handle on the communicator group.
    pub comm: C,
    /// CPUs near the device, to which the rank's thread is pinned. Empty: not pinned.
    pub processors: Vec<usize>,
    /// The rank's shard of the model.
    pub model: Model<D>,
    /// Shape of the rank's KV cache, which is allocated when the rank starts.
    pub cache: CacheSpec,
    /// The rank's part of a draft model.
    pub draft: Option<DraftParts<D, C>>,
    /// Limit on sequences that run at once.
    pub max_num_seqs: usize,
    /// Limit on tokens per step.
    pub max_num_batched_tokens: usize,
    /// Tokens from which a step is computed as two batches, if any is.
    pub two_batch_tokens: Option<usize>,
    /// Ids below this may be sampled: the size of the tokenizer's vocabulary, at most the model's.
    pub vocab: usize,
}

/// The parts of a rank's draft model.
#[derive(Debug)]
pub struct DraftParts<D: Device, C: Communicator<D>> {
    /// The rank's device, with scratch memory of its own: see [`Device::sibling`].
    pub device: D,
    /// The rank's handle on a communicator group of the draft model's own.
    pub comm: C,
    /// The rank's shard of the draft model.
    pub model: Model<D>,
    /// Shape of the draft model's KV cache, with as many blocks as the model's.
    pub cache: CacheSpec,
}

/// A started rank.
pub(super) struct RankWorker<D: Device, C: Communicator<D>> {
    // Fields are dropped in this order. Dropping the communicators tells other ranks that this one has ended,
    // before freeing memory, which waits for running kernels.
    links: Links<C>,
    /// With a draft model.
    draft_links: Option<Links<C>>,
    device: D,
    decoder: Decoder<D>,
    draft: Option<DraftModel<D>>,
    slots: SamplerSlots,
    place: RankPlace,
}

/// A step whose forward pass has been launched.
struct ForwardPass {
    plan: Arc<StepPlan>,
    /// Scores of prompt tokens, and values of the reward head.
    rows: Vec<RowOutput>,
    /// The first input token of each row.
    firsts: Vec<usize>,
    /// Time for which the draft model's device had to wait for masks.
    mask_wait: Duration,
}

/// A row that samples, with the slot's occupant at that time.
struct SamplingRow {
    index: usize,
    start: Arc<SlotStart>,
}

/// A step that has been launched, and whose tokens have been sampled but not read back.
struct PendingOutput {
    plan: Arc<StepPlan>,
    rows: Vec<RowOutput>,
    sampling: Vec<SamplingRow>,
    /// The row of each token, by sampling launch.
    pieces: Vec<Vec<usize>>,
    /// Time for which the device had to wait for masks.
    mask_wait: Duration,
}

/// Runs plans until the channel closes or a plan fails. If the next plan is already there, it is launched
/// before the results of the previous step are read, so an asynchronous device never waits for the host.
pub(super) fn run_rank<D: Device, C: Communicator<D>>(
    parts: RankParts<D, C>,
    place: RankPlace,
    plans: &flume::Receiver<Arc<StepPlan>>,
    outcomes: &flume::Sender<RankOutcome>,
    prepared: flume::Sender<()>,
) {
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), DeviceError> {
        pin_to(&parts.processors);
        let mut rank = RankWorker::new(parts, place)?;
        let _ignored = prepared.send(());
        let mut previous: Option<PendingOutput> = None;
        loop {
            let next = if previous.is_some() { plans.try_recv().ok() } else { plans.recv().ok() };
            if next.is_none() && previous.is_none() {
                return Ok(());
            }
            let mut outputs = Vec::new();
            let is_last_known = previous.is_none();
            let forward = next.map(|plan| rank.launch_forward(plan, is_last_known)).transpose()?;
            if let Some(step) = forward.as_ref().filter(|step| rank.needs_last_tokens(&step.plan))
                && let Some(previous) = previous.take()
            {
                outputs.push(rank.finish(previous));
                rank.submit_masks(&step.plan, |row| row.tokens == TokenSource::LastSampled);
            }
            let launched = forward.map(|step| rank.launch_sampling(step)).transpose()?;
            outputs.extend(previous.take().map(|step| rank.finish(step)));
            previous = launched;
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
        Err(panic) => RankFailure::Own(format!("panicked: {}", panic_text(&*panic))),
    };
    let _ignored = outcomes.send(Err(failure));
}

/// Pins this thread to those of the given CPUs that it may use. Only for speed, so failures are ignored.
fn pin_to(processors: &[usize]) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut set = CpuSet::new();
    processors.iter().filter(|n| **n < CpuSet::MAX_CPU && allowed.is_set(**n)).for_each(|n| set.set(*n));
    if set.count() > 0 {
        let _ignored = sched_setaffinity(None, &set);
    }
}

impl<D: Device, C: Communicator<D>> RankWorker<D, C> {
    fn new(parts: RankParts<D, C>, place: RankPlace) -> Result<Self, DeviceError> {
        let (rows, slots) = (parts.max_num_batched_tokens, parts.max_num_seqs);
        assert!(parts.two_batch_tokens.is_none() || C::RUNS_BESIDE, "this group adds on one stream only");
        let limits = Limits { rows, slots, vocab: parts.vocab, two_batch_tokens: parts.two_batch_tokens };
        let decoder = Decoder::new(&parts.device, parts.model, parts.cache, limits)?;
        let (mut draft, mut draft_links) = (None, None);
        if let Some(parts) = parts.draft {
            let blocks = parts.cache.blocks;
            let limits = Limits { two_batch_tokens: None, ..limits };
            let decoder = Decoder::new(&parts.device, parts.model, parts.cache, limits);
            let decoder = decoder.map_err(|error| error.at("draft model"))?;
            draft = Some(DraftModel::new(parts.device, decoder, blocks, rows));
            draft_links = Some(Links::new(parts.comm));
        }
        let mut rank = Self {
            slots: SamplerSlots::new(slots, draft.is_some()),
            links: Links::new(parts.comm),
            draft_links,
            device: parts.device,
            decoder,
            draft,
            place,
        };
        // Waits for all ranks. Kernels that wait for other ranks must not be launched while some rank still
        // allocates: a driver may serialise the two.
        rank.decoder.space.register(&rank.links.comm)?;
        if let (Some(draft), Some(links)) = (&mut rank.draft, &mut rank.draft_links) {
            draft.decoder.space.register(&links.comm)?;
            draft.decoder.capture(&draft.device, links, limits)?;
        }
        rank.decoder.capture(&rank.device, &mut rank.links, limits)?;
        Ok(rank)
    }

    /// Whether a plan cannot be sampled until the tokens of the previous step are read: a penalty counts
    /// them, or a grammar follows them. The forward pass does not need them on the host: it runs meanwhile.
    fn needs_last_tokens(&self, plan: &StepPlan) -> bool {
        let feeds_last = |row: &&Row| row.tokens == TokenSource::LastSampled && row.start.is_none();
        plan.rows.iter().filter(feeds_last).any(|row| self.slots.get(row.slot).needs_last_token())
    }

    /// Launches the forward pass of a step, and scores prompt tokens. `is_last_known`: the results of all
    /// earlier steps have been read.
    fn launch_forward(
        &mut self,
        plan: Arc<StepPlan>,
        is_last_known: bool,
    ) -> Result<ForwardPass, DeviceError> {
        self.slots.admit(&plan);
        let plan = self.slots.without_refused(plan);
        let Proposed { plan, mask_wait } = match (&mut self.draft, &self.draft_links) {
            (Some(draft), Some(links)) => draft.propose(links, &self.slots, &self.place, plan)?,
            _ => Proposed::unchanged(plan),
        };
        // On a device that runs the pass within its launch, these masks are computed meanwhile.
        self.submit_masks(&plan, |row| is_last_known || row.tokens != TokenSource::LastSampled);
        // Shorter segments can be decoded by a graph; otherwise a longer one reads each KV block once.
        let longest = if D::LAYOUT.captures() { DECODE_ROWS } else { usize::MAX };
        let mut inputs = inputs::flatten(&plan, longest);
        self.decoder.forward(&self.device, &self.links, &mut inputs)?;
        let mut rows = vec![RowOutput::default(); plan.rows.len()];
        let fed = |sum: &mut usize, row: &Row| Some(std::mem::replace(sum, *sum + row.tokens.len()));
        let firsts: Vec<usize> = plan.rows.iter().scan(0, fed).collect();
        self.score(&plan, &firsts, &mut rows)?;
        self.rewards(&plan, &firsts, &mut rows)?;
        Ok(ForwardPass { plan, rows, firsts, mask_wait })
    }

    /// Launches the sampling of a step.
    fn launch_sampling(&mut self, step: ForwardPass) -> Result<PendingOutput, DeviceError> {
        let ForwardPass { plan, rows, firsts, mask_wait } = step;
        let jobs: Vec<Option<MaskJob>> = plan.rows.iter().map(|row| self.slots.mask_job(row)).collect();
        let masks = self.place.masks(&jobs, &self.device)?;
        let pieces = self.sample(&plan, &firsts, &masks.rows)?;
        let sampling = plan.rows.iter().enumerate().filter(|(_, row)| row.sample);
        let start = |row: &Row| Arc::clone(self.slots.get(row.slot).start());
        let sampling = sampling.map(|(index, row)| SamplingRow { index, start: start(row) }).collect();
        Ok(PendingOutput { sampling, pieces, plan, rows, mask_wait: mask_wait + masks.wait })
    }

    /// Waits for the sampled tokens of a step and returns its output.
    fn finish(&mut self, step: PendingOutput) -> Result<StepOutput, DeviceError> {
        let PendingOutput { plan, mut rows, sampling, pieces, mask_wait } = step;
        let mut results = vec![Vec::new(); rows.len()];
        for piece in &pieces {
            let tokens = self.device.take_sampled(&mut self.decoder.space.first.step)?;
            piece.iter().zip(tokens).for_each(|(row, token)| results[*row].push(token));
        }
        for SamplingRow { index, start } in &sampling {
            let sampled = std::mem::take(&mut results[*index]);
            let row = &plan.rows[*index];
            rows[*index].drafts = row.draft_tokens().to_vec();
            self.slots.add_sampled(row, start, sampled, &mut rows[*index]);
        }
        Ok(StepOutput { id: plan.id, rows, mask_wait })
    }

    /// Computes log-probabilities of prompt tokens for the rows that ask for them.
    fn score(&mut self, plan: &StepPlan, firsts: &[usize], out: &mut [RowOutput]) -> Result<(), DeviceError> {
        for (index, row) in plan.rows.iter().enumerate() {
            let first = firsts[index] + row.score_from as usize;
            let wanted: Vec<u32> = (first..first + row.score.len()).map(|row| row as u32).collect();
            let Decoder { model, space, vocab, .. } = &mut self.decoder;
            let (device, head_rows) = (&self.device, space.head_rows);
            for (rows, targets) in wanted.chunks(head_rows).zip(row.score.chunks(head_rows)) {
                let in_pieces = rows.len() > LOGIT_ROWS;
                model.lm_head(device, HeadRows { rows, in_pieces }, space)?;
                for (piece, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
                    if in_pieces {
                        let first = piece * LOGIT_ROWS;
                        model.select_logits(device, first..first + targets.len(), space)?;
                    }
                    model.gather_logits(device, &self.links.comm, space)?;
                    let top = self.slots.get(row.slot).prompt_top();
                    let scores = device.score(&space.logits, *vocab, targets, top)?;
                    sampler::add_scores(targets, scores, &mut out[index]);
                }
            }
        }
        Ok(())
    }

    /// Computes the reward head for the rows that ask for it.
    fn rewards(
        &mut self,
        plan: &StepPlan,
        firsts: &[usize],
        out: &mut [RowOutput],
    ) -> Result<(), DeviceError> {
        let wanting: Vec<usize> = (0..plan.rows.len()).filter(|index| plan.rows[*index].reward).collect();
        for piece in wanting.chunks(LOGIT_ROWS) {
            let wanted: Vec<u32> =
                piece.iter().map(|index| residual_row(&plan.rows[*index], firsts[*index], 0)).collect();
            let Decoder { model, space, .. } = &mut self.decoder;
            let values = model.rewards(&self.device, &wanted, space)?;
            for (index, values) in piece.iter().zip(values.chunks_exact(values.len() / piece.len())) {
                out[*index].non_finite |= values.iter().any(|value| !value.is_finite());
                out[*index].reward = Some(values.into());
            }
        }
        Ok(())
    }

    /// Submits the masks of the rows that sample and that `is_known` accepts to the pool.
    fn submit_masks(&self, plan: &StepPlan, is_known: impl Fn(&Row) -> bool) {
        let job = |row: &Row| self.slots.mask_job(row).filter(|_| is_known(row));
        self.place.submit(plan.rows.iter().map(job));
    }

    /// Samples the tokens of the rows that want some. Returns the row of each token, by sampling launch.
    fn sample(
        &mut self,
        plan: &StepPlan,
        firsts: &[usize],
        masks: &[Arc<[TokenMask]>],
    ) -> Result<Vec<Vec<usize>>, DeviceError> {
        let wanting = plan.rows.iter().enumerate().filter(|(_, row)| row.sample);
        let positions: Vec<SampledPosition<'_>> =
            wanting.flat_map(|(index, row)| self.slots.positions(index, row, &masks[index])).collect();
        let mut wanting = Vec::with_capacity(positions.len());
        for at in &positions {
            let row = &plan.rows[at.row];
            let residual = residual_row(row, firsts[at.row], at.drafts);
            wanting.push(ToSample { row: at.row, residual, sampling: self.slots.sample_row(row, at) });
        }
        self.decoder.sample(&self.device, &self.links.comm, wanting)
    }
}

/// The row of the residual stream after which the token that follows `drafts` drafts of a row is sampled.
/// `first` is the row of its first token.
fn residual_row(row: &Row, first: usize, drafts: usize) -> u32 {
    (first + row.len_without_drafts() + drafts - 1) as u32
}
