//! Numbers: what a room hands in at each scrape, and the OpenMetrics text made of it.
//!
//! A room counts in one documented struct of plain atomics. `app` registers a closure that reads
//! the struct; nothing here is called on a hot path. Names are `tribune_<room>_<what>_<unit>`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Label names and values of one point.
pub type Labels = Vec<(&'static str, String)>;

/// One metric with all its points, as it stands at a scrape.
#[derive(Clone, PartialEq, Debug)]
pub struct Family {
    /// What is measured: `commits`, `connections`. The room goes before it, the unit behind it.
    pub what: &'static str,
    /// `bytes`, `seconds`; `None` for plain counts.
    pub unit: Option<&'static str>,
    /// One sentence for people.
    pub help: &'static str,
    pub points: Points,
}

/// The points of a metric, by its kind.
#[derive(Clone, PartialEq, Debug)]
pub enum Points {
    /// Only rises while the process lives. Its name ends in `_total`.
    Counter(Vec<(Labels, u64)>),
    /// Goes up and down.
    Gauge(Vec<(Labels, f64)>),
    /// How often which size was seen.
    Histogram(Vec<(Labels, Distribution)>),
}

/// What a [`Histogram`] held at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Distribution {
    pub sum: f64,
    pub count: u64,
    /// Upper bounds and how many fell between each and the one before.
    pub buckets: Vec<(f64, u64)>,
}

impl Family {
    /// A counter without labels.
    pub fn counter(what: &'static str, help: &'static str, value: u64) -> Self {
        Self { what, unit: None, help, points: Points::Counter(vec![(Labels::new(), value)]) }
    }

    /// A gauge without labels.
    pub fn gauge(what: &'static str, help: &'static str, value: f64) -> Self {
        Self { what, unit: None, help, points: Points::Gauge(vec![(Labels::new(), value)]) }
    }

    /// A counter with a point for each combination of labels.
    pub fn counters(
        what: &'static str,
        help: &'static str,
        points: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Self {
        Self { what, unit: None, help, points: Points::Counter(points.into_iter().collect()) }
    }

    /// A gauge with a point for each combination of labels.
    pub fn gauges(
        what: &'static str,
        help: &'static str,
        points: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        Self { what, unit: None, help, points: Points::Gauge(points.into_iter().collect()) }
    }

    /// A histogram without labels.
    pub fn histogram(what: &'static str, help: &'static str, held: Distribution) -> Self {
        Self { what, unit: None, help, points: Points::Histogram(vec![(Labels::new(), held)]) }
    }

    /// Says in which unit the values are.
    #[must_use]
    pub fn unit(mut self, unit: &'static str) -> Self {
        self.unit = Some(unit);
        self
    }
}

/// A room's numbers: its name, and what reads them.
struct Source {
    room: &'static str,
    read: Box<dyn Fn() -> Vec<Family> + Send + Sync>,
}

/// All sources of the process.
#[derive(Default)]
pub struct Metrics {
    sources: RwLock<Vec<Source>>,
}

impl Metrics {
    /// Adds a room's numbers. `read` is called at each scrape and must not block.
    pub fn add(&self, room: &'static str, read: impl Fn() -> Vec<Family> + Send + Sync + 'static) {
        let source = Source { room, read: Box::new(read) };
        self.sources.write().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// Reads all sources now: (room, metric) pairs in the order of registration.
    pub fn gather(&self) -> Vec<(&'static str, Family)> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        sources
            .iter()
            .flat_map(|source| (source.read)().into_iter().map(|family| (source.room, family)))
            .collect()
    }

    /// Reads all sources and writes them as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Gathered(self.gather())));
        let mut page = String::new();
        text::encode(&mut page, &registry).expect("writing to a String does not fail");
        page
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Counts sizes, mostly durations, into fixed buckets. Lock-free.
#[derive(Debug)]
pub struct Histogram {
    /// Rising upper bounds; what is above the last falls into one more bucket.
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    /// In millionths, so that an atomic integer can hold it.
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Bounds for what should take from a tenth of a millisecond to ten seconds.
    pub const SECONDS: &'static [f64] =
        &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0];

    /// Makes an empty histogram with these rising upper bounds.
    pub fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "bounds rise");
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_micros: AtomicU64::new(0) }
    }

    /// Counts one duration, in seconds.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns what was counted so far.
    pub fn distribution(&self) -> Distribution {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        Distribution {
            sum: Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)).as_secs_f64(),
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

