//! Expressions against what a real Consul 1.8.7 made of them.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Two instances of `web` as `health/service` has them: `w1` with everything, `w2` with nothing.
fn entries() -> [Value; 2] {
    let node = json!({
        "ID": "11111111-1111-1111-1111-111111111111", "Node": "n1", "Address": "127.0.0.1",
        "Datacenter": "dc1", "TaggedAddresses": { "lan": "127.0.0.1" }, "Meta": { "rack": "r1" },
    });
    let check = |id: &str, status: &str, tags: &[&str], kind: &str| {
        json!({
            "Node": "n1", "CheckID": id, "Name": id, "Status": status, "Notes": "", "Output": "",
            "ServiceID": "", "ServiceName": "", "ServiceTags": tags, "Type": kind,
        })
    };
    let serf = check("serfHealth", "passing", &[], "");
    let entry = |service: Value, checks: Value| json!({ "Node": node, "Service": service, "Checks": checks });
    [
        entry(
            json!({
                "ID": "w1", "Service": "web", "Tags": ["a", "b"], "Address": "", "Port": 80,
                "Meta": { "version": "1", "k-1": "x" }, "EnableTagOverride": false,
                "Weights": { "Passing": 1, "Warning": 1 },
                "Proxy": { "MeshGateway": {}, "Expose": {} }, "Connect": {},
            }),
            json!([
                serf,
                check("c1", "passing", &["a", "b"], "ttl"),
                check("c2", "critical", &["a", "b"], "ttl")
            ]),
        ),
        entry(
            json!({
                "ID": "w2", "Service": "web", "Tags": [], "Address": "", "Port": 81, "Meta": null,
                "EnableTagOverride": false, "Weights": { "Passing": 1, "Warning": 1 },
                "Proxy": { "MeshGateway": {}, "Expose": {} }, "Connect": {},
            }),
            json!([serf]),
        ),
    ]
}

/// The ids of the instances that an expression chooses, or its fault.
fn chosen(text: &str) -> String {
    let filter = match Filter::parse(text, &Shape::SERVICE_ENTRY) {
        Ok(filter) => filter,
        Err(FilterError(error)) => return error,
    };
    let entries = entries();
    let entries = entries.iter().filter(|entry| filter.matches(entry));
    entries.map(|entry| entry["Service"]["ID"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

#[test]
fn expressions_choose_what_consul_chose() {
    let wrong: Vec<String> = include_str!("chosen.txt")
        .lines()
        .filter_map(|line| {
            let (text, expected) = line.split_once(" => ").unwrap();
            let found = chosen(&text.replace("\\t", "\t"));
            (found != expected).then(|| format!("{text}\n  {expected}\n  {found}"))
        })
        .collect();
    assert!(wrong.is_empty(), "expression, Consul, here:\n{}", wrong.join("\n"));
    let broken = chosen("Service.ID matches \"(\"");
    assert_eq!(
        broken, "Failed to compile regular expression \"(\": error parsing regexp: unclosed group",
        "the reason is in other words"
    );
}

#[test]
fn a_key_that_is_not_there_is_unlike_everything() {
    assert_eq!(chosen(r#"Service.Meta.version matches "^[0-9]$""#), "w1");
    assert_eq!(chosen(r#"Service.Meta.version not matches "^[0-9]$""#), "w2");
    assert_eq!(chosen(r#"Service.Meta.version == """#), "");
    // A field that is left out is empty all the same.
    assert_eq!(chosen(r#"Service.Kind == """#), "w1 w2");
    assert_eq!(chosen("Service.Connect.Native != true"), "w1 w2");
    assert_eq!(chosen("Service.Proxy.LocalServicePort == 0"), "w1 w2");
}

#[test]
fn other_shapes_have_other_names() {
    let check = |text| Filter::parse(text, &Shape::CHECK).map(drop);
    assert_eq!(check("Status == passing and ServiceTags contains v1"), Ok(()));
    assert!(
        check("Service.ID == x").unwrap_err().to_string().ends_with("\"Service\" is not valid")
    );
    for (text, shape) in [
        ("ServiceMeta.version == 1 and NodeMeta.rack != r1", &Shape::CATALOG_SERVICE),
        ("Meta.rack == r1 and TaggedAddresses is empty or Node == n1", &Shape::NODE),
        ("ContentHash == x and TaggedAddresses.lan.Port == `0x1f`", &Shape::AGENT_SERVICE),
        ("Status == 1 and Tags.dc == dc1", &Shape::MEMBER),
    ] {
        let parsed = Filter::parse(text, shape).map(drop);
        assert_eq!(parsed, Ok(()), "{text}");
    }
}

#[test]
fn what_is_too_long_or_too_deep_is_refused() {
    let deep = format!("{}Node == x{}", "(".repeat(5_000), ")".repeat(5_000));
    let error = Filter::parse(&deep[..8_000], &Shape::NODE).unwrap_err().to_string();
    assert!(error.contains("more than"), "{error}");
    let nots = format!("{}Node == x", "not ".repeat(1_900));
    assert!(Filter::parse(&nots, &Shape::NODE).is_err());
    let ors = vec!["Node == x"; 500].join(" or ");
    assert!(Filter::parse(&ors, &Shape::NODE).unwrap_err().to_string().contains("more than"));
    let long = format!("Node == \"{}\"", "x".repeat(9_000));
    assert!(Filter::parse(&long, &Shape::NODE).unwrap_err().to_string().contains("at most"));
    let greedy = r#"Node matches "(a{1000}){1000}""#;
    assert!(Filter::parse(greedy, &Shape::NODE).is_err());
    assert!(Filter::parse(&vec!["Node == x"; 200].join(" or "), &Shape::NODE).is_ok());
}

proptest! {
    #[test]
    fn no_text_is_too_much(text in r#"[a-zA-Z0-9 ._()\[\]"`\\=!ßø-]{0,80}"#) {
        let _ = Filter::parse(&text, &Shape::SERVICE_ENTRY);
    }

    #[test]
    fn no_mixture_of_words_is_too_much(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "Service", ".ID", "==", "!=", "in", "not", "and", "or", "is", "empty", "(", ")", " ",
            " ", " ", "x", "\"x\"", "`", "\"", "[", "]", "7", "-", "0x", "matches", "contains", "Checks.Status",
        ]), 0..40)
    ) {
        if let Ok(filter) = Filter::parse(&words.concat(), &Shape::SERVICE_ENTRY) {
            for entry in entries() {
                filter.matches(&entry);
            }
        }
    }
}
