//! The kernels of `kernels/sample.cu`. A call uploads the parameters of all rows at once and copies one small
//! result back.

use std::collections::VecDeque;
use std::ops::Range;

use super::driver::Mirror;
use super::{Buffer, Cuda, Driver, Floats, Launch, row};
use crate::device::{DeviceError, RowLogprob, SHORTLIST, SampleResult, SampleRow, StepCapacity};

/// Alternatives per result, which the kernels are compiled for.
const MAX_ALTERNATIVES: usize = 20;

/// `SampleRow` of `kernels/sample.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeviceRow {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    top_k: u32,
    position: u32,
    seed: [u32; 2],
    logprobs: i32,
    target: u32,
    /// The index of the list's first word, and its number of entries. The other lists have the same.
    bias: [u32; 2],
    barred: [u32; 2],
    prompt: [u32; 2],
    output: [u32; 2],
    /// Words of bits, and the number of bits before that of the first id.
    allowed: [u32; 2],
    allowed_bit: u32,
    slot: u32,
}
const _: () = assert!(size_of::<DeviceRow>() == 96);

/// `SampleResult` of `kernels/sample.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeviceResult {
    token: u32,
    non_finite: u32,
    logprob: f32,
    rank: u32,
    alternatives: u32,
    ids: [u32; MAX_ALTERNATIVES],
    logprobs: [f32; MAX_ALTERNATIVES],
}
const _: () = assert!(size_of::<DeviceResult>() == 180);

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SampleParams {
    logits: u64,
    rows: u64,
    lists: u64,
    work: u64,
    seen: u64,
    out: u64,
    last: u64,
    shortlists: u64,
    stride: u32,
    vocab: u32,
    first: u32,
    unused: u32,
}
const _: () = assert!(size_of::<SampleParams>() == 80);

/// Words of lists per row that are allocated at start-up. A mask of 256,000 ids has 8,000 words. Only a long
/// prompt with a repetition penalty, or a mask of more ids, needs more.
const LISTS: usize = 8192;

/// Bytes of a result.
pub(super) const RESULT_BYTES: usize = size_of::<DeviceResult>();
/// Bytes of scratch per row, without those per logit.
pub(super) const ROW_BYTES: usize = size_of::<DeviceRow>() + 4 * LISTS + RESULT_BYTES;

/// The kernels' parameters and scratch, allocated for the largest call.
#[derive(Debug, Default)]
pub(super) struct SampleScratch {
    rows: Option<Buffer<DeviceRow>>,
    lists: Option<Buffer<u32>>,
    work: Option<Buffer<f32>>,
    seen: Option<Buffer<u32>>,
    out: Option<Buffer<DeviceResult>>,
}

impl SampleScratch {
    /// Grows the scratch.
    pub(super) fn fit(&mut self, driver: &Driver, capacity: StepCapacity) -> Result<(), DeviceError> {
        let StepCapacity { sampled_rows: rows, vocab, .. } = capacity;
        grown(&mut self.rows, rows, |len| driver.buffer(len))?;
        grown(&mut self.lists, rows * LISTS, |len| driver.buffer(len))?;
        grown(&mut self.work, rows * vocab, |len| driver.buffer(len))?;
        grown(&mut self.seen, rows * vocab.div_ceil(32), |len| driver.buffer(len))?;
        grown(&mut self.out, rows, |len| driver.buffer(len))?;
        Ok(())
    }
}

/// The token sampled last for each slot, and results on their way to the host.
#[derive(Debug)]
pub(super) struct Sampled {
    /// \[slots\].
    last: Buffer<u32>,
    /// Calls whose results have not been taken, oldest first.
    pending: VecDeque<Results>,
    free: Vec<Results>,
}

/// The results of one call.
#[derive(Debug)]
struct Results {
    mirror: Mirror<DeviceResult>,
    /// For each row, whether log-probabilities are reported.
    logprobs: Vec<bool>,
}

