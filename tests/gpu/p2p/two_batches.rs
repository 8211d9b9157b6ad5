//! Steps as two batches, whose sums run beside the other batch's products.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octant::comm::{Communicator, GroupBuffers, Local, Message, OneShotRows, P2p, ResidualUpdate};
use octant::device::cuda::{Acts, Cuda, Floats, Matrix};
use octant::device::{ActQuant, DeviceError, Norm};
use octant::engine::{EngineHandle, EngineThread, SubmitOptions, UpdateStream};
use octant::model::ModelConfig;
use octant::request::{Finish, Request, SamplingParams, StopRules};

use super::{LARGEST, Steps, TIMEOUT, engine_with};
use crate::dev;
use crate::device::determinism::{Answer, block_on, read};
use crate::device::model::fixture;

/// A communicator that keeps the number of rows of each sum.
struct Counted<C> {
    comm: C,
    rows: Arc<Mutex<Vec<usize>>>,
    fault: Option<Fault>,
    /// The number of sums of divided steps so far.
    sums: AtomicUsize,
}

/// A rank that does not do its sum.
#[derive(Clone, Copy)]
struct Fault {
    /// Which sum of the divided steps, from 0 on.
    sum: usize,
    /// How long the rank does nothing before the sum; `None` if it fails instead.
    stalls: Option<Duration>,
}

impl<C: Communicator<Cuda>> Communicator<Cuda> for Counted<C> {
    const CAPTURES: bool = C::CAPTURES;
    const RUNS_BESIDE: bool = C::RUNS_BESIDE;

    fn register(&self, buffers: GroupBuffers<'_, Cuda>) -> Result<(), DeviceError> {
        self.comm.register(buffers)
    }
    fn all_reduce(&self, cuda: &Cuda, x: &mut Floats) -> Result<(), DeviceError> {
        self.comm.all_reduce(cuda, x)
    }
    fn all_gather(&self, cuda: &Cuda, part: &Floats, whole: &mut Floats) -> Result<(), DeviceError> {
        self.comm.all_gather(cuda, part, whole)
    }
    fn linear_part(
        &self,
        cuda: &Cuda,
        x: &Acts,
        matrix: &Matrix,
        delta: &mut Floats,
    ) -> Result<(), DeviceError> {
        self.comm.linear_part(cuda, x, matrix, delta)
    }
    fn reduce_norm(
        &self,
        cuda: &Cuda,
        update: ResidualUpdate<'_, Cuda>,
        norm: &Norm<Cuda>,
        quant: ActQuant,
        out: &mut Acts,
    ) -> Result<(), DeviceError> {
        self.rows.lock().unwrap().push(update.delta.rows());
        // Sums of fewer rows are those of captured graphs, before the first step.
        let divided = update.delta.rows() == STEP_TOKENS / 2;
        let sum = self.sums.fetch_add(usize::from(divided), Ordering::Relaxed);
        if divided && let Some(fault) = self.fault.filter(|fault| fault.sum == sum) {
            match fault.stalls {
                Some(time) => std::thread::sleep(time),
                None => return Err(DeviceError { op: "sum", message: FAULT.to_owned() }),
            }
        }
        self.comm.reduce_norm(cuda, update, norm, quant, out)
    }
    fn reduce_add(&self, cuda: &Cuda, update: ResidualUpdate<'_, Cuda>) -> Result<(), DeviceError> {
        self.comm.reduce_add(cuda, update)
    }
}

/// The message of a rank's own fault.
const FAULT: &str = "a fault of the test";

/// The streams of eight prompts, which take two full steps; the first are answered meanwhile.
async fn streams(engine: &EngineHandle) -> Vec<UpdateStream> {
    let ask = |index: u32| Request {
        prompt: (0..114 + index).map(|i| 3 + (i * 37 + index * 101) % 300).collect::<Vec<_>>().into(),
        sampling: Arc::new(SamplingParams {
            temperature: (index % 2) as f32,
            seed: u64::from(index),
            logprobs: Some(2),
            ..SamplingParams::greedy()
        }),
        stop: StopRules { max_tokens: 4, stop_ids: Vec::new() },
        reward: false,
        ..Request::score(&[1])
    };
    // The engine takes all of them before its first step.
    engine.enter(8).unwrap().submit((0..8).map(ask).collect(), SubmitOptions::default()).await.unwrap()
}

fn answers(engine: &(EngineHandle, EngineThread)) -> Vec<Answer> {
    block_on(async { futures_util::future::join_all(streams(&engine.0).await.into_iter().map(read)).await })
}

/// A group that counts the rows of sums in `rows`.
fn counted(group: Vec<P2p>, rows: &Arc<Mutex<Vec<usize>>>) -> Vec<Counted<P2p>> {
    let counted = |comm| Counted { comm, rows: Arc::clone(rows), fault: None, sums: AtomicUsize::new(0) };
    group.into_iter().map(counted).collect()
}

