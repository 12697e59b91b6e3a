//! What a run came to: of a good one some figures, of a bad one the seed and the last events.

use std::fmt;
use std::time::Duration;

use super::traffic::Traffic;
use crate::types::Time;

/// A run in which everything was as it must be.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub nodes: usize,
    /// Versions that were committed.
    pub versions: usize,
    pub events: u64,
    /// A hash over all events: equal for equal seeds.
    pub trace_hash: u64,
    /// How long after the last trouble and the last write all nodes held the same.
    pub converged_after: Duration,
    /// From commit to visible on another node: median, 99th of a hundred, longest.
    pub latency: [Duration; 3],
    /// From commit to visible on the last node, likewise over all commits.
    pub everywhere: [Duration; 3],
    /// Pushes that arrived.
    pub pushes: u64,
    /// Pieces that arrived as answers to wants.
    pub pulled: u64,
    pub wants: u64,
    /// Pushes and pulled pieces that arrived, for each version and each node that did not write it.
    pub copies: f64,
    /// Bytes sent: of commits on their way.
    pub push_bytes: u64,
    /// Bytes sent: of everything else.
    pub other_bytes: u64,
    /// For how long the following was measured.
    pub measured_for: Duration,
    /// What all nodes sent, as it is on the wire.
    pub traffic: Traffic,
    /// Bytes a second that a node sent: of all the mean, and of the one that sent most.
    pub sends: [f64; 2],
    pub members: Members,
    /// Commits that were too large to be pushed.
    pub large: u64,
    /// Runs of pulled parts that went to a disk.
    pub staged: u64,
    /// Rows that were deleted, of those that are born once only.
    pub deletes: usize,
    /// The most tombstones that any node held at a time.
    pub tombstones_max: u64,
    /// Those that were dropped, on all nodes.
    pub tombstones_dropped: u64,
    /// Nodes whose rows others deleted since they were forgotten, counted at each of these.
    pub departures: u64,
    /// Origins that nodes retired, and erased, counted at each.
    pub origins_retired: u64,
    pub origins_erased: u64,
    /// The most origins of which a node holds something in the end.
    pub origins_held: usize,
    /// How long after all held the same the last of them was dropped.
    pub collected_after: Duration,
    /// How often a node took all rows anew.
    pub rejoins: u64,
    /// Rows that were not what others had, and were mended.
    pub mended: u64,
    /// How long it took from then on until all rows were the same again.
    pub mended_after: Duration,
    /// Virtual time in all.
    pub lasted: Duration,
}

/// What was said of members.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Members {
    /// When all nodes that run took all of them for up for the first time, from the start on. `None`:
    /// an oracle told them.
    pub whole_after: Option<Duration>,
    /// How often a node took one for down whose process had ended.
    pub downs: usize,
    /// How long after its end: median, 99th of a hundred, longest.
    pub detected: [Duration; 3],
    /// How often a node took one for down that was up and could be reached.
    pub wrong: u64,
    /// The first time that one did.
    pub wrong_first: Option<String>,
    /// How often a node had to begin another life, since others had taken it for down.
    pub rejoins: u64,
    /// How often a node held its verdicts back, since there were so many.
    pub guards: u64,
}

/// One number of a report.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
}

