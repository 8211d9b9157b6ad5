//! Writes the output: one shard after the other, then the small files, and `config.json` last. A file that is
//! not complete yet has the suffix `.partial`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use serde_json::Value;

use super::bands::{BandOptions, WriteTarget, convert};
use super::conversion::{Conversion, ConversionProgress, Converted, OnProgress};
use super::identity::{ConversionIdentity, nanoseconds};
use super::journal::Journal;
use super::output_weight::OutputWeight;
use super::quantization_report::{self, ErrorSums, TensorReport};
use super::shard_layout::{ShardFile, ShardLayout};
use crate::model::{LoadError, Object};

/// Name of a model's configuration file.
pub(super) const CONFIG: &str = "config.json";

const INDEX: &str = "model.safetensors.index.json";

/// Name of the report in the output directory.
pub(super) const REPORT: &str = "quantization_report.json";

/// Everything that a conversion writes.
pub(super) struct ConversionOutput {
    pub(super) weights: Vec<OutputWeight>,
    pub(super) identity: ConversionIdentity,
    /// Small files that are written beside the weights.
    pub(super) small_files: Vec<SmallFile>,
    /// The contents of `config.json`.
    pub(super) config: Value,
    /// Names of the input's files that are neither read nor copied.
    pub(super) not_copied: Vec<String>,
}

/// A small file that is written beside the weights.
pub(super) struct SmallFile {
    pub(super) name: String,
    pub(super) contents: FileContents,
}

/// The contents of a small file.
pub(super) enum FileContents {
    /// A copy of this file.
    CopyOf(PathBuf),
    Bytes(Vec<u8>),
}

/// Writes the parts of the output that an earlier run has not written.
///
/// # Errors
/// If reading or writing fails, an element is not finite, the output directory holds other files, or the
/// input or settings have changed since the run that is continued.
pub(super) fn write(
    output: &ConversionOutput,
    conversion: &Conversion,
    on_progress: OnProgress<'_>,
) -> Result<Converted, LoadError> {
    let dir = conversion.output.as_path();
    let layout = ShardLayout::new(&output.weights, conversion.shard_size);
    let source = output.identity.hash();
    let converted = |already_complete, reports| Converted {
        already_complete,
        tensors: output.weights.len(),
        bytes: output.weights.iter().map(OutputWeight::bytes).sum(),
        reports,
        not_copied: output.not_copied.clone(),
    };
    std::fs::create_dir_all(dir).map_err(|e| LoadError::io(dir, e))?;
    if !Journal::is_in(dir) {
        if is_complete(dir, &layout, &output.identity)? {
            return Ok(converted(true, Vec::new()));
        }
        expect_empty(dir)?;
    }
    let mut journal = Journal::open(dir, &output.identity)?;
    write_shards(output, &layout, &mut journal, conversion, on_progress)?;
    let report = |(index, weight): (usize, &OutputWeight)| {
        let errors = journal.done.get(&index).copied().flatten();
        errors.map(|errors| TensorReport::new(&weight.name, &weight.shape, &errors))
    };
    let reports: Vec<TensorReport> = output.weights.iter().enumerate().filter_map(report).collect();
    for SmallFile { name, contents } in &output.small_files {
        match contents {
            FileContents::Bytes(bytes) => write_small(dir, name, bytes)?,
            FileContents::CopyOf(from) => {
                let bytes = std::fs::read(from).map_err(|e| LoadError::io(from, e))?;
                write_small(dir, name, &bytes)?;
            }
        }
    }
    if let Some(granularity) = conversion.granularity {
        write_small(dir, REPORT, &pretty(&quantization_report::json(granularity, &reports)))?;
    }
    write_small(dir, INDEX, &pretty(&layout.index(&source)))?;
    write_small(dir, CONFIG, &pretty(&output.config))?;
    journal.remove()?;
    sync_dir(dir)?;
    Ok(converted(false, reports))
}

/// Returns whether the directory is the complete output of this conversion and the input has not changed
/// since.
fn is_complete(dir: &Path, layout: &ShardLayout, identity: &ConversionIdentity) -> Result<bool, LoadError> {
    let Ok(config) = std::fs::metadata(dir.join(CONFIG)) else { return Ok(false) };
    let Some(index) = Object::read_if_exists(&dir.join(INDEX))? else { return Ok(false) };
    let source = identity.hash();
    let same = index.object("metadata")?.is_some_and(|metadata| {
        metadata.get("octant_source").and_then(Value::as_str).is_some_and(|before| before == source)
    });
    let newer = config.modified().is_ok_and(|time| nanoseconds(time) >= identity.newest());
    Ok(same && newer && layout.shards.iter().all(|shard| has_len(&dir.join(&shard.file), shard.len)))
}

