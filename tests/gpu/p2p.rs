//! Ranks that access one another's memory: sums in rank order; the same bits in both modes, in any sequence
//! of steps and as over threads; and errors that name a rank that stalls or ends.

mod parts;
mod slices;
mod two_batches;

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octant::comm::{Communicator, GroupBuffers, Local, Message, OneShotRows, P2p, ResidualUpdate};
use octant::device::cuda::{Acts, Cuda, Floats};
use octant::device::{
    ActQuant, CacheSpec, Device, DeviceError, FloatType, HostMatrix, KvDtype, MatrixData, Norm, NormKind,
    upload_floats, upload_matrix,
};
use octant::engine::{Engine, EngineHandle, EngineThread, SchedulerConfig};
use octant::model::{Model, ModelConfig, Precision, Shard};
use octant::request::{Request, SamplingParams, StopRules};
use octant::runner::{DraftParts, RankParts, Runner, RunnerOptions};

use crate::dev;
use crate::device::determinism::{Answer, answer, block_on};
use crate::device::model::fixture;
use parts::{Part, PartProduct};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Reproducible numbers that do not add up exactly.
fn values(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 3001.0 - 1.7).collect()
}

/// Calls `run` with the number, device and handle of every rank of a group, each on its own thread.
fn on_ranks<T: Send>(
    count: usize,
    one_shot: OneShotRows,
    run: impl Fn(usize, &Cuda, P2p) -> T + Sync,
) -> Vec<T> {
    let devices = dev::ranks(count);
    let group = P2p::group(&devices, TIMEOUT, LARGEST, one_shot).unwrap();
    on_group(devices, group, run)
}

/// The same for a group of any kind.
fn on_group<C: Communicator<Cuda>, T: Send>(
    devices: Vec<Cuda>,
    group: Vec<C>,
    run: impl Fn(usize, &Cuda, C) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let run = &run;
        let ranks = devices.into_iter().zip(group).enumerate();
        let start =
            |(rank, (device, comm)): (usize, (Cuda, C))| scope.spawn(move || run(rank, &device, comm));
        let threads: Vec<_> = ranks.map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A buffer that is registered with the group.
fn registered(device: &Cuda, comm: &P2p, rows: usize, cols: usize) -> Floats {
    let floats = device.floats(rows, cols).unwrap();
    comm.register(GroupBuffers { floats: &[&floats], acts: &[] }).unwrap();
    floats
}

/// Σ over ranks of each rank's values, in rank order.
fn sum(count: usize, len: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; len];
    for rank in 0..count {
        sum.iter_mut().zip(values(rank, len)).for_each(|(s, x)| *s += x);
    }
    sum
}

#[test]
fn repeated_all_reduces_sum_in_rank_order() {
    for count in [1, 2, 3, 8] {
        for (rows, cols) in [(1, 64), (3, 20), (50, 32)] {
            let all = on_ranks(count, OneShotRows::Fixed(0), |rank, device, comm| {
                let mut x = registered(device, &comm, rows, cols);
                (0..3)
                    .map(|turn| {
                        device.write(&values(rank, (rows - turn % rows) * cols), &mut x).unwrap();
                        comm.all_reduce(device, &mut x).unwrap();
                        device.read(&x).unwrap()
                    })
                    .collect::<Vec<_>>()
            });
            for (turn, got) in all[0].iter().enumerate() {
                assert_eq!(*got, sum(count, (rows - turn % rows) * cols), "{count} ranks, {rows} x {cols}");
            }
            assert!(all.iter().all(|rank| *rank == all[0]), "{count} ranks, {rows} x {cols}");
        }
    }
}

#[test]
fn parts_are_gathered_by_columns() {
    for (count, rows, cols) in [(1, 2, 5), (2, 3, 8), (8, 1, 33), (8, 40, 7)] {
        let expected: Vec<f32> = (0..rows)
            .flat_map(|row| {
                (0..count).flat_map(move |rank| values(rank, rows * cols)[row * cols..][..cols].to_vec())
            })
            .collect();
        let all = on_ranks(count, OneShotRows::Fixed(0), |rank, device, comm| {
            let mut part = registered(device, &comm, rows, cols);
            let mut whole = device.floats(rows, cols * count).unwrap();
            (0..3)
                .map(|_| {
                    device.write(&values(rank, rows * cols), &mut part).unwrap();
                    comm.all_gather(device, &part, &mut whole).unwrap();
                    device.write(&vec![f32::NAN; rows * cols], &mut part).unwrap();
                    device.read(&whole).unwrap()
                })
                .collect::<Vec<_>>()
        });
        assert!(all.iter().flatten().all(|whole| *whole == expected), "{count} ranks, {rows} x {cols}");
    }
}