const STEP_TOKENS: usize = 512;
/// Tokens of the smallest step that is divided.
const LEAST: usize = 384;

#[test]
fn two_batches_have_the_bits_of_one() {
    let dir = fixture("wide");
    let hidden = ModelConfig::from_dir(&dir).unwrap().hidden;
    let one = Steps { most_tokens: STEP_TOKENS, ..Steps::default() };
    let expected = answers(&engine_with(&dir, dev::ranks(2), Local::group(2, TIMEOUT), one));
    // On the host, the first rank runs sums at once and the second as late as possible. The second batch has
    // fewer rows than the first in some steps, and is then added in one shot beside two shots of the first.
    for one_shot in [0, 240, STEP_TOKENS] {
        let devices = dev::ranks(2);
        let largest = Message { rows: STEP_TOKENS, cols: hidden, ..LARGEST };
        let group = P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(one_shot)).unwrap();
        let rows: Arc<Mutex<Vec<usize>>> = Arc::default();
        let group = counted(group, &rows);
        let two = Steps { most_tokens: STEP_TOKENS, two_batch_tokens: Some(LEAST), drafts: Vec::new() };
        assert!(answers(&engine_with(&dir, devices, group, two)) == expected, "one-shot to {one_shot}");
        // Steps of at least 384 tokens are divided after row 256.
        let rows = rows.lock().unwrap();
        let is_between = |rows: &usize| (128..240).contains(rows);
        assert!(rows.contains(&256) && rows.iter().any(is_between), "{rows:?}");
        assert!(rows.iter().all(|rows| *rows < LEAST), "{rows:?}");
    }
}

/// Ranks that share a GPU start no kernel before the one before it has ended. A rank that has its GPU to
/// itself does, also products that run beside sums.
#[test]
fn two_batches_of_one_rank_have_the_bits_of_one_batch() {
    let dir = fixture("wide");
    let hidden = ModelConfig::from_dir(&dir).unwrap().hidden;
    let largest = Message { rows: STEP_TOKENS, cols: hidden, ..LARGEST };
    let answers = |two_batch_tokens| {
        let devices = dev::ranks(1);
        let group = P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(0)).unwrap();
        let rows: Arc<Mutex<Vec<usize>>> = Arc::default();
        let steps = Steps { most_tokens: STEP_TOKENS, two_batch_tokens, drafts: Vec::new() };
        let answers = answers(&engine_with(&dir, devices, counted(group, &rows), steps));
        let most = rows.lock().unwrap().iter().copied().max();
        (answers, most)
    };
    let (one, two) = (answers(None), answers(Some(LEAST)));
    assert!(one.0 == two.0);
    assert_eq!((one.1, two.1), (Some(STEP_TOKENS), Some(256)));
}

/// Lets rank `failing` of two fail or stall at a sum of the second batch of a step, beside the products of
/// the first batch. Returns the engine's error.
fn error_of_rank(failing: usize, timeout: Duration, stalls: Option<Duration>) -> String {
    let dir = fixture("wide");
    let hidden = ModelConfig::from_dir(&dir).unwrap().hidden;
    let largest = Message { rows: STEP_TOKENS, cols: hidden, ..LARGEST };
    let devices = dev::ranks(2);
    let group = P2p::group(&devices, timeout, largest, OneShotRows::Fixed(0)).unwrap();
    let rows: Arc<Mutex<Vec<usize>>> = Arc::default();
    let mut group = counted(group, &rows);
    group[failing].fault = Some(Fault { sum: 1, stalls });
    let steps = Steps { most_tokens: STEP_TOKENS, two_batch_tokens: Some(LEAST), drafts: Vec::new() };
    let (engine, thread) = engine_with(&dir, devices, group, steps);
    block_on(async {
        for mut stream in streams(&engine).await {
            let finish = stream.next().await.finish;
            assert!(matches!(finish, Some(Finish::Error(_))), "{finish:?}");
        }
    });
    assert!(rows.lock().unwrap().contains(&(STEP_TOKENS / 2)), "no step was divided");
    thread.join().unwrap_err().message
}

#[test]
fn a_rank_that_ends_between_two_batches_ends_the_others() {
    for failing in [0, 1] {
        let began = Instant::now();
        let error = error_of_rank(failing, TIMEOUT, None);
        assert_eq!(error, format!("rank {failing} failed: sum: {FAULT}"));
        assert!(began.elapsed() < TIMEOUT, "the other rank waited for its timeout");
    }
}

#[test]
fn a_rank_that_stalls_between_two_batches_is_named() {
    let error = error_of_rank(1, Duration::from_secs(8), Some(Duration::from_secs(12)));
    assert!(error.contains("rank 1 did not come within 8"), "{error}");
}
