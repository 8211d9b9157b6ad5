//! `octant bench load`: compares loading a model as `octant serve` does with only reading its files.
//!
//! Each repetition measures four things: reading the files through the page cache, reading them with the
//! loader's direct I/O, reading them into new memory of the same size, and loading the model. It measures
//! them cold, with the files dropped from the page cache before each measurement, and warm. The benchmark
//! also reports the peak memory of loading beyond the weights.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::config::BenchLoadArgs;
use crate::device::Device;
use crate::device::cpu::zeros_in_huge_pages;
use crate::launch::{DeviceChoice, Devices, NOTHING_TO_MEASURE};
use crate::machine;
use crate::model::{
    DirectFile, HeadDtype, Model, ModelConfig, Precision, ReadBuffer, SMALL_FILE, read_threads,
};
use crate::runner::WeightBytes;
use crate::statistics::{percentile, sorted};
use crate::stdio::results::print_line;

/// Bytes of one read call.
const READ: u64 = 8 << 20;

/// Interval between samples of memory use.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(2);

/// Result of one load.
struct TimedLoad {
    seconds: f64,
    /// Bytes read from the files.
    bytes: u64,
    /// Peak bytes of memory minus those before the load.
    peak: u64,
}

/// Runs the benchmark and prints its results.
pub fn run(args: &BenchLoadArgs) -> anyhow::Result<ExitCode> {
    let mut config = ModelConfig::from_dir(&args.model)?;
    config.head_dtype = args.lm_head_dtype.unwrap_or(HeadDtype::beside(args.quantization));
    let devices = Devices::open(&DeviceChoice {
        device: args.device,
        gpus: (0..args.tp).collect(),
        threads: machine::cores(),
        isa: None,
        deterministic: true,
    })?;
    let precision = args.quantization;
    let share = config.share(args.tp).map_err(anyhow::Error::msg)?;
    let weights = WeightBytes::new(&share, &devices.layout(), precision).total() * args.tp as u64;
    let files = files(&args.model)?;
    let stored = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    print_line!(
        "{}; {:.2} GB in {} files, {:.2} GB of weights",
        devices.describe(),
        gb(stored),
        files.len(),
        gb(weights)
    )?;
    let run = Run { args, config: &config, precision, files: &files, stored, weights };
    match devices {
        Devices::Cpu(cpus) => run.all(&cpus)?,
        Devices::Cuda(gpus) => run.all(&gpus.into_devices())?,
        Devices::Simulated(_) => anyhow::bail!(NOTHING_TO_MEASURE),
    }
    Ok(ExitCode::SUCCESS)
}

/// Inputs of the measurements.
struct Run<'a> {
    args: &'a BenchLoadArgs,
    config: &'a ModelConfig,
    precision: Precision,
    files: &'a [PathBuf],
    /// Bytes of the files.
    stored: u64,
    /// Bytes of all ranks' weights.
    weights: u64,
}

/// Bytes per second of each measurement.
struct Rates {
    /// Reading into a buffer through the page cache.
    files: f64,
    /// Reading as the loader does: with direct I/O, except for bytes that are in the page cache.
    past: f64,
    /// Reading into new memory as large as the files.
    kept: f64,
    /// Loading the model.
    load: f64,
}

