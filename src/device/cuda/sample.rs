//! `kernels/sample.cu`, all its kernels: parameters of all rows in one upload, results in one small copy.

use std::collections::VecDeque;
use std::ops::Range;

use super::driver::Mirror;
use super::{Buffer, Cuda, Driver, Floats, Launch, row};
use crate::device::{DeviceError, Draw, DrawRoom, RowLogprob, SHORTLIST, SampleRow};

const MOST_ALTERNATIVES: usize = 20;

/// As the kernel has it: `SampleRow`.
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
    /// Where each list begins, and how many entries it has.
    bias: [u32; 2],
    barred: [u32; 2],
    prompt: [u32; 2],
    output: [u32; 2],
    slot: u32,
}
const _: () = assert!(size_of::<DeviceRow>() == 84);

#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SampleResult {
    token: u32,
    non_finite: u32,
    logprob: f32,
    alternatives: u32,
    ids: [u32; MOST_ALTERNATIVES],
    logprobs: [f32; MOST_ALTERNATIVES],
}
const _: () = assert!(size_of::<SampleResult>() == 176);

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

/// Words of the lists of a row for which room is made from the first: a long prompt under a penalty, say. More are rare.
const LISTS: usize = 8192;

/// Bytes of a result.
pub(super) const RESULT_BYTES: usize = size_of::<SampleResult>();
/// Bytes that the scratch has for a row, beside its logits.
pub(super) const ROW_BYTES: usize = size_of::<DeviceRow>() + 4 * LISTS + RESULT_BYTES;

/// What the kernels work in, made for the largest sample.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    rows: Option<Buffer<DeviceRow>>,
    lists: Option<Buffer<u32>>,
    work: Option<Buffer<f32>>,
    seen: Option<Buffer<u32>>,
    out: Option<Buffer<SampleResult>>,
}

impl Scratch {
    pub(super) fn fit(&mut self, driver: &Driver, room: DrawRoom) -> Result<(), DeviceError> {
        let DrawRoom { rows, vocab, .. } = room;
        grown(&mut self.rows, rows, |len| driver.buffer(len))?;
        grown(&mut self.lists, rows * LISTS, |len| driver.buffer(len))?;
        grown(&mut self.work, rows * vocab, |len| driver.buffer(len))?;
        grown(&mut self.seen, rows * vocab.div_ceil(32), |len| driver.buffer(len))?;
        grown(&mut self.out, rows, |len| driver.buffer(len))?;
        Ok(())
    }
}

/// What sequences drew last, and results on their way to the host.
#[derive(Debug)]
pub struct Sampled {
    /// \[slots\].
    last: Buffer<u32>,
    /// Oldest first.
    under_way: VecDeque<Piece>,
    free: Vec<Piece>,
}

/// The results of one launch.
#[derive(Debug)]
struct Piece {
    results: Mirror<SampleResult>,
    /// Of each row, whether it wants log-probabilities.
    logprobs: Vec<bool>,
}

impl Sampled {
    pub(super) fn new(driver: &Driver, slots: usize, room: DrawRoom) -> Result<Self, DeviceError> {
        let piece = |_| Ok(Piece { results: Mirror::new(driver, room.rows)?, logprobs: Vec::new() });
        let free: Result<Vec<Piece>, DeviceError> = (0..room.samples).map(piece).collect();
        Ok(Self { last: driver.buffer(slots)?, under_way: VecDeque::new(), free: free? })
    }

    /// u32 \[slots\].
    pub(super) fn last(&self) -> u64 {
        self.last.address()
    }

    pub(super) fn slots(&self) -> usize {
        self.last.len()
    }
}