/// The buffers of a few reductions.
struct Reductions {
    residual: Floats,
    deltas: [Floats; 2],
    product: PartProduct,
    out: Acts,
    identity: <Cuda as Device>::Matrix,
}

const COLS: usize = 64;
const MAX_ROWS: usize = 9;
/// Decides how many rows go by packets: fewer than the largest sums have.
const LARGEST: Message = Message { float_type: FloatType::Bf16, rows: 3, cols: COLS };

impl Reductions {
    fn new(device: &Cuda, comm: &impl Communicator<Cuda>, parts: FloatType) -> Self {
        let codes: Vec<u8> = (0..COLS * COLS).map(|i| if i / COLS == i % COLS { 0x38 } else { 0 }).collect();
        let data = MatrixData::Fp8 { codes: &codes, scales: &[1.0; COLS] };
        // A multiple of each number of ranks.
        let delta = || device.floats_of(parts, 24, COLS).unwrap();
        let (residual, deltas) = (device.floats(MAX_ROWS, COLS).unwrap(), [delta(), delta()]);
        let out = device.acts(MAX_ROWS, COLS).unwrap();
        let floats = [&residual, &deltas[0], &deltas[1]];
        comm.register(GroupBuffers { floats: &floats, acts: &[&out] }).unwrap();
        let identity = upload_matrix(device, HostMatrix { out: COLS, input: COLS, data }).unwrap();
        Self { residual, deltas, product: PartProduct::new(device, MAX_ROWS, COLS), out, identity }
    }

    fn norm(device: &Cuda) -> Norm<Cuda> {
        Norm {
            kind: NormKind::LayerNorm1p,
            weight: upload_floats(device, COLS, &values(90, COLS)).unwrap(),
            bias: Some(upload_floats(device, COLS, &values(91, COLS)).unwrap()),
            eps: 1e-5,
        }
    }

    /// Reduces a row and reads the residual.
    fn once(&mut self, device: &Cuda, comm: &P2p) -> Result<Vec<f32>, DeviceError> {
        let delta = &mut self.deltas[0];
        let part = Part { seed: 1, rows: 1, quant: ActQuant::Fp8PerToken };
        self.product.run(device, comm, part, delta)?;
        device.write(&values(2, COLS), &mut self.residual)?;
        let update = ResidualUpdate { residual: &mut self.residual, delta };
        comm.reduce_norm(device, update, &Self::norm(device), ActQuant::Fp8PerToken, &mut self.out)?;
        device.read(&self.residual)
    }

    /// Reduces five times with a norm and once without. Returns all normalised rows, as products see them,
    /// and the residual at the end.
    fn run(
        &mut self,
        device: &Cuda,
        rank: usize,
        comm: &impl Communicator<Cuda>,
        rows: usize,
        quant: ActQuant,
    ) -> Vec<f32> {
        let norm = Self::norm(device);
        let mut seen = device.floats(rows, COLS).unwrap();
        let mut all = Vec::new();
        device.write(&values(50, rows * COLS), &mut self.residual).unwrap();
        for turn in 0..5 {
            let delta = &mut self.deltas[turn % 2];
            self.product.run(device, comm, Part { seed: rank + 10 * turn, rows, quant }, delta).unwrap();
            let update = ResidualUpdate { residual: &mut self.residual, delta };
            comm.reduce_norm(device, update, &norm, quant, &mut self.out).unwrap();
            device.linear(&self.out, &self.identity, &mut seen).unwrap();
            all.extend(device.read(&seen).unwrap());
        }
        let part = Part { seed: rank + 77, rows, quant };
        self.product.run(device, comm, part, &mut self.deltas[1]).unwrap();
        let update = ResidualUpdate { residual: &mut self.residual, delta: &mut self.deltas[1] };
        comm.reduce_add(device, update).unwrap();
        all.extend(device.read(&self.residual).unwrap());
        all
    }
}

