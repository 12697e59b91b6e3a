//! What local transactions do, and what a commit tells of them.

use super::*;
use crate::crdt::Refusal;
use crate::types::Hlc;

fn open<T: Bench>(bench: &mut T) -> T::Disk {
    bench.open(A, &all_tables())
}

/// What must stay as it is when nothing was written.
fn state(disk: &impl Storage) -> (u64, Vec<(Origin, Version)>) {
    (disk.fingerprint().unwrap(), disk.heads().unwrap())
}

pub fn a_commit_tells_what_became_true<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let first = write(&mut disk, &[put(2, "b"), put(1, "a")]);
    assert_eq!(show_events(&first), ["+t 2 'b' 'dw'", "+t 1 'a' 'dw'"]);
    assert_eq!(first.heads, [(origin(A), Version(1))]);
    assert!(first.at >= Hlc(NOW.millis()));
    let changeset = first.changeset.as_ref().unwrap();
    assert_eq!((changeset.stamp, changeset.at), (stamp(A, 1), NOW));

    let second = write(&mut disk, &[set(1, "v", "c"), delete(2)]);
    assert_eq!(show_events(&second), ["=t 1 'c' 'dw'", "-t 2"]);
    assert_eq!(second.heads, [(origin(A), Version(2))]);
    assert_eq!(second.seq.0, first.seq.0 + 1);
    assert!(second.at > first.at);

    let t = &second.changeset.as_ref().unwrap().tables[0];
    assert_eq!((&*t.table, &t.columns[..]), ("t", &[Name::from("v")][..]));
    let row_of = |id: i64| {
        let key = pack::pack(&[id.into()]).unwrap();
        t.rows.iter().find(|row| row.key == key).unwrap()
    };
    assert_eq!(row_of(1).life, Life { length: 1, stamp: stamp(A, 1) });
    assert_eq!(row_of(1).cells, [CellChange { column: 0, count: 2, value: "c".into() }]);
    assert_eq!(row_of(2).life, Life { length: 2, stamp: stamp(A, 2) });
    assert_eq!(row_of(2).cells, []);
    assert_eq!(disk.heads().unwrap(), [(origin(A), Version(2))]);
}

pub fn a_commit_that_changes_nothing_makes_no_version<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, "a"), put_service(&A.to_string(), "web", "web", 80)]);
    let before = state(&disk);
    let idle = [
        put(1, "a"),
        set(1, "v", "b"),
        set(1, "v", "a"),
        set(7, "v", "b"),
        delete(7),
        put_service(&A.to_string(), "web", "web", 80),
    ];
    assert_eq!(disk.commit(NOW, &idle).unwrap(), None);
    assert_eq!(disk.commit(NOW, &[]).unwrap(), None);
    assert_eq!(state(&disk), before);
    assert_eq!(show(&disk, 1), "1 'a' 'dw' | 1@1/A | v:1@1/A w:1@1/A");
    let next = write(&mut disk, &[put(1, "b")]);
    assert_eq!(next.heads, [(origin(A), Version(2))]);
}

pub fn a_refused_transaction_writes_nothing<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, "a")]);
    let before = state(&disk);
    let nowhere = RowOp::Put { table: "nowhere", row: vec![("id", 1.into())], keep: &[] };
    let faults = [
        RowOp::Require {
            table: "t",
            matching: vec![("id", 9.into())],
            otherwise: Refusal("there is no 9".to_owned()),
        },
        nowhere,
        set(1, "nope", 1),
        RowOp::Delete { table: "t", matching: vec![("nope", 1.into())], except: None },
    ];
    for fault in faults {
        refuse(&mut disk, &[put(1, "b"), put(2, "b"), fault]);
        assert_eq!(state(&disk), before);
        assert_eq!(show(&disk, 1), "1 'a' 'dw' | 1@1/A | v:1@1/A w:1@1/A");
        assert_eq!(show(&disk, 2), "nothing");
    }
    assert_eq!(write(&mut disk, &[put(2, "b")]).heads, [(origin(A), Version(2))]);
}

pub fn a_requirement_sees_the_transaction_it_is_in<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let need = |id: i64| RowOp::Require {
        table: "t",
        matching: vec![("id", id.into()), ("v", "a".into())],
        otherwise: Refusal(format!("there is no {id}")),
    };
    assert_eq!(refuse(&mut disk, &[need(1), put(1, "a")]), "there is no 1");
    write(&mut disk, &[put(1, "a"), need(1)]);
    assert_eq!(refuse(&mut disk, &[delete(1), need(1)]), "there is no 1");
    assert_eq!(refuse(&mut disk, &[set(1, "v", "b"), need(1)]), "there is no 1");
    write(&mut disk, &[need(1), put(2, "a"), need(2)]);
}