pub(super) fn run(
    cuda: &Cuda,
    logits: &Floats,
    vocab: usize,
    rows: &[SampleRow<'_>],
    draws: &mut Sampled,
) -> Result<(), DeviceError> {
    let source = Source { kernel: "sample", logits, vocab, first: 0, shortlists: 0 };
    draw(cuda, source, rows, draws)
}

/// From the shortlists of all ranks.
pub(super) fn pick(
    cuda: &Cuda,
    shortlists: &Floats,
    rows: &[SampleRow<'_>],
    draws: &mut Sampled,
) -> Result<(), DeviceError> {
    assert!(rows.iter().all(SampleRow::is_short), "rows that shortlists are enough for");
    // Bias, penalties and masks are in the lists.
    let rows: Vec<SampleRow<'_>> = rows.iter().map(bare).collect();
    let source = Source {
        kernel: "pick",
        logits: shortlists,
        vocab: shortlists.cols / 2,
        first: 0,
        shortlists: shortlists.data.address(),
    };
    draw(cuda, source, &rows, draws)
}

/// A row without what is in its shortlists already.
fn bare<'a>(row: &SampleRow<'a>) -> SampleRow<'a> {
    SampleRow {
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: &[],
        barred: &[],
        prompt: &[],
        output: &[],
        ..*row
    }
}

/// Draws from each row, by one kernel or the other.
fn draw(
    cuda: &Cuda,
    source: Source<'_>,
    rows: &[SampleRow<'_>],
    draws: &mut Sampled,
) -> Result<(), DeviceError> {
    let mut lists = Vec::new();
    assert!(rows.iter().all(|row| (row.slot as usize) < draws.slots()), "slots of {}", draws.slots());
    let ids = 0..source.vocab as u32;
    let rows: Vec<DeviceRow> = rows.iter().map(|row| device_row(row, &ids, &mut lists)).collect();
    let mut piece = draws.free.pop().expect("room for as many samples as are under way");
    let (out, last) = (piece.results.buffer(), draws.last());
    launch(cuda, source, (&rows, &lists), Targets { out, last })?;
    piece.results.fetch(rows.len())?;
    piece.logprobs.clear();
    piece.logprobs.extend(rows.iter().map(|row| row.logprobs >= 0));
    draws.under_way.push_back(piece);
    Ok(())
}

/// The largest logits of a rank.
pub(super) fn shortlist(
    cuda: &Cuda,
    logits: &Floats,
    ids: Range<u32>,
    rows: &[SampleRow<'_>],
    out: &mut Floats,
) -> Result<(), DeviceError> {
    assert_eq!(out.cols, 2 * SHORTLIST, "columns of a shortlist");
    out.resize(rows.len());
    let mut lists = Vec::new();
    let rows: Vec<DeviceRow> = rows.iter().map(|row| device_row(row, &ids, &mut lists)).collect();
    let source = Source {
        kernel: "shortlist",
        logits,
        vocab: ids.len(),
        first: ids.start,
        shortlists: out.data.address(),
    };
    let results = cuda.scratch().sample.out.take().expect("room for draws was made");
    let launched = launch(cuda, source, (&rows, &lists), Targets { out: &results, last: 0 });
    cuda.scratch().sample.out = Some(results);
    launched
}

pub(super) fn take_sampled(draws: &mut Sampled) -> Result<Vec<Draw>, DeviceError> {
    let mut piece = draws.under_way.pop_front().expect("a sample is under way");
    let draw = |(logprobs, result): (&bool, &SampleResult)| match result.non_finite {
        0 => Draw::Token(result.token, logprobs.then(|| logprob(result))),
        _ => Draw::NonFinite,
    };
    let drawn = piece.logprobs.iter().zip(&piece.results.wait()?).map(draw).collect();
    draws.free.push(piece);
    Ok(drawn)
}

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
    let results = grown(&mut out, logits.data.len() / logits.cols, |len| cuda.driver.buffer(len))?;
    let source = Source { kernel: "score", logits, vocab, first: 0, shortlists: 0 };
    launch(cuda, source, (&rows, &[]), Targets { out: results, last: 0 })?;
    let results = results.read(rows.len())?;
    cuda.scratch().sample.out = out;
    Ok(results.iter().map(|result| (result.non_finite == 0).then(|| logprob(result))).collect())
}

/// What a launch reads.
#[derive(Clone, Copy)]
struct Source<'a> {
    kernel: &'static str,
    /// Or shortlists of all ranks.
    logits: &'a Floats,
    /// Of a row.
    vocab: usize,
    /// The id of the first.
    first: u32,
    /// Read or written, where there are any.
    shortlists: u64,
}

