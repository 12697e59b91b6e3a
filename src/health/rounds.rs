//! The rounds: which checks there are, what each is waiting for, and what follows from what
//! happens to it. Pure: told the time and what happened, it says what to do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::schedule::{Agenda, Errand, first_run, next_run};
use super::verdict::{Streak, Written, is_overdue, is_worth_a_write};
use super::{Config, ReportError, output};
use crate::catalog::model::Source;
use crate::catalog::{Check, CheckDefinition, CheckKind, Status};
use crate::node::SubmitError;
use crate::types::Time;

/// How often the rounds look for instances that have been critical for too long.
const REAP_EVERY: Duration = Duration::from_secs(30);
/// How long to wait before a write that failed is tried again.
const REWRITE_AFTER: Duration = Duration::from_secs(1);

/// What a script check says when it may not run: it must not go on saying it is well.
pub const SCRIPTS_DISABLED: &str = "Script checks are disabled on this node \
     (see enable_script_checks and enable_local_script_checks)";

/// Whoever waits to hear that a report was taken.
pub type Reporter = oneshot::Sender<Result<(), ReportError>>;

/// A check as it is registered now: what is asked for with it and comes back with it counts only
/// while the check has not been registered anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ticket {
    pub check_id: Arc<str>,
    generation: u64,
}

/// What a run found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub status: Status,
    pub output: String,
}

/// What is to be done about what happened.
#[derive(Debug)]
pub enum Effect {
    /// Run the check, and say so with [`Rounds::on_outcome`].
    Run { ticket: Ticket, definition: Arc<CheckDefinition> },
    /// A run of the check that may be under way is of no use any more.
    Abort { check_id: Arc<str> },
    /// Write it, tell the reporters, and say so with [`Rounds::on_written`].
    Write { ticket: Ticket, outcome: Outcome, reporters: Vec<Reporter> },
    /// Nothing is to be written; the output, where it is newer than the row's, is shown on this node all the
    /// same. Then tell the reporters.
    HoldBack { check_id: Arc<str>, output: Option<String>, reporters: Vec<Reporter> },
    /// Remove an instance that has been critical for too long.
    Deregister { service_id: String, check_id: Arc<str> },
}

/// How the rounds look up a check as it stands in the catalog now.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<Check>;

/// All checks that this node runs or hears of.
#[derive(Debug)]
pub struct Rounds {
    config: Config,
    seed: u64,
    checks: BTreeMap<Arc<str>, Watched>,
    agenda: Agenda,
    reap_at: Time,
    generations: u64,
    effects: VecDeque<Effect>,
}

/// One of them.
#[derive(Debug)]
struct Watched {
    definition: Arc<CheckDefinition>,
    generation: u64,
    streak: Streak,
    /// The errand that waits in the agenda.
    errand: Option<(Time, Errand)>,
    /// What the application last said, if it has since the start.
    note: Option<String>,
    /// Since when every result that was taken over was critical.
    critical_since: Option<Time>,
    /// When its row was last written, or when we began to look at it.
    written_at: Time,
    /// Whether a write is under way. There is never more than one for a check, so that writes
    /// become true in the order of what happened.
    is_writing: bool,
    /// What is to be written after that: only the latest counts.
    wanted: Option<Wanted>,
    /// When `wanted` is tried again, after a failure.
    rewrite_at: Option<Time>,
}

#[derive(Debug)]
struct Wanted {
    outcome: Outcome,
    /// Whether a new output is written even if the last write is recent.
    is_urgent: bool,
    reporters: Vec<Reporter>,
}

impl Rounds {
    /// Makes empty rounds. `seed` spreads the first runs.
    pub fn new(now: Time, config: Config, seed: u64) -> Self {
        Self {
            config,
            seed,
            checks: BTreeMap::new(),
            agenda: Agenda::default(),
            reap_at: now + REAP_EVERY,
            generations: 0,
            effects: VecDeque::new(),
        }
    }

    /// Returns what to do next. To be drained after each call of an `on_…` function.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns when to call [`Rounds::on_time`] at the latest.
    pub fn deadline(&self) -> Time {
        self.agenda.deadline().map_or(self.reap_at, |at| at.min(self.reap_at))
    }

    /// Returns how many checks are run or heard of.
    pub fn count(&self) -> usize {
        self.checks.len()
    }

