//! Writer of metrics in Prometheus' text format, or in OpenMetrics if the scraper asks for it. The two differ
//! in the family names of counters, in the spelling of bucket bounds, and in the end marker. A parser of one
//! cannot read the other, so OpenMetrics is sent only on request.

use std::borrow::Cow;
use std::fmt::Write;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::names::{ALIASES, find};

/// Text format of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, version 0.0.4.
    Text,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header prefers: OpenMetrics if it is listed by its full name with a
    /// quality above 0 and at least that of plain text. The quality of plain text comes from the most
    /// specific range that matches it: `text/plain`, then `text/*`, then `*/*`. If a range occurs several
    /// times, its highest quality counts.
    pub fn from_accept(accept: &str) -> Self {
        let ranges: Vec<(&str, f64)> = accept.split(',').map(range).collect();
        let quality = |kinds: &[&str]| {
            let of = |kind: &&str| {
                let named = ranges.iter().filter(|(name, _)| name.eq_ignore_ascii_case(kind));
                named.map(|(_, quality)| *quality).reduce(f64::max)
            };
            kinds.iter().find_map(of).unwrap_or(0.0)
        };
        // `*/*` alone gets the text format, which every scraper can read.
        let open = quality(&["application/openmetrics-text"]);
        let text = quality(&["text/plain", "text/*", "*/*"]);
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type` of the response.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A media range of the `Accept` header and its quality, which is 1 if absent.
fn range(text: &str) -> (&str, f64) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim_end().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f64>().unwrap_or(0.0))
    });
    (name, quality.unwrap_or(1.0))
}

/// Writes all families. A family that has an old name in [`ALIASES`] is written under both names.
pub(super) fn write(families: &[MetricFamily], format: Format, out: &mut String) {
    for family in families {
        write_family(family, family.name(), format, out);
        for (old, _) in ALIASES.iter().filter(|(_, new)| *new == family.name()) {
            write_family(family, old, format, out);
        }
    }
}

/// Writes the end marker, which only OpenMetrics has.
pub(super) fn write_end(format: Format, out: &mut String) {
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
}

/// Writes the `# HELP` and `# TYPE` lines of a family.
pub(super) fn write_title(name: &str, kind: &str, help: &str, format: Format, out: &mut String) {
    // In OpenMetrics, `_total` is part of the sample's name and not of the family's.
    let title = match (format, kind) {
        (Format::OpenMetrics, "counter") => name.strip_suffix("_total").unwrap_or(name),
        _ => name,
    };
    put(out, format_args!("# HELP {title} {}\n# TYPE {title} {kind}\n", escaped(help)));
}

fn write_family(family: &MetricFamily, name: &str, format: Format, out: &mut String) {
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::HISTOGRAM => "histogram",
        _ => "gauge",
    };
    write_title(name, kind, find(family.name()).map_or(family.help(), |known| known.help), format, out);
    for metric in family.get_metric() {
        let labels = metric.get_label();
        let value = match family.get_field_type() {
            MetricType::COUNTER => metric.get_counter().get_value(),
            MetricType::HISTOGRAM => {
                write_histogram(metric, name, format, out);
                continue;
            }
            _ => metric.get_gauge().get_value(),
        };
        sample(out, &name_and_labels(name, labels), value);
    }
}

fn write_histogram(metric: &Metric, name: &str, format: Format, out: &mut String) {
    let histogram = metric.get_histogram();
    let labels = name_and_labels("", metric.get_label());
    let open = labels.strip_suffix("} ").unwrap_or(&labels);
    let comma = if metric.get_label().is_empty() { "" } else { "," };
    let mut bucket = |bound: f64, count: u64| {
        [name, "_bucket", open, comma, "le=\""].iter().for_each(|part| out.push_str(part));
        push_number(out, bound);
        let fraction = format == Format::OpenMetrics && bound.fract() == 0.0;
        out.push_str(if fraction { ".0\"} " } else { "\"} " });
        put(out, format_args!("{count}\n"));
    };
    for each in histogram.get_bucket() {
        bucket(each.upper_bound(), each.cumulative_count());
    }
    let count = histogram.get_sample_count();
    bucket(f64::INFINITY, count);
    sample(out, &format!("{name}_sum{labels}"), histogram.get_sample_sum());
    put(out, format_args!("{name}_count{labels}{count}\n"));
}

/// Writes one sample. `begin` is its name and labels, from [`labelled`].
pub(super) fn sample(out: &mut String, begin: &str, value: f64) {
    out.push_str(begin);
    push_number(out, value);
    out.push('\n');
}

fn push_number(out: &mut String, value: f64) {
    match value {
        f64::INFINITY => out.push_str("+Inf"),
        f64::NEG_INFINITY => out.push_str("-Inf"),
        // Most values are whole numbers, which are faster to write as integers.
        value if value.fract() == 0.0 && value.abs() < 1e15 => put(out, format_args!("{}", value as i64)),
        value => put(out, format_args!("{value}")),
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes what it is given");
}

fn name_and_labels(name: &str, pairs: &[LabelPair]) -> String {
    labelled(name, pairs.iter().map(|pair| (pair.name(), pair.value())))
}

/// Name and labels of a sample, with the space before its value.
pub(super) fn labelled<'a>(name: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::with_capacity(128);
    out.push_str(name);
    out.push('{');
    for (index, (name, value)) in labels.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        [comma, name, "=\"", &escaped(value), "\""].iter().for_each(|part| out.push_str(part));
    }
    out.push_str("} ");
    out
}

/// Escapes a label value or a help text. Both formats escape backslashes and line feeds in both. They escape
/// quotes in label values alone; no help text contains a quote.
fn escaped(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        Cow::Owned(text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    } else {
        Cow::Borrowed(text)
    }
}
