//! Shards onto disk, one after the other, each under another name until it is whole; then the small files, and
//! `config.json` last.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use serde_json::Value;

use super::bands::{Target, Work, convert};
use super::hugging_face::CONFIG;
use super::journal::{Identity, Journal, nanoseconds};
use super::plan::{Plan, Shard};
use super::report::{self, Errors};
use super::{Conversion, ConversionProgress, Converted, Item, OnProgress, TensorReport};
use crate::model::{LoadError, Object};

const INDEX: &str = "model.safetensors.index.json";

/// The report's name in the output's directory.
pub(super) const REPORT: &str = "quantization_report.json";

/// Everything that is to be written.
pub(super) struct Output {
    pub(super) items: Vec<Item>,
    pub(super) identity: Identity,
    /// Files that go beside the weights.
    pub(super) beside: Vec<Beside>,
    /// The contents of `config.json`.
    pub(super) config: Value,
    pub(super) left_behind: Vec<String>,
}

/// A file that goes beside the weights.
pub(super) struct Beside {
    pub(super) name: String,
    pub(super) contents: Contents,
}

/// What such a file holds.
pub(super) enum Contents {
    /// What this file holds.
    Of(PathBuf),
    Bytes(Vec<u8>),
}

/// Writes what is not there yet.
pub(super) fn write(
    output: &Output,
    conversion: &Conversion,
    on_progress: OnProgress<'_>,
) -> Result<Converted, LoadError> {
    let dir = conversion.output.as_path();
    let plan = Plan::new(&output.items, conversion.shard_size);
    let source = output.identity.hash();
    let converted = |already, reports| Converted {
        already,
        tensors: output.items.len(),
        bytes: output.items.iter().map(Item::bytes).sum(),
        reports,
        left_behind: output.left_behind.clone(),
    };
    std::fs::create_dir_all(dir).map_err(|e| LoadError::io(dir, e))?;
    if !Journal::is_in(dir) {
        if is_whole(dir, &plan, &output.identity)? {
            return Ok(converted(true, Vec::new()));
        }
        expect_empty(dir)?;
    }
    let mut journal = Journal::open(dir, &output.identity)?;
    write_shards(output, &plan, &mut journal, conversion, on_progress)?;
    let report = |(index, item): (usize, &Item)| {
        let errors = journal.done.get(&index).copied().flatten();
        errors.map(|errors| TensorReport::new(item, &errors))
    };
    let reports: Vec<TensorReport> = output.items.iter().enumerate().filter_map(report).collect();
    for Beside { name, contents } in &output.beside {
        match contents {
            Contents::Bytes(bytes) => write_small(dir, name, bytes)?,
            Contents::Of(from) => {
                let bytes = std::fs::read(from).map_err(|e| LoadError::io(from, e))?;
                write_small(dir, name, &bytes)?;
            }
        }
    }
    if let Some(granularity) = conversion.granularity {
        write_small(dir, REPORT, &pretty(&report::json(granularity, &reports)))?;
    }
    write_small(dir, INDEX, &pretty(&plan.index(&source)))?;
    write_small(dir, CONFIG, &pretty(&output.config))?;
    journal.remove()?;
    sync_dir(dir)?;
    Ok(converted(false, reports))
}

/// Whether the directory is what this very conversion has made, of input that nobody has written to since.
fn is_whole(dir: &Path, plan: &Plan, identity: &Identity) -> Result<bool, LoadError> {
    let Ok(config) = std::fs::metadata(dir.join(CONFIG)) else { return Ok(false) };
    let Some(index) = Object::read_if_exists(&dir.join(INDEX))? else { return Ok(false) };
    let source = identity.hash();
    let same = index.object("metadata")?.is_some_and(|metadata| {
        metadata.get("octant_source").and_then(Value::as_str).is_some_and(|before| before == source)
    });
    let newer = config.modified().is_ok_and(|time| nanoseconds(time) >= identity.newest());
    Ok(same && newer && plan.shards.iter().all(|shard| has_len(&dir.join(&shard.file), shard.len)))
}

fn has_len(path: &Path, len: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.len() == len)
}

/// A directory of somebody else's is not written to.
fn expect_empty(dir: &Path) -> Result<(), LoadError> {
    let mut entries = std::fs::read_dir(dir).map_err(|e| LoadError::io(dir, e))?;
    match entries.next() {
        None => Ok(()),
        Some(entry) => {
            let name = entry.map_err(|e| LoadError::io(dir, e))?.file_name();
            let message = format!(
                "expected an empty directory, or one that this conversion has begun; it holds `{}`",
                name.display()
            );
            Err(LoadError::file(dir, message))
        }
    }
}

fn write_shards(
    output: &Output,
    plan: &Plan,
    journal: &mut Journal,
    conversion: &Conversion,
    on_progress: OnProgress<'_>,
) -> Result<(), LoadError> {
    let dir = conversion.output.as_path();
    let total = output.items.iter().map(Item::bytes).sum();
    for shard in &plan.shards {
        forget_lost(dir, shard, journal);
    }
    let earlier = journal.done.keys().filter_map(|index| output.items.get(*index)).map(Item::bytes).sum();
    let done = AtomicU64::new(earlier);
    for shard in &plan.shards {
        let is_done = |(index, _): &(usize, _)| journal.done.contains_key(index);
        if has_len(&dir.join(&shard.file), shard.len) && shard.items.iter().all(is_done) {
            continue;
        }
        let path = partial(dir, &shard.file);
        let file = begin(&path, shard)?;
        sync_dir(dir)?;
        let missing: Vec<_> =
            shard.items.iter().filter(|(index, _)| !journal.done.contains_key(index)).collect();
        commit_each(&file, &path, journal, |commit| {
            for (index, place) in missing {
                let item = &output.items[*index];
                let progress = |bytes: u64| {
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    on_progress(ConversionProgress { done, earlier, total, tensor: &item.name });
                };
                let work = Work { threads: conversion.threads, progress: &progress };
                let errors = convert(item, &Target { file: &file, path: &path, place }, &work)?;
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

/// Runs `convert_all`, which sends what it has written; meanwhile another thread waits for that to reach the disk, and
/// puts it down in the journal.
fn commit_each(
    file: &File,
    path: &Path,
    journal: &mut Journal,
    convert_all: impl FnOnce(&SyncSender<(usize, Option<Errors>)>) -> Result<(), LoadError>,
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
        // If the committer has failed, that is why conversion broke off.
        committer.join().expect("the committer does not panic").and(converted)
    })
}

/// What the journal says of a shard holds for the file that was there then: without it, nothing is done.
fn forget_lost(dir: &Path, shard: &Shard, journal: &mut Journal) {
    let there = [dir.join(&shard.file), partial(dir, &shard.file)];
    if !there.iter().any(|path| has_len(path, shard.len)) {
        for (index, _) in &shard.items {
            journal.done.remove(index);
        }
    }
}

/// Opens a shard that is not whole yet, in its full length.
fn begin(path: &Path, shard: &Shard) -> Result<File, LoadError> {
    let open = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(shard.len)?;
        file.write_all_at(&shard.header, 0)?;
        Ok(file)
    };
    open().map_err(|e| LoadError::io(path, e))
}

fn partial(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.partial"))
}

/// Writes a small file so that it is there whole or not at all.
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

/// Brings the names of a directory's files to disk.
fn sync_dir(dir: &Path) -> Result<(), LoadError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| LoadError::io(dir, e))
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
