//! foca's timers in the order in which they are due.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::Timer;

use super::identity::Identity;
use crate::types::Time;

/// An ordered list of timers. Those due at the same moment keep the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    timers: BTreeMap<(Time, u64), Timer<Identity>>,
    count: u64,
}

impl Agenda {
    pub fn add(&mut self, due: Time, timer: Timer<Identity>) {
        self.count += 1;
        self.timers.insert((due, self.count), timer);
    }

    /// Returns when the first timer is due.
    pub fn first(&self) -> Option<Time> {
        self.timers.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes the first timer that is due at `now`.
    pub fn take_due(&mut self, now: Time) -> Option<Timer<Identity>> {
        if self.first()? > now {
            return None;
        }
        self.timers.pop_first().map(|(_, timer)| timer)
    }

    /// Moves every timer by `delay`, as if time had stood still for so long.
    pub fn postpone(&mut self, delay: Duration) {
        let timers = std::mem::take(&mut self.timers);
        self.timers =
            timers.into_iter().map(|((due, count), timer)| ((due + delay, count), timer)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_the_order_they_are_due_and_never_early() {
        let mut agenda = Agenda::default();
        agenda.add(Time(20), Timer::PeriodicGossip(2));
        agenda.add(Time(10), Timer::PeriodicGossip(1));
        agenda.add(Time(20), Timer::PeriodicGossip(3));
        assert_eq!(agenda.take_due(Time(9)), None);
        assert_eq!(agenda.take_due(Time(10)), Some(Timer::PeriodicGossip(1)));
        agenda.postpone(Duration::from_micros(5));
        assert_eq!(agenda.take_due(Time(20)), None);
        assert_eq!(agenda.take_due(Time(25)), Some(Timer::PeriodicGossip(2)));
        assert_eq!(agenda.take_due(Time(25)), Some(Timer::PeriodicGossip(3)));
        assert_eq!(agenda.first(), None);
    }
}
