//! Runs the lines of the input file that have no record.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::error::OfflineError;
use super::identity::FileHash;
use super::index::{Index, Todo};
use super::line_reader::{BadLine, LineReader};
use super::records;
use crate::batch::input::{InputLine, duplicate};
use crate::batch::lines::{Line, LineIds, RunLine, RunningLines};
use crate::batch::records::LineError;
use crate::batch::results::{LineOutcome, LineResult, NewRecords, Results};

/// Lines that are read ahead.
const READ_AHEAD: usize = 16;
/// Records of lines that were not run which are written together, if no other record is written before.
const REFUSED_AT_ONCE: u64 = 1024;

/// The files of an offline run.
#[derive(Debug, Clone)]
pub(crate) struct BatchFiles {
    /// The requests.
    pub(crate) input: PathBuf,
    /// The records of requests that succeeded.
    pub(crate) output: PathBuf,
    /// The records of all others.
    pub(crate) errors: PathBuf,
}

/// An offline run whose files are open.
pub(crate) struct Batch {
    files: BatchFiles,
    index: Index,
    results: Results,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Lines of the input.
    pub(crate) lines: u64,
    /// Lines that have a record in the output file.
    pub(crate) succeeded: u64,
    /// Lines that have a record in the error file.
    pub(crate) failed: u64,
    /// Lines whose record was written by this run.
    pub(crate) written: u64,
    /// Tokens of the prompts that this run has read.
    pub(crate) prompt_tokens: u64,
    /// Tokens that this run has generated.
    pub(crate) generated_tokens: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Each line has a record.
    Complete,
    /// It was told to stop.
    Stopped,
    /// A line could not be run, since the engine or all servers are gone.
    NoEngine,
}

/// The end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) ended: Ended,
    pub(crate) progress: Progress,
}

/// Signals to a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopSignals {
    /// No further line begins.
    pub(crate) stop: CancellationToken,
    /// Lines in flight are given up too.
    pub(crate) abandon: CancellationToken,
}

/// A finding of the reading thread.
enum Found {
    /// A line to run.
    Line(InputLine),
    /// A line that is no valid request.
    Refused(Refused),
    /// The input cannot be read to its end.
    Fault(OfflineError),
}

/// A line that is no valid request.
struct Refused {
    number: u64,
    custom_id: Option<String>,
    fault: LineError,
}

impl Batch {
    /// Opens all files, reads the input, and reads which lines have a record.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub(crate) fn open(files: BatchFiles) -> Result<Self, OfflineError> {
        let absolute = |path: &PathBuf| std::path::absolute(path).map_err(OfflineError::io(path));
        let files = BatchFiles {
            input: absolute(&files.input)?,
            output: absolute(&files.output)?,
            errors: absolute(&files.errors)?,
        };
        let input = open_input(&files.input)?;
        check_different(&files)?;
        let mut index = Index::read(&files.input, input)?;
        let results = records::open(&files.output, &files.errors, &mut index)?;
        // Both may be names of one file that did not exist before.
        check_different(&files)?;
        Ok(Self { files, index, results })
    }

    /// How far earlier runs have come.
    pub(crate) fn progress(&self) -> Progress {
        let (succeeded, failed) = (self.results.completed(), self.results.failed());
        Progress { lines: self.index.lines, succeeded, failed, ..Progress::default() }
    }

    /// Runs all lines that have no record, at most `max_lines` at a time.
    ///
    /// # Errors
    /// A file cannot be read or written. Lines that ran then have no record, and run again with the next
    /// command.
    pub(crate) async fn run(
        self,
        run_line: RunLine,
        max_lines: usize,
        signals: &StopSignals,
        show: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Summary, OfflineError> {
        let progress = self.progress();
        let Self { files, index, results } = self;
        let hash = index.hash;
        let (found, lines) = mpsc::channel(READ_AHEAD);
        let reader = tokio::task::spawn_blocking(move || read_lines(&files.input, index, &found));
        let mut run = Run {
            results: Arc::new(Mutex::new(results)),
            running: RunningLines::default(),
            lines,
            refused: NewRecords::default(),
            progress,
            hash,
        };
        let ended = run.drive(run_line, Arc::new(Semaphore::new(max_lines)), signals, show).await;
        // The reading thread ends when nothing receives its lines.
        run.lines.close();
        let Run { progress, .. } = run;
        let read = reader.await.map_err(|error| OfflineError::Internal(error.to_string()));
        let ended = ended?;
        read?;
        Ok(Summary { ended, progress })
    }
}

/// A run in progress.
struct Run {
    results: Arc<Mutex<Results>>,
    running: RunningLines,
    lines: mpsc::Receiver<Found>,
    /// Records of lines that are no valid requests, not written yet.
    refused: NewRecords,
    progress: Progress,
    hash: FileHash,
}

