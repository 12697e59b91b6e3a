//! Hints that something about this node changed, as early as Consul's servers know it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::debug;

use super::backoff::Backoff;
use super::client::{Client, ClientError};

/// The shortest time between two questions: a check that flaps wakes us forty times a second.
const PAUSE: Duration = Duration::from_millis(25);

/// Waits on one list of a node for ever, and wakes whoever waits at `wake` when it changed.
///
/// Where this is not permitted or not working, the polls alone must do; `works` says which.
pub async fn watch(
    client: Client,
    list: &'static str,
    node: String,
    wake: Arc<Notify>,
    works: Arc<AtomicBool>,
) {
    let mut index = 0;
    let mut backoff = Backoff::default();
    loop {
        match client.watch(list, &node, index).await {
            Ok(next) => {
                works.store(true, Ordering::Relaxed);
                backoff.reset();
                // Also at first: something may have changed since the last poll.
                if next != index {
                    wake.notify_one();
                }
                index = next_index(index, next);
                sleep(PAUSE).await;
            }
            Err(error) => {
                if works.swap(false, Ordering::Relaxed) || index == 0 {
                    tell(list, &error);
                }
                index = 0;
                sleep(backoff.next(rand::random())).await;
            }
        }
    }
}

fn tell(list: &str, error: &ClientError) {
    debug!(list, %error, "No hints from Consul at the moment: changes are found by polling");
}

/// Returns the index to wait on: 0, which asks anew, when it went backwards, as it does when the
/// servers were restored from a snapshot.
fn next_index(index: u64, next: u64) -> u64 {
    if next < index { 0 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_went_backwards_is_asked_for_anew() {
        assert_eq!(next_index(5, 9), 9);
        assert_eq!(next_index(9, 9), 9);
        assert_eq!(next_index(9, 5), 0);
    }
}
