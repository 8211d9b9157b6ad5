//! Charts as SVG: values over time, cumulative distributions and scatter plots, in a grid of panels.
//!
//! Axes start at 0, so that no difference looks larger than it is. Legends stand above the plotting area,
//! never over the data. The file stays small however many values there are: a series of many points over time
//! becomes its median and a band from p10 to p90 over a moving window, and a distribution is drawn through
//! its quantiles.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    BLACK, Cartesian2d, ChartBuilder, ChartContext, Circle, Color, DrawingArea, DrawingAreaErrorKind,
    EmptyElement, IntoDrawingArea, IntoFont, IntoTextStyle, LineSeries, PathElement, Polygon, RGBColor,
    Rectangle, SVGBackend, TRANSPARENT, Text, TextStyle, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::statistics::{percentile, sorted};

/// Colours of the series of a panel; they differ in brightness too.
const COLORS: [RGBColor; 4] = [
    RGBColor(0x1f, 0x5f, 0xb4),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x1b, 0x8a, 0x5a),
    RGBColor(0x75, 0x4c, 0x9e),
];

/// Segments of a distribution's curve.
const QUANTILES: usize = 400;

/// Series over time with more points than this are drawn as median and band.
const MAX_DOTS: usize = 150;

/// Positions of the moving window, and its width as a share of the time axis.
const WINDOWS: usize = 240;
const WINDOW_SHARE: f64 = 1.0 / 40.0;

/// Points of a scatter plot; every n-th is drawn where there are more.
const MAX_SCATTER: usize = 1500;

/// Height of a panel's title and legend, in pixels.
const HEAD: u32 = 52;

type Point = (f64, f64);
type DrawError = DrawingAreaErrorKind<std::io::Error>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A grid of panels.
pub(crate) struct Figure<'a> {
    /// Text above all panels; may be empty.
    pub(crate) title: &'a str,
    /// Width and height of a panel, in pixels.
    pub(crate) panel_size: (u32, u32),
    pub(crate) columns: usize,
    /// Panels, row by row.
    pub(crate) panels: Vec<Panel<'a>>,
}

/// One plotting area.
pub(crate) struct Panel<'a> {
    pub(crate) title: &'a str,
    /// Name and unit of the x axis.
    pub(crate) x: &'a str,
    /// Name and unit of the y axis.
    pub(crate) y: &'a str,
    pub(crate) series: Vec<Series>,
}

/// Lines, points and bands of one colour.
#[derive(Debug, Default)]
pub(crate) struct Series {
    name: String,
    line: Vec<Point>,
    /// A second, thin line.
    thin: Vec<Point>,
    /// Outline of a filled area.
    band: Vec<Point>,
    dots: Vec<Point>,
    /// Vertical lines: x and label.
    marks: Vec<(f64, String)>,
}

impl Series {
    /// The cumulative distribution of values in %, with lines at p50 and p99 that are labelled in `unit`.
    pub(crate) fn cumulative(name: &str, values: Vec<f64>, unit: &str) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let values = sorted(values);
        let shares = (0..=QUANTILES).map(|i| i as f64 / QUANTILES as f64);
        let mark = |label: &str, share| {
            let value = percentile(&values, share);
            (value, format!("{label} {} {unit}", number(value)))
        };
        Self {
            name: name.to_owned(),
            line: shares.map(|share| (percentile(&values, share), 100.0 * share)).collect(),
            marks: vec![mark("p50", 0.5), mark("p99", 0.99)],
            ..Self::default()
        }
    }

    /// Values over time, in any order: dots and a line where there are few. Where there are many, the median
    /// and a band from p10 to p90 over a moving window, and with `tail` also p99 as a thin line.
    pub(crate) fn over_time(name: &str, mut points: Vec<Point>, tail: bool) -> Self {
        points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        if points.len() <= MAX_DOTS {
            return Self { name: name.to_owned(), line: points.clone(), dots: points, ..Self::default() };
        }
        let windows = moving_percentiles(&points);
        let curve = |i: usize| windows.iter().map(move |(x, percentiles)| (*x, percentiles[i]));
        let [p10, p50, p90, p99] = [0, 1, 2, 3];
        let prefix = if name.is_empty() { String::new() } else { format!("{name}: ") };
        let suffix = if tail { ", p99 thin" } else { "" };
        Self {
            name: format!("{prefix}median, band p10 to p90{suffix}"),
            line: curve(p50).collect(),
            thin: if tail { curve(p99).collect() } else { Vec::new() },
            band: curve(p10).chain(curve(p90).rev()).collect(),
            ..Self::default()
        }
    }

    /// A dot for each point; every n-th and the last where there are many.
    pub(crate) fn scatter(name: &str, points: &[Point]) -> Self {
        let every = points.len().div_ceil(MAX_SCATTER).max(1);
        let dots = points.iter().step_by(every).chain(points.last()).copied().collect();
        Self { name: name.to_owned(), dots, ..Self::default() }
    }

    /// A line through these points.
    pub(crate) fn line(name: &str, line: Vec<Point>) -> Self {
        Self { name: name.to_owned(), line, ..Self::default() }
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        [&self.line, &self.thin, &self.band, &self.dots].into_iter().flatten()
    }
}