/// Where a launch leaves its results, and the tokens of slots.
struct Targets<'a> {
    out: &'a Buffer<SampleResult>,
    last: u64,
}

/// Runs one of the kernels over the first rows of the logits.
fn launch(
    cuda: &Cuda,
    Source { kernel, logits, vocab, first, shortlists }: Source<'_>,
    (rows, lists): (&[DeviceRow], &[u32]),
    Targets { out, last }: Targets<'_>,
) -> Result<(), DeviceError> {
    assert!(vocab <= logits.cols && rows.len() <= logits.rows, "{} rows of {vocab} logits", rows.len());
    assert!(rows.len() <= out.len(), "{} rows of results for {}", out.len(), rows.len());
    let most = logits.data.len() / logits.cols;
    let scratch = &mut cuda.scratch().sample;
    let driver = &cuda.driver;
    let device_rows = grown(&mut scratch.rows, most, |len| driver.buffer(len))?;
    device_rows.write(0, rows)?;
    let device_lists = grown(&mut scratch.lists, lists.len().next_power_of_two(), |len| driver.buffer(len))?;
    device_lists.write(0, lists)?;
    let params = SampleParams {
        logits: logits.data.address(),
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
    // SAFETY: every id of the lists has been compared with the vocabulary, every slot with the tokens of slots, and
    // the buffers are as long as asked.
    unsafe { driver.launch(launch, &params) }
}

/// The buffer, at least so long.
fn grown<T: bytemuck::Pod>(
    buffer: &mut Option<Buffer<T>>,
    len: usize,
    make: impl FnOnce(usize) -> Result<Buffer<T>, DeviceError>,
) -> Result<&Buffer<T>, DeviceError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < len) {
        *buffer = Some(make(len)?);
    }
    Ok(buffer.as_ref().expect("it has just been made"))
}

/// A row for logits of some ids: of its lists, the entries for those, counted from the first.
fn device_row(row: &SampleRow<'_>, ids: &Range<u32>, lists: &mut Vec<u32>) -> DeviceRow {
    let place = |id: u32| ids.contains(&id).then(|| id - ids.start);
    let mut list = |words: &mut dyn Iterator<Item = u32>, width: usize| {
        let begin = lists.len();
        lists.extend(words);
        [begin as u32, ((lists.len() - begin) / width) as u32]
    };
    // The prompt is read for this penalty only.
    let prompt = if row.repetition_penalty == 1.0 { &[] } else { row.prompt };
    let bias = row.logit_bias.iter().filter_map(|(id, bias)| Some([place(*id)?, bias.to_bits()]));
    let output = row.output.iter().filter_map(|(id, count)| Some([place(*id)?, *count]));
    DeviceRow {
        temperature: row.temperature,
        top_p: row.top_p,
        min_p: row.min_p,
        repetition: row.repetition_penalty,
        presence: row.presence_penalty,
        frequency: row.frequency_penalty,
        top_k: row.top_k,
        position: row.position,
        seed: [row.seed as u32, (row.seed >> 32) as u32],
        logprobs: alternatives(row.logprobs),
        target: 0,
        bias: list(&mut bias.flatten(), 2),
        barred: list(&mut row.barred.iter().filter_map(|id| place(*id)), 1),
        prompt: list(&mut prompt.iter().filter_map(|id| place(*id)), 1),
        output: list(&mut output.flatten(), 2),
        slot: row.slot,
    }
}

/// How many alternatives to report; negative for no log-probability at all.
fn alternatives(asked: Option<u8>) -> i32 {
    assert!(asked.is_none_or(|count| usize::from(count) <= MOST_ALTERNATIVES), "{asked:?} alternatives");
    asked.map_or(-1, i32::from)
}

fn logprob(result: &SampleResult) -> RowLogprob {
    let count = result.alternatives as usize;
    let top = result.ids.iter().copied().zip(result.logprobs).take(count).collect();
    RowLogprob { logprob: result.logprob, top }
}