#[test]
fn one_shot_and_two_shot_have_the_bits_of_the_group_of_threads() {
    for (quant, parts) in [
        (ActQuant::Bf16, FloatType::F32),
        (ActQuant::Fp8PerToken, FloatType::Bf16),
        (ActQuant::Fp8Static(0.01), FloatType::Bf16),
    ] {
        // More ranks than rows, and rows that ranks divide equally and unequally.
        for (count, rows) in [(1, 1), (2, 3), (3, 7), (3, 6), (8, 1), (8, 9), (8, 8)] {
            let expected = on_group(dev::ranks(count), Local::group(count, TIMEOUT), |rank, device, comm| {
                Reductions::new(device, &comm, parts).run(device, rank, &comm, rows, quant)
            });
            let case = format!("{quant:?}, {parts:?} parts, {count} ranks, {rows} rows");
            for one_shot in [0, MAX_ROWS] {
                let got = on_ranks(count, OneShotRows::Fixed(one_shot), |rank, device, comm| {
                    Reductions::new(device, &comm, parts).run(device, rank, &comm, rows, quant)
                });
                assert!(got == expected, "{case}, one-shot up to {one_shot}");
            }
        }
    }
}

#[test]
fn numbers_of_rows_may_change_from_step_to_step() {
    let rows = [1, 9, 2, 8, 1, 1, 5, 9];
    let all = on_ranks(4, OneShotRows::Fixed(3), |rank, device, comm| {
        let mut reductions = Reductions::new(device, &comm, FloatType::Bf16);
        rows.map(|rows| {
            // The ranks reach each step at different times.
            std::thread::sleep(Duration::from_millis(((rank * 7 + rows * 3) % 5) as u64));
            reductions.run(device, rank, &comm, rows, ActQuant::Fp8PerToken)
        })
    });
    assert!(all.iter().all(|rank| *rank == all[0]));
    let alone = on_ranks(4, OneShotRows::Fixed(0), |rank, device, comm| {
        Reductions::new(device, &comm, FloatType::Bf16).run(device, rank, &comm, 5, ActQuant::Fp8PerToken)
    });
    assert!(all[0][6] == alone[0]);
}

#[test]
fn ranks_agree_on_the_measured_mode() {
    let all = on_ranks(2, OneShotRows::Measured, |rank, device, comm| {
        let measured = comm.measure(device, &[1, 5], LARGEST).unwrap();
        assert!(measured.len() == 2 && measured.as_flattened().iter().all(|seconds| *seconds > 0.0));
        Reductions::new(device, &comm, FloatType::F32).run(device, rank, &comm, 4, ActQuant::Fp8PerToken)
    });
    assert!(all[0] == all[1]);
}

/// The end of rank 2 of 4, in place of an operation.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Ends,
    /// Ends after the other ranks have failed.
    Stalls,
}

/// The operation that rank 2 does not reach.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Missed {
    AllReduce,
    /// A sum that waits for packets and not for signals.
    Packets,
}