impl Run<'_> {
    fn all<D: Device>(&self, devices: &[D]) -> anyhow::Result<()> {
        for (state, cold) in [("cold", true), ("warm", false)] {
            let (mut rates, mut beyond) = (Vec::new(), f64::MIN);
            for _ in 0..self.args.reps {
                let (files, past) = (self.read_files(cold)?, self.read_past(cold)?);
                let kept = self.keep_files(cold)?;
                let TimedLoad { seconds, bytes, peak } = self.load(devices, cold)?;
                let load = bytes as f64 / seconds;
                show(state, &Rates { files, past, kept, load })?;
                rates.push(Rates { files, past, kept, load });
                beyond = beyond.max(peak as f64 - self.weights as f64);
            }
            let median = |of: fn(&Rates) -> f64| percentile(&sorted(rates.iter().map(of).collect()), 0.5);
            let medians = Rates {
                files: median(|r| r.files),
                past: median(|r| r.past),
                kept: median(|r| r.kept),
                load: median(|r| r.load),
            };
            show(&format!("{state}, medians"), &medians)?;
            print_line!(
                "{state}, medians of ratios: load/files {:.2}, load/past cache {:.2}, load/files kept {:.2}; \
                 memory beyond the weights at most {:.0} MB",
                median(|r| r.load / r.files),
                median(|r| r.load / r.past),
                median(|r| r.load / r.kept),
                beyond / 1e6
            )?;
        }
        Ok(())
    }

    /// Drops the files from the page cache, or reads all of them so that the cache holds what fits.
    fn prepare_cache(&self, cold: bool) -> anyhow::Result<()> {
        for file in self.files {
            if cold {
                drop_from_cache(file)?
            } else {
                read(file, 0, u64::MAX)?;
            };
        }
        Ok(())
    }

    /// Bytes per second of reading all files with as many threads as the loader uses. Each thread reads a
    /// part of every file.
    fn read_files(&self, cold: bool) -> anyhow::Result<f64> {
        self.prepare_cache(cold)?;
        let threads = read_threads() as u64;
        let start = Instant::now();
        for file in self.files {
            let each = file.metadata()?.len().div_ceil(threads);
            let part = |thread: u64| move || read(file, thread * each, each);
            in_parallel((0..threads).map(part))?;
        }
        Ok(self.stored as f64 / start.elapsed().as_secs_f64())
    }

    /// Bytes per second of reading all files with the loader's own read function.
    fn read_past(&self, cold: bool) -> anyhow::Result<f64> {
        self.prepare_cache(cold)?;
        let start = Instant::now();
        for path in self.files {
            let file = DirectFile::open(path.clone(), SMALL_FILE)?;
            let (file, len) = (&file, file.len()?);
            let next = &AtomicU64::new(0);
            in_parallel((0..read_threads()).map(|_| {
                move || {
                    let mut buffer = ReadBuffer::default();
                    loop {
                        let at = next.fetch_add(READ, Ordering::Relaxed);
                        if at >= len {
                            return Ok(0);
                        }
                        file.read_once(at, READ.min(len - at) as usize, &mut buffer)?;
                    }
                }
            }))?;
        }
        Ok(self.stored as f64 / start.elapsed().as_secs_f64())
    }

    /// Bytes per second of reading all files into new memory that keeps them: a lower bound for loading into
    /// this machine's memory.
    fn keep_files(&self, cold: bool) -> anyhow::Result<f64> {
        self.prepare_cache(cold)?;
        let mut memory = zeros_in_huge_pages::<u8>(self.stored as usize)?;
        let mut rest = memory.as_mut_slice();
        let start = Instant::now();
        for path in self.files {
            let file = File::open(path)?;
            let (own, others) = rest.split_at_mut(file.metadata()?.len() as usize);
            rest = others;
            let each = own.len().div_ceil(read_threads()).max(1);
            in_parallel(own.chunks_mut(each).enumerate().map(|(thread, part)| {
                let file = &file;
                move || {
                    for (i, piece) in part.chunks_mut(READ as usize).enumerate() {
                        file.read_exact_at(piece, (thread * each) as u64 + i as u64 * READ)?;
                    }
                    Ok(0)
                }
            }))?;
        }
        Ok(self.stored as f64 / start.elapsed().as_secs_f64())
    }

    fn load<D: Device>(&self, devices: &[D], cold: bool) -> anyhow::Result<TimedLoad> {
        self.prepare_cache(cold)?;
        let peak = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let before = anonymous_memory()?;
            let (ended, end) = mpsc::channel::<()>();
            let peak = &peak;
            scope.spawn(move || {
                // The sender is dropped when loading has ended, also after an error.
                while end.recv_timeout(SAMPLE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    peak.fetch_max(anonymous_memory().unwrap_or(0), Ordering::Relaxed);
                }
            });
            let start = Instant::now();
            let mut bytes = 0;
            let models =
                Model::load_all(&self.args.model, self.config, self.precision, devices, &mut |progress| {
                    bytes = progress.done;
                });
            let seconds = start.elapsed().as_secs_f64();
            drop(ended);
            drop(models?);
            Ok(TimedLoad { seconds, bytes, peak: peak.load(Ordering::Relaxed).saturating_sub(before) })
        })
    }
}

/// Prints one line.
fn show(state: &str, Rates { files, past, kept, load }: &Rates) -> anyhow::Result<()> {
    let gb = 1e9;
    print_line!(
        "{state}: files {:.2} GB/s, past the cache {:.2} GB/s, files kept {:.2} GB/s, loading {:.2} GB/s",
        files / gb,
        past / gb,
        kept / gb,
        load / gb
    )?;
    Ok(())
}

/// Runs each job on its own thread and returns the sum of their results.
fn in_parallel<J: FnOnce() -> anyhow::Result<u64> + Send>(
    jobs: impl Iterator<Item = J>,
) -> anyhow::Result<u64> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = jobs.map(|job| scope.spawn(job)).collect();
        threads.into_iter().map(|thread| thread.join().expect("reading does not panic")).sum()
    })
}

/// The *.safetensors files of the checkpoint, sorted by name.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
    anyhow::ensure!(!files.is_empty(), "{}: no *.safetensors", dir.display());
    files.sort();
    Ok(files)
}

/// Reads at most `len` bytes from offset `from` on and returns the number of bytes read.
fn read(path: &Path, from: u64, len: u64) -> anyhow::Result<u64> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut buffer = vec![0; READ as usize];
    let mut done = 0;
    while done < len {
        let want = (len - done).min(READ) as usize;
        match file.read_at(&mut buffer[..want], from + done)? {
            0 => break,
            count => done += count as u64,
        }
    }
    Ok(done)
}

/// Asks the system to drop a file from its page cache. Pages not yet written to the disk would stay, so the
/// file is synced first.
fn drop_from_cache(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    file.sync_all()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Bytes of this process's anonymous memory.
fn anonymous_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.context("/proc/self/status has no RssAnon")? * 1024)
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