    /// These are the definitions now. Checks whose definition did not change go on undisturbed.
    pub fn on_definitions(
        &mut self,
        now: Time,
        definitions: Vec<(String, CheckDefinition)>,
        lookup: Lookup<'_>,
    ) {
        let mut gone: Vec<Arc<str>> = Vec::new();
        let definitions: BTreeMap<String, CheckDefinition> = definitions
            .into_iter()
            .filter(|(_, definition)| definition.kind != CheckKind::Passive)
            .collect();
        for check_id in self.checks.keys() {
            if !definitions.contains_key(&**check_id) {
                gone.push(Arc::clone(check_id));
            }
        }
        for check_id in gone {
            self.forget(&check_id);
        }
        for (check_id, definition) in definitions {
            let is_same = (self.checks.get(check_id.as_str()))
                .is_some_and(|watched| *watched.definition == definition);
            if !is_same {
                self.watch(now, check_id.into(), definition, lookup);
            }
        }
    }

    /// A run has ended.
    pub fn on_outcome(&mut self, now: Time, ticket: &Ticket, outcome: Outcome, lookup: Lookup<'_>) {
        let check_id = &ticket.check_id;
        let Some(watched) = self.current(ticket) else { return };
        let Some(interval) = interval_of(&watched.definition.kind) else { return };
        let takes_over = watched.streak.takes_over(&watched.definition, outcome.status);
        self.arm(check_id, next_run(now, interval), Errand::Run);
        if takes_over {
            self.take_over(now, check_id, outcome, lookup);
        }
    }

    /// An application has reported.
    pub fn on_report(
        &mut self,
        now: Time,
        check_id: &str,
        outcome: Outcome,
        reporter: Reporter,
        lookup: Lookup<'_>,
    ) {
        let Some(check_id) = self.checks.get_key_value(check_id).map(|(id, _)| Arc::clone(id))
        else {
            // Whoever no longer waits need not hear it.
            let _ = reporter.send(Err(match lookup(check_id) {
                Some(_) => ReportError::NotTtl(check_id.to_owned()),
                None => ReportError::UnknownCheck(check_id.to_owned()),
            }));
            return;
        };
        let bytes_max = self.config.output_bytes_max;
        let watched = self.watched(&check_id);
        let CheckKind::Ttl { ttl } = watched.definition.kind else {
            let _ = reporter.send(Err(ReportError::NotTtl(check_id.to_string())));
            return;
        };
        let output =
            output::note(&outcome.output, watched.definition.output_bytes_max.min(bytes_max));
        let outcome = Outcome { status: outcome.status, output };
        watched.note = Some(outcome.output.clone());
        note_critical(watched, now, outcome.status);
        self.arm(&check_id, now + ttl, Errand::Expire);
        let wanted = Wanted { outcome, is_urgent: false, reporters: vec![reporter] };
        self.want(now, &check_id, wanted, lookup);
    }

    /// An application has registered a check again, unchanged. Its time to live starts anew, as
    /// with Consul: some applications have no other heartbeat.
    pub fn on_registered_again(&mut self, now: Time, check_id: &str) {
        let Some((check_id, watched)) = self.checks.get_key_value(check_id) else { return };
        let CheckKind::Ttl { ttl } = watched.definition.kind else { return };
        let check_id = Arc::clone(check_id);
        self.arm(&check_id, now + ttl, Errand::Expire);
    }

    /// A write has ended.
    pub fn on_written(
        &mut self,
        now: Time,
        ticket: &Ticket,
        outcome: Outcome,
        result: &Result<(), SubmitError>,
        lookup: Lookup<'_>,
    ) {
        let check_id = &ticket.check_id;
        let Some(watched) = self.current(ticket) else { return };
        watched.is_writing = false;
        match result {
            Ok(()) => watched.written_at = now,
            // The check is gone; its definition will follow.
            Err(SubmitError::Refused(_)) => {}
            Err(SubmitError::Failed(_) | SubmitError::Busy | SubmitError::Stopping) => {
                if watched.wanted.is_none() {
                    let reporters = Vec::new();
                    watched.wanted = Some(Wanted { outcome, is_urgent: true, reporters });
                }
                self.rewrite_later(check_id, now + REWRITE_AFTER);
                return;
            }
        }
        if let Some(wanted) = watched.wanted.take() {
            self.want(now, check_id, wanted, lookup);
        }
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Time, lookup: Lookup<'_>) {
        while let Some((check_id, errand)) = self.agenda.pop_due(now) {
            match errand {
                Errand::Run => self.run(&check_id),
                Errand::Expire => self.expire(now, &check_id, lookup),
                Errand::Rewrite => self.rewrite(now, &check_id, lookup),
            }
        }
        if now >= self.reap_at {
            self.reap_at = now + REAP_EVERY;
            self.reap(now, lookup);
        }
    }

