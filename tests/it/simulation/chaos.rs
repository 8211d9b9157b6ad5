//! The engine under everything at once, deterministically: the turns of its loop, the scheduler, the
//! accounts, the watch and the deadlines are the real ones, the device is simulated, the clock is virtual,
//! and all that happens comes from a seed.
//!
//! A world has a server that is short of blocks, slots and queue, with some rule for ages, preemptions and
//! reservations; clients of tenants of several weights, who share prefixes, ask for several choices, for
//! scores, for nothing, for too much, in a hurry or urgently, read slowly, leave or run out of time at any
//! moment; and a device that computes NaN, returns too little, or breaks. The server drains, refuses what it
//! predicts to come too late, is stopped, is born again, and who was cut off asks again. After every step:
//! blocks, slots and rows in flight are recounted; every open request has an account and no other has; what
//! clients were told is what they would be told alone, up to there; nothing comes after an end; whose time is
//! up hears so next; nobody waits for those behind (`door` and `client`). Starts and shares keep to the
//! promises of `src/scheduler/fair_queue.rs` (`line`), and after every life all that requests paid is what
//! the device did (`books`).
//!
//! A failure names its seed. `OCTANT_CHAOS_SEED=n` runs that world alone, `OCTANT_CHAOS_STEPS=n` sets how
//! many steps are run in all.

pub mod asked;
mod books;
mod client;
mod device;
mod door;
mod line;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use octant::simulator::SimulatedModel;
use tally::Tally;
use world::World;

use super::cost;

/// Steps in all worlds together.
const STEPS: u64 = 1_000_000;

/// Threads, each with every so-manieth seed.
const THREADS: u64 = 2;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got `{text}`")))
}

fn world(seed: u64, machine: &SimulatedModel) -> Tally {
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

/// Worlds of the seeds `first`, `first + THREADS`, … until there are so many steps.
fn worlds(first: u64, steps: u64, machine: &SimulatedModel) -> Tally {
    let mut sum = Tally::default();
    let mut seeds = (first..).step_by(THREADS as usize);
    while sum.steps < steps {
        sum.add(&world(seeds.next().expect("there are seeds enough"), machine));
    }
    sum
}

#[test]
fn every_world_answers_everyone_once_and_as_if_alone() {
    let machine = SimulatedModel::new(cost(), asked::voice());
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
                Ok(tally) => sum.add(&tally),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    println!("{sum:#?}\n{seconds:.1} s, {:.0} steps/s", sum.steps as f64 / seconds);
    assert!(sum.steps >= steps, "{} of {steps} steps", sum.steps);
    if steps >= 100_000 {
        sum.check().unwrap();
    }
}

#[test]
fn a_seed_is_a_world() {
    let machine = SimulatedModel::new(cost(), asked::voice());
    for seed in 0..20 {
        assert_eq!(world(seed, &machine), world(seed, &machine), "seed {seed}");
    }
    assert_ne!(world(0, &machine).print, world(1, &machine).print);
}