pub fn put_replaces_a_row_but_for_what_it_keeps<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let whole = |v: &str, keep| RowOp::Put {
        table: "t",
        row: vec![("id", 1.into()), ("v", v.into())],
        keep,
    };
    write(&mut disk, &[put(1, "a"), set(1, "w", "mine")]);
    write(&mut disk, &[whole("b", &["w"])]);
    assert_eq!(show(&disk, 1), "1 'b' 'mine' | 1@1/A | v:2@2/A w:1@1/A");
    write(&mut disk, &[whole("c", &["v"])]);
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@1/A | v:2@2/A w:2@3/A");
    // Where there is no row, there is nothing to keep.
    write(&mut disk, &[delete(1)]);
    write(&mut disk, &[whole("d", &["v", "w"])]);
    assert_eq!(show(&disk, 1), "1 'd' 'dw' | 3@5/A | v:1@5/A w:1@5/A");
}

pub fn set_and_delete_reach_every_row_that_matches<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let me = A.to_string();
    let services = ["a", "b", "c", "d"].map(|id| put_service(&me, id, "web", 80));
    write(&mut disk, &services);
    write(&mut disk, &[put_service(&me, "d", "db", 80)]);
    let all_web = || vec![("node_id", me.as_str().into()), ("name", "web".into())];
    let port = vec![("port", 81.into())];
    let set = RowOp::Set { table: "services", matching: all_web(), set: port };
    let commit = write(&mut disk, &[set]);
    assert_eq!(commit.tables[0].rows.each().len(), 3);

    let except = Some(("id", vec!["b".into(), "x".into()]));
    let most = RowOp::Delete { table: "services", matching: all_web(), except };
    let commit = write(&mut disk, &[most]);
    let gone = |id: &str| format!("-services '{me}' '{id}'");
    assert_eq!(show_events(&commit), [gone("a"), gone("c")]);

    let rest = RowOp::Delete { table: "services", matching: vec![], except: None };
    let commit = write(&mut disk, &[rest]);
    assert_eq!(show_events(&commit), [gone("b"), gone("d")]);

    // NULL is what NULL equals.
    write(&mut disk, &[put(1, Value::Null), put(2, "a")]);
    let nulls = RowOp::Delete { table: "t", matching: vec![("v", Value::Null)], except: None };
    assert_eq!(show_events(&write(&mut disk, &[nulls])), ["-t 1"]);
}

pub fn an_insert_that_is_deleted_at_once_is_nothing<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    assert_eq!(disk.commit(NOW, &[put(1, "a"), delete(1)]).unwrap(), None);
    assert_eq!(show(&disk, 1), "nothing");
    let commit = write(&mut disk, &[put(1, "a"), put(2, "b"), delete(1)]);
    assert_eq!(show_events(&commit), ["+t 2 'b' 'dw'"]);
    assert_eq!(show(&disk, 1), "nothing");
    // Of a dead row nothing is left either: it stays as dead as it was.
    write(&mut disk, &[delete(2)]);
    assert_eq!(disk.commit(NOW, &[put(2, "a"), delete(2)]).unwrap(), None);
    assert_eq!(show(&disk, 2), "gone | 2@2/A | ");
}

pub fn a_delete_that_is_inserted_again_is_an_update<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, "a"), set(1, "w", "mine")]);
    let commit = write(&mut disk, &[delete(1), put(1, "b"), set(1, "w", "mine")]);
    assert_eq!(show(&disk, 1), "1 'b' 'mine' | 1@1/A | v:2@2/A w:1@1/A");
    assert_eq!(show_events(&commit), ["=t 1 'b' 'mine'"]);
    assert_eq!(disk.commit(NOW, &[delete(1), put(1, "b"), set(1, "w", "mine")]).unwrap(), None);
}

pub fn a_key_may_not_move_onto_another_row<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, "a"), put(2, "b")]);
    let before = state(&disk);
    refuse(&mut disk, &[set(1, "id", 2)]);
    assert_eq!(state(&disk), before);
    // It may take the place of one that leaves: then that row is updated.
    write(&mut disk, &[delete(2), set(1, "id", 2)]);
    assert_eq!(show(&disk, 1), "gone | 2@2/A | ");
    assert_eq!(show(&disk, 2), "2 'a' 'dw' | 1@1/A | v:2@2/A w:1@1/A");
}

pub fn a_row_that_moves_there_and_back_is_not_touched<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, "a")]);
    let there_and_back = [set(1, "id", 2), set(2, "id", 3), set(3, "id", 1)];
    assert_eq!(disk.commit(NOW, &there_and_back).unwrap(), None);
    // On the way through other keys the counts are not lost.
    write(&mut disk, &[set(1, "id", 2), set(2, "id", 3), set(3, "v", "b")]);
    assert_eq!(show(&disk, 2), "nothing");
    assert_eq!(show(&disk, 3), "3 'b' 'dw' | 1@2/A | v:2@2/A w:2@2/A");
}

pub fn a_null_in_the_key_is_refused<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let before = state(&disk);
    let pair =
        |a: Value| RowOp::Put { table: "pairs", row: vec![("a", a), ("b", 1.into())], keep: &[] };
    refuse(&mut disk, &[pair(1.into()), pair(Value::Null)]);
    assert_eq!(state(&disk), before);
}

