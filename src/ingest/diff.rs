//! What the agent says now against what this node holds: the changes that follow, and what a
//! person should be told. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::agent::Items;
use super::guard::{Guard, GuardConfig, Verdict};
use crate::catalog::NodeEntry;
use crate::catalog::command::MirrorChange;
use crate::catalog::model::{
    Check, NODE_MAINTENANCE, SERF_HEALTH, SERVICE_MAINTENANCE, Service, Source,
};
use crate::types::Time;

/// What the agent says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    pub services: Items<Service>,
    pub checks: Items<Check>,
}

/// What this node holds of its own, whoever brought it in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    pub services: BTreeMap<String, Service>,
    pub checks: BTreeMap<String, Check>,
}

impl Held {
    /// Collects what stands in the catalog for a node.
    pub fn of(entry: &NodeEntry) -> Self {
        let mut held = Self::default();
        for instance in entry.instances() {
            held.services.insert(instance.service.id.clone(), instance.service.clone());
            held.hold_checks(instance.checks.iter().map(|entry| &entry.check));
        }
        held.hold_checks(entry.checks.iter().map(|entry| &entry.check));
        held
    }

    fn hold_checks<'a>(&mut self, checks: impl Iterator<Item = &'a Check>) {
        for check in checks.filter(|check| check.id != SERF_HEALTH) {
            self.checks.insert(check.id.clone(), check.clone());
        }
    }

    fn has_native_service(&self, id: &str) -> bool {
        self.services.get(id).is_some_and(|service| service.source != Source::Consul)
    }

    fn mirrored_services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter(|service| service.source == Source::Consul)
    }

    fn mirrored_checks(&self) -> impl Iterator<Item = &Check> {
        self.checks.values().filter(|check| check.source == Source::Consul)
    }
}

/// What follows from one answer, or from none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// Changes that belong together stand together: an instance and its checks.
    pub groups: Vec<Vec<MirrorChange>>,
    /// What to tell, once each.
    pub notes: Vec<Note>,
}

/// A sentence for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    Info(String),
    Warn(String),
}

/// What is remembered from one answer of the agent to the next.
#[derive(Debug)]
pub struct Mirror {
    update_interval: Duration,
    withdraw_after: Option<Duration>,
    services_guard: Guard,
    checks_guard: Guard,
    /// When a check was last written; of others, `started` counts.
    written_at: BTreeMap<String, Time>,
    started: Time,
    /// What has been told and is still so.
    told: BTreeSet<String>,
    waiting_services: Option<String>,
    waiting_checks: Option<String>,
    /// Since when the agent does not answer, and why.
    silence: Option<Silence>,
    /// Whether what is held alike is written too: until that was done once after the start. Rows
    /// that other nodes brought back, after this node's disk was lost, are withdrawn unless somebody
    /// claims them; of others nothing changes by it.
    claims: bool,
}

#[derive(Debug)]
struct Silence {
    since: Time,
    reason: String,
    has_withdrawn: bool,
}

impl Mirror {
    pub fn new(
        now: Time,
        guard: GuardConfig,
        update_interval: Duration,
        withdraw_after: Option<Duration>,
    ) -> Self {
        Self {
            update_interval,
            withdraw_after,
            services_guard: Guard::new(guard.clone(), 1),
            // One check of an instance that stays is removed on purpose; nobody would do that
            // with many at once.
            checks_guard: Guard::new(guard, 2),
            written_at: BTreeMap::new(),
            started: now,
            told: BTreeSet::new(),
            waiting_services: None,
            waiting_checks: None,
            silence: None,
            claims: true,
        }
    }

    /// Returns what is being waited for before something is withdrawn, in words.
    pub fn waiting(&self) -> Option<String> {
        let parts: Vec<&str> = [&self.waiting_services, &self.waiting_checks]
            .into_iter()
            .flatten()
            .map(|s| &**s)
            .collect();
        if parts.is_empty() { None } else { Some(parts.join("; ")) }
    }

