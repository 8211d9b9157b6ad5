//! The output and the error file: opens them again after an interruption.

use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use super::error::OfflineError;
use super::index::{Index, Marked};
use crate::batch::disk;
use crate::batch::results::{ResultFile, Results};

/// The parts of a record that say which line it belongs to.
#[derive(Deserialize)]
struct RecordKey {
    id: String,
    custom_id: Option<String>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    line: Option<u64>,
}

/// Opens or creates both files, locks them, cuts off a record without a line end, and notes in `index` which
/// lines have a record.
///
/// # Errors
/// A file has a line that is no record of this input, or a second record of a line.
pub(super) fn open(output: &Path, errors: &Path, index: &mut Index) -> Result<Results, OfflineError> {
    let mut refused = Vec::new();
    // Both locks are taken before anything is cut off.
    let files = [locked(output)?, locked(errors)?];
    let [output_file, errors_file] = files;
    let results = Results {
        output: read(output, output_file, index, &mut refused)?,
        errors: read(errors, errors_file, index, &mut refused)?,
    };
    if let Some(number) = index.mark_refused(refused) {
        return Err(OfflineError::Twice { path: errors.to_owned(), number });
    }
    for path in [output, errors] {
        disk::sync_directory_of(path).map_err(OfflineError::io(path))?;
    }
    Ok(results)
}

fn locked(path: &Path) -> Result<File, OfflineError> {
    let file = disk::open_to_append(path).map_err(OfflineError::io(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OfflineError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(OfflineError::io(path)(error)),
    }
}

fn read(
    path: &Path,
    file: File,
    index: &mut Index,
    refused: &mut Vec<u64>,
) -> Result<ResultFile, OfflineError> {
    let mut reader = BufReader::with_capacity(1 << 20, &file);
    let (mut bytes, mut records, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(OfflineError::io(path))?;
        // A crash leaves at most one record without a line end.
        if line.last() != Some(&b'\n') {
            break;
        }
        let wrong = |why| OfflineError::Record { path: path.to_owned(), line: records + 1, why };
        if let Some(why) = mark(&line, index, refused) {
            return Err(wrong(why));
        }
        bytes += read as u64;
        records += 1;
    }
    let found = file.metadata().map_err(OfflineError::io(path))?.len();
    if found > bytes {
        tracing::info!("{}: cut off a record of {} bytes that is not whole", path.display(), found - bytes);
        file.set_len(bytes).and_then(|()| file.sync_all()).map_err(OfflineError::io(path))?;
    }
    Ok(ResultFile { path: path.to_owned(), file, bytes, records })
}

/// Notes which line a record belongs to. Returns why it is no record of this input.
fn mark(record: &[u8], index: &mut Index, refused: &mut Vec<u64>) -> Option<String> {
    let foreign = |id: &str| {
        format!(
            "expected a record of this input file, got `{id}`, which is of another one; use another output \
             file, or delete this one"
        )
    };
    let RecordKey { id, custom_id, error } = match serde_json::from_slice(record) {
        Ok(key) => key,
        Err(error) => {
            return Some(format!("expected a record that this command wrote, got another line ({error})"));
        }
    };
    if let Some(number) = error.and_then(|error| error.line) {
        refused.push(number);
        return (index.hash.refused(number) != id).then(|| foreign(&id));
    }
    let Some(custom_id) = custom_id else {
        return Some("expected a record with a custom_id, got one without".to_owned());
    };
    if index.hash.line(&custom_id).id != id {
        return Some(foreign(&id));
    }
    match index.mark(&custom_id) {
        Marked::First => None,
        Marked::Again => {
            Some(format!("expected one record of the custom_id `{custom_id}`, got a second one"))
        }
        Marked::Unknown => Some(foreign(&id)),
    }
}
