//! What may be sent at most: the promise that nothing becomes a storm (P9). Each limit follows from
//! the settings, none from the size of the cluster or the length of its history.
//!
//! * A process sends a version to each neighbour once, and as often again as that may ask for it: at
//!   most [`Config::pushes_max`] pushes.
//!   Only where it dropped the version after it had taken it in, since its disk refused it, does it
//!   pass on another one that comes by: once more for each time that an origin was set aside, and
//!   those times are apart by pauses that double (one second to ten minutes).
//! * A process asks for an origin at most as often as it gets something new of it, and beyond that
//!   [`Config::wants_max`] times: so often in a row, and then so often a second.
//! * A node that has nothing to say of versions says at most [`IDLE_BYTES_MAX`] a second.

use std::collections::BTreeMap;
use std::time::Duration;

use super::NodeIndex;
use super::check::Checked;
use crate::replica::Config;
use crate::types::{Origin, Time, Version};
use crate::wire::Message;

/// How many bytes a second a node may send while nothing is written and nothing is missing, over
/// ten seconds: four comparisons of ledgers, and what is said of neighbours. On average it is a
/// tenth.
pub(super) const IDLE_BYTES_MAX: u64 = 2_000;

/// A process: a node, and which of its lives.
type Process = (NodeIndex, u32);

/// What all processes have sent.
#[derive(Debug, Default)]
pub(super) struct Budget {
    pushes: BTreeMap<(Process, Origin, Version), usize>,
    wants: BTreeMap<(Process, Origin), Wants>,
    /// What each node has sent, in bytes.
    bytes: BTreeMap<NodeIndex, u64>,
}

/// What is left of the right to ask in vain: it comes back with time and with every useful answer.
#[derive(Clone, Copy, Debug)]
struct Wants {
    left: f64,
    at: Time,
}

impl Budget {
    /// P9: a process sends a version, and asks for an origin, so often and no more.
    pub(super) fn on_sent(
        &mut self,
        now: Time,
        process: Process,
        (message, bytes, receivers): (&Message, usize, usize),
        (config, set_aside): (&Config, u64),
    ) -> Checked {
        *self.bytes.entry(process.0).or_default() += (bytes * receivers) as u64;
        match message {
            Message::Push { piece, .. } => {
                let name = (process, piece.origin, piece.through);
                let sent = self.pushes.entry(name).or_default();
                *sent += receivers;
                let most = config.pushes_max() * (1 + set_aside as usize);
                if *sent > most {
                    return Err(format!(
                        "P9: {} has pushed {} version {} {sent} times, and may {most} times",
                        process.0, piece.origin, piece.through
                    ));
                }
            }
            Message::Want { origin, .. } => {
                let (most, per_second) = config.wants_max();
                let wants = self.wants.entry((process, *origin));
                let wants = wants.or_insert(Wants { left: most, at: now });
                let gained = now.since(wants.at).as_secs_f64() * per_second;
                wants.left = (wants.left + gained).min(most) - receivers as f64;
                wants.at = now;
                if wants.left < 0.0 {
                    return Err(format!(
                        "P9: {} asks for {origin} again and again, and gets nothing",
                        process.0
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A process got something of an origin that it asked for.
    pub(super) fn on_answered(&mut self, process: Process, origin: Origin) {
        if let Some(wants) = self.wants.get_mut(&(process, origin)) {
            wants.left += 1.0;
        }
    }

    /// Returns what each node has sent so far, in bytes.
    pub(super) fn sent(&self) -> BTreeMap<NodeIndex, u64> {
        self.bytes.clone()
    }

    /// P9: a cluster in which nothing is written is all but silent.
    pub(super) fn idle_is_cheap(
        &self,
        before: &BTreeMap<NodeIndex, u64>,
        within: Duration,
    ) -> Checked {
        let most = (within.as_secs_f64() * IDLE_BYTES_MAX as f64) as u64;
        for (node, sent) in &self.bytes {
            let sent = sent - before.get(node).copied().unwrap_or(0);
            if sent > most {
                return Err(format!(
                    "P9: {node} sent {sent} bytes in {within:?} in which nothing was written"
                ));
            }
        }
        Ok(())
    }
}
