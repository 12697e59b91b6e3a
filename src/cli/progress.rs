//! Long work on files: a line that tells how far it is, where a person looks on, and an end when
//! that person asks for it.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Failure;
use super::agent::Stop;
use crate::store::copy::{Doing, Progress, Watch};

/// What is done before this has passed shows nothing: the line would only flicker.
const QUIET: Duration = Duration::from_millis(500);
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// One line on the error output, drawn over and over, where that is a terminal.
pub(super) struct Line {
    begun: Instant,
    drawn: Option<Instant>,
    is_shown: bool,
}

impl Line {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), drawn: None, is_shown: std::io::stderr().is_terminal() }
    }

    pub(super) fn draw(&mut self, progress: Progress) {
        self.show(|| shown(progress));
    }

    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        let is_due = self.drawn.is_none_or(|at| at.elapsed() >= REDRAW_EVERY);
        if self.is_shown && is_due && self.begun.elapsed() >= QUIET {
            self.drawn = Some(Instant::now());
            // A line that cannot be shown is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", text());
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn shown(progress: Progress) -> String {
    let Progress { doing, done, total } = progress;
    let percent = (done.min(total) * 100).checked_div(total).unwrap_or(0);
    match doing {
        Doing::Copying => format!("copying: {percent} % of {}", bytes(total)),
        Doing::Receiving => format!("receiving: {percent} % of {}", bytes(total)),
        Doing::Checking => "checking".to_owned(),
        Doing::Comparing => format!("comparing rows: {done}"),
        Doing::Reading => format!("reading rows: {percent} % of {total}"),
    }
}

/// Runs work on a thread of its own. SIGINT and SIGTERM do not end the process but the work, which
/// then clears away what it has begun.
pub(super) fn interruptible<T: Send + 'static>(
    work: impl FnOnce(&mut Watch<'_>) -> T + Send + 'static,
) -> Result<T, Failure> {
    let is_cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_cancelled);
    super::as_client(async move {
        let mut stop = Stop::catch()?;
        let mut working = tokio::task::spawn_blocking(move || {
            let mut line = Line::new();
            let progress = &mut |progress| line.draw(progress);
            work(&mut Watch { progress, is_cancelled: flag })
        });
        let done = loop {
            tokio::select! {
                done = &mut working => break done,
                () = stop.asked() => is_cancelled.store(true, Ordering::Relaxed),
            }
        };
        done.map_err(|error| Failure::Failed(format!("it broke off: {error}")))
    })
}

/// Writes a size as people read it: `1.4 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_people() {
        let sizes = [0, 1023, 1024, 1536, 5 << 20, 3 << 30, 2 << 50].map(bytes);
        let wanted = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2048.0 TiB"];
        assert_eq!(sizes, wanted);
    }

    #[test]
    fn a_line_tells_how_far_it_is() {
        let progress = Progress { doing: Doing::Copying, done: 1 << 20, total: 4 << 20 };
        assert_eq!(shown(progress), "copying: 25 % of 4.0 MiB");
        let progress = Progress { doing: Doing::Reading, done: 0, total: 0 };
        assert_eq!(shown(progress), "reading rows: 0 % of 0");
    }
}
