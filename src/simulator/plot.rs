//! Runs as pictures: what the server did over time, and how long clients waited.

use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor,
    SVGBackend, WHITE,
};

use super::journey::{Journey, Sample};

/// One run, and what it is called.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// What became of its requests.
    pub journeys: &'a [&'a Journey],
    /// The server after each step.
    pub samples: &'a [Sample],
}

/// A line: (x, y) in order.
type Line = Vec<(f64, f64)>;

/// Points of a line, at most: more would not be seen.
const POINTS: usize = 1500;
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 90, 181), RGBColor(220, 50, 32), RGBColor(0, 140, 90), RGBColor(130, 90, 160)];

/// Draws runs over each other as SVG: sequences and KV blocks over time, and the distributions of the time to the first
/// token and from token to token.
///
/// # Errors
/// The drawing library's.
pub fn svg(runs: &[Run<'_>]) -> Result<String, String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (1200, 800)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| e.to_string())?;
        let parts = root.split_evenly((2, 2));
        let over_time = |value: fn(&Sample) -> f64| -> Vec<(String, Line)> {
            runs.iter()
                .map(|run| {
                    (run.name.to_owned(), thin(run.samples.iter().map(|s| (s.at, value(s))).collect()))
                })
                .collect()
        };
        let mut sequences = Vec::new();
        for (what, value) in [
            ("running", (|s: &Sample| s.running as f64) as fn(&Sample) -> f64),
            ("waiting", |s| s.waiting as f64),
        ] {
            sequences
                .extend(over_time(value).into_iter().map(|(name, line)| (format!("{what}, {name}"), line)));
        }
        let share = |values: fn(&Journey) -> Vec<f64>| -> Vec<(String, Line)> {
            runs.iter()
                .map(|run| {
                    (run.name.to_owned(), distribution(run.journeys.iter().flat_map(|j| values(j)).collect()))
                })
                .collect()
        };
        panel(&parts[0], "sequences", "seconds", &sequences)?;
        panel(&parts[1], "KV blocks in use, %", "seconds", &over_time(|s| 100.0 * s.kv))?;
        panel(
            &parts[2],
            "requests with a first token, %",
            "seconds",
            &share(|j| j.first_token().into_iter().collect()),
        )?;
        panel(
            &parts[3],
            "tokens that followed the one before, %",
            "seconds",
            &share(|j| j.gaps().collect()),
        )?;
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}

/// Draws the time to the first token against what was predicted of it, both in seconds, a point for each request.
///
/// # Errors
/// The drawing library's.
pub fn foresight(pairs: &[(f64, f64)]) -> Result<String, String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (700, 700)).into_drawing_area();
        root.fill(&WHITE).map_err(|e| e.to_string())?;
        let most = pairs.iter().map(|(x, y)| x.max(*y)).fold(1e-9, f64::max) * 1.03;
        let mut chart = ChartBuilder::on(&root)
            .caption("time to first token, s", ("sans-serif", 18).into_font())
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..most, 0.0..most)
            .map_err(|e| e.to_string())?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("predicted when it came").y_desc("as it was").draw().map_err(|e| e.to_string())?;
        let equal = LineSeries::new([(0.0, 0.0), (most, most)], COLOURS[1].stroke_width(1));
        chart.draw_series(equal).map_err(|e| e.to_string())?;
        let points = thin(pairs.to_vec()).into_iter().map(|at| Circle::new(at, 2, COLOURS[0].filled()));
        chart.draw_series(points).map_err(|e| e.to_string())?;
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}

/// Every so many points, and the last.
fn thin(line: Line) -> Line {
    let every = line.len().div_ceil(POINTS).max(1);
    let last = line.last().copied();
    let mut thinned: Line = line.into_iter().step_by(every).collect();
    thinned.extend(last);
    thinned
}

/// What share of the values, in percent, is at most as large.
fn distribution(mut values: Vec<f64>) -> Line {
    values.sort_unstable_by(f64::total_cmp);
    let count = values.len() as f64;
    let points = values.into_iter().enumerate().map(|(i, value)| (value, 100.0 * (i + 1) as f64 / count));
    thin(points.collect())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    unit: &str,
    lines: &[(String, Line)],
) -> Result<(), String> {
    let points = || lines.iter().flat_map(|(_, line)| line);
    let most = |value: fn(&(f64, f64)) -> f64| points().map(value).fold(0.0, f64::max).max(1e-9);
    let (right, top) = (most(|point| point.0), most(|point| point.1) * 1.05);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18).into_font())
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..right, 0.0..top)
        .map_err(|e| e.to_string())?;
    chart.configure_mesh().x_desc(unit).x_labels(6).y_labels(6).draw().map_err(|e| e.to_string())?;
    for (i, (name, line)) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let series = LineSeries::new(line.iter().copied(), colour.stroke_width(2));
        let drawn = chart.draw_series(series).map_err(|e| e.to_string())?;
        drawn
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    labels.background_style(WHITE.mix(0.8)).border_style(RGBColor(160, 160, 160));
    labels.draw().map_err(|e| e.to_string())
}
