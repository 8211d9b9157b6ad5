//! `octant bench load`: loading a model as `octant serve` does, against reading the same files and doing nothing with
//! them, in the same run and in turn; from the disk, with the files dropped from the system's cache before, and from
//! the cache. And how much more memory loading takes than the weights it leaves.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::place::{Devices, Place};
use crate::config::{BenchLoadArgs, DeviceName, Quantization};
use crate::device::{Device, KvDtype};
use crate::model::{Model, ModelConfig, Precision};

/// Bytes of one read of the files alone.
const READ: usize = 8 << 20;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What one load took.
struct Load {
    seconds: f64,
    /// Bytes of the files that were read.
    bytes: u64,
    /// Bytes of memory at the highest, above those before.
    peak: u64,
}

/// Measures and prints.
pub fn run(args: &BenchLoadArgs) -> anyhow::Result<ExitCode> {
    let config = ModelConfig::from_dir(&args.model)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = args.device.unwrap_or(DeviceName::Cpu);
    let place = Place::open_devices(Devices { device, ranks: args.tp, threads, deterministic: true })?;
    let precision = match args.quantization.unwrap_or(Quantization::Fp8) {
        Quantization::Fp8 => Precision::Fp8,
        Quantization::None => Precision::None,
    };
    let share = config.share(args.tp).map_err(anyhow::Error::msg)?;
    let weights = place.needs(&share, precision, KvDtype::Fp8, 1).weights * args.tp as u64;
    let files = files(&args.model)?;
    let stored = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    println!(
        "{}; {:.2} GB in {} files, {:.2} GB of weights",
        place.describe(),
        gb(stored),
        files.len(),
        gb(weights)
    );
    let run = Run { args, config: &config, precision, files: &files, weights };
    match place {
        Place::Cpu(cpus) => run.all(&cpus)?,
        #[cfg(feature = "cuda")]
        Place::Cuda(gpus) => run.all(&gpus)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is measured.
struct Run<'a> {
    args: &'a BenchLoadArgs,
    config: &'a ModelConfig,
    precision: Precision,
    files: &'a [PathBuf],
    /// Bytes of all ranks' weights.
    weights: u64,
}

impl Run<'_> {
    fn all<D: Device>(&self, devices: &[D]) -> anyhow::Result<()> {
        for (state, cold) in [("cold", true), ("warm", false)] {
            let (mut raw, mut loaded, mut ratios, mut beyond) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.args.reps {
                let alone = self.read_raw(cold)?;
                let load = self.load(devices, cold)?;
                let rate = load.bytes as f64 / load.seconds;
                println!(
                    "{state}: files alone {:.2} GB/s, loading {:.2} GB/s ({:.2} GB in {:.2} s)",
                    alone / 1e9,
                    rate / 1e9,
                    gb(load.bytes),
                    load.seconds
                );
                raw.push(alone);
                loaded.push(rate);
                ratios.push(rate / alone);
                beyond.push(load.peak as f64 - self.weights as f64);
            }
            println!(
                "{state}, median of {}: files alone {:.2} GB/s, loading {:.2} GB/s, ratio {:.2}; memory beyond the weights at \
                 most {:.0} MB",
                self.args.reps,
                median(&mut raw) / 1e9,
                median(&mut loaded) / 1e9,
                median(&mut ratios),
                beyond.iter().copied().fold(f64::MIN, f64::max) / 1e6,
            );
        }
        Ok(())
    }

    /// Drops the files from the cache, or has them all in it as far as there is room.
    fn settle(&self, cold: bool) -> anyhow::Result<()> {
        for file in self.files {
            if cold {
                forget(file)?
            } else {
                read(file, 0, u64::MAX)?;
            };
        }
        Ok(())
    }

    /// Bytes per second of reading all files by as many threads as there are cores, each a part of every file.
    fn read_raw(&self, cold: bool) -> anyhow::Result<f64> {
        self.settle(cold)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let start = Instant::now();
        let mut bytes = 0;
        for file in self.files {
            let each = file.metadata()?.len().div_ceil(threads);
            bytes += std::thread::scope(|scope| {
                let part = |thread: u64| scope.spawn(move || read(file, thread * each, each));
                let parts: Vec<_> = (0..threads).map(part).collect();
                parts
                    .into_iter()
                    .map(|part| part.join().expect("reading does not panic"))
                    .sum::<anyhow::Result<u64>>()
            })?;
        }
        Ok(bytes as f64 / start.elapsed().as_secs_f64())
    }

    fn load<D: Device>(&self, devices: &[D], cold: bool) -> anyhow::Result<Load> {
        self.settle(cold)?;
        let (peak, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let before = anonymous_memory()?;
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    peak.fetch_max(anonymous_memory().unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(LOOK_EVERY);
                }
            });
            let start = Instant::now();
            let mut bytes = 0;
            let models =
                Model::load_all(&self.args.model, self.config, self.precision, devices, &mut |progress| {
                    bytes = progress.done;
                });
            let seconds = start.elapsed().as_secs_f64();
            ended.store(true, Ordering::Relaxed);
            drop(models?);
            Ok(Load { seconds, bytes, peak: peak.load(Ordering::Relaxed).saturating_sub(before) })
        })
    }
}

/// The checkpoint's files, in the order of their names.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
    anyhow::ensure!(!files.is_empty(), "{}: no *.safetensors", dir.display());
    files.sort();
    Ok(files)
}

/// Reads at most `len` bytes from `from` on, and returns how many there were.
fn read(path: &Path, from: u64, len: u64) -> anyhow::Result<u64> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut buffer = vec![0; READ];
    let mut done = 0;
    while done < len {
        let want = (len - done).min(READ as u64) as usize;
        match file.read_at(&mut buffer[..want], from + done)? {
            0 => break,
            count => done += count as u64,
        }
    }
    Ok(done)
}

/// Asks the system to drop a file from its cache. It keeps what has not been written to the disk yet, so that is first.
fn forget(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    file.sync_all()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Bytes of this process's memory that are of no file.
fn anonymous_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.context("/proc/self/status has no RssAnon")? * 1024)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
