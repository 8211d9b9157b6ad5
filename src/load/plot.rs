//! The times of a run as an SVG of four panels: how TTFT and ITL are distributed, and how they went over time. However
//! long the run, the file stays small: distributions are drawn through 400 of their quantiles, and over time each 120th
//! of the run has its median and its 99th percentile.

use std::time::Duration;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::measure::{Record, Run, ms, percentile};

const SIZE: (u32, u32) = (1200, 840);
const QUANTILES: usize = 400;
const SLICES: usize = 120;

/// Fine for the reader, clear of each other for most who see colours differently.
const FIRST: RGBColor = RGBColor(0x1f, 0x5f, 0xb4);
const SECOND: RGBColor = RGBColor(0xd9, 0x5f, 0x02);

/// A curve with its name.
struct Curve {
    name: &'static str,
    points: Vec<(f64, f64)>,
    color: RGBColor,
}

/// What a panel shows.
struct Panel<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    curves: [Curve; 2],
}

/// Why there is no plot, in the words of the library that draws it.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw: {0}")]
pub struct PlotError(String);

/// Draws a run; `title` stands above. Panels of which there are no values are empty.
pub fn svg(run: &Run, title: &str) -> Result<String, PlotError> {
    let ok: Vec<&Record> = run.records.iter().filter(|record| record.outcome.is_ok()).collect();
    let due = |record: &&Record| Some((record.due, ms(record.ttft()? + record.lag())));
    let ttft: Vec<(Duration, f64)> = ok.iter().filter_map(due).collect();
    let sent: Vec<f64> = ok.iter().filter_map(|record| record.ttft()).map(ms).collect();
    let gaps = |record: &&Record| {
        let ends = record.chunks[1..].to_vec();
        ends.into_iter().zip(record.gaps().map(ms).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let itl: Vec<(Duration, f64)> = ok.iter().flat_map(gaps).collect();
    let values = |pairs: &[(Duration, f64)]| pairs.iter().map(|(_, value)| *value).collect::<Vec<_>>();
    let none = || Curve { name: "", points: Vec::new(), color: SECOND };
    let panels = [
        Panel {
            title: "Time to first token: distribution",
            x: "ms",
            y: "share of requests",
            curves: [
                Curve { name: "from when due", points: distribution(values(&ttft)), color: FIRST },
                Curve { name: "from sending", points: distribution(sent), color: SECOND },
            ],
        },
        Panel {
            title: "Between chunks: distribution",
            x: "ms",
            y: "share of gaps",
            curves: [Curve { name: "ITL", points: distribution(values(&itl)), color: FIRST }, none()],
        },
        Panel {
            title: "Time to first token, by when requests were due",
            x: "s",
            y: "ms",
            curves: over_time(&ttft, run.elapsed),
        },
        Panel {
            title: "Between chunks, by when they came",
            x: "s",
            y: "ms",
            curves: over_time(&itl, run.elapsed),
        },
    ];
    let mut out = String::new();
    draw(&mut out, title, &panels).map_err(|error| PlotError(error.to_string()))?;
    Ok(out)
}

/// Points of the cumulative distribution.
fn distribution(mut values: Vec<f64>) -> Vec<(f64, f64)> {
    if values.is_empty() {
        return Vec::new();
    }
    values.sort_by(f64::total_cmp);
    let shares = (0..=QUANTILES).map(|i| i as f64 / QUANTILES as f64);
    shares.map(|share| (percentile(&values, share), share)).collect()
}

/// Median and 99th percentile of each slice of the run in which there are values.
fn over_time(pairs: &[(Duration, f64)], elapsed: Duration) -> [Curve; 2] {
    let width = elapsed.as_secs_f64().max(1e-9) / SLICES as f64;
    let mut slices = vec![Vec::new(); SLICES];
    for (at, value) in pairs {
        slices[((at.as_secs_f64() / width) as usize).min(SLICES - 1)].push(*value);
    }
    for slice in &mut slices {
        slice.sort_by(f64::total_cmp);
    }
    let curve = |share: f64| {
        let filled = slices.iter().enumerate().filter(|(_, slice)| !slice.is_empty());
        filled.map(|(i, slice)| ((i as f64 + 0.5) * width, percentile(slice, share))).collect()
    };
    [
        Curve { name: "p50", points: curve(0.5), color: FIRST },
        Curve { name: "p99", points: curve(0.99), color: SECOND },
    ]
}

type Failed = DrawingAreaErrorKind<std::io::Error>;

fn draw(out: &mut String, title: &str, panels: &[Panel<'_>; 4]) -> Result<(), Failed> {
    let root = SVGBackend::with_string(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let below = root.titled(title, ("sans-serif", 26))?;
    for (area, panel) in below.split_evenly((2, 2)).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    root.present()
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel<'_>,
) -> Result<(), Failed> {
    let all = || panel.curves.iter().flat_map(|curve| curve.points.iter());
    // Axes from 0, so that no difference looks larger than it is.
    let limit = |of: fn(&(f64, f64)) -> f64| match all().map(of).fold(0.0, f64::max) {
        0.0 => 1.0,
        max => max * 1.03,
    };
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..limit(|point| point.0), 0.0..limit(|point| point.1))?;
    let number = |value: &f64| if *value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    chart
        .configure_mesh()
        .x_desc(panel.x)
        .y_desc(panel.y)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .label_style(("sans-serif", 17))
        .axis_desc_style(("sans-serif", 18))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for curve in panel.curves.iter().filter(|curve| !curve.points.is_empty()) {
        draw_curve(&mut chart, curve)?;
    }
    if all().next().is_some() {
        chart
            .configure_series_labels()
            .label_font(("sans-serif", 17))
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    Ok(())
}

fn draw_curve<'a>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    curve: &Curve,
) -> Result<(), Failed> {
    let color = curve.color;
    chart
        .draw_series(LineSeries::new(curve.points.iter().copied(), color.stroke_width(2)))?
        .label(curve.name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    // A curve of few points would be invisible, or suggest more than there is.
    if curve.points.len() <= SLICES {
        chart.draw_series(curve.points.iter().map(|point| Circle::new(*point, 2, color.filled())))?;
    }
    Ok(())
}