impl Run {
    async fn drive(
        &mut self,
        run_line: RunLine,
        places: Arc<Semaphore>,
        signals: &StopSignals,
        show: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Ended, OfflineError> {
        let (mut reading, mut ended) = (true, Ended::Complete);
        loop {
            if reading && signals.stop.is_cancelled() {
                (reading, ended) = (false, Ended::Stopped);
            }
            if !reading && self.running.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                () = signals.abandon.cancelled() => {
                    ended = Ended::Stopped;
                    break;
                }
                () = signals.stop.cancelled(), if reading => {}
                found = self.lines.recv(), if reading && places.available_permits() > 0 => match found {
                    None => reading = false,
                    Some(Found::Fault(error)) => return Err(error),
                    Some(Found::Refused(refused)) => {
                        self.refuse(&refused);
                        if self.refused.failed >= REFUSED_AT_ONCE {
                            self.write(Vec::new()).await?;
                            show(&self.progress);
                        }
                    }
                    Some(Found::Line(line)) => self.begin(line, &run_line, &places).await?,
                },
                // After the lines to begin, so that the places are filled while records are written.
                Some(done) = self.running.next(), if !self.running.is_empty() => {
                    if done.parked {
                        (reading, ended) = (false, Ended::NoEngine);
                    }
                    self.write(done.results).await?;
                    show(&self.progress);
                }
            }
        }
        self.write(Vec::new()).await?;
        show(&self.progress);
        Ok(ended)
    }

    /// Begins to run a line.
    async fn begin(
        &mut self,
        line: InputLine,
        run_line: &RunLine,
        places: &Arc<Semaphore>,
    ) -> Result<(), OfflineError> {
        let place = Arc::clone(places).acquire_owned().await;
        let place = place.map_err(|error| OfflineError::Internal(error.to_string()))?;
        let InputLine { custom_id, endpoint, body } = line;
        let identity = self.hash.line(&custom_id);
        let ids = LineIds { custom_id, id: identity.id.clone() };
        let (owner, request_id, offline) = (String::new(), identity.id, Some(identity.line));
        let line = Line { endpoint, body, owner, request_id, offline };
        self.running.spawn(run_line(line), place, ids);
        Ok(())
    }

    fn refuse(&mut self, refused: &Refused) {
        let Refused { number, custom_id, fault } = refused;
        self.refused.add_refused(&self.hash.refused(*number), custom_id.as_deref(), fault);
    }

    /// Puts the records of lines that ended, and of lines that were refused, on disk.
    async fn write(&mut self, ended: Vec<LineResult>) -> Result<(), OfflineError> {
        let mut new = std::mem::take(&mut self.refused);
        for result in &ended {
            let usage = usage(&result.outcome);
            self.progress.prompt_tokens += usage.prompt_tokens;
            self.progress.generated_tokens += usage.completion_tokens;
            new.add(result);
        }
        let (completed, failed) = (new.completed, new.failed);
        let results = Arc::clone(&self.results);
        let appended = tokio::task::spawn_blocking(move || {
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            // The error names the file.
            results.append(&new).map_err(|error| OfflineError::Internal(error.to_string()))
        });
        appended.await.map_err(|error| OfflineError::Internal(error.to_string()))??;
        self.progress.succeeded += completed;
        self.progress.failed += failed;
        self.progress.written += completed + failed;
        Ok(())
    }
}

/// Reads the input and sends what has to be done, until the end or until nothing receives it.
fn read_lines(path: &Path, mut index: Index, found: &mpsc::Sender<Found>) {
    if let Err(error) = send_lines(path, &mut index, found) {
        // Without a receiver the run has ended for another reason.
        let _ended = found.blocking_send(Found::Fault(error));
    }
}

fn send_lines(path: &Path, index: &mut Index, found: &mpsc::Sender<Found>) -> Result<(), OfflineError> {
    let mut reader = LineReader::new(open_input(path)?);
    while let Some((number, line)) = reader.next().map_err(OfflineError::io(path))? {
        let item = match line {
            Err(_) if index.is_refused(number) => continue,
            Err(BadLine { fault, custom_id }) => Found::Refused(Refused { number, custom_id, fault }),
            Ok(line) => match index.todo(number, &line.custom_id) {
                Todo::Nothing => continue,
                Todo::Run => Found::Line(line),
                Todo::Repeats(first) => {
                    let fault = duplicate(&line.custom_id, number, first);
                    Found::Refused(Refused { number, custom_id: Some(line.custom_id), fault })
                }
                Todo::Changed => return Err(OfflineError::Changed(path.to_owned())),
            },
        };
        if found.blocking_send(item).is_err() {
            return Ok(());
        }
    }
    if reader.hash() == index.hash { Ok(()) } else { Err(OfflineError::Changed(path.to_owned())) }
}

fn open_input(path: &Path) -> Result<File, OfflineError> {
    let metadata = std::fs::metadata(path).map_err(OfflineError::io(path))?;
    if !metadata.is_file() {
        return Err(OfflineError::NotAFile(path.to_owned()));
    }
    File::open(path).map_err(OfflineError::io(path))
}

/// Checks that no two of the files are the same one, as far as they exist.
fn check_different(files: &BatchFiles) -> Result<(), OfflineError> {
    let BatchFiles { input, output, errors } = files;
    let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let [real_input, real_output, real_errors] = [real(input), real(output), real(errors)];
    if real_output == real_input || real_output == real_errors {
        return Err(OfflineError::SameFile(output.clone()));
    }
    if real_errors == real_input { Err(OfflineError::SameFile(errors.clone())) } else { Ok(()) }
}

/// Token counts of an answer.
#[derive(Debug, Default, Deserialize)]
struct AnswerUsage {
    #[serde(default, alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: u64,
}

fn usage(outcome: &LineOutcome) -> AnswerUsage {
    #[derive(Deserialize)]
    struct Answer {
        usage: Option<AnswerUsage>,
    }
    let LineOutcome::Answered { body, .. } = outcome else { return AnswerUsage::default() };
    serde_json::from_str::<Answer>(body.get()).ok().and_then(|answer| answer.usage).unwrap_or_default()
}
