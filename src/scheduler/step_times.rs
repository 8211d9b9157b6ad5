//! Expected times of steps of few rows, from which it follows what a draft costs. They are measured when a
//! server starts, or computed by a cost model. Only ratios of times matter.

/// Expected times of steps.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StepTimes {
    /// Steps of one sequence without a context, in ascending order of rows.
    points: Vec<StepTime>,
    /// Seconds more for each position before a sequence's first row in the step.
    pub first_row: f64,
    /// Seconds more for each position before each further row of the same sequence.
    pub further_row: f64,
    /// Passes of a draft model over one token of each of several sequences, in ascending order of sequences.
    draft_points: Vec<StepTime>,
}

/// The time of a step.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StepTime {
    /// Tokens fed.
    pub rows: usize,
    /// Seconds.
    pub seconds: f64,
}

/// The time of a step whose rows follow a context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContextTime {
    /// Positions before the rows.
    pub context: usize,
    /// The step.
    pub time: StepTime,
}

impl StepTimes {
    /// Numbers of rows whose times are worth knowing, up to `most`.
    pub fn rows_to_measure(most: usize) -> impl Iterator<Item = usize> {
        const ROWS: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64];
        ROWS.into_iter().take_while(move |rows| *rows <= most)
    }

    /// Rows of the steps with a context that are worth measuring.
    pub(crate) const WITH_CONTEXT: [usize; 2] = [1, 4];

    /// Times in any order. A step is taken to last at most as long as every step of more rows: measurements
    /// err by what else the machine does, which only adds time.
    pub fn new(mut points: Vec<StepTime>) -> Self {
        ascend(&mut points);
        Self { points, ..Self::default() }
    }

    /// The same times with those of passes of a draft model over one token of each of several sequences, and
    /// over the tokens of one.
    pub fn with_draft_model(self, mut passes: Vec<StepTime>) -> Self {
        ascend(&mut passes);
        Self { draft_points: passes, ..self }
    }

    /// The same times with those of steps of [`Self::WITH_CONTEXT`] rows, in this order.
    pub fn with_context(self, times: [ContextTime; 2]) -> Self {
        let more =
            times.map(|of| (of.time.seconds - self.seconds(of.time.rows)).max(0.0) / of.context as f64);
        let further = (times[1].time.rows - times[0].time.rows) as f64;
        let further_row = ((more[1] - more[0]) / further).clamp(0.0, more[0]);
        Self { first_row: more[0], further_row, ..self }
    }

    /// Seconds of a step without a context: on the lines between the known times and on the continuation of
    /// the last one. 1 where nothing is known.
    pub fn seconds(&self, rows: usize) -> f64 {
        interpolated(&self.points, rows).unwrap_or(1.0)
    }

    /// Seconds of a pass of the draft model that proposes a draft for each of this many sequences. 0 where
    /// nothing is known.
    pub(crate) fn draft_seconds(&self, sequences: usize) -> f64 {
        interpolated(&self.draft_points, sequences).unwrap_or(0.0)
    }

    /// Seconds that a pass of the draft model takes longer if it computes this many tokens of a sequence in
    /// place of one.
    pub(crate) fn catch_up_seconds(&self, tokens: usize) -> f64 {
        self.draft_seconds(tokens) - self.draft_seconds(1)
    }
}

/// Sorts times. A step is taken to last at most as long as every step of more rows.
fn ascend(points: &mut Vec<StepTime>) {
    points.retain(|point| point.seconds.is_finite() && point.seconds > 0.0);
    points.sort_by_key(|point| point.rows);
    points.dedup_by_key(|point| point.rows);
    let mut most = f64::INFINITY;
    for point in points.iter_mut().rev() {
        most = most.min(point.seconds);
        point.seconds = most;
    }
}

/// The time on the lines between the known times and on the continuation of the last one.
fn interpolated(points: &[StepTime], rows: usize) -> Option<f64> {
    let after = points.partition_point(|point| point.rows < rows);
    let (from, to) = match (points.get(after), points.len()) {
        (_, 0) => return None,
        (Some(first), _) if after == 0 => return Some(first.seconds),
        (Some(to), _) => (&points[after - 1], to),
        (None, 1) => return Some(points[0].seconds),
        (None, all) => (&points[all - 2], &points[all - 1]),
    };
    let slope = (to.seconds - from.seconds) / (to.rows - from.rows) as f64;
    Some(from.seconds + slope * (rows - from.rows) as f64)
}
