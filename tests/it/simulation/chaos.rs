//! The engine under everything at once, deterministically: the turns of its loop, the scheduler and the accounts are the
//! real ones, the device is simulated, the clock is virtual, and all that happens comes from a seed.
//!
//! A world has a server that is short of blocks, slots and queue; sixty clients, who share prefixes, ask for several
//! choices, for scores, for nothing, for too much, read slowly, leave at any moment; and a device that computes NaN, returns
//! too little, or breaks. The server drains, is stopped, is born again, and who was cut off asks again. After every step:
//! blocks, slots and rows in flight are recounted; every open request has an account and no other has; what clients were
//! told is what they would be told alone, up to there; nothing comes after an end; nobody waits for those behind.
//!
//! A failure names its seed. `OCTANT_CHAOS_SEED=n` runs that world alone, `OCTANT_CHAOS_STEPS=n` sets how many steps
//! are run in all.

pub mod asked;
mod client;
mod device;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use octant::simulator::Machine;
use world::{Tally, World};

use super::cost;

/// Steps in all worlds together.
const STEPS: u64 = 1_000_000;

/// Threads, each with every so-manieth seed.
const THREADS: u64 = 2;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got `{text}`")))
}

fn world(seed: u64, machine: &Machine) -> Tally {
    let machine = machine.clone();
    let end = catch_unwind(AssertUnwindSafe(|| World::new(seed, machine).run()));
    let why = match end {
        Ok(Ok(tally)) => return tally,
        Ok(Err(why)) => why,
        Err(panic) => match panic.downcast::<String>() {
            Ok(text) => format!("a panic: {text}"),
            Err(_) => "a panic, see above".to_owned(),
        },
    };
    panic!(
        "seed {seed}: {why}\nagain: OCTANT_CHAOS_SEED={seed} cargo nextest run --test it chaos::every_world"
    );
}

fn add(sum: &mut Tally, one: &Tally) {
    sum.worlds += one.worlds;
    sum.steps += one.steps;
    sum.answered += one.answered;
    sum.left += one.left;
    sum.left_unsaid += one.left_unsaid;
    sum.refused += one.refused;
    sum.spoiled += one.spoiled;
    sum.killed += one.killed;
    (0..4).for_each(|i| sum.faults[i] += one.faults[i]);
    sum.stops += one.stops;
    sum.drains += one.drains;
    sum.retries += one.retries;
    sum.preemptions += one.preemptions;
    sum.prefix_hits += one.prefix_hits;
    sum.longest = sum.longest.max(one.longest);
    sum.print = sum.print.rotate_left(1) ^ one.print;
}

/// Worlds of the seeds `first`, `first + THREADS`, … until there are so many steps.
fn worlds(first: u64, steps: u64, machine: &Machine) -> Tally {
    let mut sum = Tally::default();
    let mut seeds = (first..).step_by(THREADS as usize);
    while sum.steps < steps {
        add(&mut sum, &world(seeds.next().expect("there are seeds enough"), machine));
    }
    sum
}

#[test]
fn every_world_answers_everyone_once_and_as_if_alone() {
    let machine = Machine::new(cost(), asked::voice());
    if let Some(seed) = number("OCTANT_CHAOS_SEED") {
        println!("{:?}", world(seed, &machine));
        return;
    }
    let start = std::time::Instant::now();
    let steps = number("OCTANT_CHAOS_STEPS").unwrap_or(STEPS);
    let mut sum = Tally::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|i| {
                scope.spawn({
                    let machine = &machine;
                    move || worlds(i, steps / THREADS, machine)
                })
            })
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(tally) => add(&mut sum, &tally),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    println!("{sum:?}\n{:.0} steps/s", sum.steps as f64 / start.elapsed().as_secs_f64());
    // What worlds are made for must come about in them.
    let reached = [sum.answered, sum.left, sum.left_unsaid, sum.refused, sum.spoiled, sum.killed, sum.stops];
    let reached =
        [&reached[..], &sum.faults, &[sum.drains, sum.retries, sum.preemptions, sum.prefix_hits]].concat();
    assert!(steps < 100_000 || reached.iter().all(|count| *count > 10), "{sum:?}");
}

#[test]
fn a_seed_is_a_world() {
    let machine = Machine::new(cost(), asked::voice());
    for seed in 0..20 {
        assert_eq!(world(seed, &machine), world(seed, &machine), "seed {seed}");
    }
    assert_ne!(world(0, &machine).print, world(1, &machine).print);
}
