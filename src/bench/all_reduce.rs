//! `octant bench reduce`: times all-reduces between GPUs, and the gathering of shortlists.

use std::process::ExitCode;

use crate::config::BenchReduceArgs;
use crate::stdio::results::print_line;

/// Seconds of each operation, one entry for each number of rows.
struct Times {
    /// Reduce and norm of BF16 parts in one kernel, after a product that computes the parts: computed by
    /// every rank, and divided between ranks.
    fused: Vec<[f64; 2]>,
    /// All-reduce of F32 by our kernels.
    all_reduce: Vec<f64>,
    /// All-reduce of F32 by NCCL.
    nccl: anyhow::Result<Vec<f64>>,
    /// All-gather of a shortlist per row and rank.
    gather: Vec<f64>,
}

/// Runs the benchmark and prints a table.
pub fn run(args: &BenchReduceArgs) -> anyhow::Result<ExitCode> {
    let ranks = args.gpus.len();
    anyhow::ensure!((2..=8).contains(&ranks), "--gpus: expected two to eight, got {ranks}");
    anyhow::ensure!(
        args.hidden.is_multiple_of(16),
        "--hidden: expected a multiple of 16, got {}",
        args.hidden
    );
    let Times { fused, all_reduce, nccl, gather } = gpus::measure(args)?;
    if let Err(error) = &nccl {
        tracing::warn!("nccl: {error:#}");
    }
    print_line!(
        "{ranks} ranks on GPUs {:?}, rows of {} floats, BF16 where a norm follows; microseconds, the best of \
         some; `fused` with a product of 128 inputs before each sum; `gather` of a rank's 64 largest logits \
         and their ids per row",
        args.gpus,
        args.hidden
    )?;
    print_line!(" rows      KiB  fused, all  fused, shares  all-reduce      nccl    gather")?;
    for (index, rows) in args.rows.iter().enumerate() {
        let kib = rows * args.hidden * 4 / 1024;
        let [everywhere, shared_out] = fused[index].map(|seconds| seconds * 1e6);
        let nccl = nccl.as_ref().map_or("-".to_owned(), |times| format!("{:.1}", times[index] * 1e6));
        let [reduced, gathered] = [all_reduce[index] * 1e6, gather[index] * 1e6];
        print_line!(
            "{rows:5} {kib:8} {everywhere:11.1} {shared_out:14.1} {reduced:11.1} {nccl:>9} {gathered:9.1}"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "cuda"))]
mod gpus {
    use super::Times;
    use crate::config::BenchReduceArgs;

    /// Always fails: this build has no CUDA.
    pub(super) fn measure(_args: &BenchReduceArgs) -> anyhow::Result<Times> {
        anyhow::bail!("this binary was built without CUDA (cargo build --release --features cuda)")
    }
}

#[cfg(feature = "cuda")]
mod gpus {
    use std::time::{Duration, Instant};

    use anyhow::Context;

    use super::Times;
    use crate::comm::{Communicator, GroupBuffers, Message, Nccl, OneShotRows, P2p};
    use crate::config::BenchReduceArgs;
    use crate::device::cuda::{Cuda, Products};
    use crate::device::{Device, DeviceError, FloatType, Floats, SHORTLIST};

    /// Maximum wait for the other ranks.
    const TIMEOUT: Duration = Duration::from_secs(30);
    /// Operations in one timed batch.
    const CALLS: usize = 20;
    /// Timed batches, of which the fastest counts.
    const BATCHES: usize = 5;

    /// Runs all measurements.
    pub(super) fn measure(args: &BenchReduceArgs) -> anyhow::Result<Times> {
        let (fused, all_reduce, gather) = (fused(args)?, all_reduce(args)?, gather(args)?);
        Ok(Times { fused, all_reduce, nccl: nccl(args), gather })
    }

    fn open(args: &BenchReduceArgs) -> anyhow::Result<Vec<Cuda>> {
        let open = |gpu: &usize| Cuda::new(*gpu, Products::Deterministic);
        args.gpus.iter().map(open).collect::<Result<_, _>>().context("--gpus")
    }

