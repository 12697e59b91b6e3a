//! Every room's counters, under the names that `/metrics` has them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use crate::catalog::{Status, View};
use crate::dns;
use crate::health::Health;
use crate::http;
use crate::ingest::Ingest;
use crate::live::Queries;
use crate::net::Net;
use crate::node::{Handle, Stats};
use crate::telemetry::{Family, Metrics, Pulses};

/// Where the numbers are read.
pub(super) struct Sources {
    pub(super) handle: Handle,
    pub(super) stats: Arc<ArcSwap<Stats>>,
    pub(super) net: Net,
    pub(super) dns: Arc<dns::Counters>,
    pub(super) http: Arc<http::Stats>,
    pub(super) health: Health,
    pub(super) queries: Arc<Queries>,
    pub(super) ingest: Option<Ingest>,
    pub(super) pulses: Pulses,
}

/// Registers every room.
pub(super) fn register(metrics: &Metrics, sources: Sources) {
    let Sources { handle, stats, net, dns, http, health, queries, ingest, pulses } = sources;
    let node = handle.clone();
    metrics.add("node", move || {
        vec![
            Family::gauge(
                "writes_waiting",
                "Writes that wait for the disk.",
                count(node.writes_waiting()),
            ),
            Family::gauge(
                "tombstones",
                "Deleted rows that are remembered, until every member is known to hold the delete.",
                node.tombstones() as f64,
            ),
            Family::counter(
                "rows_refused",
                "Rows that other nodes sent and may not write, or that cannot be rows.",
                node.left_out().0,
            ),
            Family::counter(
                "rows_kept_aside",
                "Rows that other nodes sent and that do not fit their table: they are kept aside.",
                node.left_out().1,
            ),
            Family::gauge(
                "schema_asides",
                "Parts of the schema that this node cannot carry out.",
                count(usize::try_from(node.schema_asides()).unwrap_or(usize::MAX)),
            ),
        ]
    });
    metrics.add("catalog", move || catalog(&handle.view()));
    let replica = Arc::clone(&stats);
    metrics.add("replica", move || of_replica(&replica.load()));
    metrics.add("swim", move || of_swim(&stats.load()));
    metrics.add("net", move || of_net(&net));
    metrics.add("dns", move || of_dns(&dns));
    metrics.add("http", move || http.families());
    metrics.add("health", move || of_health(&health));
    metrics.add("live", move || {
        let (live, subscribers) = queries.counts();
        vec![
            Family::gauge("queries", "Live SQL queries.", count(live)),
            Family::gauge("subscribers", "Subscribers of live SQL queries.", count(subscribers)),
        ]
    });
    metrics.add("watchdog", move || vec![heartbeats(&pulses)]);
    if let Some(ingest) = ingest {
        metrics.add("ingest", move || of_ingest(&ingest));
    }
}

/// Tells of each kind of loop how old the oldest heartbeat is.
fn heartbeats(pulses: &Pulses) -> Family {
    let now = Instant::now();
    let mut oldest: BTreeMap<&str, f64> = BTreeMap::new();
    for beat in pulses.beats() {
        let age = oldest.entry(beat.name).or_default();
        *age = age.max(beat.age(now).as_secs_f64());
    }
    let points = oldest.into_iter().map(|(part, age)| (vec![("part", part.to_owned())], age));
    Family::gauges(
        "heartbeat_age",
        "Since a loop last said that it lives, the oldest of its kind.",
        points,
    )
    .unit("seconds")
}

fn catalog(view: &View) -> Vec<Family> {
    let in_state = |status: Status| {
        let instances = view.services().flat_map(|service| &service.instances);
        let in_state = instances.filter(|instance| instance.status == status).count();
        (vec![("status", status.as_str().to_owned())], count(in_state))
    };
    let states = [Status::Passing, Status::Warning, Status::Critical].map(in_state);
    vec![
        Family::gauge(
            "services",
            "Services with at least one instance.",
            count(view.services().count()),
        ),
        Family::gauges("instances", "Instances by their health.", states),
        Family::gauge(
            "nodes",
            "Nodes in the catalog, external ones too.",
            count(view.nodes().count()),
        ),
        Family::gauge(
            "nodes_up",
            "Nodes in the catalog that membership holds alive.",
            count(view.nodes().filter(|node| node.info.is_up).count()),
        ),
    ]
}

