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
        points.retain(|point| point.seconds.is_finite() && point.seconds > 0.0);
        points.sort_by_key(|point| point.rows);
        points.dedup_by_key(|point| point.rows);
        let mut most = f64::INFINITY;
        for point in points.iter_mut().rev() {
            most = most.min(point.seconds);
            point.seconds = most;
        }
        Self { points, first_row: 0.0, further_row: 0.0 }
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
        let after = self.points.partition_point(|point| point.rows < rows);
        let (from, to) = match (self.points.get(after), self.points.len()) {
            (_, 0) => return 1.0,
            (Some(first), _) if after == 0 => return first.seconds,
            (Some(to), _) => (&self.points[after - 1], to),
            (None, 1) => return self.points[0].seconds,
            (None, all) => (&self.points[all - 2], &self.points[all - 1]),
        };
        let slope = (to.seconds - from.seconds) / (to.rows - from.rows) as f64;
        from.seconds + slope * (rows - from.rows) as f64
    }
}