    fn watch(
        &mut self,
        now: Time,
        check_id: Arc<str>,
        definition: CheckDefinition,
        lookup: Lookup<'_>,
    ) {
        self.forget(&check_id);
        self.generations += 1;
        let kind = definition.kind.clone();
        let watched = Watched {
            streak: Streak::full(&definition),
            definition: Arc::new(definition),
            generation: self.generations,
            errand: None,
            note: None,
            critical_since: None,
            written_at: now,
            is_writing: false,
            wanted: None,
            rewrite_at: None,
        };
        self.checks.insert(Arc::clone(&check_id), watched);
        match kind {
            CheckKind::Passive => {}
            // After a start, too: the application gets its whole time to report.
            CheckKind::Ttl { ttl } => self.arm(&check_id, now + ttl, Errand::Expire),
            CheckKind::Script { .. } if !self.may_run_script(&check_id, lookup) => {
                let outcome =
                    Outcome { status: Status::Critical, output: SCRIPTS_DISABLED.to_owned() };
                let wanted = Wanted { outcome, is_urgent: true, reporters: Vec::new() };
                self.want(now, &check_id, wanted, lookup);
            }
            CheckKind::Http { interval, .. }
            | CheckKind::Tcp { interval, .. }
            | CheckKind::Script { interval, .. } => {
                let at = first_run(now, interval, self.seed, &check_id);
                self.arm(&check_id, at, Errand::Run);
            }
        }
    }

    fn may_run_script(&self, check_id: &str, lookup: Lookup<'_>) -> bool {
        if self.config.enable_script_checks {
            return true;
        }
        let is_local = lookup(check_id).is_some_and(|check| check.source == Source::File);
        is_local && self.config.enable_local_script_checks
    }

    fn forget(&mut self, check_id: &Arc<str>) {
        let Some(watched) = self.checks.remove(check_id) else { return };
        if let Some((at, errand)) = watched.errand {
            self.agenda.remove(at, check_id, errand);
        }
        if let Some(at) = watched.rewrite_at {
            self.agenda.remove(at, check_id, Errand::Rewrite);
        }
        for reporter in watched.wanted.into_iter().flat_map(|wanted| wanted.reporters) {
            let _ = reporter.send(Err(ReportError::UnknownCheck(check_id.to_string())));
        }
        self.effects.push_back(Effect::Abort { check_id: Arc::clone(check_id) });
    }

    fn run(&mut self, check_id: &Arc<str>) {
        let watched = self.watched(check_id);
        watched.errand = None;
        let effect = Effect::Run {
            ticket: Ticket { check_id: Arc::clone(check_id), generation: watched.generation },
            definition: Arc::clone(&watched.definition),
        };
        self.effects.push_back(effect);
    }

    fn expire(&mut self, now: Time, check_id: &Arc<str>, lookup: Lookup<'_>) {
        let watched = self.watched(check_id);
        watched.errand = None;
        let output = match watched.note.take().filter(|note| !note.is_empty()) {
            Some(note) => format!("TTL expired (last output before timeout follows): {note}"),
            None => "TTL expired".to_owned(),
        };
        note_critical(watched, now, Status::Critical);
        let outcome = Outcome { status: Status::Critical, output };
        // A check that was critical before says from now on why it is: nobody reports.
        let wanted = Wanted { outcome, is_urgent: true, reporters: Vec::new() };
        self.want(now, check_id, wanted, lookup);
    }

    fn rewrite(&mut self, now: Time, check_id: &Arc<str>, lookup: Lookup<'_>) {
        let watched = self.watched(check_id);
        watched.rewrite_at = None;
        if watched.is_writing {
            return;
        }
        if let Some(wanted) = watched.wanted.take() {
            self.want(now, check_id, wanted, lookup);
        }
    }