impl Report {
    /// Lists what is to be compared between runs.
    pub fn figures(&self) -> Vec<Figure> {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let deliveries = (self.versions * (self.nodes - 1)).max(1) as f64;
        let mut figures = Vec::new();
        let mut add = |name, value, unit| figures.push(Figure { name, value, unit });
        add("versions", self.versions as f64, "");
        add("events", self.events as f64, "");
        add("simulated", self.lasted.as_secs_f64(), "s");
        add("converged", self.converged_after.as_secs_f64(), "s");
        for (name, time) in ["visible p50", "visible p99", "visible max"].iter().zip(self.latency) {
            add(name, millis(time), "ms");
        }
        let names = ["everywhere p50", "everywhere p99", "everywhere max"];
        for (name, time) in names.iter().zip(self.everywhere) {
            add(name, millis(time), "ms");
        }
        add("copies", self.copies, "");
        add("bytes a delivery", (self.push_bytes + self.other_bytes) as f64 / deliveries, "B");
        add("sent a node", self.sends[0], "B/s");
        add("sent by the busiest", self.sends[1], "B/s");
        let node_seconds = self.nodes as f64 * self.measured_for.as_secs_f64().max(1e-6);
        for (name, bytes) in self.traffic.parts() {
            add(name, bytes as f64 / node_seconds, "B/s");
        }
        if let Some(whole) = self.members.whole_after {
            add("all know all", whole.as_secs_f64(), "s");
        }
        if self.members.downs > 0 {
            let names = ["down p50", "down p99", "down max"];
            for (name, time) in names.iter().zip(self.members.detected) {
                add(name, time.as_secs_f64(), "s");
            }
        }
        add("wrong verdicts", self.members.wrong as f64, "");
        figures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |times: [Duration; 3]| {
            let [median, late, longest] = times.map(|time| time.as_secs_f64() * 1e3);
            format!("{median:>8.1} ms p50, {late:.1} p99, {longest:.1} max")
        };
        let deliveries = (self.versions * (self.nodes - 1)).max(1) as f64;
        writeln!(f, "seed {}: {} nodes, {} versions", self.seed, self.nodes, self.versions)?;
        writeln!(f, "  converged after   {:>8.3} s", self.converged_after.as_secs_f64())?;
        if self.versions > 0 {
            writeln!(f, "  visible after     {}", millis(self.latency))?;
            writeln!(f, "  everywhere after  {}", millis(self.everywhere))?;
            writeln!(f, "  copies            {:>8.2} a node and version", self.copies)?;
            let push = self.push_bytes as f64 / deliveries;
            let other = self.other_bytes as f64 / deliveries;
            writeln!(
                f,
                "  bytes             {push:>8.0} pushed, {other:.0} other, a node and version"
            )?;
        }
        self.write_traffic(f)?;
        self.members.write(f)?;
        if self.tombstones_dropped > 0 {
            writeln!(
                f,
                "  tombstones        {:>8} at most, {} dropped, {} rejoined",
                self.tombstones_max, self.tombstones_dropped, self.rejoins
            )?;
        }
        if self.departures + self.origins_retired > 0 {
            writeln!(
                f,
                "  retired           {:>8} origins, {} erased, {} held, {} departures",
                self.origins_retired, self.origins_erased, self.origins_held, self.departures
            )?;
        }
        if self.versions > 0 {
            writeln!(f, "  pulled            {:>8} pieces by {} wants", self.pulled, self.wants)?;
            writeln!(
                f,
                "  large             {:>8} commits, {} runs staged",
                self.large, self.staged
            )?;
        }
        writeln!(
            f,
            "  events            {:>8} in {:.1} s",
            self.events,
            self.lasted.as_secs_f64()
        )?;
        write!(f, "  trace             {:016x}", self.trace_hash)
    }
}

impl Report {
    fn write_traffic(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, most] = self.sends;
        let span = self.measured_for.as_secs_f64();
        writeln!(
            f,
            "  sent              {mean:>8.0} B/s a node, {most:.0} by the busiest, over {span:.0} s"
        )?;
        let node_seconds = self.nodes as f64 * span.max(1e-6);
        let shown =
            |(name, bytes): (&str, u64)| format!("{name} {:.0}", bytes as f64 / node_seconds);
        let parts = self.traffic.parts().into_iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<String> = parts.map(shown).collect();
        writeln!(f, "  of these          {:>8}", parts.join(", "))
    }
}

impl Members {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(whole) = self.whole_after {
            writeln!(f, "  all know all      {:>8.1} s after the start", whole.as_secs_f64())?;
        }
        if self.downs > 0 {
            let [median, late, longest] = self.detected.map(|time| time.as_secs_f64());
            writeln!(
                f,
                "  down after        {median:>8.1} s p50, {late:.1} p99, {longest:.1} max, seen {} times",
                self.downs
            )?;
        }
        if self.wrong + self.rejoins + self.guards > 0 {
            writeln!(
                f,
                "  wrong verdicts    {:>8}, {} new lives, {} guards",
                self.wrong, self.rejoins, self.guards
            )?;
        }
        Ok(())
    }
}

/// A run in which something was not as it must be.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Failure {
    pub seed: u64,
    pub at: Time,
    pub what: String,
    /// A hash over all events up to here.
    pub trace_hash: u64,
    /// The last events, the newest last.
    pub trail: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trail {
            writeln!(f, "{line}")?;
        }
        let seconds = self.at.0 as f64 / 1e6;
        writeln!(f, "after {seconds:.6} s: {}", self.what)?;
        let version = env!("CARGO_PKG_VERSION");
        writeln!(f, "tribune {version}, trace {:016x}", self.trace_hash)?;
        write!(f, "run it again with SIM_SEED={}", self.seed)
    }
}