    /// The agent did not answer.
    pub fn on_error(&mut self, now: Time, reason: &str, held: &Held) -> Step {
        self.services_guard.on_error();
        self.checks_guard.on_error();
        self.waiting_checks = None;
        let count = held.mirrored_services().count();
        let mut step = Step::default();
        let is_new = self.silence.as_ref().is_none_or(|silence| silence.reason != reason);
        let silence = self.silence.get_or_insert_with(|| Silence {
            since: now,
            reason: String::new(),
            has_withdrawn: false,
        });
        silence.reason = reason.to_owned();
        let since = silence.since;
        let plan = match self.withdraw_after {
            None => format!("the {count} services that came from it stay until it answers"),
            Some(after) => {
                let left = (since + after).since(now);
                format!(
                    "the {count} services that came from it stay; if it does not answer within \
                     {left:.0?} they are withdrawn (consul.withdraw_after)"
                )
            }
        };
        self.waiting_services = Some(plan.clone());
        if is_new {
            step.notes
                .push(Note::Warn(format!("The Consul agent does not answer: {reason}; {plan}")));
        }
        let is_over = self.withdraw_after.is_some_and(|after| now.since(since) >= after);
        if is_over && !silence.has_withdrawn {
            silence.has_withdrawn = true;
            step.groups = withdraw_all(held);
            step.notes.push(Note::Warn(format!(
                "The Consul agent has not answered for {:.0?}: its {count} services are withdrawn",
                now.since(since)
            )));
        }
        step
    }

    /// What the last answer asked for is written.
    pub fn on_written(&mut self) {
        self.claims = false;
    }

    /// The agent has answered.
    pub fn on_answer(&mut self, now: Time, seen: &Seen, held: &Held) -> Step {
        let answer = Answer { now, seen, held };
        let mut draft = Draft::default();
        self.end_silence(now, &mut draft);
        let fate = self.services(&answer, &mut draft);
        self.put_checks(&answer, &fate, &mut draft);
        self.remove_checks(&answer, &fate, &mut draft);
        for id in fate.withdrawn {
            draft.of(&id).push(MirrorChange::RemoveService { service_id: id.clone() });
        }
        self.tell_of_oddities(&answer, &mut draft);
        draft.into_step()
    }

    fn end_silence(&mut self, now: Time, draft: &mut Draft) {
        if let Some(silence) = self.silence.take() {
            self.waiting_services = None;
            let time = now.since(silence.since);
            draft
                .notes
                .push(Note::Info(format!("The Consul agent answers again after {time:.0?}")));
        }
    }

    /// Puts services that differ, and decides which of them go.
    fn services(&mut self, answer: &Answer<'_>, draft: &mut Draft) -> Fate {
        let Answer { now, seen, held } = *answer;
        let mut staying = BTreeSet::new();
        for (id, service) in &seen.services.readable {
            if held.has_native_service(id) {
                continue;
            }
            staying.insert(id.clone());
            if self.claims || held.services.get(id) != Some(service) {
                draft.of(id).push(MirrorChange::PutService(service.clone()));
            }
        }
        let mut gone = BTreeSet::new();
        for service in held.mirrored_services() {
            if seen.services.mentions(&service.id) {
                staying.insert(service.id.clone());
            } else {
                gone.insert(service.id.clone());
            }
        }
        let count = held.mirrored_services().count();
        let verdict = self.services_guard.on_answer(now, count, gone.len());
        let missing = Missing { kind: "services", gone: gone.len(), count };
        missing.tell(now, verdict, &mut self.waiting_services, draft);
        if matches!(verdict, Verdict::Wait { .. }) {
            staying.append(&mut gone);
        }
        Fate { staying, withdrawn: gone }
    }

    fn put_checks(&mut self, answer: &Answer<'_>, fate: &Fate, draft: &mut Draft) {
        let Answer { now, seen, held } = *answer;
        for (id, check) in &seen.checks.readable {
            let before = held.checks.get(id);
            let is_native = before.is_some_and(|check| check.source != Source::Consul);
            if is_native || !fate.has_place_for(check) || id == SERF_HEALTH {
                continue;
            }
            let is_due = || {
                let last = self.written_at.get(id).copied().unwrap_or(self.started);
                now.since(last) >= self.update_interval
            };
            let is_news = |before: &Check| is_news(before, check) || before != check && is_due();
            if self.claims || before.is_none_or(is_news) {
                self.written_at.insert(id.clone(), now);
                draft.of(&check.service_id).push(MirrorChange::PutCheck(check.clone()));
            }
        }
        self.written_at.retain(|id, _| seen.checks.mentions(id));
    }

