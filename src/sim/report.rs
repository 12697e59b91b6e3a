//! What a run came to: of a good one some figures, of a bad one the seed and the last events.

use std::fmt;
use std::time::Duration;

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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, late, longest] = self.latency.map(|latency| latency.as_secs_f64() * 1e3);
        let deliveries = (self.versions * (self.nodes - 1)).max(1) as f64;
        writeln!(f, "seed {}: {} nodes, {} versions", self.seed, self.nodes, self.versions)?;
        writeln!(f, "  converged after   {:>8.3} s", self.converged_after.as_secs_f64())?;
        writeln!(f, "  visible after     {median:>8.1} ms p50, {late:.1} p99, {longest:.1} max")?;
        writeln!(f, "  copies            {:>8.2} a node and version", self.copies)?;
        let push = self.push_bytes as f64 / deliveries;
        let other = self.other_bytes as f64 / deliveries;
        writeln!(
            f,
            "  bytes             {push:>8.0} pushed, {other:.0} other, a node and version"
        )?;
        if self.tombstones_dropped > 0 {
            writeln!(
                f,
                "  tombstones        {:>8} at most, {} dropped, {} rejoined",
                self.tombstones_max, self.tombstones_dropped, self.rejoins
            )?;
        }
        writeln!(f, "  pulled            {:>8} pieces by {} wants", self.pulled, self.wants)?;
        writeln!(f, "  large             {:>8} commits, {} runs staged", self.large, self.staged)?;
        write!(f, "  events            {:>8} in {:.1} s", self.events, self.lasted.as_secs_f64())
    }
}

/// A run in which something was not as it must be.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Failure {
    pub seed: u64,
    pub at: Time,
    pub what: String,
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
        write!(f, "run it again with SIM_SEED={}", self.seed)
    }
}
