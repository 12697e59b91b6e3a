//! External nodes, and tags in the place of registered ones.

use super::*;
use crate::catalog::command::CatalogEdit;
use crate::catalog::view::NodeEntry;

fn edit(desk: &mut Desk, edits: Vec<CatalogEdit>) -> Result<bool, String> {
    desk.submit(Command::Edit(edits))
}

fn put_node(name: &str) -> CatalogEdit {
    let node = Node { name: name.to_owned(), ..Node::default() };
    CatalogEdit::PutNode { row: name.to_lowercase(), node }
}

fn put_service(node: &str, id: &str) -> CatalogEdit {
    CatalogEdit::PutService { node: node.to_owned(), service: service(id) }
}

fn put_check(node: &str, id: &str, service_id: &str) -> CatalogEdit {
    let check = Check {
        id: id.to_owned(),
        service_id: service_id.to_owned(),
        status: Status::Passing,
        ..Check::default()
    };
    CatalogEdit::PutCheck { node: node.to_owned(), check }
}

/// `name: instance[check] | check`, of an external node.
fn shown(desk: &Desk, name: &str) -> Option<String> {
    let entry: &NodeEntry = desk.view.node(name)?;
    let ids = |list: &[Arc<crate::catalog::view::CheckEntry>]| {
        list.iter().map(|one| one.check.id.as_str()).collect::<Vec<_>>().join(" ")
    };
    let instances = entry.instances().map(|i| format!("{}[{}]", i.service.id, ids(&i.checks)));
    let instances = instances.collect::<Vec<_>>().join(" ");
    Some(format!("{}: {instances} | {}", entry.info.node.name, ids(&entry.checks)))
}

#[test]
fn an_external_node_comes_and_goes_with_all_that_is_on_it() {
    let mut desk = Desk::new();
    let edits = vec![
        put_node("Printer"),
        put_service("printer", "ipp"),
        put_check("printer", "up", "ipp"),
        put_check("printer", "ping", ""),
    ];
    assert_eq!(edit(&mut desk, edits.clone()), Ok(true));
    assert_eq!(shown(&desk, "PRINTER").unwrap(), "Printer: ipp[up] | ping");
    assert_eq!(edit(&mut desk, edits), Ok(false), "the same again is no news");
    assert_eq!(desk.shown(), "| serfHealth | ", "this node is as it was");
    let node = "printer".to_owned();
    let gone = CatalogEdit::RemoveService { node: node.clone(), service_id: "ipp".to_owned() };
    assert_eq!(edit(&mut desk, vec![gone]), Ok(true));
    assert_eq!(shown(&desk, "printer").unwrap(), "Printer:  | ping");
    assert_eq!(edit(&mut desk, vec![put_service("printer", "ipp")]), Ok(true));
    let gone = CatalogEdit::RemoveCheck { node: node.clone(), check_id: "ping".to_owned() };
    assert_eq!(edit(&mut desk, vec![gone]), Ok(true));
    assert_eq!(edit(&mut desk, vec![CatalogEdit::RemoveNode { node: node.clone() }]), Ok(true));
    assert_eq!(shown(&desk, "printer"), None);
    assert_eq!(edit(&mut desk, vec![CatalogEdit::RemoveNode { node }]), Ok(false));
    edit(&mut desk, vec![put_node("printer")]).unwrap();
    assert_eq!(shown(&desk, "printer").unwrap(), "printer:  | ", "nothing of before came back");
}

#[test]
fn what_stands_on_nothing_is_refused_whole() {
    let mut desk = Desk::new();
    let refusal = edit(&mut desk, vec![put_service("nosuch", "x")]).unwrap_err();
    assert_eq!(refusal, "Missing node registration of \"nosuch\"");
    let edits = vec![put_node("e1"), put_check("e1", "c", "nosuch")];
    let refusal = edit(&mut desk, edits).unwrap_err();
    assert_eq!(refusal, "failed inserting check: Missing service registration on node \"e1\"");
    assert_eq!(shown(&desk, "e1"), None);
    // No instance has the empty id, but the node's checks name it.
    edit(&mut desk, vec![put_node("e1"), put_check("e1", "c", "")]).unwrap();
    let nothing = CatalogEdit::RemoveService { node: "e1".to_owned(), service_id: String::new() };
    assert_eq!(edit(&mut desk, vec![nothing]), Ok(false));
    assert_eq!(shown(&desk, "e1").unwrap(), "e1:  | c");
}

#[test]
fn edited_tags_stay_until_the_instance_goes() {
    let mut desk = Desk::new();
    let open =
        Service { tags: vec!["own".to_owned()], enable_tag_override: true, ..service("api") };
    let register = |desk: &mut Desk, service: &Service| {
        let service = service.clone();
        let checks = Vec::new();
        desk.submit(Command::Register { service, checks, replace_checks: false }).unwrap()
    };
    let put_tags = |desk: &mut Desk, tags: &[&str]| {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let (node, service_id) = (desk.key.clone(), "api".to_owned());
        edit(desk, vec![CatalogEdit::PutTags { node, service_id, tags }]).unwrap()
    };
    register(&mut desk, &open);
    put_tags(&mut desk, &["v4", "drained"]);
    assert_eq!(desk.instance("api").service.tags, ["v4", "drained"]);
    assert_eq!(desk.instance("api").registered(), open);
    assert!(!register(&mut desk, &open), "the registration is as it was");
    // A change of anything else keeps them.
    register(&mut desk, &Service { port: 81, ..open.clone() });
    assert_eq!(desk.instance("api").service.tags, ["v4", "drained"]);
    assert_eq!(desk.instance("api").service.port, 81);
    // Whoever registers it without leave for edits has the word.
    register(&mut desk, &Service { enable_tag_override: false, ..open.clone() });
    assert_eq!(desk.instance("api").service.tags, ["own"]);
    register(&mut desk, &open);
    assert_eq!(desk.instance("api").service.tags, ["v4", "drained"]);
    desk.submit(Command::Deregister { service_id: "api".to_owned() }).unwrap();
    register(&mut desk, &open);
    assert_eq!(desk.instance("api").service.tags, ["own"]);
}

#[test]
fn a_server_is_listed_as_long_as_it_is_said_to_be_one() {
    let mut desk = Desk::new();
    assert_eq!(desk.submit(Command::Serve { port: None }), Ok(false));
    assert_eq!(desk.submit(Command::Serve { port: Some(8300) }), Ok(true));
    assert_eq!(desk.submit(Command::Serve { port: Some(8300) }), Ok(false), "at each start");
    let server = &desk.instance("consul").service;
    assert_eq!((server.name.as_str(), server.port), ("consul", 8300));
    assert_eq!(desk.submit(Command::Serve { port: None }), Ok(true));
    assert!(desk.view.service("consul").is_none());
    desk.register("consul", &[], false);
    assert_eq!(desk.submit(Command::Serve { port: None }), Ok(false), "an application's stays");
}
