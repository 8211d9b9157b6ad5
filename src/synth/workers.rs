//! One stage: its items run on threads, and its files are written in the items' order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::endpoint::{CallError, Endpoint, Job, Usage};
use super::error::SynthError;
use super::journal::{
    Depends, Finished, Journal, Opened, StageFiles, StageOutput, StageSummary, check_depends, hash,
    read_lines,
};
use super::recipe::Recipe;
use super::records::{Reject, Stage};
use super::servers::{Servers, Who};

/// Interval of the lines about progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// The state that all stages of a run share.
pub(super) struct Context<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) recipe_folder: PathBuf,
    pub(super) folder: &'a Path,
    pub(super) servers: Servers<'a>,
    /// Whether stages of other settings are made again.
    pub(super) restart: bool,
    /// Prints a line of the run.
    pub(super) say: &'a (dyn Fn(&str) + Sync),
    /// Counts of the stages of this run, in their order.
    pub(super) summaries: Mutex<Vec<StageSummary>>,
}

/// An item of a stage.
pub(super) struct Item<T> {
    /// Its id, which no other item of the stage has.
    pub(super) id: String,
    /// The number of its group of roles.
    pub(super) group: usize,
    pub(super) input: T,
}

/// A stage to run.
pub(super) struct StagePlan<T> {
    pub(super) stage: Stage,
    pub(super) depends: Depends,
    pub(super) wanted: Option<u64>,
    /// The roles that items need. One group runs after the other.
    pub(super) groups: Vec<Vec<Who>>,
    pub(super) items: Vec<Item<T>>,
}