/// The errors of the other ranks, and how long each waited.
fn failures(fate: Fate, missed: Missed, timeout: Duration) -> Vec<(String, Duration)> {
    let (failed, others) = channel();
    let others = Mutex::new(others);
    let devices = dev::ranks(4);
    let group = P2p::group(&devices, timeout, LARGEST, OneShotRows::Fixed(1)).unwrap();
    let run = |rank: usize, device: &Cuda, comm: P2p| -> Option<(String, Duration)> {
        let mut x = registered(device, &comm, 2, COLS);
        device.write(&values(1, 2 * COLS), &mut x).unwrap();
        let mut reductions = Reductions::new(device, &comm, FloatType::Bf16);
        let mut operation = || match missed {
            Missed::AllReduce => comm.all_reduce(device, &mut x).and_then(|()| device.read(&x)),
            Missed::Packets => reductions.once(device, &comm),
        };
        operation().unwrap();
        if rank == 2 {
            if fate == Fate::Stalls {
                let others = others.lock().unwrap();
                (0..3).for_each(|_| others.recv_timeout(TIMEOUT).expect("the other ranks fail"));
            }
            drop(comm);
            return None;
        }
        let begun = Instant::now();
        let error: DeviceError = operation().unwrap_err();
        assert_eq!(error.op, octant::device::PEER);
        // A failed rank does not wait again, and the error stays.
        assert_eq!(operation().unwrap_err().message, error.message);
        let took = begun.elapsed();
        failed.send(()).unwrap();
        Some((error.message, took))
    };
    std::thread::scope(|scope| {
        let run = &run;
        let ranks = devices.into_iter().zip(group).enumerate();
        let start =
            |(rank, (device, comm)): (usize, (Cuda, P2p))| scope.spawn(move || run(rank, &device, comm));
        let threads: Vec<_> = ranks.map(start).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_rank_that_ends_is_named_at_once() {
    for missed in [Missed::AllReduce, Missed::Packets] {
        let failures = failures(Fate::Ends, missed, TIMEOUT);
        assert_eq!(failures.len(), 3);
        for (message, took) in failures {
            assert_eq!(message, "rank 2 has ended", "{missed:?}");
            assert!(took < TIMEOUT, "{missed:?}: a rank waited for its timeout: {took:?}");
        }
    }
}

#[test]
fn a_rank_that_stalls_is_named_in_time() {
    for missed in [Missed::AllReduce, Missed::Packets] {
        let failures = failures(Fate::Stalls, missed, Duration::from_millis(500));
        assert_eq!(failures.len(), 3);
        for (message, _) in failures {
            assert_eq!(message, "rank 2 did not come within 0.5 s", "{missed:?}");
        }
    }
}

/// Starts an engine whose ranks run on `devices` and communicate through `group`.
fn engine<C: Communicator<Cuda>>(
    dir: &Path,
    devices: Vec<Cuda>,
    group: Vec<C>,
) -> (EngineHandle, EngineThread) {
    engine_with(dir, devices, group, Steps::default())
}

/// How an engine computes steps.
struct Steps<C> {
    most_tokens: usize,
    two_batch_tokens: Option<usize>,
    /// The communicators of the model as its own draft model. Empty: no drafts.
    drafts: Vec<C>,
}

impl<C> Default for Steps<C> {
    fn default() -> Self {
        Self { most_tokens: 24, two_batch_tokens: None, drafts: Vec::new() }
    }
}

fn engine_with<C: Communicator<Cuda>>(
    dir: &Path,
    devices: Vec<Cuda>,
    group: Vec<C>,
    Steps { most_tokens, two_batch_tokens, drafts }: Steps<C>,
) -> (EngineHandle, EngineThread) {
    let config = ModelConfig::from_dir(dir).unwrap();
    let scheduler = SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: most_tokens,
        max_model_len: 128,
        num_blocks: 18,
        vocab_size: config.vocab,
        max_queue_requests: 100,
        max_queue_tokens: 100_000,
        prefix_caching: true,
        reward_width: 0,
        policy: Default::default(),
        max_drafts: if drafts.is_empty() { 0 } else { 3 },
        draft_model: !drafts.is_empty(),
    };
    let count = devices.len();
    let mut drafts = drafts.into_iter();
    let parts = devices.into_iter().zip(group).zip(Shard::all(count)).map(|((device, comm), shard)| {
        let load =
            |device: &Cuda| Model::load(dir, &config, shard, Precision::Fp8, device, &mut |_| {}).unwrap();
        let model = load(&device);
        let cache = CacheSpec {
            layers: config.layers,
            blocks: scheduler.num_blocks,
            heads: model.config().heads,
            dtype: KvDtype::Fp8,
        };
        let draft = drafts.next().map(|comm| {
            let device = device.sibling();
            DraftParts { model: load(&device), device, comm, cache }
        });
        let (max_num_seqs, max_num_batched_tokens) =
            (scheduler.max_num_seqs, scheduler.max_num_batched_tokens);
        RankParts {
            device,
            comm,
            processors: Vec::new(),
            model,
            cache,
            draft,
            max_num_seqs,
            max_num_batched_tokens,
            two_batch_tokens,
            vocab: config.vocab,
        }
    });
    let runner = Runner::start(parts.collect(), RunnerOptions { step_timeout: TIMEOUT, mask_threads: 1 });
    Engine::start(scheduler, 2, Box::new(runner)).unwrap()
}

/// Answers to three prompts that arrive together: two greedy, one sampled.
fn answers(engine: &(EngineHandle, EngineThread)) -> Vec<Answer> {
    let ask = |index: u32| Request {
        prompt: (0..3 + 11 * index).map(|i| 3 + (i * 37 + index * 101) % 300).collect::<Vec<_>>().into(),
        sampling: Arc::new(SamplingParams {
            temperature: (index % 2) as f32,
            seed: u64::from(index),
            logprobs: Some(2),
            ..SamplingParams::greedy()
        }),
        stop: StopRules { max_tokens: dev::GENERATED.min(8), stop_ids: Vec::new() },
        priority: 0,
        tenant: Default::default(),
        reward: false,
        batch: false,
        cache_salt: None,
        prompt_logprobs: None,
        prompt_logprobs_start: 0,
    };
    let all = (0..3).map(|index| answer(&engine.0, ask(index)));
    block_on(futures_util::future::join_all(all))
}

#[test]
fn models_over_p2p_have_the_bits_of_the_group_of_threads() {
    let dir = fixture("wide");
    for count in [2, 8] {
        let expected = answers(&engine(&dir, dev::ranks(count), Local::group(count, TIMEOUT)));
        // One-shot for up to two rows, two-shot for more.
        let devices = dev::ranks(count);
        let hidden = ModelConfig::from_dir(&dir).unwrap().hidden;
        // Packets for one row only.
        let largest = Message { rows: 1, cols: hidden, ..LARGEST };
        let group = P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(2)).unwrap();
        assert!(answers(&engine(&dir, devices, group)) == expected, "{count} ranks");
    }
}

#[test]
fn a_draft_model_over_p2p_changes_no_bit() {
    let dir = fixture("wide");
    let expected = answers(&engine(&dir, dev::ranks(2), Local::group(2, TIMEOUT)));
    let devices = dev::ranks(2);
    let hidden = ModelConfig::from_dir(&dir).unwrap().hidden;
    let largest = Message { rows: 1, cols: hidden, ..LARGEST };
    let group = || P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(2)).unwrap();
    let (group, drafts) = (group(), group());
    let drafting = engine_with(&dir, devices, group, Steps { drafts, ..Steps::default() });
    assert!(answers(&drafting) == expected);
    let counts = drafting.0.stats().counts.speculation;
    assert!(counts.drafts > 0 && counts.all_accepted() == counts.drafts, "{counts:?}");
}

