//! Steps of many rows as two batches. Each layer computes one batch after the other, and the ranks add the
//! parts of one while the other is computed ([`Device::beside`]). A row's bits do not depend on its batch.

use super::Model;
use super::batch::Batch;
use crate::device::{Device, DeviceError, Segment, StepCapacity, StepInputs, Token};

/// The first batch has a multiple of this number of rows: those that a block of a product computes at a time.
/// The second batch has at least this many rows too: a product of fewer would still take the time to read all
/// weights.
const ROWS: usize = 128;

/// Tokens of the smallest step that can be computed as two batches.
pub(crate) const LEAST_TOKENS: usize = 2 * ROWS;

/// The second batch of steps with at least a number of tokens.
#[derive(Debug)]
pub(super) struct SecondBatch<D: Device> {
    pub(super) batch: Batch<D>,
    least_tokens: usize,
}

/// The rows of both batches of a step of `rows` rows; `None` if one batch computes it, because the second
/// one would be small. The first `sampled` rows may have tokens that were sampled last, which only the first
/// batch has.
pub(crate) fn batch_rows(rows: usize, sampled: usize) -> Option<[usize; 2]> {
    let first = (rows - second_rows(rows)).max(sampled).next_multiple_of(ROWS);
    (first + ROWS <= rows).then(|| [first, rows - first])
}

/// The most rows of the second batch of a step of at most `rows` rows.
pub(super) fn second_rows(rows: usize) -> usize {
    rows / 2
}

impl<D: Device> SecondBatch<D> {
    /// Allocates the buffers for steps of at most `rows` tokens.
    pub(super) fn new(
        device: &D,
        model: &Model<D>,
        rows: usize,
        least_tokens: usize,
    ) -> Result<Self, DeviceError> {
        let max_positions = model.config.max_positions;
        // Its tokens are known, and the rows of both batches are sampled from the first.
        let capacity = StepCapacity {
            rows: second_rows(rows),
            max_positions,
            slots: 0,
            samples: 0,
            sampled_rows: 0,
            vocab: 0,
        };
        let batch = Batch::new(device, model, capacity).map_err(|error| error.at("second batch"))?;
        Ok(Self { batch, least_tokens })
    }

    /// The first row of the second batch; `None` if one batch computes the step.
    pub(super) fn first_row(&self, inputs: &StepInputs) -> Option<usize> {
        let rows = inputs.tokens.len();
        let sampled = inputs.tokens.iter().rposition(|token| matches!(token, Token::Last { .. }));
        let batches = batch_rows(rows, sampled.map_or(0, |last| last + 1));
        batches.filter(|_| rows >= self.least_tokens).map(|[first, _]| first)
    }
}

/// Divides a step before row `at`. A segment that both batches have rows of becomes two, of which the second
/// reads the keys and values of the first from the cache.
pub(super) fn divided(inputs: &StepInputs, at: usize) -> [StepInputs; 2] {
    let (mut first, mut second) = (StepInputs::default(), StepInputs::default());
    first.tokens.extend(&inputs.tokens[..at]);
    second.tokens.extend(&inputs.tokens[at..]);
    for segment in &inputs.segments {
        let before = at.saturating_sub(segment.first).min(segment.len);
        if before > 0 {
            first.segments.push(Segment { len: before, ..segment.clone() });
        }
        if before < segment.len {
            second.segments.push(Segment {
                first: segment.first + before - at,
                len: segment.len - before,
                position: segment.position + before,
                blocks: segment.blocks.clone(),
            });
        }
    }
    [first, second]
}
