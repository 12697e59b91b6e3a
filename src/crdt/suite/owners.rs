//! Rows that have an owner, when the owner's disk is lost or set back: its latest write is the row,
//! and what it does not write again it can withdraw.

use super::*;
use crate::crdt::Refusal;
use crate::crdt::change::OWN_ROWS_MAX;

fn service(owner: NodeId, id: &str) -> [Value; 2] {
    [owner.to_string().into(), id.into()]
}

fn put_own(owner: NodeId, id: &str, port: i64) -> RowOp {
    put_service(&owner.to_string(), id, "web", port)
}

fn delete_own(owner: NodeId, id: &str) -> RowOp {
    let matching = vec![("node_id", owner.to_string().into()), ("id", id.into())];
    RowOp::Delete { table: "services", matching, except: None }
}

fn port(disk: &impl Storage, owner: NodeId, id: &str) -> Option<Value> {
    let inspected = disk.inspect("services", &service(owner, id)).unwrap()?;
    inspected.row.map(|row| row[3].clone())
}

/// Opens the empty disk of a node that had another one before.
fn reopen<T: Bench>(bench: &mut T, node: NodeId, above: u64) -> T::Disk {
    let mut disk = bench.open(node, &all_tables());
    assert_eq!(disk.begin_epoch(NOW, Epoch(above)).unwrap().commits, []);
    disk
}

fn withdraw(disk: &mut impl Storage) -> Commit {
    let [commit] = <[Commit; 1]>::try_from(disk.withdraw(NOW).unwrap()).unwrap();
    commit
}

pub fn a_lost_disk_does_not_lose_its_owners_word<T: Bench>(bench: &mut T) {
    let mut lost = bench.open(A, &all_tables());
    for value in 1..=4 {
        write(&mut lost, &[put_own(A, "busy", 9_000 + value), put_own(A, "gone", value)]);
    }
    write(&mut lost, &[delete_own(A, "gone")]);
    let mut peer = bench.open(B, &all_tables());
    pull(&mut peer, &lost, usize::MAX);

    // Each was written once in this life: the counts, values and lives before were greater.
    let mut owner = reopen(bench, A, 1);
    let again = write(&mut owner, &[put_own(A, "busy", 80), put_own(A, "gone", 81)]);
    let mut other_way = bench.open(C, &all_tables());
    apply(&mut other_way, news(&again));
    pull(&mut other_way, &peer, usize::MAX);
    let heard = apply(&mut peer, news(&again));
    assert_eq!(show_events(&heard).len(), 2);
    pull(&mut owner, &peer, usize::MAX);
    for disk in [&owner, &peer, &other_way] {
        assert_eq!(port(disk, A, "busy"), Some(80.into()));
        assert_eq!(port(disk, A, "gone"), Some(81.into()));
        assert_eq!(disk.fingerprint().unwrap(), owner.fingerprint().unwrap());
    }
}

pub fn an_epoch_takes_the_owners_rows_along<T: Bench>(bench: &mut T) {
    // What the disk that is set back remembers, and what it has lost.
    let remembered = [put_own(A, "kept", 1), put_own(A, "moved", 1), put(1, "shared")];
    let mut before = bench.open(A, &all_tables());
    write(&mut before, &remembered);
    write(&mut before, &[put_own(A, "moved", 9_999), put_own(A, "new", 5), delete_own(A, "kept")]);
    let mut peer = bench.open(B, &all_tables());
    pull(&mut peer, &before, usize::MAX);

    let mut owner = bench.open(A, &all_tables());
    write(&mut owner, &remembered);
    let mut owner = bench.reopen(owner);
    let Begun { origin, commits, .. } = owner.begin_epoch(NOW, Epoch(1)).unwrap();
    let rows = |commit: &Commit| -> usize {
        commit.changeset.iter().flat_map(|c| &c.tables).map(|table| table.rows.len()).sum()
    };
    assert_eq!(commits.iter().map(rows).sum::<usize>(), 2, "not the row that all may write");
    assert!(commits.iter().all(|commit| commit.tables.is_empty()), "nobody sees a difference");
    assert_eq!(head(&owner, origin), 1);
    let inspected = owner.inspect("services", &service(A, "kept")).unwrap().unwrap();
    assert_eq!(inspected.life.stamp, Stamp { origin, version: Version(1) });

    pull(&mut owner, &peer, usize::MAX);
    pull(&mut peer, &owner, usize::MAX);
    for disk in [&owner, &peer] {
        assert_eq!(port(disk, A, "kept"), Some(1.into()), "the tail does not take it back");
        assert_eq!(port(disk, A, "moved"), Some(1.into()));
        assert_eq!(port(disk, A, "new"), Some(5.into()), "until it is withdrawn");
    }
    let withdrawn = withdraw(&mut owner);
    assert_eq!(show_events(&withdrawn).len(), 1);
    assert_eq!(owner.withdraw(NOW).unwrap(), []);
    apply(&mut peer, news(&withdrawn));
    assert_eq!(port(&peer, A, "new"), None);
    assert_eq!(port(&peer, A, "kept"), Some(1.into()));
    assert_eq!(peer.fingerprint().unwrap(), owner.fingerprint().unwrap());
}

