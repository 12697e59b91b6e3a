//! The watchdog: a thread that looks at the heartbeats of the loops that must never stand still,
//! and ends the process when one does, so that a supervisor starts it afresh.
//!
//! It uses neither the runtime nor a lock that a loop holds while it works. A process that was
//! itself suspended (SIGSTOP, a paused virtual machine, a machine that swaps) is told by the
//! watchdog's own lateness, and all loops are given as much more time. A thread that the kernel
//! holds in a disk's hands is not ended: what it serves from memory goes on, and a restart would
//! wait for the same disk.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::telemetry::pulse::{Beat, LONG_FACTOR, Pulses};

/// How many looks there are within the limit.
const LOOKS: u32 = 10;

/// The longest between two looks.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// How long writing the dump may take. Whoever reads the log may be what everything waits for.
const DUMP_WITHIN: Duration = Duration::from_secs(2);

/// How often it is said that a disk does not answer.
const STALLED_EVERY: Duration = Duration::from_secs(30);

/// Watches until it is dropped.
pub(super) struct Watchdog {
    // Dropped, it ends the thread.
    _stop: mpsc::Sender<()>,
}

impl Watchdog {
    /// Starts the thread; `limit` zero: nobody watches.
    pub(super) fn start(pulses: Pulses, limit: Duration) -> std::io::Result<Option<Self>> {
        if limit.is_zero() {
            return Ok(None);
        }
        Self::with(pulses, limit, end_process).map(Some)
    }

    /// Starts the thread with something else to do when a loop stands still.
    fn with(
        pulses: Pulses,
        limit: Duration,
        bite: impl FnOnce(&Beat, Vec<Beat>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let mut watch = Watch::new(limit, Instant::now());
        let run = move || {
            let mut speaker = Speaker::default();
            while stopped.recv_timeout(watch.every) == Err(RecvTimeoutError::Timeout) {
                let beats = pulses.beats();
                let looked = watch.look(Instant::now(), &beats);
                // Decided first: whoever reads the log may be what everything waits for.
                match looked.stuck {
                    Some(stuck) if waits_for_disk(&stuck, &threads()) => speaker.say_stalled(stuck),
                    Some(stuck) => return bite(&stuck, beats),
                    None => {}
                }
                if let Some(late) = looked.late {
                    speaker.say_late(late);
                }
            }
        };
        thread::Builder::new().name("watchdog".to_owned()).spawn(run)?;
        Ok(Self { _stop: stop })
    }
}

/// What the watchdog knows between two looks.
struct Watch {
    limit: Duration,
    every: Duration,
    looked: Instant,
    /// When it was itself late, and by how much: nobody could beat then.
    lost: Vec<(Instant, Duration)>,
}

/// What a look shows.
#[derive(Debug, Default)]
struct Looked {
    /// A loop that stands still.
    stuck: Option<Beat>,
    /// By how much the look itself was late, where that is much.
    late: Option<Duration>,
}

impl Watch {
    fn new(limit: Duration, now: Instant) -> Self {
        let every = (limit / LOOKS).min(LOOK_EVERY_MAX);
        Self { limit, every, looked: now, lost: Vec::new() }
    }

    fn look(&mut self, now: Instant, beats: &[Beat]) -> Looked {
        let late = now.saturating_duration_since(self.looked).saturating_sub(self.every);
        self.looked = now;
        let is_late = late >= self.every;
        if is_late {
            // Who cannot keep a second's appointment himself must not judge others by the clock:
            // but what he lost is all that they are given, or a machine that is late again and
            // again would never end what stands still.
            self.lost.push((now, late));
        }
        let oldest = beats.iter().map(|beat| beat.at).min().unwrap_or(now);
        self.lost.retain(|(at, _)| *at > oldest);
        let stuck = beats.iter().find(|beat| beat.age(now) >= self.allowance(beat)).copied();
        Looked { stuck, late: is_late.then_some(late) }
    }