fn of_replica(stats: &Stats) -> Vec<Family> {
    let replica = &stats.replica;
    let pushes = [
        ("next", replica.pushes_next),
        ("early", replica.pushes_early),
        ("known", replica.pushes_known),
        ("dropped", replica.pushes_dropped),
    ];
    let pulls = [
        ("useful", replica.pulls_useful),
        ("empty", replica.pulls_empty),
        ("busy", replica.pulls_busy),
        ("timed_out", replica.pulls_timed_out),
    ];
    vec![
        Family::gauge(
            "versions_behind",
            "Versions that some peer holds and this node does not.",
            stats.behind.versions as f64,
        ),
        Family::gauge(
            "origins_behind",
            "Origins of which something is missing.",
            count(stats.behind.origins),
        ),
        Family::gauge(
            "lag",
            "For how long the oldest version that is missing here has been known to exist.",
            stats.standing.lag.as_secs_f64(),
        )
        .unit("seconds"),
        Family::gauge(
            "cut_off",
            "Whether fewer than half of the neighbours that there should be are heard.",
            count(usize::from(stats.standing.is_cut_off)),
        ),
        Family::gauge(
            "links_heard",
            "Neighbours that said something of late.",
            count(stats.standing.links_heard),
        ),
        Family::gauge(
            "diverged_members",
            "Members that hold the same versions as this node and have other rows.",
            count(stats.standing.unequal),
        ),
        Family::gauge(
            "origins_set_aside",
            "Origins left alone for a while, since what they wrote could not be written here.",
            count(stats.standing.set_aside),
        ),
        Family::gauge(
            "apply_failing",
            "Whether no change of another node could be written for some seconds.",
            count(usize::from(stats.standing.apply_error.is_some())),
        ),
        Family::counter(
            "mended_rows",
            "Rows of this node that were not what the others had, and were mended.",
            stats.findings.mended,
        ),
        Family::counter(
            "content_looks",
            "Stretches of rows held against another member's.",
            stats.findings.looks,
        ),
        Family::counter(
            "content_passes",
            "Times all rows were held against other members'.",
            stats.findings.passes,
        ),
        Family::gauge("neighbours", "Peers that this node pushes to.", count(stats.neighbours)),
        Family::gauge("waiting", "Changes that wait to be written.", count(stats.waiting_bytes.0))
            .unit("bytes"),
        Family::gauge(
            "early",
            "Changes that came before what they follow.",
            count(stats.waiting_bytes.1),
        )
        .unit("bytes"),
        Family::counter("own_pushed", "Own commits sent to neighbours.", replica.own_pushed),
        Family::counter("relayed", "Pushes passed on.", replica.relayed),
        Family::counters("pushes", "Pushes received, by what they were.", labelled("kind", pushes)),
        Family::counters(
            "offers",
            "Commits offered to neighbours before they are sent, by what became of them.",
            labelled(
                "kind",
                [
                    ("made", replica.offered),
                    ("sent", replica.taken),
                    ("asked", replica.takes),
                    ("asked_again", replica.takes_again),
                ],
            ),
        ),
        Family::counters("pulls", "Pulls answered, by how.", labelled("outcome", pulls)),
        Family::counter("served", "Pulls of others answered.", replica.served),
        Family::counter("batches", "Batches of remote changes written.", replica.batches),
        Family::counter(
            "batches_failed",
            "Batches of remote changes that could not be written.",
            replica.batches_failed,
        ),
        Family::counter("rejected", "What peers said and cannot be.", replica.rejected),
        Family::counters(
            "skipped",
            "Messages that were not read, by the reason.",
            labelled(
                "why",
                [
                    ("kind", stats.heard.unknown_kind),
                    ("version", stats.heard.unknown_version),
                    ("unreadable", stats.heard.unreadable),
                ],
            ),
        ),
        Family::counter(
            "extended",
            "Messages of which the last fields were passed over: a later release has added them.",
            stats.heard.extended,
        ),
        Family::counter("overruns", "Times a peer's queue was full.", replica.overruns),
        Family::counter(
            "epochs_refused",
            "Epochs of this node, told by peers, that are too far ahead to be believed.",
            replica.epochs_refused,
        ),
        Family::counter(
            "epochs_lost",
            "Times a peer knew more of this node's stream than it did itself.",
            replica.epochs_lost,
        ),
        Family::counter("tombstones_dropped", "Tombstones dropped.", replica.tombstones_dropped),
        Family::gauge(
            "collected_versions",
            "Versions, of all origins, that tombstones were dropped of.",
            stats.collection.collected as f64,
        ),
        Family::gauge(
            "round",
            "Age of the round in which all members are asked what they hold.",
            stats.collection.round_age.as_secs_f64(),
        )
        .unit("seconds"),
        Family::gauge(
            "awaited_members",
            "Members that have not told in this round: meanwhile no tombstone goes.",
            count(stats.collection.awaited.len()),
        ),
        Family::gauge(
            "forgotten_members",
            "Members that nobody waits for any more, until they return.",
            count(stats.collection.forgotten.len()),
        ),
        Family::counter(
            "departures",
            "Forgotten members whose rows this node deleted, as all do.",
            replica.departures,
        ),
        Family::gauge(
            "retired_origins",
            "Origins of which nothing is left, and which are remembered for a while.",
            count(stats.collection.retired),
        ),
        Family::counter(
            "origins_erased",
            "Origins of which nothing is remembered any more.",
            replica.origins_erased,
        ),
        Family::gauge(
            "settled",
            "Whether this node has caught up, so that all of what it holds may leave it.",
            count(usize::from(stats.collection.is_settled)),
        ),
        Family::counter(
            "rejoins",
            "Times this node began to take over all rows of another.",
            replica.rejoins,
        ),
        Family::counter(
            "below_floor",
            "Pulls that a peer could not answer, for it has forgotten deletes in between.",
            replica.below_floor,
        ),
        Family::counter(
            "unheard",
            "What forgotten nodes said, or said before they were members again.",
            replica.unheard,
        ),
    ]
}