pub fn a_row_that_came_back_is_claimed_by_writing_it_again<T: Bench>(bench: &mut T) {
    let mut lost = bench.open(A, &all_tables());
    let external = format!("{A}/printer");
    let outside = || put_service(&external, "ipp", "printing", 631);
    write(&mut lost, &[put_own(A, "same", 1), put_own(A, "other", 1), outside()]);
    let mut peer = bench.open(B, &all_tables());
    pull(&mut peer, &lost, usize::MAX);
    write(&mut peer, &[put_own(B, "theirs", 1)]);
    let mut owner = reopen(bench, A, 1);
    pull(&mut owner, &peer, usize::MAX);
    assert_eq!(port(&owner, A, "same"), Some(1.into()));

    let claimed = write(&mut owner, &[put_own(A, "same", 1), outside()]);
    assert_eq!(show_events(&claimed), [""; 0], "nothing that anybody sees");
    assert_eq!(owner.commit(NOW, &[put_own(A, "same", 1)]).unwrap(), None, "once is enough");
    let theirs = require(B, "theirs");
    assert_eq!(owner.commit(NOW, &[theirs]).unwrap(), None, "others' rows cannot be claimed");
    let withdrawn = withdraw(&mut owner);
    assert_eq!(show_events(&withdrawn), [format!("-services '{A}' 'other'")]);
    for commit in [&claimed, &withdrawn] {
        apply(&mut peer, news(commit));
    }
    for disk in [&owner, &peer] {
        assert_eq!(port(disk, A, "same"), Some(1.into()));
        assert_eq!(port(disk, A, "other"), None);
        assert_eq!(port(disk, B, "theirs"), Some(1.into()), "it is not A's to withdraw");
        let external = disk.inspect("services", &[external.clone().into(), "ipp".into()]);
        assert!(external.unwrap().unwrap().row.is_some());
    }
    assert_eq!(peer.fingerprint().unwrap(), owner.fingerprint().unwrap());
}

fn require(owner: NodeId, id: &str) -> RowOp {
    let matching = vec![("node_id", owner.to_string().into()), ("id", id.into())];
    RowOp::Require { table: "services", matching, otherwise: Refusal("there is none".into()) }
}

pub fn whatever_touches_a_row_claims_it<T: Bench>(bench: &mut T) {
    let matching = || vec![("node_id", A.to_string().into()), ("id", "web".into())];
    let same = || vec![("port", Value::from(1))];
    let touches: [(&str, Vec<RowOp>); 4] = [
        ("built on", vec![require(A, "web")]),
        ("set", vec![RowOp::Set { table: "services", matching: matching(), set: same() }]),
        ("named", vec![RowOp::Set { table: "services", matching: matching(), set: vec![] }]),
        ("put anew", vec![delete_own(A, "web"), put_own(A, "web", 1)]),
    ];
    for (how, ops) in touches {
        let mut lost = bench.open(A, &all_tables());
        write(&mut lost, &[put_own(A, "web", 1)]);
        let mut owner = reopen(bench, A, 1);
        pull(&mut owner, &lost, usize::MAX);
        let claimed = write(&mut owner, &ops);
        assert_eq!(show_events(&claimed), [""; 0], "{how}");
        assert_eq!(owner.commit(NOW, &ops).unwrap(), None, "{how}");
        assert_eq!(owner.withdraw(NOW).unwrap(), [], "{how}");
        pull(&mut lost, &owner, usize::MAX);
        assert_eq!(port(&lost, A, "web"), Some(1.into()), "{how}");
    }
}

