//! The operations of sampling, as a rank calls them: for at most [`LOGIT_ROWS`] rows at a time. Logits are
//! random numbers, since the time of these kernels depends on the values.

use anyhow::ensure;

use super::bytes;
use super::measured::{Kernel, KernelTime};
use super::timer::Timer;
use crate::device::{
    Device, DeviceError, Floats, SHORTLIST, SampleResult, SampleRow, SampleSource, StepCapacity,
    upload_floats,
};
use crate::model::LOGIT_ROWS;
use crate::random::Random;

/// Alternatives with each scored token.
const ALTERNATIVES: u8 = 5;
/// Tokens of a prompt that the repetition penalty reads.
const PROMPT: usize = 512;
/// Different tokens of an answer that the penalties read.
const OUTPUT: usize = 128;

/// The sources that a rank samples from: its logits, those of all ranks, and the shortlists of all ranks.
/// Each buffer has as many rows as the largest launch.
pub(super) struct SamplingOperations<'a, D: Device> {
    device: &'a D,
    timer: &'a Timer<D>,
    ranks: usize,
    /// Ids of the whole vocabulary.
    vocab: usize,
    /// \[LOGIT_ROWS, vocab\].
    logits: Floats<D>,
    /// \[LOGIT_ROWS, a rank's share of the vocabulary\].
    part: Floats<D>,
    /// \[LOGIT_ROWS, ranks × 2 × SHORTLIST\].
    shortlists: Floats<D>,
    prompt: Vec<u32>,
    output: Vec<(u32, u32)>,
}

/// The vocabulary, and how it is divided.
pub(super) struct Vocabulary {
    /// Ids.
    pub(super) ids: usize,
    /// Ids of a rank.
    pub(super) share: usize,
    pub(super) ranks: usize,
}

impl Vocabulary {
    /// The capacity of a step for at most `runs` runs of an operation over at most `rows` rows, of sequences
    /// of at most `max_positions` tokens.
    pub(super) fn capacity(&self, rows: usize, max_positions: usize, runs: usize) -> StepCapacity {
        StepCapacity {
            rows,
            max_positions,
            slots: rows,
            samples: runs * rows.div_ceil(LOGIT_ROWS),
            sampled_rows: LOGIT_ROWS,
            vocab: self.ids.max(self.ranks * SHORTLIST),
        }
    }
}

impl<'a, D: Device> SamplingOperations<'a, D> {
    /// Uploads random logits and shortlists for launches of at most `rows` rows.
    pub(super) fn new(
        device: &'a D,
        timer: &'a Timer<D>,
        vocabulary: &Vocabulary,
        rows: usize,
    ) -> Result<Self, DeviceError> {
        let Vocabulary { ids: vocab, share, ranks } = *vocabulary;
        let (rows, mut random) = (rows.min(LOGIT_ROWS), Random::new(1));
        let mut logits = |cols: usize| {
            let values: Vec<f32> = (0..rows * cols).map(|_| logit(&mut random)).collect();
            upload_floats(device, cols, &values)
        };
        let (logits, part) = (logits(vocab)?, logits(share)?);
        let lists: Vec<f32> = (0..rows * ranks).flat_map(|list| candidates(list % ranks * share)).collect();
        Ok(Self {
            device,
            timer,
            ranks,
            vocab,
            logits,
            part,
            shortlists: upload_floats(device, ranks * 2 * SHORTLIST, &lists)?,
            prompt: (0..PROMPT).map(|i| (i * 7919 % vocab) as u32).collect(),
            output: (0..OUTPUT.min(vocab)).map(|id| (id as u32, 1 + id as u32 % 3)).collect(),
        })
    }