impl Sampled {
    pub(super) fn new(driver: &Driver, capacity: StepCapacity) -> Result<Self, DeviceError> {
        let StepCapacity { slots, samples, sampled_rows, .. } = capacity;
        let results = |_| Ok(Results { mirror: Mirror::new(driver, sampled_rows)?, logprobs: Vec::new() });
        let free: Result<Vec<Results>, DeviceError> = (0..samples).map(results).collect();
        Ok(Self { last: driver.buffer(slots)?, pending: VecDeque::new(), free: free? })
    }

    /// Waits for the earliest results that have not been taken.
    pub(super) fn take(&mut self) -> Result<Vec<SampleResult>, DeviceError> {
        let mut results = self.pending.pop_front().expect("results are taken after a sample");
        let token = |(logprobs, result): (&bool, &DeviceResult)| match result.non_finite {
            0 => SampleResult::Token(result.token, logprobs.then(|| logprob(result))),
            _ => SampleResult::NonFinite,
        };
        let tokens = results.logprobs.iter().zip(&results.mirror.wait()?).map(token).collect();
        self.free.push(results);
        Ok(tokens)
    }

    /// u32 \[slots\]: the address of the tokens.
    pub(super) fn last(&self) -> u64 {
        self.last.address()
    }

    pub(super) fn slots(&self) -> usize {
        self.last.len()
    }
}

/// Samples from whole rows of logits.
pub(super) fn run(
    cuda: &Cuda,
    logits: &Floats,
    vocab: usize,
    rows: &[SampleRow<'_>],
    sampled: &mut Sampled,
) -> Result<(), DeviceError> {
    let source = LogitSource { kernel: "sample", logits, vocab, first: 0, shortlists: 0 };
    sample(cuda, source, rows, sampled)
}

/// Samples from the shortlists of all ranks.
pub(super) fn pick(
    cuda: &Cuda,
    shortlists: &Floats,
    rows: &[SampleRow<'_>],
    sampled: &mut Sampled,
) -> Result<(), DeviceError> {
    assert!(rows.iter().all(SampleRow::is_short), "only short rows are sampled from shortlists");
    let rows: Vec<SampleRow<'_>> = rows.iter().map(without_adjustments).collect();
    let source = LogitSource {
        kernel: "pick",
        logits: shortlists,
        vocab: shortlists.cols / 2,
        first: 0,
        shortlists: shortlists.data.f32().address(),
    };
    sample(cuda, source, &rows, sampled)
}

/// A row without bias, penalties and masks, which its shortlists include already.
fn without_adjustments<'a>(row: &SampleRow<'a>) -> SampleRow<'a> {
    SampleRow {
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: &[],
        barred: &[],
        allowed: None,
        prompt: &[],
        output: &[],
        ..*row
    }
}