    fn reap(&mut self, now: Time, lookup: Lookup<'_>) {
        for (check_id, watched) in &self.checks {
            let (Some(after), Some(since)) =
                (watched.definition.deregister_after, watched.critical_since)
            else {
                continue;
            };
            if !is_overdue(since, after, now) {
                continue;
            }
            let service_id = lookup(check_id).map(|check| check.service_id).unwrap_or_default();
            if !service_id.is_empty() {
                let check_id = Arc::clone(check_id);
                self.effects.push_back(Effect::Deregister { service_id, check_id });
            }
        }
    }

    fn take_over(&mut self, now: Time, check_id: &Arc<str>, outcome: Outcome, lookup: Lookup<'_>) {
        note_critical(self.watched(check_id), now, outcome.status);
        let wanted = Wanted { outcome, is_urgent: false, reporters: Vec::new() };
        self.want(now, check_id, wanted, lookup);
    }

    /// Writes what is wanted, if it is worth it, now or after the write that is under way.
    fn want(&mut self, now: Time, check_id: &Arc<str>, mut wanted: Wanted, lookup: Lookup<'_>) {
        let config_interval = self.config.update_interval;
        let watched = self.watched(check_id);
        if let Some(older) = watched.wanted.take() {
            // What they reported is overtaken by what is written for them.
            wanted.reporters.extend(older.reporters);
        }
        if watched.is_writing {
            watched.wanted = Some(wanted);
            return;
        }
        let update_interval = if wanted.is_urgent { Duration::ZERO } else { config_interval };
        let Some(check) = lookup(check_id) else {
            // Its row is gone; its definition will follow.
            for reporter in wanted.reporters {
                let _ = reporter.send(Err(ReportError::UnknownCheck(check_id.to_string())));
            }
            return;
        };
        let written =
            Written { status: check.status, output: &check.output, at: watched.written_at };
        let Outcome { status, output } = &wanted.outcome;
        if !is_worth_a_write(written, *status, output, now, update_interval) {
            let Wanted { outcome, reporters, .. } = wanted;
            let output = (outcome.output != check.output).then_some(outcome.output);
            let check_id = Arc::clone(check_id);
            self.effects.push_back(Effect::HoldBack { check_id, output, reporters });
            return;
        }
        watched.is_writing = true;
        let effect = Effect::Write {
            ticket: Ticket { check_id: Arc::clone(check_id), generation: watched.generation },
            outcome: wanted.outcome,
            reporters: wanted.reporters,
        };
        self.effects.push_back(effect);
    }

    /// Puts a check's one errand into the agenda, in place of the one it had.
    fn arm(&mut self, check_id: &Arc<str>, at: Time, errand: Errand) {
        let before = self.watched(check_id).errand.replace((at, errand));
        if let Some((at, errand)) = before {
            self.agenda.remove(at, check_id, errand);
        }
        self.agenda.add(at, check_id, errand);
    }

    fn rewrite_later(&mut self, check_id: &Arc<str>, at: Time) {
        if let Some(before) = self.watched(check_id).rewrite_at.replace(at) {
            self.agenda.remove(before, check_id, Errand::Rewrite);
        }
        self.agenda.add(at, check_id, Errand::Rewrite);
    }

    fn current(&mut self, ticket: &Ticket) -> Option<&mut Watched> {
        (self.checks.get_mut(&ticket.check_id))
            .filter(|watched| watched.generation == ticket.generation)
    }

    fn watched(&mut self, check_id: &str) -> &mut Watched {
        self.checks
            .get_mut(check_id)
            .expect("errands leave the agenda with their check, and callers have looked it up")
    }
}

fn note_critical(watched: &mut Watched, now: Time, status: Status) {
    watched.critical_since = match status {
        Status::Critical => watched.critical_since.or(Some(now)),
        Status::Passing | Status::Warning => None,
    };
}

