//! How long the record of a batch is kept.
//!
//! A batch that has not ended, or whose output or error file exists, keeps its record. Without these files a
//! record is kept for [`KEPT`] after the end of the batch, and only the newest [`MOST_KEPT`] of each owner.
//! Files are removed by their owner alone.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::records::BatchRecord;

/// Seconds for which the record of an ended batch without files of results is kept.
const KEPT: u64 = 30 * 24 * 3600;
/// The most such records of an owner.
const MOST_KEPT: usize = 1000;
/// The most records that one creation of a batch removes, so that it does not take long.
const AT_ONCE: usize = 32;

/// Ids of batches whose record is to be removed. `exists` says whether there is a file with an id.
pub(super) fn over<'a>(
    batches: impl Iterator<Item = &'a BatchRecord>,
    exists: impl Fn(&String) -> bool,
    now: u64,
) -> Vec<String> {
    let has_results = |batch: &BatchRecord| {
        (batch.has_output && exists(&batch.output_file_id))
            || (batch.has_errors && exists(&batch.error_file_id))
    };
    let mut ended: Vec<(u64, &BatchRecord)> =
        batches.filter_map(|batch| Some((batch.ended_at()?, batch))).collect();
    ended.retain(|(_, batch)| !has_results(batch));
    ended.sort_by_key(|(_, batch)| Reverse(batch.order));
    let mut newest: HashMap<&str, usize> = HashMap::new();
    let over = ended.into_iter().filter(|(ended_at, batch)| {
        let place = newest.entry(&batch.owner).or_default();
        *place += 1;
        *place > MOST_KEPT || now >= ended_at.saturating_add(KEPT)
    });
    over.map(|(_, batch)| batch.id.clone()).take(AT_ONCE).collect()
}