/// One scrape, in the shape that the encoder asks for.
#[derive(Debug)]
struct Gathered(Vec<(&'static str, Family)>);

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|(room, family)| encode(&mut encoder, room, family))
    }
}

fn encode(encoder: &mut DescriptorEncoder, room: &str, family: &Family) -> fmt::Result {
    let name = format!("tribune_{room}_{}", family.what);
    let unit = family.unit.map(|unit| Unit::Other(unit.to_owned()));
    let kind = match family.points {
        Points::Counter(_) => MetricType::Counter,
        Points::Gauge(_) => MetricType::Gauge,
        Points::Histogram(_) => MetricType::Histogram,
    };
    let mut metric = encoder.encode_descriptor(&name, family.help, unit.as_ref(), kind)?;
    match &family.points {
        Points::Counter(points) => points.iter().try_for_each(|(labels, value)| {
            let exemplar: Option<&Exemplar<Labels, u64>> = None;
            at(&mut metric, labels, |point| point.encode_counter(value, exemplar))
        }),
        Points::Gauge(points) => points.iter().try_for_each(|(labels, value)| {
            at(&mut metric, labels, |point| point.encode_gauge(value))
        }),
        Points::Histogram(points) => points.iter().try_for_each(|(labels, held)| {
            at(&mut metric, labels, |point| {
                point.encode_histogram::<Labels>(held.sum, held.count, &held.buckets, None)
            })
        }),
    }
}

/// Writes a point with its labels; where it has none, without empty braces.
fn at(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { write(metric) } else { write(&mut metric.encode_family(labels)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_every_kind_of_metric_under_its_room() {
        let metrics = Metrics::default();
        metrics.add("store", || {
            vec![
                Family::counter("commits", "Transactions that became true.", 7),
                Family::gauge("wal", "The size of the write-ahead log.", 4096.0).unit("bytes"),
            ]
        });
        metrics.add("dns", || {
            let label = |code: &str| vec![("code", code.to_owned())];
            vec![Family::counters(
                "answers",
                "Answers by code.",
                [(label("NOERROR"), 3), (label("NX\"DOMAIN"), 1)],
            )]
        });
        let page = metrics.render();
        for line in [
            "# HELP tribune_store_commits Transactions that became true.",
            "# TYPE tribune_store_commits counter",
            "tribune_store_commits_total 7",
            "# UNIT tribune_store_wal_bytes bytes",
            "tribune_store_wal_bytes 4096.0",
            "tribune_dns_answers_total{code=\"NOERROR\"} 3",
            "tribune_dns_answers_total{code=\"NX\\\"DOMAIN\"} 1",
            "# EOF",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\nis not in\n{page}");
        }
    }

    #[test]
    fn a_histogram_counts_each_duration_once() {
        let histogram = Histogram::new(&[0.001, 0.01]);
        histogram.observe(Duration::from_micros(1_000));
        histogram.observe(Duration::from_micros(1_001));
        histogram.observe(Duration::from_secs(3));
        let held = histogram.distribution();
        assert_eq!(held.buckets, [(0.001, 1), (0.01, 1), (f64::INFINITY, 1)]);
        assert_eq!((held.count, held.sum), (3, 3.002_001));

        let metrics = Metrics::default();
        metrics.add("http", move || {
            vec![Family::histogram("request", "x", histogram.distribution()).unit("seconds")]
        });
        let page = metrics.render();
        assert!(page.contains("tribune_http_request_seconds_bucket{le=\"0.01\"} 2"), "{page}");
        assert!(page.contains("tribune_http_request_seconds_bucket{le=\"+Inf\"} 3"), "{page}");
    }
}
