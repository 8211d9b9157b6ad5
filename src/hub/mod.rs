//! Models by name: `ORG/NAME[@REVISION]` from the Hugging Face hub, through the cache that its Python
//! libraries use. A download that was cut off continues, also in another process.
//!
//! The crate hf-hub 0.5 does parts of this, and none of it is used: its client has no timeouts, takes neither
//! `HF_TOKEN` nor `HF_HUB_CACHE` from the environment, appends a whole file to a partial one where a server
//! ignores `Range`, checks neither size nor hash, and locks other files than `huggingface_hub` does. Requests
//! are made with ureq, the client below hf-hub.
//!
//! | file | what it does |
//! |---|---|
//! | `name` | tells names from paths |
//! | `environment` | `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and others |
//! | `client` | requests, redirects, errors of the hub |
//! | `files` | which files a model needs |
//! | `cache` | paths, links and locks |
//! | `blob` | one file: continue, verify, rename |

mod blob;
mod cache;
mod client;
mod environment;
mod error;
mod files;
mod name;
mod parallel;
mod progress;
mod retry;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blob::{BlobDownload, Counters};
use cache::Cache;
pub(crate) use client::AgentOptions;
use client::{Client, FileInfo};
pub(crate) use environment::HubSettings;
pub(crate) use error::HubError;
pub(crate) use files::Part;
use files::{INDEX, SINGLE, shards, small_files};
pub(crate) use name::ModelName;
pub(crate) use progress::DownloadProgress;
use progress::{DownloadDisplay, gb};

use crate::http_client::CertificateFile;
use crate::stdio::ProgressBars;

/// Receives the progress of a download.
pub(crate) type OnProgress<'a> = &'a mut dyn FnMut(DownloadProgress);

/// An HTTP and HTTPS client with the root certificates that downloads have.
///
/// # Errors
/// The file of root certificates cannot be used.
pub(crate) fn agent(options: &AgentOptions) -> Result<ureq::Agent, HubError> {
    client::agent(options, CertificateFile::of_environment().as_ref())
}

/// The directory of what an operator gave as a model: the path itself, or the snapshot of the model that it
/// names, which is downloaded as far as it is not in the cache.
///
/// # Errors
/// The reason, with the name before it.
pub(crate) fn directory(path: &Path, part: Part, bars: &ProgressBars) -> Result<PathBuf, HubError> {
    match ModelName::from_path(path)? {
        Some(name) => fetch(&name, part, bars, &mut |_| {}),
        None => Ok(path.to_owned()),
    }
}

/// The snapshot of a model, which is downloaded as far as it is not in the cache. If the hub cannot be
/// reached, a complete snapshot is used as it is.
///
/// # Errors
/// The reason, with the name before it.
pub(crate) fn fetch(
    name: &ModelName,
    part: Part,
    bars: &ProgressBars,
    on_progress: OnProgress<'_>,
) -> Result<PathBuf, HubError> {
    let settings = HubSettings::from_environment()?;
    let cache = Cache::new(&settings.cache, name);
    let found = match settings.offline {
        Some(variable) => cache
            .complete(name, part)
            .map_err(|missing| missing.worded(|text| format!("{variable} forbids downloads, and {text}"))),
        None => {
            Download::new(settings, cache, name, part).and_then(|download| download.run(bars, on_progress))
        }
    };
    found.map_err(|error| error.worded(|text| format!("{name}: {text}")))
}

/// A download of one model.
struct Download {
    client: Arc<Client>,
    cache: Arc<Cache>,
    part: Part,
    counters: Arc<Counters>,
}

