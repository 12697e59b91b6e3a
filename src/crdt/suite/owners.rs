//! Rows that have an owner, when the owner's disk is lost or set back: its latest write is the row,
//! and what it does not write again it can withdraw.

use super::*;
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
fn reopen<T: Bench>(bench: &mut T, node: NodeId, above: u32) -> T::Disk {
    let mut disk = bench.open(node, &all_tables());
    assert_eq!(disk.begin_epoch(NOW, Epoch(above)).unwrap().1, []);
    disk
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
    let (origin, commits) = owner.begin_epoch(NOW, Epoch(1)).unwrap();
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
    let withdrawn = write(&mut owner, &[RowOp::Withdraw]);
    assert_eq!(show_events(&withdrawn).len(), 1);
    assert_eq!(owner.commit(NOW, &[RowOp::Withdraw]).unwrap(), None);
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
    let withdrawn = write(&mut owner, &[RowOp::Withdraw]);
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

pub fn many_rows_are_renewed_in_pieces<T: Bench>(bench: &mut T) {
    let mut disk = bench.open(A, &all_tables());
    let count = OWN_ROWS_MAX + 3;
    let ops: Vec<RowOp> = (0..count).map(|id| put_own(A, &id.to_string(), 1)).collect();
    write(&mut disk, &ops);
    let (origin, commits) = disk.begin_epoch(NOW, Epoch(1)).unwrap();
    assert_eq!(commits.len(), 2);
    assert_eq!(head(&disk, origin), 2);
    assert_eq!(disk.commit(NOW, &[RowOp::Withdraw]).unwrap(), None);
    assert_eq!(disk.commit(NOW, &[RowOp::Renew { from: Epoch(1) }]).unwrap(), None);
}