/// Runs the kernels in a separate program, because this test's binary is not compiled with ThreadSanitizer.
#[cfg(feature = "host-kernels")]
#[test]
fn thread_sanitizer_finds_no_data_race() {
    let dir = tempfile::tempdir().unwrap();
    let (program, source) =
        (dir.path().join("peers"), crate::device::model::root().join("tests/host/peers.cpp"));
    let run = |command: &mut std::process::Command| {
        let output = command.env_remove("LD_PRELOAD").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let mut compile = std::process::Command::new(std::env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    compile.args(["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-ffp-contract=off", "-DOCTANT_HOST"]);
    compile.args(["-Wno-unknown-pragmas", "-x", "c++"]).arg(&source).arg("-o").arg(&program);
    assert_eq!(run(&mut compile), (Some(0), String::new()));
    // Older sanitizers fail with the address randomisation of newer Linux kernels; `setarch -R` turns it off.
    let plain = || std::process::Command::new(&program);
    let fixed = || {
        let mut command = std::process::Command::new("setarch");
        command.args([std::env::consts::ARCH, "-R"]).arg(&program);
        command
    };
    let cannot = run(&mut plain()).1.contains("unexpected memory mapping");
    let start = || if cannot { fixed() } else { plain() };
    assert_eq!(run(&mut start()), (Some(0), "eight ranks agree\n".to_owned()));
    for fault in ["broken", "early"] {
        let (status, report) = run(start().arg(fault));
        assert!(status != Some(0) && report.contains("data race"), "{fault}: {status:?}: {report}");
    }
}