impl Context<'_> {
    /// Counts of the stages of this run.
    pub(super) fn summaries(&self) -> Vec<StageSummary> {
        self.summaries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, summary: StageSummary) {
        self.summaries.lock().unwrap_or_else(PoisonError::into_inner).push(summary);
    }

    /// The seed of a request, from the recipe's and from what it is about.
    pub(super) fn seed(&self, about: &str) -> u64 {
        let hash = hash(&(self.recipe.seed, about));
        hash.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(self.recipe.seed)
    }

    /// The records of a stage: read if it is complete, else made, with the items that a run before has
    /// finished.
    pub(super) fn run_stage<T, R, W>(&self, plan: &StagePlan<T>, work: W) -> Result<Vec<R>, SynthError>
    where
        T: Sync,
        R: Serialize + DeserializeOwned + Send,
        W: Fn(&Item<T>, &[Endpoint], &mut Job<'_>, &mut Finished<R>) -> Result<(), CallError> + Sync,
    {
        let files = StageFiles::new(self.folder, plan.stage);
        if let Some(summary) = files.complete()? {
            match check_depends(&summary.depends, &plan.depends, &files.records()) {
                Ok(()) => {
                    self.note(summary);
                    return read_lines(&files.records());
                }
                Err(_) if self.restart => files.remove()?,
                Err(error) => return Err(error),
            }
        }
        let opened = match Journal::open(&files, &plan.depends) {
            Err(SynthError::Changed { .. }) if self.restart => {
                files.remove()?;
                Journal::open(&files, &plan.depends)
            }
            opened => opened,
        };
        let Opened { mut journal, mut finished } = opened?;
        for (group, roles) in plan.groups.iter().enumerate() {
            let pending: Vec<&Item<T>> = plan
                .items
                .iter()
                .filter(|item| item.group == group && !finished.contains_key(&item.id))
                .collect();
            if pending.is_empty() {
                continue;
            }
            let endpoints = self.servers.open(roles)?;
            self.run_group(plan.stage, &pending, &endpoints, &work, &mut |done: Finished<R>| {
                journal.line(&done)?;
                finished.insert(done.item.clone(), done);
                Ok(())
            })?;
        }
        let done = plan.items.iter().filter_map(|item| finished.remove(&item.id)).collect();
        self.finish(&files, plan, done)
    }

    /// Runs items on threads and hands each to `keep` when it is finished.
    fn run_group<T, R, W>(
        &self,
        stage: Stage,
        pending: &[&Item<T>],
        endpoints: &[Endpoint],
        work: &W,
        keep: &mut dyn FnMut(Finished<R>) -> Result<(), SynthError>,
    ) -> Result<(), SynthError>
    where
        T: Sync,
        R: Send,
        W: Fn(&Item<T>, &[Endpoint], &mut Job<'_>, &mut Finished<R>) -> Result<(), CallError> + Sync,
    {
        let threads: usize = endpoints.iter().map(|endpoint| endpoint.concurrency).sum();
        let stop = &self.servers.stop.flag;
        let next = AtomicUsize::new(0);
        let (give, take) = flume::unbounded();
        thread::scope(|scope| {
            for _ in 0..threads.clamp(1, pending.len()) {
                let (give, next) = (give.clone(), &next);
                scope.spawn(move || {
                    while let Some(item) = pending.get(next.fetch_add(1, Ordering::Relaxed))
                        && !stop.load(Ordering::Relaxed)
                    {
                        if give.send(one(item, endpoints, stop, work)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(give);
            let (mut done, mut line_at, mut said_at) = (0, Instant::now(), Instant::now());
            let mut failure = None;
            for outcome in take {
                let kept = outcome.and_then(|mut finished| {
                    finished.seconds = line_at.elapsed().as_secs_f64();
                    line_at = Instant::now();
                    keep(finished)
                });
                done += 1;
                if said_at.elapsed() >= PROGRESS {
                    said_at = Instant::now();
                    tracing::info!("{}: {done} of {} items", stage.name(), pending.len());
                }
                if let Err(error) = kept {
                    // Finished items of the other threads are kept, too.
                    stop.store(true, Ordering::Relaxed);
                    failure.get_or_insert(error);
                }
            }
            match failure {
                Some(error) => Err(error),
                None if done < pending.len() => Err(SynthError::Interrupted),
                None => Ok(()),
            }
        })
    }

    fn finish<T, R: Serialize>(
        &self,
        files: &StageFiles,
        plan: &StagePlan<T>,
        done: Vec<Finished<R>>,
    ) -> Result<Vec<R>, SynthError> {
        let mut summary = empty_summary(plan.stage, &plan.depends, plan.wanted);
        summary.taken = plan.items.len() as u64;
        let mut output = StageOutput { records: Vec::new(), rejects: Vec::new(), short: Vec::new() };
        for item in done {
            summary.missing += item.short.iter().map(|list| list.wanted - list.made).sum::<u64>();
            summary.requests += item.requests;
            summary.prompt_tokens += item.prompt_tokens;
            summary.completion_tokens += item.completion_tokens;
            summary.seconds += item.seconds;
            output.records.extend(item.records);
            output.rejects.extend(item.rejects);
            output.short.extend(item.short);
        }
        count(&mut summary, output.records.len(), &output.rejects);
        if output.records.is_empty() && summary.taken > 0 {
            let first = output.rejects.first();
            let example = first.and_then(|reject| reject.detail.clone()).unwrap_or_default();
            let reason = first.map_or("", |reject| reject.reason.as_str());
            let why = format!("{reason}: {example}; the answers are in {}", files.rejects().display());
            files.fail(&output)?;
            let taken = plan.items.len();
            return Err(SynthError::Empty { stage: plan.stage.name(), taken, why });
        }
        files.finish(&output, &summary)?;
        self.tell(&summary);
        self.note(summary);
        Ok(output.records)
    }

    /// Writes a stage that needs no model, which is computed in each run.
    pub(super) fn write_local<R: Serialize>(
        &self,
        stage: Stage,
        taken: usize,
        records: Vec<R>,
        rejects: Vec<Reject>,
    ) -> Result<Vec<R>, SynthError> {
        let mut summary = empty_summary(stage, &Depends::new(), None);
        summary.taken = taken as u64;
        count(&mut summary, records.len(), &rejects);
        let output = StageOutput { records, rejects, short: Vec::new() };
        StageFiles::new(self.folder, stage).finish(&output, &summary)?;
        self.tell(&summary);
        self.note(summary);
        Ok(output.records)
    }

    fn tell(&self, summary: &StageSummary) {
        let StageSummary { stage, wanted, taken, made, rejects, missing, requests, .. } = summary;
        let mut line = format!("{}: {made}", stage.name());
        if let Some(wanted) = wanted {
            line += &format!(" of {wanted}");
        }
        line += &format!(" from {taken} items");
        if *missing > 0 {
            line += &format!("; lists were {missing} short");
        }
        for (reason, count) in rejects {
            line += &format!("; {count} rejected: {reason}");
        }
        if *requests > 0 {
            line += &format!(
                "; {requests} requests, {} prompt and {} completion tokens, {:.1} s",
                summary.prompt_tokens, summary.completion_tokens, summary.seconds
            );
        }
        (self.say)(&format!("{line}\n"));
    }
}

/// Runs one item.
fn one<T, R, W>(
    item: &Item<T>,
    endpoints: &[Endpoint],
    stop: &AtomicBool,
    work: &W,
) -> Result<Finished<R>, SynthError>
where
    W: Fn(&Item<T>, &[Endpoint], &mut Job<'_>, &mut Finished<R>) -> Result<(), CallError>,
{
    let mut job = Job { stop, usage: Usage::default() };
    let mut finished = Finished::new(&item.id);
    match work(item, endpoints, &mut job, &mut finished) {
        Ok(()) => {}
        Err(CallError::Refused(refusal)) => finished.rejects.push(Reject::refused(&item.id, refusal)),
        Err(CallError::Fatal(error)) => return Err(error),
    }
    finished.used(job.usage);
    Ok(finished)
}

fn empty_summary(stage: Stage, depends: &Depends, wanted: Option<u64>) -> StageSummary {
    StageSummary {
        stage,
        depends: depends.clone(),
        wanted,
        taken: 0,
        made: 0,
        rejects: BTreeMap::new(),
        missing: 0,
        requests: 0,
        prompt_tokens: 0,
        completion_tokens: 0,
        seconds: 0.0,
    }
}

fn count(summary: &mut StageSummary, made: usize, rejects: &[Reject]) {
    summary.made = made as u64;
    for reject in rejects {
        *summary.rejects.entry(reject.reason.clone()).or_default() += 1;
    }
}
