//! What this face counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::{Family, Histogram};

/// The numbers of the `http` room.
#[derive(Debug)]
pub struct Stats {
    /// Answers by the first digit of their status, 1 to 5.
    answers: [AtomicU64; 5],
    /// Time to the head of each answer that did not wait for a change.
    pub latency: Histogram,
    /// Connections that are open now.
    pub connections: AtomicU64,
    /// Connections that were closed at once: all seats were taken.
    pub turned_away: AtomicU64,
    /// Connections that were closed because no request came in time.
    pub silent: AtomicU64,
    /// Blocking queries that wait now.
    pub waiting: AtomicU64,
    /// Handlers that panicked.
    pub panics: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            answers: Default::default(),
            latency: Histogram::new(Histogram::SECONDS),
            connections: AtomicU64::default(),
            turned_away: AtomicU64::default(),
            silent: AtomicU64::default(),
            waiting: AtomicU64::default(),
            panics: AtomicU64::default(),
        }
    }
}

impl Stats {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5);
        self.answers[class - 1].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the numbers for a scrape.
    pub fn families(&self) -> Vec<Family> {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let answers = self
            .answers
            .iter()
            .enumerate()
            .map(|(place, count)| (vec![("class", format!("{}xx", place + 1))], load(count)));
        vec![
            Family::counters("answers", "Answers by class of status.", answers),
            Family::histogram(
                "latency",
                "Time to the head of answers that did not wait for a change.",
                self.latency.distribution(),
            )
            .unit("seconds"),
            Family::gauge("connections", "Open connections.", load(&self.connections) as f64),
            Family::counter(
                "connections_turned_away",
                "Connections closed at once, all seats being taken.",
                load(&self.turned_away),
            ),
            Family::counter(
                "connections_silent",
                "Connections closed because no request came in time.",
                load(&self.silent),
            ),
            Family::gauge("waiting", "Blocking queries that wait.", load(&self.waiting) as f64),
            Family::counter("panics", "Handlers that panicked.", load(&self.panics)),
        ]
    }
}

/// Counts one up for as long as it lives.
pub struct Gauged<'a>(&'a AtomicU64);

impl<'a> Gauged<'a> {
    pub fn new(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Gauged<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
