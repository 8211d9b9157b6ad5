//! Random tests of the whole engine, deterministic: [`octant::engine::EngineCore`] with the real scheduler,
//! open requests, costs and deadlines, a simulated device and a virtual clock. Everything random comes from a
//! seed.
//!
//! A world has a server with few blocks, slots and places in the queue, and some policy of ageing, preemption
//! and reservation. Its clients belong to tenants of several weights. They share prefixes, ask for several
//! choices, for log-probabilities or for invalid requests, set priorities and deadlines, read slowly, and
//! abort at any time. In every second world some requests are lines of batches, which live ones overtake. The
//! device computes NaN, returns incomplete outputs, or fails. The server drains, refuses requests whose
//! predicted wait is too long, is stopped and is started again; clients that were cut off try again.
//!
//! After every step the test recounts blocks, slots and rows in flight. Every open request has a channel, and
//! no other has. Each client has received a prefix of the answer that it would get alone, and nothing after a
//! finish. A request whose deadline passed ends with the next publication, and no request waits for later
//! ones (`arrivals`, `client`). Starts and shares keep the guarantees of `src/scheduler/fair_queue.rs`
//! (`queue_order`). When an engine ends, the costs of all requests add up to the device's time (`costs`).
//!
//! A failure names its seed. `OCTANT_CHAOS_SEED=n` runs that world alone; `OCTANT_CHAOS_STEPS=n` sets the
//! number of steps of all worlds together.

mod arrivals;
pub mod asked;
mod client;
mod costs;
mod device;
mod queue_order;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use octant::simulator::SimulatedModel;
use tally::Tally;
use world::World;

use super::cost;

/// Steps of all worlds together.
const STEPS: u64 = 1_000_000;

/// Threads; thread i runs the seeds i, i + `THREADS`, ….
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
        "seed {seed}: {why}\nagain: OCTANT_CHAOS_SEED={seed} cargo nextest run --test it chaos::every_request"
    );
}

/// Runs worlds with the seeds `first`, `first + THREADS`, … until they have `steps` steps together.
fn worlds(first: u64, steps: u64, machine: &SimulatedModel) -> Tally {
    let mut sum = Tally::default();
    let mut seeds = (first..).step_by(THREADS as usize);
    while sum.steps < steps {
        sum.add(&world(seeds.next().expect("there are seeds enough"), machine));
    }
    sum
}

#[test]
fn every_request_is_answered_once_and_as_if_it_ran_alone() {
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
fn a_seed_determines_its_world() {
    let machine = SimulatedModel::new(cost(), asked::voice());
    for seed in 0..20 {
        assert_eq!(world(seed, &machine), world(seed, &machine), "seed {seed}");
    }
    assert_ne!(world(0, &machine).print, world(1, &machine).print);
}