pub fn what_was_written_under_names_that_were_given_away_is_said_again<T: Bench>(bench: &mut T) {
    // A disk is set back, and nobody notices before it has written on.
    let image = |bench: &mut T| {
        let mut disk = bench.open(A, &all_tables());
        write(&mut disk, &[put_own(A, "s", 1), put_own(A, "t", 1), put(1, "old"), put(2, "old")]);
        disk
    };
    let mut before = image(bench);
    write(&mut before, &[put_own(A, "u", 1), set(2, "v", "tail")]);
    let mut peer = bench.open(B, &all_tables());
    pull(&mut peer, &before, usize::MAX);

    let from = image(bench);
    let mut owner = bench.reopen(from);
    write(&mut owner, &[delete_own(A, "s"), set(1, "v", "new")]);
    let begun = owner.begin_epoch(NOW, Epoch(1)).unwrap();
    assert_eq!(begun.ended, (origin(A), Version(1)), "as far as the disk was when it was opened");
    for _ in 0..2 {
        pull(&mut owner, &peer, usize::MAX);
        pull(&mut peer, &owner, usize::MAX);
    }
    withdraw(&mut owner);
    pull(&mut peer, &owner, usize::MAX);
    for disk in [&owner, &peer] {
        assert_eq!(port(disk, A, "s"), None, "it was deregistered");
        assert_eq!(port(disk, A, "t"), Some(1.into()));
        assert_eq!(port(disk, A, "u"), None, "withdrawn: nobody here remembers it");
        assert!(show(disk, 1).starts_with("1 'new' 'dw'"), "{}", show(disk, 1));
        assert!(show(disk, 2).starts_with("2 'tail' 'dw'"), "{}", show(disk, 2));
        assert_eq!(disk.fingerprint().unwrap(), owner.fingerprint().unwrap());
    }
    assert_eq!(owner.heads().unwrap(), peer.heads().unwrap());
}

pub fn a_claimed_row_says_what_it_holds_and_nothing_else<T: Bench>(bench: &mut T) {
    // A newer release had a column more, and the node went back to the older one.
    let mut columns: Vec<(&str, Value)> =
        ["node_id", "id"].map(|name| (name, Value::Null)).to_vec();
    columns.extend([("name", "".into()), ("port", 0.into()), ("x", "".into())]);
    let newer = Definition::new("services", &columns, &["node_id", "id"]).unwrap();
    let mut lost = bench.open(A, std::slice::from_ref(&newer));
    let mut row = vec![("node_id", Value::from(A.to_string())), ("id", "web".into())];
    row.extend([("name", "web".into()), ("port", 1.into()), ("x", "kept".into())]);
    write(&mut lost, &[RowOp::Put { table: "services", row, keep: &[] }]);
    let mut peer = bench.open(B, &[newer]);
    pull(&mut peer, &lost, usize::MAX);

    let mut owner = reopen(bench, A, 1);
    pull(&mut owner, &peer, usize::MAX);
    let claimed = write(&mut owner, &[put_own(A, "web", 1)]);
    apply(&mut peer, news(&claimed));
    assert_eq!(peer.fingerprint().unwrap(), owner.fingerprint().unwrap());
    let mut newcomer = bench.open(C, &all_tables());
    pull(&mut newcomer, &owner, usize::MAX);
    assert_eq!(newcomer.fingerprint().unwrap(), owner.fingerprint().unwrap());
}

pub fn great_rows_are_renewed_and_withdrawn_in_pieces<T: Bench>(bench: &mut T) {
    let mut disk = bench.open(A, &all_tables());
    for id in 0..5 {
        let name = "n".repeat(3 * 1024 * 1024);
        write(&mut disk, &[put_service(&A.to_string(), &format!("s{id}"), &name, 1)]);
    }
    let begun = disk.begin_epoch(NOW, Epoch(1)).unwrap();
    assert_eq!(begun.commits.len(), 5);
    let mut owner = reopen(bench, A, 7);
    pull(&mut owner, &disk, usize::MAX);
    assert_eq!(owner.withdraw(NOW).unwrap().len(), 1);
    assert_eq!(port(&owner, A, "s0"), None);
}

pub fn many_rows_are_renewed_in_pieces<T: Bench>(bench: &mut T) {
    let mut disk = bench.open(A, &all_tables());
    let count = OWN_ROWS_MAX + 3;
    let ops: Vec<RowOp> = (0..count).map(|id| put_own(A, &id.to_string(), 1)).collect();
    write(&mut disk, &ops);
    let Begun { origin, commits, .. } = disk.begin_epoch(NOW, Epoch(1)).unwrap();
    assert_eq!(commits.len(), 2);
    assert_eq!(head(&disk, origin), 2);
    assert_eq!(disk.withdraw(NOW).unwrap(), []);
}
