//! Counts the events of worlds, to show that the worlds reach the situations that they are made for.

/// Counts of one world or of several.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tally {
    pub worlds: u64,
    pub steps: u64,
    pub answered: u64,
    /// Requests of batches among them.
    pub batch_answered: u64,
    /// Live requests that started before an earlier request of a batch, once for each such request.
    pub overtaken: u64,
    pub left: u64,
    /// Updates that were committed and not published when their client aborted.
    pub left_unpublished: u64,
    pub refused: u64,
    /// Groups that were refused because their predicted wait was too long.
    pub predicted_late: u64,
    pub spoiled: u64,
    pub killed: u64,
    /// Deadlines that passed while the request waited, ran without a token, had tokens, or had just finished.
    pub late: [u64; 4],
    pub faults: [u64; 4],
    pub stops: u64,
    pub drains: u64,
    pub retries: u64,
    pub preemptions: u64,
    pub prefix_hits: u64,
    /// Requests that started before an earlier request of lower priority.
    pub passed: u64,
    /// Requests that started before a request of higher priority because they had aged.
    pub aged: u64,
    /// Comparisons of two tenants' shares.
    pub compared: u64,
    /// The greatest difference of shares, relative to its bound.
    pub apart: f64,
    /// The largest ratio of a request's steps to the tokens that bound their number.
    pub longest: f64,
    /// The same ratio for the steps until a request starts.
    pub longest_start: f64,
    /// Costs of requests in seconds and block-seconds, without and with predictions of step times, over
    /// engines that ended with no step in flight.
    pub paid: [f64; 4],
    /// The device's totals, in the same order.
    pub took: [f64; 4],
    /// A hash of all answers and their times.
    pub print: u64,
}

impl Tally {
    pub fn add(&mut self, one: &Self) {
        for (sum, one) in self.counts().into_iter().zip(one.clone().counts()) {
            *sum += *one;
        }
        for i in 0..4 {
            self.paid[i] += one.paid[i];
            self.took[i] += one.took[i];
        }
        self.apart = self.apart.max(one.apart);
        self.longest = self.longest.max(one.longest);
        self.longest_start = self.longest_start.max(one.longest_start);
        self.print = self.print.rotate_left(1) ^ one.print;
    }

    fn counts(&mut self) -> Vec<&mut u64> {
        let [a, b, c, d] = &mut self.late;
        let [e, f, g, h] = &mut self.faults;
        let arrays = [a, b, c, d, e, f, g, h].into_iter();
        let ends = [&mut self.answered, &mut self.left, &mut self.left_unpublished, &mut self.refused];
        let ends = ends.into_iter().chain([&mut self.predicted_late, &mut self.spoiled, &mut self.killed]);
        let lives = [&mut self.worlds, &mut self.steps, &mut self.stops, &mut self.drains, &mut self.retries];
        let turns = [&mut self.preemptions, &mut self.prefix_hits, &mut self.passed, &mut self.aged];
        arrays
            .chain(ends)
            .chain(lives)
            .chain(turns)
            .chain([&mut self.compared, &mut self.batch_answered, &mut self.overtaken])
            .collect()
    }

    /// Checks that every counted event happened more than 10 times, and that the costs of all engines
    /// together add up to the devices' totals within 0.2 %.
    pub fn check(&mut self) -> Result<(), String> {
        if let Some(place) = self.counts().iter().position(|count| **count <= 10) {
            return Err(format!("count {place} is too low to mean anything: {self:?}"));
        }
        for (paid, took) in self.paid.iter().zip(&self.took) {
            if !(0.998..1.002).contains(&(paid / took)) {
                return Err(format!("{paid} were paid for {took}"));
            }
        }
        Ok(())
    }
}