/// Launches `sample` or `pick` and enqueues the copy of the results.
fn sample(
    cuda: &Cuda,
    source: LogitSource<'_>,
    rows: &[SampleRow<'_>],
    sampled: &mut Sampled,
) -> Result<(), DeviceError> {
    let mut lists = Vec::new();
    assert!(rows.iter().all(|row| (row.slot as usize) < sampled.slots()), "slots of {}", sampled.slots());
    let ids = 0..source.vocab as u32;
    let rows: Vec<DeviceRow> = rows.iter().map(|row| device_row(row, &ids, &mut lists)).collect();
    let mut results = sampled.free.pop().expect("no more calls are pending than the capacity");
    let (out, last) = (results.mirror.buffer(), sampled.last());
    launch(cuda, source, RowParams { rows: &rows, lists: &lists }, SampleTargets { out, last })?;
    results.mirror.fetch(rows.len())?;
    results.logprobs.clear();
    results.logprobs.extend(rows.iter().map(|row| row.logprobs >= 0));
    sampled.pending.push_back(results);
    Ok(())
}

/// Finds the largest logits of one rank.
pub(super) fn shortlist(
    cuda: &Cuda,
    logits: &Floats,
    ids: Range<u32>,
    rows: &[SampleRow<'_>],
    out: &mut Floats,
) -> Result<(), DeviceError> {
    assert_eq!(out.cols, 2 * SHORTLIST, "columns of a shortlist");
    out.set_rows(rows.len());
    let mut lists = Vec::new();
    let rows: Vec<DeviceRow> = rows.iter().map(|row| device_row(row, &ids, &mut lists)).collect();
    let source = LogitSource {
        kernel: "shortlist",
        logits,
        vocab: ids.len(),
        first: ids.start,
        shortlists: out.data.f32().address(),
    };
    let results = cuda.scratch().sample.out.take().expect("the scratch was grown before a shortlist");
    let params = RowParams { rows: &rows, lists: &lists };
    let launched = launch(cuda, source, params, SampleTargets { out: &results, last: 0 });
    cuda.scratch().sample.out = Some(results);
    launched
}

/// Scores given tokens.
pub(super) fn score(
    cuda: &Cuda,
    logits: &Floats,
    vocab: usize,
    targets: &[u32],
    top: u8,
) -> Result<Vec<Option<RowLogprob>>, DeviceError> {
    let row = |&target: &u32| {
        assert!((target as usize) < vocab, "token {target} of {vocab}");
        DeviceRow { target, logprobs: alternatives(Some(top)), ..bytemuck::Zeroable::zeroed() }
    };
    let rows: Vec<DeviceRow> = targets.iter().map(row).collect();
    let mut out = cuda.scratch().sample.out.take();
    let results = grown(&mut out, logits.max_rows, |len| cuda.driver.buffer(len))?;
    let source = LogitSource { kernel: "score", logits, vocab, first: 0, shortlists: 0 };
    launch(cuda, source, RowParams { rows: &rows, lists: &[] }, SampleTargets { out: results, last: 0 })?;
    let results = results.read(rows.len())?;
    cuda.scratch().sample.out = out;
    Ok(results.iter().map(|result| (result.non_finite == 0).then(|| logprob(result))).collect())
}

/// The kernel of a launch and the logits that it reads.
#[derive(Clone, Copy)]
struct LogitSource<'a> {
    kernel: &'static str,
    /// Logits, or the shortlists of all ranks.
    logits: &'a Floats,
    /// Logits per row that count.
    vocab: usize,
    /// The id of the first logit.
    first: u32,
    /// The address of shortlists, which `pick` reads and `shortlist` writes; 0 for the other kernels.
    shortlists: u64,
}

/// The parameters of the rows of a launch.
struct RowParams<'a> {
    rows: &'a [DeviceRow],
    lists: &'a [u32],
}

/// The results of a launch, and the address of the tokens of slots or 0.
struct SampleTargets<'a> {
    out: &'a Buffer<DeviceResult>,
    last: u64,
}

/// Launches one of the kernels over the first rows of the logits.
fn launch(
    cuda: &Cuda,
    LogitSource { kernel, logits, vocab, first, shortlists }: LogitSource<'_>,
    RowParams { rows, lists }: RowParams<'_>,
    SampleTargets { out, last }: SampleTargets<'_>,
) -> Result<(), DeviceError> {
    assert!(vocab <= logits.cols && rows.len() <= logits.rows, "{} rows of {vocab} logits", rows.len());
    assert!(rows.len() <= out.len(), "{} rows for {} results", rows.len(), out.len());
    let most = logits.max_rows;
    let scratch = &mut cuda.scratch().sample;
    let driver = &cuda.driver;
    let device_rows = grown(&mut scratch.rows, most, |len| driver.buffer(len))?;
    device_rows.write(0, rows)?;
    let device_lists = grown(&mut scratch.lists, lists.len().next_power_of_two(), |len| driver.buffer(len))?;
    device_lists.write(0, lists)?;
    let params = SampleParams {
        logits: logits.data.f32().address(),
        rows: device_rows.address(),
        lists: device_lists.address(),
        work: grown(&mut scratch.work, most * vocab, |len| driver.buffer(len))?.address(),
        seen: grown(&mut scratch.seen, most * vocab.div_ceil(32), |len| driver.buffer(len))?.address(),
        out: out.address(),
        last,
        shortlists,
        stride: logits.cols as u32,
        vocab: vocab as u32,
        first,
        unused: 0,
    };
    let launch = Launch { kernel, grid: [rows.len(), 1, 1], threads: row::threads(vocab), shared: 0 };
    // SAFETY: ids of the lists are below `vocab`, slots have been checked, and the buffers have been grown.
    unsafe { driver.launch(launch, &params) }
}