pub fn an_owned_row_is_stamped_whole<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let me = A.to_string();
    let key = [Value::from(me.as_str()), "web".into()];
    write(&mut disk, &[put_service(&me, "web", "web", 80)]);
    let commit = write(&mut disk, &[put_service(&me, "web", "web", 81)]);
    assert_eq!(
        show_row(&disk, "services", &key),
        format!("'{me}' 'web' 'web' 81 | 1@2/A | name:2@2/A port:2@2/A")
    );
    assert_eq!(commit.changeset.unwrap().tables[0].rows[0].cells.len(), 2);
}

pub fn a_foreign_row_cannot_be_written_here<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let mut owner = bench.open(B, &all_tables());
    let foreign = B.to_string();
    let insert = write(&mut owner, &[put_service(&foreign, "web", "web", 80)]);
    apply(&mut disk, news(&insert));
    let before = state(&disk);
    let matching = || vec![("id", "web".into())];
    let faults = [
        put_service(&foreign, "db", "db", 1),
        put_service(&foreign, "web", "web", 81),
        put_service("somebody", "web", "web", 81),
        RowOp::Delete { table: "services", matching: matching(), except: None },
        RowOp::Set { table: "services", matching: matching(), set: vec![("port", 1.into())] },
        RowOp::Set {
            table: "services",
            matching: matching(),
            set: vec![("node_id", A.to_string().into())],
        },
    ];
    for fault in faults {
        refuse(&mut disk, &[put(1, "a"), fault]);
        assert_eq!(state(&disk), before);
    }
}

pub fn a_row_without_other_columns_lives_and_dies<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let pair = || vec![("a", Value::from("x")), ("b", Value::from(1))];
    let put = RowOp::Put { table: "pairs", row: pair(), keep: &[] };
    let delete = RowOp::Delete { table: "pairs", matching: pair(), except: None };
    let key = ["x".into(), 1.into()];
    write(&mut disk, std::slice::from_ref(&put));
    assert_eq!(show_row(&disk, "pairs", &key), "'x' 1 | 1@1/A | ");
    assert_eq!(disk.commit(NOW, std::slice::from_ref(&put)).unwrap(), None);
    write(&mut disk, std::slice::from_ref(&delete));
    assert_eq!(show_row(&disk, "pairs", &key), "gone | 2@2/A | ");
    write(&mut disk, &[put]);
    assert_eq!(show_row(&disk, "pairs", &key), "'x' 1 | 3@3/A | ");
    // The life is all there is to tell.
    let mut other = bench.open(B, &all_tables());
    pull(&mut other, &disk, usize::MAX);
    assert_eq!(show_row(&other, "pairs", &key), "'x' 1 | 3@3/A | ");
}

pub fn an_epoch_rises_above_all_that_are_known<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    write(&mut disk, &[put(1, "a")]);
    let mut disk = bench.reopen(disk);
    let second = disk.begin_epoch(NOW, Epoch(0)).unwrap().origin;
    assert_eq!(second, Origin { epoch: Epoch(2), ..origin(A) });
    assert_eq!(disk.origin(), second);
    let commit = write(&mut disk, &[put(1, "b")]);
    assert_eq!(commit.heads, [(second, Version(1))]);
    assert_eq!(show(&disk, 1), "1 'b' 'dw' | 1@1/A | v:2@1/A2 w:1@1/A");
    assert_eq!(disk.begin_epoch(NOW, Epoch(6)).unwrap().origin.epoch, Epoch(7));

    // Versions of an epoch that was lost here, and heard of again.
    let lost = Stamp { origin: Origin { epoch: Epoch(9), ..origin(A) }, version: Version(3) };
    let life = Life { length: 1, stamp: lost };
    apply(&mut disk, piece(lost, 0, vec![row("t", &[9.into()], life, &[])]));
    assert_eq!(disk.begin_epoch(NOW, Epoch(0)).unwrap().origin.epoch, Epoch(10));
}

pub fn values_come_back_as_they_went_in<T: Bench>(bench: &mut T) {
    let mut disk = open(bench);
    let mut other = bench.open(B, &all_tables());
    let values = [
        Value::Null,
        Value::from(""),
        Value::from("a\0b \u{1f600}"),
        Value::from("1"),
        Value::Blob(vec![]),
        Value::Blob(vec![0, 1, 0xff]),
        Value::Real(1.0),
        Value::Real(1e300),
        Value::Real(f64::NEG_INFINITY),
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
    ];
    for (id, value) in (1..).zip(&values) {
        let commit = write(&mut disk, &[put(id, value.clone()), set(id, "w", value.clone())]);
        apply(&mut other, news(&commit));
    }
    for (id, value) in (1..).zip(values) {
        let row = Some(vec![Value::Integer(id), value.clone(), value]);
        for disk in [&disk, &other] {
            assert_eq!(disk.inspect("t", &[id.into()]).unwrap().unwrap().row, row);
        }
    }
}