    fn remove_checks(&mut self, answer: &Answer<'_>, fate: &Fate, draft: &mut Draft) {
        let Answer { now, seen, held } = *answer;
        // The checks of an instance that is waited for wait with it.
        let waits = |check: &Check| {
            let service_id = &check.service_id;
            fate.staying.contains(service_id) && !seen.services.mentions(service_id)
        };
        // Guarded are the checks whose instance stays: losing them would make it look well.
        let is_guarded = |check: &&Check| fate.has_place_for(check) && !is_maintenance(&check.id);
        let present = || held.mirrored_checks().filter(|check| !waits(check));
        let (guarded, free): (Vec<&Check>, Vec<&Check>) =
            present().filter(|check| !seen.checks.mentions(&check.id)).partition(is_guarded);
        let count = present().filter(is_guarded).count();
        let verdict = self.checks_guard.on_answer(now, count, guarded.len());
        let missing = Missing { kind: "checks", gone: guarded.len(), count };
        missing.tell(now, verdict, &mut self.waiting_checks, draft);
        let believed = if verdict == Verdict::Withdraw { guarded } else { Vec::new() };
        // The agent still names them, but their instance is gone, or is not its own.
        let orphans = held.mirrored_checks().filter(|check| {
            seen.checks.mentions(&check.id)
                && !fate.has_place_for(check)
                && !seen.checks.readable.get(&check.id).is_some_and(|now| fate.has_place_for(now))
        });
        for check in free.into_iter().chain(believed).chain(orphans) {
            let is_withdrawn = fate.withdrawn.contains(&check.service_id);
            let group = if is_withdrawn { &check.service_id } else { "" };
            draft.of(group).push(MirrorChange::RemoveCheck { check_id: check.id.clone() });
        }
    }

    /// Tells of items that could not be read, or that are registered here as well: once each, as
    /// long as it is so.
    fn tell_of_oddities(&mut self, answer: &Answer<'_>, draft: &mut Draft) {
        let Answer { seen, held, .. } = *answer;
        let unreadable = |kind: &'static str| {
            move |(id, reason): (&String, &String)| {
                format!("The Consul agent's {kind} {id:?} is left as it was: {reason}")
            }
        };
        let shadowed =
            seen.services.readable.keys().filter(|id| held.has_native_service(id)).map(|id| {
                format!(
                    "Service {id:?} is registered both here and at the Consul agent: the \
                     registration here counts"
                )
            });
        let now_so: BTreeSet<String> = (seen.services.unreadable.iter().map(unreadable("service")))
            .chain(seen.checks.unreadable.iter().map(unreadable("check")))
            .chain(shadowed)
            .collect();
        draft.notes.extend(now_so.difference(&self.told).cloned().map(Note::Warn));
        self.told = now_so;
    }
}

/// Tells whether a check differs in more than its output.
fn is_news(before: &Check, now: &Check) -> bool {
    !before.speaks_like(now) || before.source != now.source
}

fn is_maintenance(check_id: &str) -> bool {
    check_id == NODE_MAINTENANCE || check_id.starts_with(SERVICE_MAINTENANCE)
}

/// How much the agent leaves out.
struct Missing {
    kind: &'static str,
    gone: usize,
    count: usize,
}

impl Missing {
    /// Tells when waiting begins and how it ends; `waiting` says it all the while.
    fn tell(&self, now: Time, verdict: Verdict, waiting: &mut Option<String>, draft: &mut Draft) {
        let Self { kind, gone, count } = self;
        match verdict {
            Verdict::Wait { polls_left, until } => {
                let left = until.since(now);
                let text = format!(
                    "{gone} of {count} {kind} are missing from the Consul agent's answer; they \
                     stay until it has left them out {polls_left} more times and for {left:.0?} \
                     more"
                );
                if waiting.replace(text.clone()).is_none() {
                    draft.notes.push(Note::Warn(text));
                }
            }
            Verdict::Withdraw if waiting.take().is_some() => draft.notes.push(match gone {
                0 => Note::Info(format!("The Consul agent names all {count} {kind} again")),
                _ => Note::Warn(format!(
                    "The Consul agent insists: {gone} of {count} {kind} are withdrawn"
                )),
            }),
            Verdict::Withdraw => {}
        }
    }
}

fn withdraw_all(held: &Held) -> Vec<Vec<MirrorChange>> {
    let mut draft = Draft::default();
    for check in held.mirrored_checks() {
        let change = MirrorChange::RemoveCheck { check_id: check.id.clone() };
        draft.of(&check.service_id).push(change);
    }
    for service in held.mirrored_services() {
        let change = MirrorChange::RemoveService { service_id: service.id.clone() };
        draft.of(&service.id).push(change);
    }
    draft.into_step().groups
}

