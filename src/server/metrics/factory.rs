//! Creation and registration of metrics from the table in [`names`].

use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::names;

/// Creates metrics that the table lists, and registers them.
pub(super) struct MetricFactory<'a>(pub(super) &'a Registry);

impl MetricFactory<'_> {
    /// Registers a metric.
    pub(super) fn register<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<M>,
    ) -> M {
        let metric = metric.expect("the name is valid");
        self.0.register(Box::new(metric.clone())).expect("each name is registered once");
        metric
    }

    /// Name, help and labels of a metric, from the table.
    pub(super) fn options(name: &str) -> (Opts, &'static [&'static str]) {
        let known = names::find(name).expect("the table has every name");
        (Opts::new(known.name, known.help), known.labels)
    }

    pub(super) fn gauge(&self, name: &str) -> Gauge {
        self.register(Gauge::with_opts(Self::options(name).0))
    }

    pub(super) fn gauges(&self, name: &str) -> GaugeVec {
        let (options, labels) = Self::options(name);
        self.register(GaugeVec::new(options, labels))
    }

    pub(super) fn counter(&self, name: &str) -> IntCounter {
        self.register(IntCounter::with_opts(Self::options(name).0))
    }

    pub(super) fn counters(&self, name: &str) -> IntCounterVec {
        let (options, labels) = Self::options(name);
        self.register(IntCounterVec::new(options, labels))
    }

    pub(super) fn histogram(&self, name: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::from(Self::options(name).0).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(options))
    }
}