fn of_swim(stats: &Stats) -> Vec<Family> {
    let swim = &stats.swim;
    vec![
        Family::gauge(
            "members",
            "Members that can be spoken to, this one too.",
            count(stats.members),
        ),
        Family::gauge(
            "distrust",
            "How much this node distrusts itself, 0 to 8.",
            f64::from(stats.health),
        ),
        Family::counter(
            "datagrams_received",
            "Membership datagrams received.",
            swim.datagrams_received,
        ),
        Family::counter("datagrams_sent", "Membership datagrams sent.", swim.datagrams_sent),
        Family::counter(
            "malformed",
            "Membership datagrams that could not be read.",
            swim.malformed,
        ),
        Family::counter("forged", "Membership datagrams under a false name.", swim.forged),
        Family::counter("suspected", "Times this node had to defend itself.", swim.suspected),
        Family::counter("rejoins", "Times the cluster had declared this node dead.", swim.rejoins),
        Family::counter("stalls", "Times this node came more than a second late.", swim.stalls),
        Family::counter(
            "unknown",
            "Membership datagrams of a kind or version that this release does not know.",
            swim.unknown,
        ),
        Family::gauge(
            "held_back",
            "Members that do not answer and are kept in answers, since too many do not.",
            count(stats.held_back),
        ),
        Family::gauges(
            "conflicts",
            "Nodes that are up under one name with another; processes under this node's id.",
            [("name", stats.name_conflicts), ("id", stats.id_conflicts)]
                .map(|(of, number)| (vec![("of", of.to_owned())], count(number))),
        ),
        Family::gauge(
            "aside",
            "1 while this process stands aside for another one under its id.",
            count(usize::from(stats.is_aside)),
        ),
    ]
}