/// One answer, and what it is compared with.
#[derive(Clone, Copy)]
struct Answer<'a> {
    now: Time,
    seen: &'a Seen,
    held: &'a Held,
}

/// What becomes of the services that come from Consul.
struct Fate {
    staying: BTreeSet<String>,
    withdrawn: BTreeSet<String>,
}

impl Fate {
    /// Tells whether the check belongs to the node or to an instance that stays.
    fn has_place_for(&self, check: &Check) -> bool {
        check.service_id.is_empty() || self.staying.contains(&check.service_id)
    }
}

/// A step in the making: changes by the instance they belong to.
#[derive(Default)]
struct Draft {
    groups: BTreeMap<String, Vec<MirrorChange>>,
    notes: Vec<Note>,
}

impl Draft {
    /// Returns an instance's changes; those of the node stand under the empty id.
    fn of(&mut self, service_id: &str) -> &mut Vec<MirrorChange> {
        self.groups.entry(service_id.to_owned()).or_default()
    }

    /// Returns the step; each change of the node is a group by itself.
    fn into_step(mut self) -> Step {
        let of_node = self.groups.remove("").unwrap_or_default();
        let of_node = of_node.into_iter().map(|change| vec![change]);
        Step { groups: of_node.chain(self.groups.into_values()).collect(), notes: self.notes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Status;

    const S: Duration = Duration::from_secs(1);

    /// A node and an agent, in virtual time. What follows from an answer is carried out at once.
    struct Pair {
        mirror: Mirror,
        now: Time,
        agent: Seen,
        held: Held,
        notes: String,
        changes: usize,
    }

    impl Pair {
        /// `web-1` .. `web-n`, each with a check, in both.
        fn with(count: usize) -> Self {
            Self::with_withdrawal(count, None)
        }

        fn with_withdrawal(count: usize, withdraw_after: Option<Duration>) -> Self {
            let guard = GuardConfig::default();
            let mirror = Mirror::new(Time(0), guard, 300 * S, withdraw_after);
            let mut pair = Self {
                mirror,
                now: Time(0),
                agent: Seen::default(),
                held: Held::default(),
                notes: String::new(),
                changes: 0,
            };
            for n in 1..=count {
                pair.register(&format!("web-{n}"));
            }
            pair.poll(S);
            (pair.changes, pair.notes) = (0, String::new());
            pair
        }

        fn register(&mut self, id: &str) {
            let service = service(id, Source::Consul);
            self.agent.services.readable.insert(id.to_owned(), service);
            let check = check(&format!("service:{id}"), id);
            self.agent.checks.readable.insert(check.id.clone(), check);
        }

        fn deregister(&mut self, id: &str) {
            self.agent.services.readable.remove(id);
            self.agent.checks.readable.remove(&format!("service:{id}"));
        }

        fn poll(&mut self, time: Duration) -> Step {
            self.now = self.now + time;
            let step = self.mirror.on_answer(self.now, &self.agent, &self.held);
            self.carry_out(&step);
            self.mirror.on_written();
            step
        }

        fn fail(&mut self, time: Duration, reason: &str) -> Step {
            self.now = self.now + time;
            let step = self.mirror.on_error(self.now, reason, &self.held);
            self.carry_out(&step);
            step
        }

        fn carry_out(&mut self, step: &Step) {
            for note in &step.notes {
                let (Note::Info(text) | Note::Warn(text)) = note;
                self.notes.push_str(text);
                self.notes.push('\n');
            }
            for change in step.groups.iter().flatten().cloned() {
                self.changes += 1;
                let held = &mut self.held;
                match change {
                    MirrorChange::PutService(service) => {
                        held.services.insert(service.id.clone(), service);
                    }
                    MirrorChange::RemoveService { service_id } => {
                        assert!(held.services.remove(&service_id).is_some(), "{service_id}");
                    }
                    MirrorChange::PutCheck(check) => {
                        let id = &check.service_id;
                        assert!(id.is_empty() || held.services.contains_key(id), "{check:?}");
                        held.checks.insert(check.id.clone(), check);
                    }
                    MirrorChange::RemoveCheck { check_id } => {
                        assert!(held.checks.remove(&check_id).is_some(), "{check_id}");
                    }
                }
            }
        }

        fn is_in_line(&self) -> bool {
            self.held.services == self.agent.services.readable
                && self.held.checks == self.agent.checks.readable
        }

        fn check(&mut self, id: &str) -> &mut Check {
            self.agent.checks.readable.get_mut(&format!("service:{id}")).unwrap()
        }
    }

    fn service(id: &str, source: Source) -> Service {
        Service { id: id.to_owned(), name: "web".to_owned(), source, ..Service::default() }
    }

    fn check(id: &str, service_id: &str) -> Check {
        Check {
            id: id.to_owned(),
            service_id: service_id.to_owned(),
            status: Status::Passing,
            source: Source::Consul,
            ..Check::default()
        }
    }

    #[test]
    fn what_the_agent_has_is_taken_over_and_then_nothing_is_written() {
        let mut pair = Pair::with(5);
        assert!(pair.is_in_line());
        for _ in 0..1000 {
            assert_eq!(pair.poll(S), Step::default());
        }
    }

    #[test]
    fn what_is_held_alike_is_claimed_once_after_the_start() {
        let before = Pair::with(2);
        let guard = GuardConfig::default();
        let mut started = Pair { mirror: Mirror::new(Time(0), guard, 300 * S, None), ..before };
        let unwritten = started.mirror.on_answer(Time(0) + S, &started.agent, &started.held);
        assert_eq!(started.poll(S), unwritten, "what was not written is said again");
        assert_eq!(started.changes, 4, "two instances, each with a check");
        assert_eq!(started.poll(S), Step::default());
    }

    #[test]
    fn an_instance_stands_together_with_its_checks() {
        let mut pair = Pair::with(0);
        pair.register("a");
        pair.register("b");
        let groups = pair.poll(S).groups;
        assert_eq!(groups.len(), 2);
        assert!(matches!(groups[0][..], [MirrorChange::PutService(_), MirrorChange::PutCheck(_)]));
    }

    #[test]
    fn every_field_of_a_service_counts() {
        let edits: [fn(&mut Service); 8] = [
            |service| service.name.push('x'),
            |service| service.tags.push("v2".to_owned()),
            |service| service.address = "10.0.0.1".to_owned(),
            |service| service.port = 80,
            |service| service.meta = BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            |service| service.weights.passing = 7,
            |service| service.enable_tag_override = true,
            |service| service.kind = "connect-proxy".to_owned(),
        ];
        for edit in edits {
            let mut pair = Pair::with(3);
            edit(pair.agent.services.readable.get_mut("web-2").unwrap());
            pair.poll(S);
            assert!(pair.is_in_line());
            assert_eq!(pair.changes, 1);
        }
    }

    #[test]
    fn a_status_is_taken_over_at_once_with_its_output() {
        let mut pair = Pair::with(2);
        pair.check("web-1").status = Status::Critical;
        pair.check("web-1").output = "refused".to_owned();
        pair.poll(S);
        assert!(pair.is_in_line());
        assert_eq!(pair.changes, 1);
    }

    #[test]
    fn an_output_alone_is_written_every_five_minutes_at_most() {
        let mut pair = Pair::with(1);
        for n in 0..1200 {
            pair.check("web-1").output = format!("{n} ms");
            pair.poll(S);
        }
        assert_eq!(pair.changes, 4);
    }

    #[test]
    fn one_deregistration_is_taken_over_at_once_with_its_checks() {
        let mut pair = Pair::with(4);
        pair.deregister("web-2");
        pair.poll(S);
        assert!(pair.is_in_line());
        assert_eq!(pair.held.services.len(), 3);
        assert_eq!(pair.notes, "");
    }

    #[test]
    fn an_empty_answer_withdraws_nothing_until_it_is_insisted_on() {
        let mut pair = Pair::with(10);
        pair.agent = Seen::default();
        pair.poll(S);
        let begin = "10 of 10 services are missing from the Consul agent's answer; they stay \
             until it has left them out 2 more times and for 30s more\n";
        assert_eq!(pair.notes, begin);
        for _ in 0..29 {
            pair.poll(S);
        }
        assert_eq!((pair.held.services.len(), pair.held.checks.len()), (10, 10));
        assert_eq!(pair.changes, 0);
        assert_eq!(pair.notes, begin, "it is told once");
        assert!(pair.mirror.waiting().unwrap().contains("0 more times and for 1s more"));
        pair.poll(S);
        assert!(pair.is_in_line());
        assert!(pair.notes.ends_with("insists: 10 of 10 services are withdrawn\n"));
        assert_eq!(pair.mirror.waiting(), None);
    }

    #[test]
    fn an_empty_answer_that_was_a_mistake_leaves_no_trace() {
        let mut pair = Pair::with(10);
        let agent = std::mem::take(&mut pair.agent);
        for _ in 0..20 {
            pair.poll(S);
        }
        pair.agent = agent;
        pair.poll(S);
        assert!(pair.notes.ends_with("The Consul agent names all 10 services again\n"));
        assert_eq!(pair.changes, 0);
        assert!(pair.is_in_line());
    }

    #[test]
    fn while_some_are_waited_for_the_others_stay_fresh() {
        let mut pair = Pair::with(10);
        for n in 1..=8 {
            pair.deregister(&format!("web-{n}"));
        }
        pair.register("new");
        pair.check("web-9").status = Status::Critical;
        pair.poll(S);
        assert_eq!(pair.held.services.len(), 11);
        assert_eq!(pair.held.checks["service:web-9"].status, Status::Critical);
        assert!(pair.held.checks.contains_key("service:web-1"));
        for _ in 0..30 {
            pair.poll(S);
        }
        assert!(pair.is_in_line());
    }

    #[test]
    fn an_agent_that_vanishes_takes_nothing_with_it() {
        let mut pair = Pair::with(3);
        for _ in 0..10_000 {
            pair.fail(30 * S, "connection refused");
        }
        assert_eq!(pair.changes, 0);
        let expected = "The Consul agent does not answer: connection refused; the 3 services that \
             came from it stay until it answers\n";
        assert_eq!(pair.notes, expected);
        assert!(pair.mirror.waiting().is_some());
        pair.notes.clear();
        pair.poll(S);
        assert_eq!(pair.notes, "The Consul agent answers again after 299971s\n");
        assert_eq!(pair.mirror.waiting(), None);
    }

    #[test]
    fn an_agent_that_comes_back_empty_is_not_believed_at_once() {
        let mut pair = Pair::with(10);
        pair.fail(S, "connection refused");
        pair.deregister("web-1");
        for _ in 0..30 {
            pair.poll(S);
        }
        assert_eq!(pair.held.services.len(), 10, "even one is doubted after a failure");
        pair.poll(S);
        assert!(pair.is_in_line());
    }

    #[test]
    fn where_it_is_asked_for_a_long_silence_withdraws_everything_once() {
        let mut pair = Pair::with_withdrawal(3, Some(3600 * S));
        pair.fail(S, "timed out");
        assert!(pair.notes.contains("if it does not answer within 3600s they are withdrawn"));
        pair.fail(3599 * S, "timed out");
        assert_eq!(pair.changes, 0);
        pair.fail(S, "timed out");
        assert_eq!((pair.held.services.len(), pair.held.checks.len()), (0, 0));
        assert_eq!(pair.changes, 6);
        pair.fail(S, "timed out");
        assert_eq!(pair.changes, 6);
        pair.poll(S);
        assert!(pair.is_in_line());
    }

    #[test]
    fn an_item_that_became_unreadable_stays_as_it_was() {
        let mut pair = Pair::with(3);
        pair.agent.services.readable.remove("web-1");
        pair.agent.services.unreadable.insert("web-1".to_owned(), "odd".to_owned());
        pair.agent.checks.readable.remove("service:web-2");
        pair.agent.checks.unreadable.insert("service:web-2".to_owned(), "odd".to_owned());
        pair.check("web-1").status = Status::Critical;
        pair.poll(S);
        pair.poll(S);
        assert_eq!((pair.held.services.len(), pair.held.checks.len()), (3, 3));
        assert_eq!(pair.held.checks["service:web-1"].status, Status::Critical);
        let expected = "The Consul agent's check \"service:web-2\" is left as it was: odd\n\
             The Consul agent's service \"web-1\" is left as it was: odd\n";
        assert_eq!(pair.notes, expected);
    }

    #[test]
    fn what_is_registered_here_wins_and_that_is_told_once() {
        let mut pair = Pair::with(2);
        let own = Service { port: 1, ..service("web-1", Source::Api) };
        pair.held.services.insert("web-1".to_owned(), own.clone());
        pair.poll(S);
        pair.poll(S);
        assert_eq!(pair.held.services["web-1"], own);
        assert!(!pair.held.checks.contains_key("service:web-1"), "it would speak for another");
        assert_eq!(pair.notes.matches("the registration here counts").count(), 1);
        pair.deregister("web-1");
        pair.poll(S);
        assert_eq!(pair.held.services["web-1"], own);
        assert_eq!(pair.held.services.len(), 2);
    }

    #[test]
    fn a_check_that_is_registered_here_wins() {
        let mut pair = Pair::with(1);
        let own = Check { source: Source::Api, ..check("disk", "") };
        pair.held.checks.insert("disk".to_owned(), own.clone());
        let theirs = Check { status: Status::Critical, ..check("disk", "") };
        pair.agent.checks.readable.insert("disk".to_owned(), theirs);
        pair.poll(S);
        assert_eq!(pair.held.checks["disk"], own);
        pair.agent.checks.readable.remove("disk");
        pair.poll(S);
        assert_eq!(pair.held.checks["disk"], own);
    }

    #[test]
    fn a_lost_check_would_make_its_instance_look_well_so_many_are_waited_for() {
        let mut pair = Pair::with(10);
        pair.agent.checks = Items::default();
        for _ in 0..30 {
            pair.poll(S);
        }
        assert_eq!(pair.held.checks.len(), 10);
        assert!(pair.notes.starts_with("10 of 10 checks are missing"));
        pair.poll(S);
        assert!(pair.is_in_line());
    }

    #[test]
    fn one_check_is_removed_at_once() {
        let mut pair = Pair::with(1);
        pair.agent.checks = Items::default();
        pair.poll(S);
        assert!(pair.is_in_line());
    }

    #[test]
    fn maintenance_is_entered_and_left_at_once() {
        let mut pair = Pair::with(3);
        for n in 1..=3 {
            let (id, of) = (format!("_service_maintenance:web-{n}"), format!("web-{n}"));
            let check = Check { status: Status::Critical, ..check(&id, &of) };
            pair.agent.checks.readable.insert(id, check);
        }
        let node = Check { status: Status::Critical, ..check("_node_maintenance", "") };
        pair.agent.checks.readable.insert(node.id.clone(), node);
        pair.poll(S);
        assert_eq!(pair.changes, 4);
        pair.agent.checks.readable.retain(|id, _| !id.starts_with('_'));
        pair.poll(S);
        assert!(pair.is_in_line());
    }

    #[test]
    fn a_check_of_a_service_that_is_not_there_is_left_aside() {
        let mut pair = Pair::with(1);
        let stray = check("stray", "nosuch");
        pair.agent.checks.readable.insert("stray".to_owned(), stray);
        let serf = check("serfHealth", "");
        pair.agent.checks.readable.insert("serfHealth".to_owned(), serf);
        assert_eq!(pair.poll(S), Step::default());
    }

    proptest! {
        #[test]
        fn whatever_the_agent_did_this_node_is_in_line_half_a_minute_later(
            steps in prop::collection::vec((0..8u8, 1..12u8, 0..40u64), 1..40)
        ) {
            let mut pair = Pair::with(6);
            for (step, n, seconds) in steps {
                let id = format!("web-{n}");
                match step {
                    0 | 1 => pair.register(&id),
                    2 | 3 => pair.deregister(&id),
                    4 => pair.agent = Seen::default(),
                    5 => { pair.agent.checks.readable.remove(&format!("service:{id}")); }
                    6 => { pair.fail(S, "down"); }
                    _ => {
                        if let Some(service) = pair.agent.services.readable.get_mut(&id) {
                            service.port += 1;
                        }
                    }
                }
                // As in an agent: no check without its service.
                let services: BTreeSet<String> =
                    pair.agent.services.readable.keys().cloned().collect();
                pair.agent.checks.readable.retain(|_, check| services.contains(&check.service_id));
                pair.poll(S * u32::try_from(seconds).unwrap());
            }
            for _ in 0..35 {
                pair.poll(S);
            }
            // The guard of the checks may begin only when that of the services ends.
            for _ in 0..35 {
                pair.poll(S);
            }
            prop_assert!(pair.is_in_line(), "{:?}", pair.mirror.waiting());
            prop_assert_eq!(pair.poll(S), Step::default());
        }
    }
}