/// The buffer, made anew if it has fewer than `len` elements.
fn grown<T: bytemuck::Pod>(
    buffer: &mut Option<Buffer<T>>,
    len: usize,
    make: impl FnOnce(usize) -> Result<Buffer<T>, DeviceError>,
) -> Result<&Buffer<T>, DeviceError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
        *buffer = Some(make(len)?);
    }
    Ok(buffer.as_ref().expect("the buffer was made above"))
}

/// A row's parameters for the logits of `ids`. Lists keep the entries for these ids, as offsets from the
/// first.
fn device_row(row: &SampleRow<'_>, ids: &Range<u32>, lists: &mut Vec<u32>) -> DeviceRow {
    let offset = |id: u32| ids.contains(&id).then(|| id - ids.start);
    let mut list = |words: &mut dyn Iterator<Item = u32>, width: usize| {
        let begin = lists.len();
        lists.extend(words);
        [begin as u32, ((lists.len() - begin) / width) as u32]
    };
    // All fields are named, so that a new one cannot be forgotten here.
    let &SampleRow {
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
        barred,
        allowed,
        prompt,
        output,
        seed,
        position,
        logprobs,
        slot,
    } = row;
    // Only the repetition penalty reads the prompt.
    let prompt = if repetition_penalty == 1.0 { &[] } else { prompt };
    let bias = logit_bias.iter().filter_map(|(id, bias)| Some([offset(*id)?, bias.to_bits()]));
    let output = output.iter().filter_map(|(id, count)| Some([offset(*id)?, *count]));
    let words = ids.start as usize / 32..ids.end.div_ceil(32) as usize;
    let allowed = allowed.map_or(&[] as &[u32], |allowed| {
        // The kernel reads a word for each id.
        assert!(allowed.len() >= words.end, "a mask of {} words for ids {ids:?}", allowed.len());
        &allowed[words]
    });
    DeviceRow {
        temperature,
        top_p,
        min_p,
        repetition: repetition_penalty,
        presence: presence_penalty,
        frequency: frequency_penalty,
        top_k,
        position,
        seed: [seed as u32, (seed >> 32) as u32],
        logprobs: alternatives(logprobs),
        target: 0,
        bias: list(&mut bias.flatten(), 2),
        barred: list(&mut barred.iter().filter_map(|id| offset(*id)), 1),
        prompt: list(&mut prompt.iter().filter_map(|id| offset(*id)), 1),
        output: list(&mut output.flatten(), 2),
        allowed: list(&mut allowed.iter().copied(), 1),
        allowed_bit: ids.start % 32,
        slot,
    }
}

/// The number of alternatives to report; -1 for no log-probability at all.
fn alternatives(asked: Option<u8>) -> i32 {
    assert!(asked.is_none_or(|count| usize::from(count) <= MAX_ALTERNATIVES), "{asked:?} alternatives");
    asked.map_or(-1, i32::from)
}

fn logprob(result: &DeviceResult) -> RowLogprob {
    let count = result.alternatives as usize;
    let top = result.ids.iter().copied().zip(result.logprobs).take(count).collect();
    RowLogprob { logprob: result.logprob, rank: result.rank, top }
}
