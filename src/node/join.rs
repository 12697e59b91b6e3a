//! Whom to dial so as to meet the cluster: resolves the configured targets, and says when to dial
//! them again. A node that has members left leaves the targets alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::GOSSIP_PORT;

/// The waits between two rounds of dials while nobody has answered: from, to.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// How many addresses one name may stand for.
const ADDRESSES_PER_NAME_MAX: usize = 16;

/// The join targets and when they are due.
pub(super) struct Join {
    targets: Vec<String>,
    /// What the names resolved to last.
    resolved: Arc<Mutex<Vec<SocketAddr>>>,
    me: SocketAddr,
    due_at: Instant,
    wait: Duration,
    /// Addresses whose failure was logged, so that each is told once until it changes.
    failures: BTreeMap<SocketAddr, String>,
}

impl Join {
    pub(super) fn new(targets: Vec<String>, me: SocketAddr) -> Self {
        let join = Self {
            targets,
            resolved: Arc::default(),
            me,
            due_at: Instant::now(),
            wait: FIRST_WAIT,
            failures: BTreeMap::new(),
        };
        join.resolve();
        join
    }

    /// Returns the addresses to dial now: none while the node has members, or before the time.
    pub(super) fn due(&mut self, now: Instant, is_alone: bool) -> Vec<SocketAddr> {
        if self.targets.is_empty() {
            return Vec::new();
        }
        if !is_alone {
            self.wait = FIRST_WAIT;
            self.failures.clear();
            return Vec::new();
        }
        let addresses = self.addresses();
        if now < self.due_at || (addresses.is_empty() && now < self.due_at + FIRST_WAIT) {
            return Vec::new();
        }
        self.due_at = now + self.wait;
        self.wait = (self.wait * 2).min(LAST_WAIT);
        // For the next round: names may move.
        self.resolve();
        addresses
    }

    /// Takes note of a failure, and logs it unless it is the same as before.
    pub(super) fn failed(&mut self, address: SocketAddr, error: &str) {
        if self.failures.get(&address).is_none_or(|told| told != error) {
            info!(%address, error, "No answer yet from a node to join by; trying again");
            self.failures.insert(address, error.to_owned());
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved.iter().copied().filter(|address| *address != self.me).collect()
    }

    /// Looks the names up beside the engine's loop, which must not wait for a resolver.
    fn resolve(&self) {
        if self.targets.is_empty() {
            return;
        }
        let (targets, resolved) = (self.targets.clone(), Arc::clone(&self.resolved));
        tokio::spawn(async move {
            let mut found = Vec::new();
            for target in targets {
                match look_up(&target).await {
                    Ok(addresses) => found.extend(addresses),
                    Err(error) => warn!(target, %error, "A node to join by has no address"),
                }
            }
            *resolved.lock().unwrap_or_else(PoisonError::into_inner) = found;
        });
    }
}

/// Finds the addresses that a join target stands for: `host`, `host:port`, `[v6]:port`.
pub async fn look_up(target: &str) -> std::io::Result<Vec<SocketAddr>> {
    let bare = target.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, GOSSIP_PORT)]);
    }
    let has_port = target.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let name = if has_port { target.to_owned() } else { format!("{target}:{GOSSIP_PORT}") };
    let addresses = tokio::net::lookup_host(name).await?;
    Ok(addresses.take(ADDRESSES_PER_NAME_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_target_is_an_address_a_name_or_either_with_a_port() {
        assert_eq!(look_up("127.0.0.2").await.unwrap(), ["127.0.0.2:7401".parse().unwrap()]);
        assert_eq!(look_up("127.0.0.2:99").await.unwrap(), ["127.0.0.2:99".parse().unwrap()]);
        let local = look_up("localhost:7").await.unwrap();
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 7));
    }

    #[tokio::test]
    async fn targets_are_dialled_ever_less_often_and_not_at_all_once_there_are_members() {
        let mut join =
            Join::new(vec!["127.0.0.2:99".to_owned()], "127.0.0.1:7401".parse().unwrap());
        while join.addresses().is_empty() {
            tokio::task::yield_now().await;
        }
        let start = Instant::now() + Duration::from_secs(1);
        assert_eq!(join.due(start, true).len(), 1);
        assert!(join.due(start + FIRST_WAIT / 2, true).is_empty());
        assert_eq!(join.due(start + FIRST_WAIT, true).len(), 1);
        assert!(join.due(start + FIRST_WAIT * 2, true).is_empty());
        assert!(join.due(start + LAST_WAIT, false).is_empty());
    }
}
