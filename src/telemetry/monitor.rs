//! The log as a stream, for those who watch a running process from elsewhere.
//!
//! Nobody watches as a rule, and then it costs nothing: what is logged is not even formatted. Who
//! watches chooses a level for himself, also one that the process's own log leaves out.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use tokio::sync::broadcast;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

use super::Format;

/// How many lines a reader may fall behind before it loses some.
const LINES_MAX: usize = 1_024;
/// All levels, the gravest first.
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
/// Only what this crate logs is streamed.
const OWN: &str = env!("CARGO_PKG_NAME");

/// A line and its level.
#[derive(Clone)]
struct Line {
    level: Level,
    text: Arc<str>,
}

/// The lines of one format, and who watches them.
struct Stream {
    lines: broadcast::Sender<Line>,
    /// How many watch from each of [`LEVELS`] on.
    watchers: [AtomicUsize; 5],
}

static PLAIN: LazyLock<Stream> = LazyLock::new(Stream::new);
static JSON: LazyLock<Stream> = LazyLock::new(Stream::new);

fn stream(format: Format) -> &'static Stream {
    match format {
        Format::Plain => &PLAIN,
        Format::Json => &JSON,
    }
}

impl Stream {
    fn new() -> Self {
        Self { lines: broadcast::Sender::new(LINES_MAX), watchers: Default::default() }
    }

    /// Returns the finest level that anybody watches.
    fn level(&self) -> LevelFilter {
        let watched = LEVELS.iter().zip(&self.watchers).rev();
        let mut watched = watched.filter(|(_, count)| count.load(Ordering::Relaxed) > 0);
        watched.next().map_or(LevelFilter::OFF, |(level, _)| LevelFilter::from_level(*level))
    }
}

/// What is logged from now on, a line each.
pub struct Lines {
    format: Format,
    level: Level,
    lines: broadcast::Receiver<Line>,
}

/// Watches the log from a level on.
pub fn watch(level: Level, format: Format) -> Lines {
    let lines = stream(format).lines.subscribe();
    count(format, level).fetch_add(1, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
    Lines { format, level, lines }
}

fn count(format: Format, level: Level) -> &'static AtomicUsize {
    let at = LEVELS.iter().position(|one| *one == level);
    &stream(format).watchers[at.expect("all levels are in the list")]
}

impl Lines {
    /// Waits for the next line, with its end. A reader that was too slow is told how many it lost.
    pub async fn next(&mut self) -> String {
        loop {
            match self.lines.recv().await {
                Ok(line) if line.level <= self.level => return line.text.to_string(),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    return format!("[this reader was too slow: {lost} lines are lost]\n");
                }
                // The sender is never dropped.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        count(self.format, self.level).fetch_sub(1, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Returns the layer that feeds the streams of a format.
pub(super) fn layer<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Sink(format));
    match format {
        Format::Plain => layer.with_filter(Watched(format)).boxed(),
        Format::Json => layer.json().flatten_event(true).with_filter(Watched(format)).boxed(),
    }
}

/// Lets through what anybody watches.
struct Watched(Format);

impl Watched {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let is_own = metadata.target().split("::").next() == Some(OWN);
        is_own && *metadata.level() <= stream(self.0).level()
    }
}

impl<S> Filter<S> for Watched {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Asked again whenever somebody comes or goes.
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(stream(self.0).level())
    }
}

/// Writes into the stream of a format.
struct Sink(Format);

struct Entry {
    format: Format,
    level: Level,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Entry;

    fn make_writer(&'a self) -> Entry {
        Entry { format: self.0, level: Level::ERROR }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Entry {
        Entry { format: self.0, level: *metadata.level() }
    }
}

impl io::Write for Entry {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An event is written as a whole, in one piece.
        let text = String::from_utf8_lossy(bytes).into();
        // An error says that nobody watches any more.
        let _ = stream(self.format).lines.send(Line { level: self.level, text });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::{debug, info};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Both formats and several readers in one test, since the streams are the process's.
    #[tokio::test]
    async fn readers_get_what_they_watch_and_nobody_pays_for_what_nobody_watches() {
        let registry = tracing_subscriber::registry();
        let subscriber = registry.with(layer(Format::Plain)).with(layer(Format::Json));
        let _guard = tracing::subscriber::set_default(subscriber);
        assert_eq!(stream(Format::Plain).level(), LevelFilter::OFF);
        info!("before anybody watches");
        let mut coarse = watch(Level::INFO, Format::Plain);
        let mut fine = watch(Level::DEBUG, Format::Plain);
        let mut json = watch(Level::INFO, Format::Json);
        debug!("a detail");
        info!(number = 7, "news");
        tracing::info!(target: "quinn", "of others");
        assert!(fine.next().await.contains("a detail"));
        let line = coarse.next().await;
        assert!(line.contains("news number=7") && line.ends_with('\n'), "{line}");
        assert!(json.next().await.contains(r#""number":7"#));
        drop(fine);
        assert_eq!(stream(Format::Plain).level(), LevelFilter::INFO);
        for count in 0..LINES_MAX + 10 {
            info!(count, "flood");
        }
        assert!(coarse.next().await.contains("too slow: 10 lines are lost"));
        drop((coarse, json));
        assert_eq!(stream(Format::Plain).level(), LevelFilter::OFF);
    }
}
