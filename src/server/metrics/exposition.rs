//! What a scrape reads: Prometheus' text format, or OpenMetrics where a scraper asks for it. They differ in the names of
//! counters' families, in how bounds of buckets are spelled, and in the end mark; a parser of one does not read the
//! other, so that nobody gets OpenMetrics unasked.

use std::borrow::Cow;
use std::fmt::Write;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::names::{ALIASES, find};

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Version 0.0.4.
    Text,
    /// Version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the `Accept` header asks for: OpenMetrics if it is named, and preferred to plain text.
    pub fn asked(accept: &str) -> Self {
        let quality = |kind: &str| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(kind));
                let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f64>().ok());
                named.then_some(quality.unwrap_or(1.0))
            });
            ranges.fold(0.0, f64::max)
        };
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") { Self::OpenMetrics } else { Self::Text }
    }

    /// The header of the response.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes all families, each also under the name that it had of old.
pub fn write(families: &[MetricFamily], format: Format) -> String {
    let mut out = String::with_capacity(64 << 10);
    for family in families {
        write_family(family, family.name(), format, &mut out);
        for (old, _) in ALIASES.iter().filter(|(_, new)| *new == family.name()) {
            write_family(family, old, format, &mut out);
        }
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn write_family(family: &MetricFamily, name: &str, format: Format, out: &mut String) {
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::HISTOGRAM => "histogram",
        _ => "gauge",
    };
    // In OpenMetrics the suffix is the sample's and not the family's.
    let title = match (format, kind) {
        (Format::OpenMetrics, "counter") => name.strip_suffix("_total").unwrap_or(name),
        _ => name,
    };
    let help = find(family.name()).map_or(family.help(), |known| known.help);
    put(out, format_args!("# HELP {title} {}\n# TYPE {title} {kind}\n", escaped(help)));
    for metric in family.get_metric() {
        let labels = labels(metric.get_label());
        match family.get_field_type() {
            MetricType::COUNTER => {
                sample(out, name, "", &labels, metric.get_counter().get_value());
            }
            MetricType::HISTOGRAM => write_histogram(metric, name, &labels, format, out),
            _ => sample(out, name, "", &labels, metric.get_gauge().get_value()),
        }
    }
}

fn write_histogram(metric: &Metric, name: &str, labels: &str, format: Format, out: &mut String) {
    let histogram = metric.get_histogram();
    let comma = if labels.is_empty() { "" } else { "," };
    for bucket in histogram.get_bucket() {
        let bound = number(bucket.upper_bound());
        let fraction = if format == Format::OpenMetrics && !bound.contains('.') { ".0" } else { "" };
        let count = bucket.cumulative_count();
        put(out, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}{fraction}\"}} {count}\n"));
    }
    let count = histogram.get_sample_count();
    put(out, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}\n"));
    sample(out, name, "_sum", labels, histogram.get_sample_sum());
    put(out, format_args!("{name}_count{{{labels}}} {count}\n"));
}

fn sample(out: &mut String, name: &str, suffix: &str, labels: &str, value: f64) {
    put(out, format_args!("{name}{suffix}{{{labels}}} {}\n", number(value)));
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes what it is given");
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

fn labels(pairs: &[LabelPair]) -> String {
    let mut out = String::new();
    for pair in pairs {
        let comma = if out.is_empty() { "" } else { "," };
        put(&mut out, format_args!("{comma}{}=\"{}\"", pair.name(), escaped(pair.value())));
    }
    out
}

/// A value of a label, or a help: what is escaped in the one may be in the other in both formats, but for quotes, which no
/// help of ours has.
fn escaped(text: &str) -> Cow<'_, str> {
    if text.contains(['\\', '"', '\n']) {
        Cow::Owned(text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    } else {
        Cow::Borrowed(text)
    }
}
