//! How changes spread, as a table: designs side by side, in virtual time.
//!
//! `cargo bench --bench dissemination` takes some minutes; without `--bench` it is small.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::time::Duration;

use tribune::replica::Config;
use tribune::sim::{Passage, Travel};

fn number(name: &str, default: f64) -> f64 {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.nth(1).map_or(default, |text| text.parse().expect("a number"))
}

fn word(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

/// Every neighbour is sent everything, and no link is given up.
fn flood() -> Config {
    Config { offers: false, duplicates_max: u32::MAX, direct_max: 8, ..Config::default() }
}

/// The same, but links that bring only duplicates are given up.
fn pruned() -> Config {
    Config { offers: false, direct_max: 8, ..Config::default() }
}

fn main() {
    let nodes = number("--nodes", 100.0) as usize;
    let changes = number("--changes", 100.0) as usize;
    let per_second = number("--rate", 0.0);
    let seed = number("--seed", 1.0) as u64;
    let only = word("--only");
    let what = word("--what").unwrap_or_else(|| "all".to_owned());
    let designs = [("flood", flood()), ("pruned", pruned()), ("offers", Config::default())];
    println!(
        "| design | trouble | copies | payload B | control B | wire B | sent kB/s mean / most | all p50 / p99 / max ms | each p50 / p99 / max ms | unreached | again | pulls |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, replica) in designs {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        for trouble in ["none", "1", "5", "20", "deaths", "r1", "r5", "r20"] {
            if what != "all" && what != trouble {
                continue;
            }
            let mut replica = replica.clone();
            replica.eager_near = number("--near-links", replica.eager_near as f64) as usize;
            replica.eager_target = number("--target", replica.eager_target as f64) as usize;
            replica.lazy_target = number("--lazy", replica.lazy_target as f64) as usize;
            replica.offer_later = Duration::from_millis(number("--later", 25.0) as u64);
            replica.take_timeout = Duration::from_millis(number("--take", 15.0) as u64);
            replica.digest_every = Duration::from_millis(number("--digest", 500.0) as u64);
            let mut travel = Travel {
                replica: replica.clone(),
                changes,
                per_second,
                ..Travel::calm(seed, nodes)
            };
            travel.known_max = number("--known", 1e9) as usize;
            travel.value_bytes = number("--bytes", 210.0) as usize;
            travel.writers = number("--writers", nodes as f64) as usize;
            if number("--near", 0.0) > 0.0 {
                travel.network = tribune::sim::NetworkConfig::default();
                travel.network.jitter = Duration::from_micros(200);
                travel.network.near = Duration::from_micros(100);
                travel.network.regions = number("--near", 1.0) as usize;
            }
            if let Some(rest) = trouble.strip_prefix('r') {
                travel.network.loss_repaired = rest.parse::<f64>().unwrap() / 100.0;
            } else if let Ok(loss) = trouble.parse::<f64>() {
                travel.network.loss = loss / 100.0;
            } else if trouble == "deaths" {
                travel.deaths = 0.1;
            }
            row(name, trouble, &travel.measure());
        }
    }
}

fn row(name: &str, trouble: &str, p: &Passage) {
    let ms = |times: [Duration; 3]| {
        times.map(|time| format!("{:.0}", time.as_secs_f64() * 1e3)).join(" / ")
    };
    println!(
        "| {name} | {trouble} | {:.2} | {:.0} | {:.0} | {:.0} | {:.1} / {:.1} | {} | {} | {} | {} | {} |",
        p.copies,
        p.payload_bytes,
        p.control_bytes,
        p.wire_bytes,
        p.sent_per_second[0] / 1e3,
        p.sent_per_second[1] / 1e3,
        ms(p.to_all),
        ms(p.to_each),
        p.unreached,
        p.takes_again,
        p.pulls
    );
}
