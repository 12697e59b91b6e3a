//! How changes spread, as a table: designs side by side, in virtual time.
//!
//! `cargo bench --bench dissemination -- --nodes 1000` plays each design under each trouble and takes
//! some minutes of one processor a line. `--design` and `--trouble` pick a line, `--rate` makes so many
//! changes a second rather than one every half second, `--regions 1` puts all nodes into one place.
//! Without `--bench` it is small.
//!
//! Loss is of two kinds. `lost 5 %`: whole messages never come, as if each were one datagram that
//! nobody repeats; harder than any real link. `repaired 5 %`: packets are lost and QUIC sends them
//! again, a round trip and 25 ms later each time. `deaths`: a tenth of the nodes die without a word
//! while changes travel, and the others are told 12 to 15 s later.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::time::Duration;

use tribune::replica::Config;
use tribune::sim::{NetworkConfig, Passage, Travel};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TROUBLES: [&str; 8] = [
    "none",
    "lost 1 %",
    "lost 5 %",
    "lost 20 %",
    "deaths",
    "repaired 1 %",
    "repaired 5 %",
    "repaired 20 %",
];

fn main() {
    let is_full = std::env::args().any(|arg| arg == "--bench");
    let design = word("--design");
    let trouble = word("--trouble");
    head();
    for (name, replica) in [("flood", flood()), ("pruned", pruned()), ("offers", Config::default())]
    {
        for what in TROUBLES {
            let is_wanted = |asked: &Option<String>, name: &str| {
                asked.as_ref().is_none_or(|asked| asked.replace(' ', "") == name.replace(' ', ""))
            };
            if is_wanted(&design, name) && is_wanted(&trouble, what) {
                row(name, what, &travel(is_full, what, replica.clone()).measure());
            }
        }
    }
}

/// Every neighbour is sent everything, and no link is given up.
fn flood() -> Config {
    Config { duplicates_max: u32::MAX, ..pruned() }
}

/// The same, but links that bring only duplicates are given up.
fn pruned() -> Config {
    Config {
        offers: false,
        direct_max: 8,
        eager_target: 5,
        eager_floor: 4,
        eager_max: 8,
        eager_near: 2,
        ..Config::default()
    }
}

fn travel(is_full: bool, trouble: &str, replica: Config) -> Travel {
    let nodes = number("--nodes", if is_full { 100.0 } else { 20.0 }) as usize;
    let mut travel = Travel::calm(number("--seed", 1.0) as u64, nodes);
    travel.replica = replica;
    travel.changes = number("--changes", if is_full { 100.0 } else { 10.0 }) as usize;
    travel.per_second = number("--rate", 0.0);
    travel.value_bytes = number("--bytes", 210.0) as usize;
    travel.known_max = number("--known", 1e9) as usize;
    let regions = number("--regions", 5.0) as usize;
    travel.network = NetworkConfig { regions, ..NetworkConfig::five_regions() };
    match trouble.split_once(' ') {
        Some(("lost", share)) => travel.network.loss = percent(share),
        Some((_, share)) => travel.network.loss_repaired = percent(share),
        None if trouble == "deaths" => travel.deaths = 0.1,
        None => {}
    }
    travel
}

fn percent(text: &str) -> f64 {
    let number = text.trim_end_matches(" %").parse::<f64>();
    number.expect("a share is a number and a sign") / 100.0
}

fn number(name: &str, default: f64) -> f64 {
    word(name).map_or(default, |text| text.parse().expect("a number"))
}

fn word(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn head() {
    println!(
        "| design | trouble | copies | payload, control, wire: bytes a node and change | kB/s a node, \
         mean and most | ms until on all nodes, p50 / p99 / max | on each node | not reached | asked \
         again | pulls |"
    );
    println!("|{}", "---|".repeat(10));
}

fn row(design: &str, trouble: &str, passage: &Passage) {
    let millis = |times: [Duration; 3]| {
        times.map(|time| format!("{:.0}", time.as_secs_f64() * 1e3)).join(" / ")
    };
    let [mean, most] = passage.sent_per_second.map(|bytes| bytes / 1e3);
    let Passage { copies, payload_bytes, control_bytes, wire_bytes, .. } = passage;
    println!(
        "| {design} | {trouble} | {copies:.2} | {payload_bytes:.0}, {control_bytes:.0}, \
         {wire_bytes:.0} | {mean:.1}, {most:.1} | {} | {} | {} | {} | {} |",
        millis(passage.to_all),
        millis(passage.to_each),
        passage.unreached,
        passage.takes_again,
        passage.pulls
    );
}