/// Returns whether a file exists with this length in bytes.
fn has_len(path: &Path, len: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.len() == len)
}

/// Fails unless the output directory is empty, so that no other files are overwritten.
fn expect_empty(dir: &Path) -> Result<(), LoadError> {
    let mut entries = std::fs::read_dir(dir).map_err(|e| LoadError::io(dir, e))?;
    match entries.next() {
        None => Ok(()),
        Some(entry) => {
            let name = entry.map_err(|e| LoadError::io(dir, e))?.file_name();
            let message = format!(
                "expected an empty directory or one that this conversion left unfinished; it holds `{}`",
                name.display()
            );
            Err(LoadError::file(dir, message))
        }
    }
}

/// Writes the shards that are not complete yet.
fn write_shards(
    output: &ConversionOutput,
    layout: &ShardLayout,
    journal: &mut Journal,
    conversion: &Conversion,
    on_progress: OnProgress<'_>,
) -> Result<(), LoadError> {
    let dir = conversion.output.as_path();
    let total = output.weights.iter().map(OutputWeight::bytes).sum();
    for shard in &layout.shards {
        forget_missing_shard(dir, shard, journal);
    }
    let earlier = journal.done.keys().filter_map(|index| output.weights.get(*index));
    let earlier = earlier.map(OutputWeight::bytes).sum();
    let done = AtomicU64::new(earlier);
    for shard in &layout.shards {
        let is_done = |(index, _): &(usize, _)| journal.done.contains_key(index);
        if has_len(&dir.join(&shard.file), shard.len) && shard.weights.iter().all(is_done) {
            continue;
        }
        let path = partial(dir, &shard.file);
        let file = open_partial(&path, shard)?;
        sync_dir(dir)?;
        let missing: Vec<_> =
            shard.weights.iter().filter(|(index, _)| !journal.done.contains_key(index)).collect();
        commit_each(&file, &path, journal, |commit| {
            for (index, placement) in missing {
                let weight = &output.weights[*index];
                let progress = |bytes: u64| {
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    on_progress(ConversionProgress { done, earlier, total, tensor: &weight.name });
                };
                let options = BandOptions { threads: conversion.threads, progress: &progress };
                let target = WriteTarget { file: &file, path: &path, placement };
                let errors = convert(weight, &target, &options)?;
                if commit.send((*index, errors)).is_err() {
                    break;
                }
            }
            Ok(())
        })?;
        file.sync_all().map_err(|e| LoadError::io(&path, e))?;
        rename(&path, &dir.join(&shard.file))?;
        sync_dir(dir)?;
    }
    Ok(())
}

/// Runs `convert_all`, which sends the index of each weight that it has written. Meanwhile another thread
/// syncs the file and records the weight in the journal.
fn commit_each(
    file: &File,
    path: &Path,
    journal: &mut Journal,
    convert_all: impl FnOnce(&SyncSender<(usize, Option<ErrorSums>)>) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        let committer = scope.spawn(move || {
            for (index, errors) in receiver {
                file.sync_data().map_err(|e| LoadError::io(path, e))?;
                journal.add(index, errors)?;
            }
            Ok(())
        });
        let converted = convert_all(&sender);
        drop(sender);
        // An error of the committer comes first: it is the reason why the conversion stopped.
        committer.join().expect("the committer does not panic").and(converted)
    })
}

/// Removes the weights of a shard from the journal if neither the shard nor its partial file exists in full
/// length, so that they are written again.
fn forget_missing_shard(dir: &Path, shard: &ShardFile, journal: &mut Journal) {
    let candidates = [dir.join(&shard.file), partial(dir, &shard.file)];
    if !candidates.iter().any(|path| has_len(path, shard.len)) {
        for (index, _) in &shard.weights {
            journal.done.remove(index);
        }
    }
}

/// Opens the partial file of a shard, sets its full length and writes its header.
fn open_partial(path: &Path, shard: &ShardFile) -> Result<File, LoadError> {
    let open = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(shard.len)?;
        file.write_all_at(&shard.header, 0)?;
        Ok(file)
    };
    open().map_err(|e| LoadError::io(path, e))
}

/// Returns the path of a file that is not complete yet.
fn partial(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.partial"))
}

/// Writes a small file atomically: under another name, then renamed.
fn write_small(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), LoadError> {
    let path = partial(dir, name);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| LoadError::io(&path, e))?;
    rename(&path, &dir.join(name))?;
    sync_dir(dir)
}

fn rename(from: &Path, to: &Path) -> Result<(), LoadError> {
    std::fs::rename(from, to).map_err(|e| LoadError::io(from, e))
}

/// Syncs the entries of a directory to disk.
fn sync_dir(dir: &Path) -> Result<(), LoadError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| LoadError::io(dir, e))
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