fn interval_of(kind: &CheckKind) -> Option<Duration> {
    match kind {
        CheckKind::Passive | CheckKind::Ttl { .. } => None,
        CheckKind::Http { interval, .. }
        | CheckKind::Tcp { interval, .. }
        | CheckKind::Script { interval, .. } => Some(*interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Rounds with a catalog that carries out every write at once unless told to hold them back.
    struct Ward {
        rounds: Rounds,
        now: Time,
        rows: BTreeMap<String, Check>,
        definitions: BTreeMap<String, CheckDefinition>,
        /// What the next writes come to, instead of success.
        failure: Option<SubmitError>,
        is_slow: bool,
        log: Vec<String>,
        slow: Vec<(Ticket, Outcome, Vec<Reporter>)>,
        runs: Vec<Ticket>,
        /// Outputs that are newer than their rows.
        shown: BTreeMap<Arc<str>, String>,
    }

    impl Ward {
        fn new() -> Self {
            Self::with(Config::default())
        }

        fn with(config: Config) -> Self {
            Self {
                rounds: Rounds::new(Time(0), config, 1),
                now: Time(0),
                rows: BTreeMap::new(),
                definitions: BTreeMap::new(),
                failure: None,
                is_slow: false,
                log: Vec::new(),
                slow: Vec::new(),
                shown: BTreeMap::new(),
                runs: Vec::new(),
            }
        }

        fn register(&mut self, id: &str, definition: CheckDefinition) {
            self.rows.entry(id.to_owned()).or_insert_with(|| Check {
                id: id.to_owned(),
                service_id: "web".to_owned(),
                ..Check::default()
            });
            self.definitions.insert(id.to_owned(), definition);
            self.tell();
        }

        fn unregister(&mut self, id: &str) {
            self.rows.remove(id);
            self.definitions.remove(id);
            self.tell();
        }

        fn tell(&mut self) {
            let definitions = self.definitions.clone().into_iter().collect();
            let rows = self.rows.clone();
            self.rounds.on_definitions(self.now, definitions, &|id| rows.get(id).cloned());
            self.drain();
        }

        fn pass(&mut self, time: Duration) {
            let until = self.now + time;
            while self.rounds.deadline() <= until {
                self.now = self.rounds.deadline();
                let rows = self.rows.clone();
                self.rounds.on_time(self.now, &|id| rows.get(id).cloned());
                self.drain();
            }
            self.now = until;
        }

        fn report(&mut self, id: &str, status: Status, output: &str) -> Answer {
            let (reporter, answer) = oneshot::channel();
            let rows = self.rows.clone();
            let outcome = Outcome { status, output: output.to_owned() };
            let lookup = |id: &str| rows.get(id).cloned();
            self.rounds.on_report(self.now, id, outcome, reporter, &lookup);
            self.drain();
            answer
        }

        /// Ends the oldest run that is under way.
        fn finish(&mut self, status: Status, output: &str) {
            let ticket = self.runs.remove(0);
            let outcome = Outcome { status, output: output.to_owned() };
            let rows = self.rows.clone();
            let lookup = |id: &str| rows.get(id).cloned();
            self.rounds.on_outcome(self.now, &ticket, outcome, &lookup);
            self.drain();
        }

        fn drain(&mut self) {
            while let Some(effect) = self.rounds.next_effect() {
                match effect {
                    Effect::Run { ticket, .. } => {
                        self.log.push(format!("run {}", ticket.check_id));
                        self.runs.push(ticket);
                    }
                    Effect::Abort { check_id } => drop(self.shown.remove(&check_id)),
                    Effect::HoldBack { check_id, output, reporters } => {
                        match output {
                            Some(output) => drop(self.shown.insert(check_id, output)),
                            None => drop(self.shown.remove(&check_id)),
                        }
                        for reporter in reporters {
                            let _ = reporter.send(Ok(()));
                        }
                    }
                    Effect::Deregister { service_id, .. } => {
                        self.log.push(format!("deregister {service_id}"));
                    }
                    Effect::Write { ticket, outcome, reporters } => {
                        let (check_id, word) = (&ticket.check_id, outcome.status.as_str());
                        self.log.push(format!("{check_id} {word} {:?}", outcome.output));
                        self.shown.remove(check_id);
                        self.slow.push((ticket, outcome, reporters));
                        if !self.is_slow {
                            self.carry_out();
                        }
                    }
                }
            }
        }

        /// Lets the oldest write that is under way come to its end.
        fn carry_out(&mut self) {
            let (ticket, outcome, reporters) = self.slow.remove(0);
            let result = self.failure.clone().map_or(Ok(()), Err);
            if result.is_ok() {
                let row = self.rows.get_mut(&*ticket.check_id).unwrap();
                row.status = outcome.status;
                row.output = outcome.output.clone();
            }
            for reporter in reporters {
                let _ = reporter.send(result.clone().map_err(ReportError::NotWritten));
            }
            let rows = self.rows.clone();
            let lookup = |id: &str| rows.get(id).cloned();
            self.rounds.on_written(self.now, &ticket, outcome, &result, &lookup);
            self.drain();
        }

        fn log(&mut self) -> String {
            std::mem::take(&mut self.log).join("; ")
        }
    }

    type Answer = oneshot::Receiver<Result<(), ReportError>>;

    fn ttl(seconds: u64) -> CheckDefinition {
        CheckDefinition {
            kind: CheckKind::Ttl { ttl: Duration::from_secs(seconds) },
            ..CheckDefinition::default()
        }
    }

    fn tcp(seconds: u64) -> CheckDefinition {
        let interval = Duration::from_secs(seconds);
        let kind = CheckKind::Tcp { address: "127.0.0.1:1".to_owned(), interval, timeout: S };
        CheckDefinition { kind, ..CheckDefinition::default() }
    }

    fn script() -> CheckDefinition {
        let kind = CheckKind::Script { args: vec!["true".to_owned()], interval: S, timeout: S };
        CheckDefinition { kind, ..CheckDefinition::default() }
    }

    #[test]
    fn a_check_runs_within_its_interval_and_then_one_interval_after_each_end() {
        let mut ward = Ward::new();
        ward.register("c", tcp(10));
        ward.pass(10 * S);
        assert_eq!(ward.log(), "run c");
        ward.pass(60 * S);
        assert_eq!(ward.log(), "", "it is still running");
        ward.finish(Status::Passing, "up");
        assert_eq!(ward.log(), "c passing \"up\"");
        ward.pass(10 * S - Duration::from_millis(1));
        assert_eq!(ward.log(), "");
        ward.pass(Duration::from_millis(1));
        assert_eq!(ward.log(), "run c");
    }

    #[test]
    fn ten_thousand_equal_results_write_nothing() {
        let mut ward = Ward::new();
        ward.register("c", tcp(1));
        ward.pass(S);
        ward.finish(Status::Passing, "up");
        ward.log();
        for _ in 0..10_000 {
            ward.pass(S);
            ward.finish(Status::Passing, "up");
        }
        assert!(!ward.log().contains("passing"));
    }

    #[test]
    fn a_changing_output_is_written_every_five_minutes_at_most() {
        let mut ward = Ward::new();
        ward.register("c", tcp(1));
        ward.pass(S);
        let mut writes = 0;
        for n in 0..1200 {
            ward.finish(Status::Passing, &format!("{n} ms"));
            writes += usize::from(ward.log().contains("passing"));
            ward.pass(S);
        }
        assert_eq!(writes, 4, "the edge, and one each 300 s");
    }

    #[test]
    fn an_output_that_is_not_written_is_shown_all_the_same() {
        let mut ward = Ward::new();
        ward.register("c", ttl(1_000));
        let last = |ward: &mut Ward, status, words: &str| {
            let mut answer = ward.report("c", status, words);
            assert_eq!(answer.try_recv().unwrap(), Ok(()));
            ward.shown.get("c").cloned()
        };
        assert_eq!(last(&mut ward, Status::Passing, "one"), None, "it is written");
        assert_eq!(last(&mut ward, Status::Passing, "two").unwrap(), "two");
        assert_eq!(last(&mut ward, Status::Passing, "one"), None, "as the row has it");
        assert_eq!(last(&mut ward, Status::Passing, "three").unwrap(), "three");
        assert_eq!(last(&mut ward, Status::Critical, "four"), None, "it is written");
        assert_eq!(last(&mut ward, Status::Critical, "five").unwrap(), "five");
        ward.pass(600 * S);
        assert_eq!(last(&mut ward, Status::Critical, "six"), None, "it is time");
        assert_eq!(last(&mut ward, Status::Critical, "seven").unwrap(), "seven");
        ward.unregister("c");
        assert!(ward.shown.is_empty());
    }

    #[test]
    fn a_silent_application_becomes_critical_and_its_last_words_are_kept() {
        let mut ward = Ward::new();
        ward.register("c", ttl(10));
        let mut answer = ward.report("c", Status::Warning, "careful");
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        assert_eq!(ward.log(), "c warning \"careful\"");
        ward.pass(10 * S);
        let expected = "c critical \"TTL expired (last output before timeout follows): careful\"";
        assert_eq!(ward.log(), expected);
        ward.pass(1000 * S);
        assert_eq!(ward.log(), "", "it expires once");
        ward.report("c", Status::Passing, "");
        assert_eq!(ward.log(), "c passing \"\"");
        ward.pass(10 * S);
        assert_eq!(ward.log(), "c critical \"TTL expired\"");
    }

    #[test]
    fn every_report_starts_the_time_to_live_anew() {
        let mut ward = Ward::new();
        ward.register("c", ttl(10));
        ward.report("c", Status::Passing, "");
        ward.log();
        for _ in 0..100 {
            ward.pass(9 * S);
            ward.report("c", Status::Passing, "");
        }
        assert_eq!(ward.log(), "");
    }

    #[test]
    fn after_a_start_an_application_has_its_whole_time_to_report() {
        let mut ward = Ward::new();
        let row = Check { id: "c".to_owned(), status: Status::Passing, ..Check::default() };
        ward.rows.insert("c".to_owned(), row);
        ward.register("c", ttl(10));
        ward.pass(10 * S - Duration::from_micros(1));
        assert_eq!(ward.log(), "");
        ward.pass(Duration::from_micros(1));
        assert_eq!(ward.log(), "c critical \"TTL expired\"");
    }

    #[test]
    fn definitions_that_did_not_change_disturb_nothing() {
        let mut ward = Ward::new();
        ward.register("c", ttl(10));
        ward.pass(9 * S);
        ward.register("other", ttl(100));
        ward.pass(S);
        assert_eq!(ward.log(), "c critical \"TTL expired\"");
    }

    #[test]
    fn registering_again_counts_as_a_sign_of_life() {
        let mut ward = Ward::new();
        ward.register("c", ttl(10));
        ward.pass(9 * S);
        ward.rounds.on_registered_again(ward.now, "c");
        ward.rounds.on_registered_again(ward.now, "nosuch");
        ward.pass(9 * S);
        assert_eq!(ward.log(), "");
        ward.pass(S);
        assert_eq!(ward.log(), "c critical \"TTL expired\"");
    }

    #[test]
    fn a_report_for_anything_but_a_ttl_check_is_refused_in_consuls_words() {
        let mut ward = Ward::new();
        ward.register("probe", tcp(10));
        ward.rows.insert("passive".to_owned(), Check::default());
        for id in ["probe", "passive", "nosuch"] {
            let error = ward.report(id, Status::Passing, "").try_recv().unwrap().unwrap_err();
            assert_eq!(error.to_string(), format!("CheckID \"{id}\" does not have associated TTL"));
            assert_eq!(matches!(error, ReportError::UnknownCheck(_)), id == "nosuch");
        }
        assert_eq!(ward.log(), "");
    }

    #[test]
    fn a_long_note_is_cut_to_what_the_check_keeps() {
        let mut ward = Ward::new();
        ward.register("c", CheckDefinition { output_bytes_max: 5, ..ttl(10) });
        ward.report("c", Status::Passing, "0123456789");
        assert_eq!(ward.log(), "c passing \"01234 ... (captured 5 of 10 bytes)\"");
    }

    #[test]
    fn writes_of_one_check_follow_each_other_and_only_the_latest_wish_counts() {
        let mut ward = Ward::new();
        ward.is_slow = true;
        ward.register("c", ttl(10));
        let mut first = ward.report("c", Status::Passing, "1");
        let mut second = ward.report("c", Status::Warning, "2");
        let mut third = ward.report("c", Status::Critical, "3");
        assert_eq!(ward.log(), "c passing \"1\"");
        assert!(first.try_recv().is_err());
        ward.carry_out();
        assert_eq!(ward.log(), "c critical \"3\"");
        assert_eq!(first.try_recv().unwrap(), Ok(()));
        assert!(second.try_recv().is_err(), "nothing that covers it is on disk yet");
        ward.carry_out();
        assert_eq!(second.try_recv().unwrap(), Ok(()));
        assert_eq!(third.try_recv().unwrap(), Ok(()));
    }

    #[test]
    fn a_write_that_failed_is_tried_again_until_it_succeeds() {
        let mut ward = Ward::new();
        ward.register("c", ttl(100));
        ward.failure = Some(SubmitError::Busy);
        let mut answer = ward.report("c", Status::Passing, "up");
        let error = answer.try_recv().unwrap().unwrap_err();
        assert_eq!(error, ReportError::NotWritten(SubmitError::Busy));
        ward.pass(3 * S);
        assert_eq!(ward.log().matches("passing").count(), 4);
        ward.failure = None;
        ward.pass(3 * S);
        assert_eq!(ward.log(), "c passing \"up\"");
    }

    #[test]
    fn a_result_of_an_earlier_registration_is_not_taken() {
        let mut ward = Ward::new();
        ward.register("c", tcp(1));
        ward.pass(S);
        ward.register("c", tcp(5));
        ward.log();
        ward.finish(Status::Passing, "the old target");
        assert_eq!(ward.log(), "");
        ward.unregister("c");
        ward.pass(100 * S);
        assert_eq!(ward.log(), "");
    }

    #[test]
    fn a_check_that_was_removed_and_registered_again_is_written_anew() {
        let mut ward = Ward::new();
        ward.register("c", tcp(1));
        ward.pass(S);
        ward.finish(Status::Passing, "up");
        ward.log();
        // Faster than the rounds hear of it: only the row was replaced.
        let row = ward.rows.get_mut("c").unwrap();
        *row = Check { id: "c".to_owned(), ..Check::default() };
        ward.pass(S);
        ward.finish(Status::Passing, "up");
        assert_eq!(ward.log(), "run c; c passing \"up\"");
    }

    #[test]
    fn an_instance_that_stays_critical_is_removed() {
        let mut ward = Ward::new();
        ward.register("c", CheckDefinition { deregister_after: Some(10 * S), ..ttl(10) });
        ward.pass(10 * S);
        assert_eq!(ward.log(), "c critical \"TTL expired\"");
        ward.pass(60 * S);
        assert_eq!(ward.log(), "", "ten seconds are raised to a minute");
        ward.pass(30 * S);
        assert_eq!(ward.log(), "deregister web");
    }

    #[test]
    fn an_instance_that_recovered_in_between_is_not_removed() {
        let mut ward = Ward::new();
        ward.register("c", CheckDefinition { deregister_after: Some(60 * S), ..ttl(1000) });
        ward.report("c", Status::Critical, "");
        ward.pass(50 * S);
        ward.report("c", Status::Passing, "");
        ward.report("c", Status::Critical, "");
        ward.pass(50 * S);
        assert!(!ward.log().contains("deregister"));
        ward.pass(50 * S);
        assert!(ward.log().contains("deregister web"));
    }

    #[test]
    fn a_check_that_never_spoke_has_no_time_to_count_from() {
        let mut ward = Ward::new();
        ward.register("c", CheckDefinition { deregister_after: Some(60 * S), ..ttl(1000) });
        ward.pass(900 * S);
        assert_eq!(ward.log(), "");
    }

    #[test]
    fn scripts_do_not_run_unless_they_may() {
        let run = |config: Config, source| {
            let mut ward = Ward::with(config);
            let row = Check { id: "c".to_owned(), source, ..Check::default() };
            ward.rows.insert("c".to_owned(), row);
            ward.register("c", script());
            ward.pass(S);
            ward.log()
        };
        let off = Config::default();
        let local = Config { enable_local_script_checks: true, ..Config::default() };
        let all = Config { enable_script_checks: true, ..Config::default() };
        let refusal = format!("c critical {SCRIPTS_DISABLED:?}");
        assert_eq!(run(off.clone(), Source::Api), refusal);
        assert_eq!(run(off, Source::File), refusal);
        assert_eq!(run(local.clone(), Source::Api), refusal);
        assert_eq!(run(local, Source::File), "run c");
        assert_eq!(run(all, Source::Api), "run c");
    }

    proptest::proptest! {
        #[test]
        fn whatever_happens_the_last_report_is_what_is_written(
            steps in proptest::collection::vec((0..6u8, 0..3u8), 1..60)
        ) {
            let mut ward = Ward::new();
            ward.is_slow = true;
            ward.register("c", ttl(1_000_000));
            let mut last = None;
            for (step, word) in steps {
                match step {
                    0 | 1 => {
                        let status =
                            [Status::Passing, Status::Warning, Status::Critical][word as usize];
                        ward.report("c", status, "");
                        last = Some(status);
                    }
                    2 => ward.failure = Some(SubmitError::Busy),
                    3 => ward.failure = None,
                    4 => ward.pass(S),
                    _ if !ward.slow.is_empty() => ward.carry_out(),
                    _ => {}
                }
            }
            ward.failure = None;
            for _ in 0..4 {
                ward.pass(2 * S);
                while !ward.slow.is_empty() {
                    ward.carry_out();
                }
            }
            if let Some(last) = last {
                proptest::prop_assert_eq!(ward.rows["c"].status, last);
            }
        }
    }
}