    fn largest(args: &BenchReduceArgs, float_type: FloatType) -> Message {
        Message { float_type, rows: args.rows.iter().copied().max().unwrap_or(1), cols: args.hidden }
    }

    /// Runs `rank` on a thread per rank and returns the result of the first rank.
    fn on_ranks<C: Communicator<Cuda>, T: Send>(
        devices: Vec<Cuda>,
        group: Vec<C>,
        rank: impl Fn(&Cuda, &C) -> Result<T, DeviceError> + Sync,
    ) -> anyhow::Result<T> {
        let all: Result<Vec<T>, DeviceError> = std::thread::scope(|scope| {
            let rank = &rank;
            let ranks = devices.into_iter().zip(group);
            let threads: Vec<_> =
                ranks.map(|(device, comm)| scope.spawn(move || rank(&device, &comm))).collect();
            threads.into_iter().map(|thread| thread.join().expect("measuring does not panic")).collect()
        });
        Ok(all?.remove(0))
    }

    fn fused(args: &BenchReduceArgs) -> anyhow::Result<Vec<[f64; 2]>> {
        let devices = open(args)?;
        let largest = largest(args, FloatType::Bf16);
        let group = P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(0))?;
        on_ranks(devices, group, |device, comm| comm.measure(device, &args.rows, largest))
    }

    fn all_reduce(args: &BenchReduceArgs) -> anyhow::Result<Vec<f64>> {
        let devices = open(args)?;
        let largest = largest(args, FloatType::F32);
        let group = P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(0))?;
        on_ranks(devices, group, |device, comm| all_reduces(device, comm, args))
    }

    fn nccl(args: &BenchReduceArgs) -> anyhow::Result<Vec<f64>> {
        let devices = open(args)?;
        let group = Nccl::group(&devices, TIMEOUT)?;
        on_ranks(devices, group, |device, comm| all_reduces(device, comm, args))
    }

    fn gather(args: &BenchReduceArgs) -> anyhow::Result<Vec<f64>> {
        let devices = open(args)?;
        let ranks = devices.len();
        let largest = Message { cols: 2 * SHORTLIST, ..largest(args, FloatType::F32) };
        let group = P2p::group(&devices, TIMEOUT, largest, OneShotRows::Fixed(0))?;
        on_ranks(devices, group, |device, comm| {
            let mut part = device.floats(largest.rows, largest.cols)?;
            let mut whole = device.floats(largest.rows, ranks * largest.cols)?;
            comm.register(GroupBuffers { floats: &[&part], acts: &[] })?;
            time(device, &args.rows, &mut part, |part| comm.all_gather(device, part, &mut whole))
        })
    }

    /// Seconds of an all-reduce for each number of rows.
    fn all_reduces<C: Communicator<Cuda>>(
        device: &Cuda,
        comm: &C,
        args: &BenchReduceArgs,
    ) -> Result<Vec<f64>, DeviceError> {
        let Message { rows, cols, .. } = largest(args, FloatType::F32);
        let mut x = device.floats(rows, cols)?;
        comm.register(GroupBuffers { floats: &[&x], acts: &[] })?;
        time(device, &args.rows, &mut x, |x| comm.all_reduce(device, x))
    }

    /// Seconds of an operation on `x` for each number of rows.
    fn time(
        device: &Cuda,
        counts: &[usize],
        x: &mut Floats<Cuda>,
        mut operation: impl FnMut(&mut Floats<Cuda>) -> Result<(), DeviceError>,
    ) -> Result<Vec<f64>, DeviceError> {
        // Reading this small buffer waits for all work enqueued before.
        let mut last = device.floats(1, 1)?;
        device.write(&[0.0], &mut last)?;
        let mut times = Vec::new();
        for rows in counts {
            device.write(&vec![0.0; rows * x.cols()], x)?;
            let mut best = f64::INFINITY;
            for _ in 0..BATCHES {
                // The first operation synchronises the ranks and is not timed.
                operation(x)?;
                device.read(&last)?;
                let begun = Instant::now();
                for _ in 0..CALLS {
                    operation(x)?;
                }
                device.read(&last)?;
                best = best.min(begun.elapsed().as_secs_f64() / CALLS as f64);
            }
            times.push(best);
        }
        Ok(times)
    }
}
