//! Due times are a function of the seed and have the requested mean and spread.

use std::time::Duration;

use octant::bench::load_client::arrivals::{Arrivals, Rate, Spacing};

const COUNT: usize = 40_000;

fn steady(rate: f64) -> Rate {
    Rate { from: rate, to: rate }
}

/// Mean of the intervals in seconds, and their standard deviation as a share of it.
fn mean_and_spread(spacing: Spacing, rate: f64, seed: u64) -> (f64, f64) {
    let times: Vec<f64> =
        Arrivals::new(steady(rate), None, spacing, seed).take(COUNT).map(|t| t.as_secs_f64()).collect();
    let intervals: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(intervals.iter().all(|interval| *interval >= 0.0));
    let count = intervals.len() as f64;
    let mean = intervals.iter().sum::<f64>() / count;
    let variance = intervals.iter().map(|interval| (interval - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt() / mean)
}

#[test]
fn intervals_have_the_mean_and_the_spread_of_their_distribution() {
    let gamma = |burstiness| Spacing::Gamma { burstiness };
    for (spacing, spread) in [
        (Spacing::Constant, 0.0),
        (Spacing::Poisson, 1.0),
        (gamma(1.0), 1.0),
        (gamma(0.25), 2.0),
        (gamma(0.5), 2f64.sqrt()),
        (gamma(4.0), 0.5),
    ] {
        for seed in 0..3 {
            let (mean, found) = mean_and_spread(spacing, 50.0, seed);
            // Five standard errors of the mean.
            let tolerance = 5.0 * spread.max(1e-6) / (COUNT as f64).sqrt();
            assert!((mean * 50.0 - 1.0).abs() <= tolerance, "{spacing:?}, seed {seed}: mean {mean}");
            assert!((found - spread).abs() <= 0.05 * spread.max(1e-6), "{spacing:?}, seed {seed}: {found}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_times_and_another_gives_others() {
    let times = |seed| -> Vec<Duration> {
        Arrivals::new(steady(3.0), None, Spacing::Poisson, seed).take(100).collect()
    };
    assert_eq!(times(7), times(7));
    assert_ne!(times(7), times(8));
}

/// Users compare runs by their seeds, so the times of a seed must never change. The expected numbers were
/// computed by another program from the definitions of SplitMix64 and of the sampling methods.
#[test]
fn the_due_times_of_a_seed_never_change() {
    let times = |spacing| -> Vec<f64> {
        let all = Arrivals::new(steady(3.0), None, spacing, 7).take(3);
        all.map(|time| time.as_secs_f64()).collect()
    };
    for (spacing, expected) in [
        (Spacing::Poisson, [0.3140150592, 1.6763728558, 1.7112114131]),
        (Spacing::Gamma { burstiness: 0.25 }, [0.1668400874, 0.1709556927, 0.1719730834]),
        (Spacing::Gamma { burstiness: 4.0 }, [0.5792239609, 0.7521493338, 0.9741044995]),
    ] {
        let near = times(spacing).iter().zip(expected).all(|(time, expected)| (time - expected).abs() < 2e-9);
        assert!(near, "{spacing:?}: {:?}", times(spacing));
    }
}

#[test]
fn a_constant_rate_sends_rate_times_duration_requests() {
    let duration = Some(Duration::from_secs(2));
    let times: Vec<Duration> = Arrivals::new(steady(10.0), duration, Spacing::Constant, 0).collect();
    assert_eq!(times.len(), 20);
    for (n, time) in times.iter().enumerate() {
        assert!((time.as_secs_f64() - (n + 1) as f64 / 10.0).abs() < 1e-9);
    }
}

#[test]
fn a_ramp_has_its_current_rate_at_every_time() {
    let duration = Duration::from_secs(1000);
    for (from, to) in [(1.0, 20.0), (20.0, 1.0)] {
        let times: Vec<f64> = Arrivals::new(Rate { from, to }, Some(duration), Spacing::Poisson, 3)
            .map(|time| time.as_secs_f64())
            .collect();
        assert!(times.is_sorted() && times.iter().all(|time| *time <= 1000.0));
        for tenth in 0..10 {
            let (start, end) = (100.0 * f64::from(tenth), 100.0 * f64::from(tenth + 1));
            let found = times.iter().filter(|time| (start..end).contains(*time)).count() as f64;
            let expected = 100.0 * (from + (to - from) * (f64::from(tenth) + 0.5) / 10.0);
            // Five standard deviations of a Poisson count.
            assert!((found - expected).abs() < 5.0 * expected.sqrt(), "{from}:{to}, tenth {tenth}: {found}");
        }
    }
}