    fn allowance(&self, beat: &Beat) -> Duration {
        let limit = if beat.is_long { self.limit * LONG_FACTOR } else { self.limit };
        let since = self.lost.iter().filter(|(at, _)| *at > beat.at);
        limit + since.map(|(_, late)| *late).sum::<Duration>()
    }
}

/// Writes to the log without waiting for whoever reads it.
#[derive(Default)]
struct Speaker {
    thread: Option<thread::JoinHandle<()>>,
    stalled_said: Option<Instant>,
}

impl Speaker {
    fn say_late(&mut self, late: Duration) {
        self.say(move || {
            warn!(?late, "This process stood still: suspended, or starved of the processor");
        });
    }

    fn say_stalled(&mut self, stuck: Beat) {
        let is_said = self.stalled_said.is_some_and(|said| said.elapsed() < STALLED_EVERY);
        if is_said {
            return;
        }
        self.stalled_said = Some(Instant::now());
        self.say(move || {
            error!(
                part = stuck.name,
                doing = stuck.doing,
                for_ms = millis(stuck.age(Instant::now())),
                "The disk does not answer; the node answers from memory meanwhile, and writes nothing"
            );
        });
    }

    /// What cannot be said since the last word is not heard yet is left out.
    fn say(&mut self, word: impl FnOnce() + Send + 'static) {
        if self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished) {
            self.thread = thread::Builder::new().spawn(word).ok();
        }
    }
}

/// Tells whether the thread of a loop's name is held by the kernel until a disk answers. Loops that
/// are tasks have no thread of their own.
fn waits_for_disk(stuck: &Beat, threads: &[(String, String)]) -> bool {
    let name = format!("tribune-{}", stuck.name);
    threads.iter().any(|(thread, state)| *thread == name && state == "D")
}

/// Says what stands still and what everybody was at, and aborts.
fn end_process(stuck: &Beat, beats: Vec<Beat>) {
    let stuck = *stuck;
    let (done, written) = mpsc::channel::<()>();
    // In a thread of its own: the log may be what everything waits for.
    let dump = thread::Builder::new().spawn(move || {
        dump(&stuck, &beats);
        drop(done);
    });
    if dump.is_ok() {
        // Either way of ending is the end of waiting.
        let _ = written.recv_timeout(DUMP_WITHIN);
    }
    std::process::abort();
}

