//! Heartbeats: loops that must never stand still say that they do not, and what they are at.
//! Who watches them is no business of this file.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How many times as long as others a step may take that is known to be long: a disk that syncs,
/// a log that is moved, an index that is built.
pub const LONG_FACTOR: u32 = 10;

/// All loops that have a heartbeat. Cloning is cheap; all clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Pulses {
    all: Arc<Mutex<Vec<Weak<Shared>>>>,
}

/// One loop's heartbeat. While it lives, somebody may be watching; a loop that ends drops it.
#[derive(Debug)]
pub struct Pulse {
    shared: Arc<Shared>,
}

/// What a loop last said, shared with who watches.
#[derive(Debug)]
struct Shared(Mutex<Beat>);

/// Lets what a loop calls say that the loop goes on with what it last said. It keeps no loop
/// listed.
#[derive(Clone, Debug)]
pub struct Echo {
    shared: Weak<Shared>,
}

/// What a loop last said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    /// Which loop.
    pub name: &'static str,
    pub at: Instant,
    /// What it began to do then.
    pub doing: &'static str,
    /// Whether that may take [`LONG_FACTOR`] times as long as other things.
    pub is_long: bool,
}

impl Pulses {
    /// Adds a loop, which beats from now on.
    pub fn add(&self, name: &'static str) -> Pulse {
        let beat = Beat { name, at: Instant::now(), doing: "starting", is_long: false };
        let shared = Arc::new(Shared(Mutex::new(beat)));
        let mut all = self.lock();
        all.retain(|pulse| pulse.strong_count() > 0);
        all.push(Arc::downgrade(&shared));
        drop(all);
        Pulse { shared }
    }

    /// Lists the last beat of every loop that has not ended.
    pub fn beats(&self) -> Vec<Beat> {
        let all = self.lock();
        let living = all.iter().filter_map(Weak::upgrade);
        living.map(|pulse| *pulse.lock()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Says that the loop lives, and what it does from now on.
    pub fn beat(&self, doing: &'static str) {
        self.set(doing, false);
    }

    /// Says that the loop begins something that may take long.
    pub fn beat_long(&self, doing: &'static str) {
        self.set(doing, true);
    }

    /// Returns what beats for this loop from within a long step.
    pub fn echo(&self) -> Echo {
        Echo { shared: Arc::downgrade(&self.shared) }
    }

    fn set(&self, doing: &'static str, is_long: bool) {
        let at = Instant::now();
        let mut last = self.shared.lock();
        *last = Beat { at, doing, is_long, ..*last };
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Echo {
    /// Says that the loop gets on with what it does.
    pub fn beat(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.lock().at = Instant::now();
        }
    }
}

impl Beat {
    /// Returns for how long the loop has not said anything.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_listed_with_what_it_does_until_it_ends() {
        let pulses = Pulses::default();
        let (writer, engine) = (pulses.add("writer"), pulses.add("engine"));
        writer.beat_long("syncing");
        engine.beat("waiting");
        let said = |beat: &Beat| (beat.name, beat.doing, beat.is_long);
        let all: Vec<_> = pulses.beats().iter().map(said).collect();
        assert_eq!(all, [("writer", "syncing", true), ("engine", "waiting", false)]);
        let (before, echo) = (pulses.beats()[0].at, writer.echo());
        echo.beat();
        let beat = pulses.beats()[0];
        assert!(beat.at > before && beat.doing == "syncing" && beat.is_long);
        drop(writer);
        echo.beat();
        let all: Vec<_> = pulses.beats().iter().map(said).collect();
        assert_eq!(all, [("engine", "waiting", false)]);
    }
}
