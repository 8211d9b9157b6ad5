//! The latencies of a run as an SVG of four panels: TTFT and ITL, each cumulative and over time.

use super::measure::{LoadRun, RequestRecord, ms};
use crate::plot::{Figure, Panel, Series, svg as draw};

/// Draws the latencies of a run's successful requests, with `title` above the panels. A panel without values
/// says so.
///
/// # Errors
/// The drawing library's error.
pub fn svg(run: &LoadRun, title: &str) -> anyhow::Result<String> {
    let ok: Vec<&RequestRecord> = run.records.iter().filter(|record| record.outcome.is_ok()).collect();
    let seconds = |time: std::time::Duration| time.as_secs_f64();
    let ttft = || ok.iter().filter_map(|record| Some((record, ms(record.ttft()?))));
    let from_due = || ttft().map(|(record, ttft)| (seconds(record.due), ttft + ms(record.lag())));
    let itl = || {
        let gaps = ok.iter().flat_map(|record| record.chunks.iter().skip(1).zip(record.gaps()));
        gaps.map(|(end, gap)| (seconds(*end), ms(gap)))
    };
    let values = |points: &mut dyn Iterator<Item = (f64, f64)>| points.map(|(_, y)| y).collect::<Vec<_>>();
    draw(&Figure {
        title,
        panel_size: (620, 420),
        columns: 2,
        panels: vec![
            Panel {
                title: "TTFT, cumulative",
                x: "TTFT, ms",
                y: "requests, %",
                series: vec![
                    Series::cumulative("from due time", values(&mut from_due()), "ms"),
                    Series::cumulative("from sending", ttft().map(|(_, ttft)| ttft).collect(), "ms"),
                ],
            },
            Panel {
                title: "Inter-token latency (between chunks), cumulative",
                x: "ITL, ms",
                y: "gaps between chunks, %",
                series: vec![Series::cumulative("", values(&mut itl()), "ms")],
            },
            Panel {
                title: "TTFT from due time, over time",
                x: "due time, s",
                y: "TTFT, ms",
                series: vec![Series::over_time("", from_due().collect(), true)],
            },
            Panel {
                title: "Inter-token latency (between chunks), over time",
                x: "arrival of the chunk, s",
                y: "ITL, ms",
                series: vec![Series::over_time("", itl().collect(), true)],
            },
        ],
    })
}