fn dump(stuck: &Beat, beats: &[Beat]) {
    let now = Instant::now();
    error!(
        part = stuck.name,
        doing = stuck.doing,
        for_ms = millis(stuck.age(now)),
        "A part of the node stands still; ending the process, so that it is started afresh"
    );
    for beat in beats {
        error!(part = beat.name, doing = beat.doing, for_ms = millis(beat.age(now)), "It was at");
    }
    for (thread, state) in threads() {
        error!(thread, state, "A thread was");
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Lists this process's threads with the state that the kernel holds them in: `R` runs, `S` waits,
/// `D` waits for a disk.
fn threads() -> Vec<(String, String)> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let read = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        // Number, name in parentheses, state.
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
    };
    tasks.filter_map(|task| read(task.ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Looks every second for `count` seconds and returns when a loop was found to stand still.
    fn look(watch: &mut Watch, from: Instant, count: u64, beat: Beat) -> Option<u64> {
        (1..=count).find(|second| watch.look(from + seconds(*second), &[beat]).stuck.is_some())
    }

    #[test]
    fn a_loop_that_stands_still_is_found_at_the_limit_and_a_long_step_later() {
        let now = Instant::now();
        let beat = Beat { name: "writer", at: now, doing: "x", is_long: false };
        assert_eq!(look(&mut Watch::new(LIMIT, now), now, 200, beat), Some(10));
        let long = Beat { is_long: true, ..beat };
        assert_eq!(look(&mut Watch::new(LIMIT, now), now, 200, long), Some(100));
    }

    #[test]
    fn a_process_that_was_suspended_is_given_the_time_that_it_lost() {
        let now = Instant::now();
        let beat = Beat { name: "writer", at: now, doing: "x", is_long: false };
        let mut watch = Watch::new(LIMIT, now);
        assert_eq!(look(&mut watch, now, 5, beat), None);
        let woken = now + seconds(3_600);
        let looked = watch.look(woken, &[beat]);
        assert!(looked.stuck.is_none() && looked.late == Some(seconds(3_594)), "{looked:?}");
        // Six of its ten seconds had passed: five, and the one between two looks.
        assert_eq!(look(&mut watch, woken, 20, beat), Some(4));
    }

    #[test]
    fn a_machine_that_is_late_again_and_again_ends_what_stands_still() {
        let now = Instant::now();
        let beat = Beat { name: "writer", at: now, doing: "x", is_long: false };
        let mut watch = Watch::new(LIMIT, now);
        // Each look comes a second late.
        let found = (1..100).find(|k| watch.look(now + seconds(2 * k), &[beat]).stuck.is_some());
        assert_eq!(found, Some(10), "after ten seconds that nobody lost");
    }

    #[test]
    fn who_waits_for_a_disk_is_not_ended() {
        let beat = |name| Beat { name, at: Instant::now(), doing: "x", is_long: true };
        let threads = [("tribune-writer", "D"), ("dns-udp", "S")];
        let threads = threads.map(|(name, state)| (name.to_owned(), state.to_owned()));
        assert!(waits_for_disk(&beat("writer"), &threads));
        assert!(!waits_for_disk(&beat("engine"), &threads));
        let running = [("tribune-writer".to_owned(), "R".to_owned())];
        assert!(!waits_for_disk(&beat("writer"), &running));
        let own = thread::Builder::new().name("tribune-writer".to_owned());
        let seen = own.spawn(threads_of_now).unwrap().join().unwrap();
        assert!(seen.iter().any(|(name, _)| name == "tribune-writer"), "{seen:?}");
    }

    fn threads_of_now() -> Vec<(String, String)> {
        super::threads()
    }

    #[test]
    fn a_stuck_loop_is_named_by_the_thread() {
        let pulses = Pulses::default();
        let stuck = pulses.add("stuck");
        stuck.beat("standing still on purpose");
        let (told, heard) = mpsc::channel();
        let bite = move |beat: &Beat, all: Vec<Beat>| {
            told.send((beat.name, beat.doing, all.len())).unwrap();
        };
        let watchdog = Watchdog::with(pulses, Duration::from_millis(200), bite).unwrap();
        let found = heard.recv_timeout(seconds(20)).unwrap();
        assert_eq!(found, ("stuck", "standing still on purpose", 1));
        drop(watchdog);
    }

    /// What the test below runs as a process of its own.
    #[test]
    #[ignore = "it aborts: a_stuck_loop_ends_the_process runs it"]
    fn child_with_a_stuck_loop() {
        crate::telemetry::start(&crate::telemetry::Config::default()).unwrap();
        let pulses = Pulses::default();
        let stuck = pulses.add("stuck");
        stuck.beat("standing still on purpose");
        let _watchdog = Watchdog::start(pulses, Duration::from_millis(300)).unwrap();
        loop {
            thread::park();
        }
    }

    #[test]
    fn a_stuck_loop_ends_the_process_and_says_why() {
        use std::os::unix::process::ExitStatusExt;

        let name = "app::watchdog::tests::child_with_a_stuck_loop";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "SIGABRT: {log}");
        for part in ["stands still", "stuck", "standing still on purpose", "watchdog"] {
            assert!(log.contains(part), "{part}: {log}");
        }
    }

    #[test]
    fn zero_is_off() {
        assert!(Watchdog::start(Pulses::default(), Duration::ZERO).unwrap().is_none());
    }
}
