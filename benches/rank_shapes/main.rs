//! Runs the kernels on the host at the shapes of one of the 340B's eight ranks, with 1 to 16 rows. Every row
//! must have the same bits for any number of rows and both orders of a block's threads, and agree with the
//! CPU device. It takes minutes and so is no part of the tests.
//!
//!     cargo bench --profile dev --features host-kernels --bench rank_shapes [-- PART...]
//!
//! The parts are `products`, `heads`, `attention`, `rows`, `sampling` and `sums`; without a name all run. A
//! line for each case has its differences from the CPU device with their bounds, whether the bits are the
//! same, and the seconds on the host, including copies and reading the results. The exit status is 1 if a
//! case failed, and failed cases are listed at the end.
//!
//! With `OCTANT_HOST_TRUNCATES=1` the emulated tensor cores sum with 13 fraction bits, as Hopper does. This
//! changes `products`, `heads` and `sums` only.

mod attention;
mod group;
mod heads;
mod inputs;
mod products;
mod rank;
mod report;
mod rows;
mod sampling;
mod sums;

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use octant::device::DeviceError;
use rank::Rank;
use report::Report;

/// A part of the benchmark.
struct Part {
    name: &'static str,
    run: fn(&Rank, &mut Report) -> Result<(), DeviceError>,
}

const PARTS: [Part; 6] = [
    Part { name: "products", run: products::run },
    Part { name: "heads", run: heads::run },
    Part { name: "attention", run: attention::run },
    Part { name: "rows", run: rows::run },
    Part { name: "sampling", run: sampling::run },
    Part { name: "sums", run: sums::run },
];

/// The parts that the arguments name; all without one.
fn chosen() -> Result<Vec<&'static Part>, String> {
    let mut chosen = Vec::new();
    for word in std::env::args().skip(1).filter(|word| word != "--bench") {
        let Some(part) = PARTS.iter().find(|part| part.name == word) else {
            let names = PARTS.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
            return Err(format!("expected names of parts ({names}), got `{word}`"));
        };
        chosen.push(part);
    }
    Ok(if chosen.is_empty() { PARTS.iter().collect() } else { chosen })
}

/// Runs the parts, and returns whether no case failed.
fn run() -> Result<bool, Box<dyn Error>> {
    let (parts, rank) = (chosen()?, Rank::new()?);
    let mut report = Report::default();
    for part in parts {
        let began = Instant::now();
        (part.run)(&rank, &mut report)?;
        println!("-- {}: {:.0} s", part.name, began.elapsed().as_secs_f64());
    }
    Ok(report.end())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