    /// Rows with temperature, top-k, top-p and all penalties, each with a slot of its own. Shortlists are
    /// enough for them.
    fn random_rows(&self, count: usize) -> Vec<SampleRow<'_>> {
        let row = |slot: u32| SampleRow {
            temperature: 0.8,
            top_p: 0.95,
            top_k: 50,
            min_p: 0.0,
            repetition_penalty: 1.1,
            presence_penalty: 0.1,
            frequency_penalty: 0.1,
            logit_bias: &[],
            barred: &[],
            allowed: None,
            prompt: &self.prompt,
            output: &self.output,
            seed: u64::from(slot),
            position: PROMPT as u32,
            logprobs: None,
            slot,
        };
        (0..count as u32).map(row).collect()
    }

    /// Times random sampling from the logits of the whole vocabulary.
    pub(super) fn sample(&self, rows: usize, step: &mut D::Step) -> anyhow::Result<KernelTime> {
        let bytes = bytes::logits(rows, self.vocab);
        let source = || SampleSource::Logits { logits: &self.logits, vocab: self.vocab };
        self.sampled(Kernel { rows, bytes, ..Kernel::of("sample") }, source, self.vocab, step)
    }

    /// Times random sampling from the shortlists of all ranks.
    pub(super) fn pick(&self, rows: usize, step: &mut D::Step) -> anyhow::Result<KernelTime> {
        let bytes = bytes::pick(rows, self.ranks);
        let kernel = Kernel { rows, bytes, kernel: "pick", ..Kernel::of("sample") };
        let source = || SampleSource::Shortlists(&self.shortlists);
        self.sampled(kernel, source, self.shortlists.cols(), step)
    }

    /// Times random sampling from a source with `cols` columns.
    fn sampled<'s>(
        &self,
        kernel: Kernel,
        source: impl Fn() -> SampleSource<'s, D>,
        cols: usize,
        step: &mut D::Step,
    ) -> anyhow::Result<KernelTime> {
        let rows = kernel.rows;
        let (device, sampling, launches) = (self.device, self.random_rows(rows), rows.div_ceil(LOGIT_ROWS));
        let time = self.timer.queue(
            device,
            step,
            |step| {
                let mut pieces = sampling.chunks(LOGIT_ROWS);
                Ok(pieces.try_for_each(|rows| device.sample(source(), rows, step))?)
            },
            |step, runs| {
                for _ in 0..launches * runs {
                    let results = device.take_sampled(step)?;
                    ensure!(!results.contains(&SampleResult::NonFinite), "a row was sampled without a token");
                }
                Ok(())
            },
        )?;
        Ok(Kernel { launches, ..kernel }.timed([rows, cols], time))
    }

    /// Times the search for the largest of a rank's logits.
    pub(super) fn shortlist(&self, rows: usize) -> anyhow::Result<KernelTime> {
        let (device, sampling, share) = (self.device, self.random_rows(rows), self.part.cols());
        let mut out = device.floats(rows.min(LOGIT_ROWS), 2 * SHORTLIST)?;
        let time = self.timer.queue(
            device,
            &mut out,
            |out| {
                let mut pieces = sampling.chunks(LOGIT_ROWS);
                Ok(pieces.try_for_each(|rows| device.shortlist(&self.part, 0..share as u32, rows, out))?)
            },
            |_, _| Ok(()),
        )?;
        let (launches, bytes) = (rows.div_ceil(LOGIT_ROWS), bytes::logits(rows, share));
        Ok(Kernel { rows, launches, bytes, ..Kernel::of("shortlist") }.timed([rows, share], time))
    }

    /// Times the log-probabilities of given tokens, with [`ALTERNATIVES`].
    pub(super) fn score(&self, rows: usize) -> anyhow::Result<KernelTime> {
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % self.vocab) as u32).collect();
        let time = self.timer.call(self.device, || {
            for targets in targets.chunks(LOGIT_ROWS) {
                let scores = self.device.score(&self.logits, self.vocab, targets, ALTERNATIVES)?;
                ensure!(scores.iter().all(Option::is_some), "a row was scored without a log-probability");
            }
            Ok(())
        })?;
        let (launches, bytes) = (rows.div_ceil(LOGIT_ROWS), bytes::logits(rows, self.vocab));
        Ok(Kernel { rows, launches, bytes, ..Kernel::of("score") }.timed([rows, self.vocab], time))
    }
}

/// A random logit, bell-shaped with a standard deviation of about 2.
fn logit(random: &mut Random) -> f32 {
    let bits = random.bits();
    let parts = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as f32 / 65_536.0);
    (parts.sum::<f32>() - 2.0) * 3.5
}

/// The candidates of a rank whose first id is `first`: logits, and then their ids.
fn candidates(first: usize) -> Vec<f32> {
    let mut random = Random::new(first as u64);
    let logits: Vec<f32> = (0..SHORTLIST).map(|_| logit(&mut random)).collect();
    logits.into_iter().chain((first..first + SHORTLIST).map(|id| id as f32)).collect()
}