fn of_net(net: &Net) -> Vec<Family> {
    let counts = net.counts();
    let failures = net.failures().into_iter();
    let failures = failures.map(|(why, number)| (vec![("why", why.to_owned())], number));
    let left = net.validity().left(SystemTime::now()).unwrap_or_default().as_secs_f64();
    vec![
        Family::gauge("connections", "Connections to other nodes.", counts.links as f64),
        Family::counter("dials", "Connections begun by this node.", counts.dials),
        Family::counter("dials_failed", "Of these, those that failed.", counts.dials_failed),
        Family::counters(
            "failures",
            "Connections, begun by either side, that did not come about, by the reason.",
            failures,
        ),
        Family::gauge(
            "certificate_left",
            "How long this node's certificate, and its CA's, counts.",
            left,
        )
        .unit("seconds"),
        Family::counter("accepted", "Connections of others taken.", counts.accepted),
        Family::counter("refused", "Connections of others refused.", counts.refused),
        Family::counter("evicted", "Connections closed to make room.", counts.evicted),
        Family::counter("frames_sent", "Frames sent.", counts.frames_sent),
        Family::counter("frames_received", "Frames received.", counts.frames_received),
        Family::counter(
            "frames_dropped",
            "Frames not sent for want of room.",
            counts.frames_dropped,
        ),
        Family::counter("frames_sent", "Bytes of frames sent.", counts.frame_bytes_sent)
            .unit("bytes"),
        Family::counter(
            "frames_received",
            "Bytes of frames received.",
            counts.frame_bytes_received,
        )
        .unit("bytes"),
        Family::counter("packets_sent", "Packets of UDP sent.", counts.packets_sent),
        Family::counter("packets_received", "Packets of UDP received.", counts.packets_received),
        Family::counter("packets_sent", "Bytes of UDP sent.", counts.packet_bytes_sent)
            .unit("bytes"),
        Family::counter("packets_received", "Bytes of UDP received.", counts.packet_bytes_received)
            .unit("bytes"),
        Family::counter(
            "streams_unknown",
            "Streams of a kind that this release does not know.",
            counts.streams_unknown,
        ),
        Family::counter("datagrams_sent", "Membership datagrams sent.", counts.datagrams_sent),
        Family::counter(
            "datagrams_received",
            "Membership datagrams received.",
            counts.datagrams_received,
        ),
        Family::counter(
            "datagrams_dropped",
            "Membership datagrams dropped.",
            counts.datagrams_dropped,
        ),
        Family::counters(
            "snapshots",
            "Requests of others for a snapshot, by what became of them.",
            labelled(
                "outcome",
                [
                    ("sent", counts.snapshots_sent),
                    ("declined", counts.snapshots_declined),
                    ("failed", counts.snapshots_failed),
                ],
            ),
        ),
        Family::counter("snapshots_sent", "Bytes of snapshots sent.", counts.snapshot_bytes_sent)
            .unit("bytes"),
    ]
}

