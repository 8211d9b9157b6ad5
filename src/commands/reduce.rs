//! `octant bench reduce`: what ranks on GPUs take to add up.

use std::process::ExitCode;

use crate::config::BenchReduceArgs;

/// There are no GPUs.
#[cfg(not(feature = "cuda"))]
pub fn run(_args: &BenchReduceArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this binary was built without CUDA (cargo build --release --features cuda)")
}

/// Measures and prints a table.
#[cfg(feature = "cuda")]
pub fn run(args: &BenchReduceArgs) -> anyhow::Result<ExitCode> {
    let ranks = args.gpus.len();
    anyhow::ensure!((2..=8).contains(&ranks), "--gpus: expected two to eight, got {ranks}");
    anyhow::ensure!(
        args.hidden.is_multiple_of(16),
        "--hidden: expected a multiple of 16, got {}",
        args.hidden
    );
    let fused = on_gpus::fused(args)?;
    let (reduced, nccl) = (on_gpus::all_reduce(args)?, on_gpus::nccl(args));
    if let Err(error) = &nccl {
        eprintln!("nccl: {error:#}");
    }
    println!(
        "{ranks} ranks on GPUs {:?}, rows of {} floats; microseconds, the best of some",
        args.gpus, args.hidden
    );
    println!(" rows      KiB  fused, all  fused, shares  all-reduce      nccl");
    for (index, rows) in args.rows.iter().enumerate() {
        let kib = rows * args.hidden * 4 / 1024;
        let [everywhere, shared_out] = fused[index].map(|seconds| seconds * 1e6);
        let nccl = nccl.as_ref().map_or("-".to_owned(), |times| format!("{:.1}", times[index] * 1e6));
        let reduced = reduced[index] * 1e6;
        println!("{rows:5} {kib:8} {everywhere:11.1} {shared_out:14.1} {reduced:11.1} {nccl:>9}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "cuda")]
mod on_gpus {
    use std::time::{Duration, Instant};

    use anyhow::Context;

    use crate::comm::{Communicator, GroupBuffers, Nccl, OneShotRows, P2p};
    use crate::config::BenchReduceArgs;
    use crate::device::cuda::{Cuda, Products};
    use crate::device::{Device, DeviceError};

    const PATIENCE: Duration = Duration::from_secs(30);
    /// All-reduces that are timed at a time, and how often.
    const CALLS: usize = 20;
    const TIMES: usize = 5;

    fn open(args: &BenchReduceArgs) -> anyhow::Result<Vec<Cuda>> {
        let open = |gpu: &usize| Cuda::new(*gpu, Products::Deterministic);
        args.gpus.iter().map(open).collect::<Result<_, _>>().context("--gpus")
    }

    /// Does the same on every rank; what the first one says.
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

    /// By every rank and by shares.
    pub(super) fn fused(args: &BenchReduceArgs) -> anyhow::Result<Vec<[f64; 2]>> {
        let devices = open(args)?;
        let group = P2p::group(&devices, PATIENCE, OneShotRows::Fixed(0))?;
        on_ranks(devices, group, |device, comm| comm.measure(device, &args.rows, args.hidden))
    }

    /// Peer to peer.
    pub(super) fn all_reduce(args: &BenchReduceArgs) -> anyhow::Result<Vec<f64>> {
        let devices = open(args)?;
        let group = P2p::group(&devices, PATIENCE, OneShotRows::Fixed(0))?;
        on_ranks(devices, group, |device, comm| time(device, comm, args))
    }

    /// NCCL's.
    pub(super) fn nccl(args: &BenchReduceArgs) -> anyhow::Result<Vec<f64>> {
        let devices = open(args)?;
        let group = Nccl::group(&devices, PATIENCE)?;
        on_ranks(devices, group, |device, comm| time(device, comm, args))
    }

    /// Seconds of an all-reduce of each number of rows.
    fn time<C: Communicator<Cuda>>(
        device: &Cuda,
        comm: &C,
        args: &BenchReduceArgs,
    ) -> Result<Vec<f64>, DeviceError> {
        let most = args.rows.iter().copied().max().unwrap_or(1);
        let mut x = device.floats(most, args.hidden)?;
        // Small, to be read: everything that was enqueued before has then been done.
        let mut mark = device.floats(1, 1)?;
        device.write(&[0.0], &mut mark)?;
        comm.register(GroupBuffers { floats: &[&x], acts: &[] })?;
        let mut times = Vec::new();
        for rows in &args.rows {
            device.write(&vec![0.0; rows * args.hidden], &mut x)?;
            let mut best = f64::INFINITY;
            for _ in 0..TIMES {
                // The first brings the ranks together.
                comm.all_reduce(device, &mut x)?;
                device.read(&mark)?;
                let begun = Instant::now();
                for _ in 0..CALLS {
                    comm.all_reduce(device, &mut x)?;
                }
                device.read(&mark)?;
                best = best.min(begun.elapsed().as_secs_f64() / CALLS as f64);
                comm.check()?;
            }
            times.push(best);
        }
        Ok(times)
    }
}
