//! Simulated or recorded runs as SVG: the load of the server over time, and the latencies of requests.

use super::simulation_report::SimulationReport;
use super::timeline::{RequestTimeline, ServerSample};
use crate::plot::{Figure, Panel, Series, svg as draw};

/// A run and its name in the legend.
#[derive(Debug, Clone, Copy)]
pub struct PlottedRun<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Requests of the run.
    pub requests: &'a [&'a RequestTimeline],
    /// State of the server after each step.
    pub samples: &'a [ServerSample],
}

/// Draws runs over each other: running and waiting sequences, KV blocks and TTFT over time, and the
/// cumulative distributions of TTFT and inter-token latency.
///
/// # Errors
/// The drawing library's error.
pub fn svg(runs: &[PlottedRun<'_>]) -> anyhow::Result<String> {
    let over_time = |value: fn(&ServerSample) -> f64| -> Vec<Series> {
        let points = |run: &PlottedRun<'_>| run.samples.iter().map(|s| (s.at, value(s))).collect();
        runs.iter().map(|run| Series::over_time(run.name, points(run), false)).collect()
    };
    let cumulative = |values: fn(&RequestTimeline) -> Vec<f64>| -> Vec<Series> {
        let all = |run: &PlottedRun<'_>| run.requests.iter().flat_map(|request| values(request)).collect();
        runs.iter().map(|run| Series::cumulative(run.name, all(run), "ms")).collect()
    };
    let ttft = |run: &PlottedRun<'_>| {
        let point = |request: &&RequestTimeline| Some((request.arrived, 1e3 * request.ttft()?));
        Series::over_time(run.name, run.requests.iter().filter_map(point).collect(), false)
    };
    draw(&Figure {
        title: "",
        panel_size: (620, 380),
        columns: 2,
        panels: vec![
            Panel {
                title: "Running sequences",
                x: "time, s",
                y: "sequences",
                series: over_time(|sample| sample.running as f64),
            },
            Panel {
                title: "Waiting sequences",
                x: "time, s",
                y: "sequences",
                series: over_time(|sample| sample.waiting as f64),
            },
            Panel {
                title: "KV blocks in use",
                x: "time, s",
                y: "blocks, %",
                series: over_time(|sample| 100.0 * sample.kv),
            },
            Panel {
                title: "TTFT, over time",
                x: "arrival, s",
                y: "TTFT, ms",
                series: runs.iter().map(ttft).collect(),
            },
            Panel {
                title: "TTFT, cumulative",
                x: "TTFT, ms",
                y: "requests, %",
                series: cumulative(|request| {
                    request.ttft().map(|seconds| 1e3 * seconds).into_iter().collect()
                }),
            },
            Panel {
                title: "Inter-token latency, cumulative",
                x: "ITL, ms",
                y: "gaps between tokens, %",
                series: cumulative(|request| request.gaps().map(|seconds| 1e3 * seconds).collect()),
            },
        ],
    })
}

/// Draws what a target for the inter-token latency costs: TTFT over inter-token latency, median and 99th
/// percentile, with a point for each run.
///
/// # Errors
/// The drawing library's error.
pub fn target_itl_svg(runs: &[(&str, &SimulationReport)]) -> anyhow::Result<String> {
    let curve = |name: &str, ttft: fn(&SimulationReport) -> f64| {
        let point = |(_, report): &(&str, &SimulationReport)| (1e3 * report.itl.p99, 1e3 * ttft(report));
        Series::over_time(name, runs.iter().map(point).collect(), false)
    };
    draw(&Figure {
        title: "",
        panel_size: (700, 460),
        columns: 1,
        panels: vec![Panel {
            title: "TTFT over inter-token latency, one point for each target",
            x: "ITL, 99th percentile, ms",
            y: "TTFT, ms",
            series: vec![curve("median", |report| report.ttft.p50), curve("99th percentile", |r| r.ttft.p99)],
        }],
    })
}

/// Draws predicted and actual TTFT in seconds, one dot for each request.
///
/// # Errors
/// The drawing library's error.
pub fn forecast_svg(predicted_and_actual: &[(f64, f64)]) -> anyhow::Result<String> {
    let max = predicted_and_actual.iter().map(|(x, y)| x.max(*y)).fold(1e-9, f64::max);
    draw(&Figure {
        title: "",
        panel_size: (700, 740),
        columns: 1,
        panels: vec![Panel {
            title: "TTFT, predicted on arrival and actual",
            x: "predicted TTFT, s",
            y: "actual TTFT, s",
            series: vec![
                Series::scatter("requests", predicted_and_actual),
                Series::line("equal", vec![(0.0, 0.0), (max, max)]),
            ],
        }],
    })
}