fn of_dns(dns: &dns::Counters) -> Vec<Family> {
    let kinds = &dns.kinds;
    let kinds = [
        ("a", &kinds.a),
        ("aaaa", &kinds.aaaa),
        ("srv", &kinds.srv),
        ("any", &kinds.any),
        ("txt", &kinds.txt),
        ("ptr", &kinds.ptr),
        ("soa", &kinds.soa),
        ("ns", &kinds.ns),
        ("other", &kinds.other),
        ("unreadable", &kinds.unreadable),
    ];
    let codes = &dns.codes;
    let codes = [
        ("noerror", &codes.no_error),
        ("nxdomain", &codes.nx_domain),
        ("refused", &codes.refused),
        ("formerr", &codes.form_err),
        ("notimp", &codes.not_imp),
        ("servfail", &codes.serv_fail),
        ("other", &codes.other),
    ];
    vec![
        Family::counters("questions", "Questions by type.", labelled("type", kinds.map(read))),
        Family::counters("answers", "Answers by response code.", labelled("code", codes.map(read))),
        Family::counter("truncated", "Answers over UDP that were cut.", load(&dns.truncated)),
        Family::counter("dropped", "Packets that got no answer.", load(&dns.dropped)),
        Family::counter(
            "panics",
            "Packets whose answering failed: each is a bug.",
            load(&dns.panics),
        ),
        Family::counter(
            "send_errors",
            "Answers that the system would not send.",
            load(&dns.send_errors),
        ),
        Family::counter("tcp_accepted", "TCP connections accepted.", load(&dns.tcp_accepted)),
        Family::counter(
            "tcp_refused",
            "TCP connections closed for a limit.",
            load(&dns.tcp_refused),
        ),
        Family::counter(
            "restrained",
            "Answers over UDP to strangers that were cut or not sent.",
            load(&dns.restrained),
        ),
        Family::counters(
            "recursion",
            "Questions about names outside of the zones, by what became of them.",
            labelled("outcome", of_recursion(&dns.recursion).map(read)),
        ),
        Family::counter(
            "recursors_circular",
            "Recursors that send questions back to this node.",
            load(&dns.recursion.circles),
        ),
    ]
}

fn of_recursion(counters: &dns::counters::Recursion) -> [(&'static str, &AtomicU64); 5] {
    [
        ("asked", &counters.asked),
        ("cached", &counters.cached),
        ("failed", &counters.failed),
        ("stale", &counters.stale),
        ("shed", &counters.shed),
    ]
}

fn of_health(health: &Health) -> Vec<Family> {
    let counters = health.counters();
    vec![
        Family::gauge(
            "checks",
            "Checks that this node runs or hears reports of.",
            counters.checks as f64,
        ),
        Family::gauge("runs_now", "Runs under way.", counters.runs_now as f64),
        Family::counter("runs", "Runs that ended.", counters.runs),
        Family::counter("reports", "Reports of applications.", counters.reports),
        Family::counter("writes", "Changes of health written.", counters.writes),
        Family::counter(
            "write_errors",
            "Changes of health that could not be written.",
            counters.write_errors,
        ),
        Family::counter(
            "deregistered",
            "Instances removed because they stayed critical.",
            counters.deregistered,
        ),
    ]
}

fn of_ingest(ingest: &Ingest) -> Vec<Family> {
    let status = ingest.status();
    vec![
        Family::gauge(
            "up",
            "1 while the Consul agent answers.",
            count(usize::from(status.error.is_none())),
        ),
        Family::gauge(
            "holding_back",
            "1 while a withdrawal is doubted.",
            count(usize::from(status.waiting.is_some())),
        ),
        Family::gauge("services", "Services that the agent named.", count(status.services)),
        Family::gauge("checks", "Checks that the agent named.", count(status.checks)),
        Family::gauge(
            "unreadable",
            "Items of the agent that could not be read.",
            count(status.unreadable),
        ),
        Family::counter("polls", "Times the agent was asked.", status.polls),
        Family::counter("failures", "Times the agent was asked in vain.", status.failures),
        Family::counter("changes", "Changes taken over.", status.changes),
    ]
}

fn labelled<const N: usize>(
    label: &'static str,
    points: [(&'static str, u64); N],
) -> impl Iterator<Item = (Vec<(&'static str, String)>, u64)> {
    points.into_iter().map(move |(value, count)| (vec![(label, value.to_owned())], count))
}

fn read<'a>((name, counter): (&'a str, &AtomicU64)) -> (&'a str, u64) {
    (name, load(counter))
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Gauges are floating-point; these counts are far below 2^53.
fn count(count: usize) -> f64 {
    count as f64
}