/// Tells the threads of a download to end.
struct StopOnDrop(Arc<Counters>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Download {
    fn new(settings: HubSettings, cache: Cache, name: &ModelName, part: Part) -> Result<Self, HubError> {
        let client = Arc::new(Client::new(settings, name.clone())?);
        Ok(Self { client, cache: Arc::new(cache), part, counters: Arc::default() })
    }

    fn run(&self, bars: &ProgressBars, on_progress: OnProgress<'_>) -> Result<PathBuf, HubError> {
        let _stop = StopOnDrop(Arc::clone(&self.counters));
        let (name, settings) = (&self.client.name, &self.client.settings);
        let listing = match retry::ask(&name.id, &self.counters.stop, || self.client.listing()) {
            Ok(listing) => listing,
            Err(error) if error.is_temporary() => return self.without_hub(error),
            Err(error) => return Err(error),
        };
        let commit: Arc<str> = listing.commit.into();
        let small = small_files(&listing.files, self.part, name)?;
        let mut display = DownloadDisplay::start(bars);
        let mut show = |progress: DownloadProgress| {
            display.update(progress);
            on_progress(progress);
        };
        let small = small.into_iter().map(str::to_owned).collect();
        let mut outcome = self.transfer(&commit, small, &mut show);
        if outcome.is_ok() && self.part == Part::Model {
            outcome = self
                .weights(&commit, &listing.files)
                .and_then(|weights| self.transfer(&commit, weights, &mut show));
        }
        display.remove();
        outcome?;
        let snapshot = self.cache.snapshot(&commit);
        match self.counters.received.load(Ordering::Relaxed) {
            0 => tracing::info!("{name} is in the cache: {}", snapshot.display()),
            received => {
                display.finish(received);
                tracing::info!("{name} from {} is in {}", settings.endpoint, snapshot.display());
            }
        }
        // Last, so that a revision never leads to a snapshot that lacks files.
        if let Err(error) = self.cache.set_commit(name, &commit) {
            tracing::warn!("{name}: the commit of `{}` is not noted: {error}", name.revision);
        }
        Ok(snapshot)
    }

    /// The snapshot of the last download, since the hub cannot be reached.
    fn without_hub(&self, error: HubError) -> Result<PathBuf, HubError> {
        match self.cache.complete(&self.client.name, self.part) {
            Ok(snapshot) => {
                tracing::warn!(
                    "{}: {error}; the snapshot in the cache is used: {}",
                    self.client.name,
                    snapshot.display()
                );
                Ok(snapshot)
            }
            Err(missing) => Err(error.worded(|text| format!("{text}; {missing}"))),
        }
    }

    /// The files of the weights.
    fn weights(&self, commit: &str, listed: &[String]) -> Result<Vec<String>, HubError> {
        if !listed.iter().any(|file| file == INDEX) {
            return Ok(vec![SINGLE.to_owned()]);
        }
        let path = self.cache.snapshot(commit).join(INDEX);
        let index = fs::read(&path).map_err(|error| HubError::io(&path, &error))?;
        let shards = shards(&index)?;
        match shards.iter().find(|shard| !listed.contains(shard)) {
            Some(shard) => {
                Err(HubError::fatal(format!("{INDEX} names {shard}, which is not in the repository")))
            }
            None => Ok(shards),
        }
    }

    /// Downloads files, several at once.
    fn transfer(&self, commit: &Arc<str>, files: Vec<String>, show: OnProgress<'_>) -> Result<(), HubError> {
        let (client, counters) = (Arc::clone(&self.client), Arc::clone(&self.counters));
        let own_commit = Arc::clone(commit);
        let ask =
            move |file: String| retry::ask(&file, &counters.stop, || client.file_info(&own_commit, &file));
        let mut missing = parallel::each(files, ask, || {})?;
        missing.retain(|info| !self.cache.has(commit, &info.path, info.bytes));
        if missing.is_empty() {
            return Ok(());
        }
        self.check_space(&missing)?;
        let total = missing.iter().map(|info| info.bytes).sum();
        self.counters.done.store(0, Ordering::Relaxed);
        let (client, cache) = (Arc::clone(&self.client), Arc::clone(&self.cache));
        let (counters, commit) = (Arc::clone(&self.counters), Arc::clone(commit));
        let download = move |info: FileInfo| {
            let blob = BlobDownload {
                client: &client,
                cache: &cache,
                counters: &counters,
                commit: &commit,
                info: &info,
            };
            blob.run()
        };
        let tick = || {
            show(DownloadProgress {
                done: self.counters.done.load(Ordering::Relaxed),
                total,
                received: self.counters.received.load(Ordering::Relaxed),
            });
        };
        parallel::each(missing, download, tick)?;
        Ok(())
    }

    /// Compares what is missing with the space that is free.
    fn check_space(&self, missing: &[FileInfo]) -> Result<(), HubError> {
        let free = self.cache.free_bytes()?;
        let mut counted = BTreeSet::new();
        let mut needed = 0_u64;
        for info in missing.iter().filter(|info| counted.insert(info.etag.as_str())) {
            let size = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
            let stored = match size(self.cache.blob(&info.etag)) == info.bytes {
                true => info.bytes,
                false => size(self.cache.partial(&info.etag)).min(info.bytes),
            };
            needed = needed.saturating_add(info.bytes - stored);
        }
        if needed > free {
            return Err(HubError::fatal(format!(
                "the download needs {:.2} GB, and {:.2} GB are free in {}; HF_HUB_CACHE names another \
                 directory for the cache",
                gb(needed),
                gb(free),
                self.cache.folder().display()
            )));
        }
        Ok(())
    }
}