/// Centre, p10, p50, p90 and p99 of each window; empty windows are left out. `points` ascend in x.
fn moving_percentiles(points: &[Point]) -> Vec<(f64, [f64; 4])> {
    let (Some((first, _)), Some((last, _))) = (points.first(), points.last()) else { return Vec::new() };
    let half = 0.5 * WINDOW_SHARE * (last - first);
    let centres = (0..=WINDOWS).map(|i| first + (last - first) * i as f64 / WINDOWS as f64);
    let windows = centres.filter_map(|x| {
        let from = points.partition_point(|point| point.0 < x - half);
        let to = points.partition_point(|point| point.0 <= x + half);
        let window = sorted(points[from..to].iter().map(|point| point.1).collect());
        let percentiles = [0.1, 0.5, 0.9, 0.99].map(|share| percentile(&window, share));
        (!window.is_empty()).then_some((x, percentiles))
    });
    windows.collect()
}

/// Formats a number with about three significant digits and without trailing zeros.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        x if x >= 0.1 || x == 0.0 => 3,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Draws a figure.
///
/// # Errors
/// The drawing library's error.
pub(crate) fn svg(figure: &Figure<'_>) -> anyhow::Result<String> {
    let mut out = String::new();
    draw(&mut out, figure).map_err(|error| anyhow::anyhow!("cannot draw the plot: {error}"))?;
    Ok(out)
}

fn draw(out: &mut String, figure: &Figure<'_>) -> Result<(), DrawError> {
    let rows = figure.panels.len().div_ceil(figure.columns);
    let (width, height) = figure.panel_size;
    let title_height = if figure.title.is_empty() { 0 } else { 40 };
    let size = (width * figure.columns as u32, height * rows as u32 + title_height);
    let root = SVGBackend::with_string(out, size).into_drawing_area();
    root.fill(&WHITE)?;
    let below = match figure.title {
        "" => root.clone(),
        title => root.titled(title, ("sans-serif", 22))?,
    };
    for (area, panel) in below.split_evenly((rows, figure.columns)).iter().zip(&figure.panels) {
        draw_panel(area, panel)?;
    }
    root.present()
}

fn draw_panel(area: &Area<'_>, panel: &Panel<'_>) -> Result<(), DrawError> {
    let (head, body) = area.split_vertically(HEAD);
    draw_head(&head, panel)?;
    let points = || panel.series.iter().flat_map(Series::points);
    let limit = |of: fn(&Point) -> f64| match points().map(of).fold(0.0, f64::max) {
        0.0 => 1.0,
        max => max * 1.04,
    };
    let (right, top) = (limit(|point| point.0), limit(|point| point.1));
    let mut chart = ChartBuilder::on(&body)
        .margin_left(14)
        .margin_right(18)
        .margin_bottom(6)
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    let label = |value: &f64| number(*value);
    chart
        .configure_mesh()
        .x_desc(panel.x)
        .y_desc(panel.y)
        .x_labels(7)
        .y_labels(7)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .draw()?;
    if points().next().is_none() {
        let style = text(15).pos(Pos::new(HPos::Center, VPos::Center));
        chart.draw_series([Text::new("no values", (right / 2.0, top / 2.0), style)])?;
    }
    for (i, series) in panel.series.iter().enumerate() {
        draw_series(&mut chart, series, COLORS[i % COLORS.len()])?;
    }
    for (i, series) in panel.series.iter().enumerate() {
        draw_marks(&mut chart, series, i, (right, top))?;
    }
    Ok(())
}

/// The title, and below it a line with the colour and the name of each series.
fn draw_head(area: &Area<'_>, panel: &Panel<'_>) -> Result<(), DrawError> {
    area.draw(&Text::new(panel.title, (20, 8), text(18)))?;
    let mut x = 22;
    for (i, series) in panel.series.iter().enumerate().filter(|(_, series)| !series.name.is_empty()) {
        let color = COLORS[i % COLORS.len()];
        area.draw(&Rectangle::new([(x, 36), (x + 16, 42)], color.filled()))?;
        area.draw(&Text::new(series.name.as_str(), (x + 22, 31), text(14)))?;
        // An average glyph is about half as wide as the font is high.
        x += 22 + 7 * i32::try_from(series.name.chars().count()).unwrap_or(0) + 18;
    }
    Ok(())
}

fn draw_series<'a>(chart: &mut Chart<'a>, series: &Series, color: RGBColor) -> Result<(), DrawError> {
    if !series.band.is_empty() {
        chart.draw_series([Polygon::new(series.band.clone(), color.mix(0.2).filled())])?;
    }
    for (line, width) in [(&series.thin, 1), (&series.line, 2)] {
        if !line.is_empty() {
            chart.draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(width)))?;
        }
    }
    chart.draw_series(series.dots.iter().map(|point| Circle::new(*point, 2, color.filled())))?;
    Ok(())
}

/// Draws vertical lines with their labels. The labels stand in rows above the x axis, next to their lines: a
/// cumulative curve leaves the area below it free.
fn draw_marks<'a>(
    chart: &mut Chart<'a>,
    series: &Series,
    index: usize,
    corner: Point,
) -> Result<(), DrawError> {
    let color = COLORS[index % COLORS.len()];
    for (row, (x, label)) in (2 * index..).zip(&series.marks) {
        let line = PathElement::new([(*x, 0.0), (*x, corner.1)], color.mix(0.7).stroke_width(1));
        chart.draw_series([line])?;
        let (side, offset) = if *x > 0.7 * corner.0 { (HPos::Right, -5) } else { (HPos::Left, 5) };
        let style = text(14).color(&color).pos(Pos::new(side, VPos::Center));
        let at = EmptyElement::at((*x, corner.1 * (0.05 + 0.065 * row as f64)));
        chart.draw_series([at + Text::new(label.clone(), (offset, 0), style)])?;
    }
    Ok(())
}

fn text<'a>(size: u32) -> TextStyle<'a> {
    ("sans-serif", size).into_font().into_text_style(&(0, 0))
}
