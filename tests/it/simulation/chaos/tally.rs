//! What happened in worlds, summed up: so that what they are made for can be seen to come about.

/// Of one world, or of many.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tally {
    pub worlds: u64,
    pub steps: u64,
    pub answered: u64,
    pub left: u64,
    /// Updates that had been committed when their client left.
    pub left_unsaid: u64,
    pub refused: u64,
    /// Groups whose first token was predicted to come too late.
    pub unpromised: u64,
    pub spoiled: u64,
    pub killed: u64,
    /// Deadlines that passed while their request waited, had no token yet, had some, or had just ended.
    pub late: [u64; 4],
    pub faults: [u64; 4],
    pub stops: u64,
    pub drains: u64,
    pub retries: u64,
    pub preemptions: u64,
    pub prefix_hits: u64,
    /// Starts before somebody who came earlier and is of a lower priority.
    pub passed: u64,
    /// Starts before somebody who is of a higher priority: by age alone.
    pub aged: u64,
    /// Steps after which the shares of two tenants were compared.
    pub compared: u64,
    /// The most by which shares have differed, of what they may.
    pub apart: f64,
    /// The longest that one waited, by the tokens that went before it.
    pub longest: f64,
    /// The longest that one waited for its start, likewise.
    pub longest_start: f64,
    /// What requests paid, in seconds and in block-seconds, first where nobody could say what steps take, then where the
    /// executor said it; and what the device did. Of lives that ended in peace.
    pub paid: [f64; 4],
    pub took: [f64; 4],
    /// Of everything that was said and when.
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
        let ends = [&mut self.answered, &mut self.left, &mut self.left_unsaid, &mut self.refused];
        let ends = ends.into_iter().chain([&mut self.unpromised, &mut self.spoiled, &mut self.killed]);
        let lives = [&mut self.worlds, &mut self.steps, &mut self.stops, &mut self.drains, &mut self.retries];
        let turns = [&mut self.preemptions, &mut self.prefix_hits, &mut self.passed, &mut self.aged];
        arrays.chain(ends).chain(lives).chain(turns).chain([&mut self.compared]).collect()
    }

    /// Whether all has come about that worlds are made for, and costs add up, in all lives together still better.
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
