//! What the process says about itself: log lines on standard error, numbers for whoever scrapes,
//! and heartbeats for who watches. It knows no room: each room counts in a struct of its own, and
//! `app` hands that in as a source.

pub mod metrics;
pub mod monitor;
pub mod pulse;

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use metrics::{Family, Histogram, Metrics, Points};
pub use pulse::{Echo, Pulse, Pulses};

/// How the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// A line for people.
    #[default]
    Plain,
    /// A JSON object a line, for collectors.
    Json,
}

/// What is logged, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Directives in the form `info` or `info,tribune::dns=debug`: a level for all, then levels
    /// for single rooms. Default: `info`. (`--log`, `TRIBUNE_LOG`.)
    pub filter: String,
    /// Default: plain. (`--log-format`, `TRIBUNE_LOG_FORMAT`.)
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: Format::Plain }
    }
}

/// Why there is no log. Nothing was installed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The user's directives are at fault.
    #[error("'{filter}' is not a log filter (like info or info,tribune::dns=debug): {reason}")]
    Filter { filter: String, reason: String },
    /// The process has a log already.
    #[error("a log is installed already: {0}")]
    Installed(String),
}

/// Sends the process's log to standard error. Once a process.
///
/// The subscriber escapes control characters in fields, so nothing a peer sends can colour a
/// terminal or forge a line.
pub fn start(config: &Config) -> Result<(), StartError> {
    let filter = filter(&config.filter)?;
    let own = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let own = match config.format {
        Format::Plain => own.with_filter(filter).boxed(),
        Format::Json => own.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let streams = [Format::Plain, Format::Json].map(monitor::layer);
    let subscriber = tracing_subscriber::registry().with(own).with(Vec::from(streams));
    subscriber.try_init().map_err(|error| StartError::Installed(error.to_string()))
}

fn filter(directives: &str) -> Result<EnvFilter, StartError> {
    EnvFilter::try_new(directives).map_err(|error| StartError::Filter {
        filter: directives.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_refused_with_an_example() {
        assert!(filter("info,tribune::dns=debug").is_ok());
        let error = filter("tribune=loud").unwrap_err().to_string();
        assert!(error.contains("'tribune=loud' is not a log filter (like info"), "{error}");
    }
}
