//! Registrations as applications send them, made into valid commands or refused in Consul's words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::check::{OUTPUT_BYTES_MAX, RawCheck};
use super::fields::{Fields, decode};
use crate::catalog::CheckRegistration;
use crate::catalog::model::{Service, ServiceAddress, Source, Status, Weights};
use crate::http::error::Fault;

/// How many pairs a service's meta may have, and how long keys and values may be.
const META_PAIRS_MAX: usize = 64;
const META_KEY_BYTES_MAX: usize = 128;
const META_VALUE_BYTES_MAX: usize = 512;
/// The greatest weight that an SRV record can carry.
const WEIGHT_MAX: i64 = 65_535;

const BAD_STATUS: &str = "Status for checks must 'passing', 'warning', 'critical'";

/// Reads the body of `agent/service/register`.
pub fn service(
    body: &[u8],
    script_checks: bool,
) -> Result<(Service, Vec<CheckRegistration>), Fault> {
    let value = decode(body)?;
    let fields = Fields::of_body(&value)?;
    let service = read_service(&fields, "Name")?;
    let checks = read_checks(&fields)?;
    check_service(&service, &fields)?;
    let several = checks.len() > 1;
    let registrations = checks.into_iter().enumerate().map(|(place, check)| {
        check.validate(script_checks)?;
        let default_id = if several {
            format!("service:{}:{}", service.id, place + 1)
        } else {
            format!("service:{}", service.id)
        };
        let default_name = format!("Service '{}' check", service.name);
        check.registration(default_id, default_name, service.id.clone(), BAD_STATUS)
    });
    let registrations = registrations.collect::<Result<_, _>>()?;
    Ok((with_automatic_addresses(service), registrations))
}

/// Reads the body of `agent/check/register`.
pub fn check(body: &[u8], script_checks: bool) -> Result<CheckRegistration, Fault> {
    let value = decode(body)?;
    let fields = Fields::of_body(&value)?;
    let check = RawCheck::read(&fields)?;
    if check.name.is_empty() {
        return Err(Fault::bad_request("Missing check name"));
    }
    let service_id = fields.text("ServiceID")?;
    let name = check.name.clone();
    check.validate_status("Bad check status")?;
    check.validate(script_checks)?;
    check.registration(name.clone(), name, service_id, "Bad check status")
}

/// Reads the body of `agent/check/update`. Output past 4,096 bytes is cut, and says so.
pub fn update(body: &[u8]) -> Result<(Status, String), Fault> {
    let value = decode(body)?;
    let fields = Fields::of_body(&value)?;
    let word = fields.text("Status")?;
    let output = fields.text("Output")?;
    let status = Status::parse(&word)
        .ok_or_else(|| Fault::bad_request(format!("Invalid check status: '{word}'")))?;
    Ok((status, cut(output)))
}

fn cut(output: String) -> String {
    if output.len() <= OUTPUT_BYTES_MAX {
        return output;
    }
    let end = output.floor_char_boundary(OUTPUT_BYTES_MAX);
    format!("{} ... (captured {end} of {} bytes)", &output[..end], output.len())
}

/// Reads a service as it stands in a body. `name` is what the body calls its name: `Name` at the
/// agent, `Service` in the catalog.
pub fn read_service(fields: &Fields<'_>, name: &str) -> Result<Service, Fault> {
    let name = fields.text(name)?;
    let id = fields.text("ID")?;
    let tagged_addresses = fields
        .object_map("TaggedAddresses")?
        .into_iter()
        .map(|(kind, at)| {
            let address =
                ServiceAddress { address: at.text("Address")?, port: at.integer("Port")? };
            Ok((kind.to_owned(), address))
        })
        .collect::<Result<BTreeMap<_, _>, Fault>>()?;
    let weights = match fields.object("Weights")? {
        None => Weights::default(),
        Some(given) => {
            Weights { passing: given.integer("Passing")?, warning: given.integer("Warning")? }
        }
    };
    Ok(Service {
        id: if id.is_empty() { name.clone() } else { id },
        name,
        tags: fields.texts("Tags")?,
        address: fields.text("Address")?,
        port: fields.integer("Port")?,
        meta: fields.text_map("Meta")?,
        tagged_addresses,
        weights,
        enable_tag_override: fields.boolean("EnableTagOverride")?,
        kind: fields.text("Kind")?,
        source: Source::Api,
    })
}

/// `Check` first, then `Checks`; an empty `Check` is none.
fn read_checks(fields: &Fields<'_>) -> Result<Vec<RawCheck>, Fault> {
    let one = fields.object("Check")?.filter(|check| !check.is_empty());
    one.into_iter().chain(fields.objects("Checks")?).map(|check| RawCheck::read(&check)).collect()
}

fn check_service(service: &Service, fields: &Fields<'_>) -> Result<(), Fault> {
    if service.name.is_empty() {
        return Err(Fault::bad_request("Missing service name"));
    }
    // An address that stands for all of a host's own leads nobody anywhere.
    if service.address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(Fault::bad_request("Invalid service address"));
    }
    check_weights(service.weights)
        .map_err(|reason| Fault::bad_request(format!("Invalid Weights: {reason}")))?;
    check_meta(&service.meta)
        .map_err(|reason| Fault::bad_request(format!("Invalid Service Meta: {reason}")))?;
    check_tenancy(fields)?;
    check_mesh(fields)
}

pub fn check_weights(weights: Weights) -> Result<(), &'static str> {
    if weights.passing < 1 {
        Err("Passing must be greater than 0")
    } else if weights.warning < 0 {
        Err("Warning must be greater or equal than 0")
    } else if weights.passing.max(weights.warning) > WEIGHT_MAX {
        Err("DNS Weight must be between 0 and 65535")
    } else {
        Ok(())
    }
}

/// Refuses meta that Consul refuses, so that it can be copied back.
pub fn check_meta(meta: &BTreeMap<String, String>) -> Result<(), String> {
    if meta.len() > META_PAIRS_MAX {
        return Err(format!(
            "Node metadata cannot contain more than {META_PAIRS_MAX} key/value pairs"
        ));
    }
    meta.iter().try_for_each(|(key, value)| {
        check_pair(key, value)
            .map_err(|reason| format!("Couldn't load metadata pair ('{key}', '{value}'): {reason}"))
    })
}

fn check_pair(key: &str, value: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if key.is_empty() {
        Err("Key cannot be blank".to_owned())
    } else if !key.bytes().all(is_plain) {
        Err("Key contains invalid characters".to_owned())
    } else if key.len() > META_KEY_BYTES_MAX {
        Err(format!("Key is too long (limit: {META_KEY_BYTES_MAX} characters)"))
    } else if key.starts_with("consul-") {
        Err("Key prefix 'consul-' is reserved for internal use".to_owned())
    } else if value.len() > META_VALUE_BYTES_MAX {
        Err(format!("Value is too long (limit: {META_VALUE_BYTES_MAX} characters)"))
    } else {
        Ok(())
    }
}

/// Clients of newer servers may send the default tenant; any other would be lost.
pub fn check_tenancy(fields: &Fields<'_>) -> Result<(), Fault> {
    for name in ["Namespace", "Partition"] {
        let tenant = fields.text(name)?;
        if !tenant.is_empty() && tenant != "default" {
            return Err(Fault::bad_request(format!(
                "Invalid {name} \"{tenant}\": there is only \"default\""
            )));
        }
    }
    Ok(())
}

/// There is no mesh; a proxy's configuration would be lost without a word.
pub fn check_mesh(fields: &Fields<'_>) -> Result<(), Fault> {
    let refusal = || {
        Err(Fault::bad_request(
            "Invalid service: this cluster has no service mesh; leave out Proxy and Connect",
        ))
    };
    if fields.object("Proxy")?.is_some_and(|proxy| !proxy.is_empty()) {
        return refusal();
    }
    match fields.object("Connect")? {
        Some(connect) if connect.boolean("Native")? => refusal(),
        Some(connect) if connect.object("SidecarService")?.is_some() => refusal(),
        Some(_) | None => Ok(()),
    }
}

/// An instance with an IP address has it under the names of its family, too, as long as nobody
/// said otherwise.
fn with_automatic_addresses(mut service: Service) -> Service {
    let kinds = match service.address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => ["lan_ipv4", "wan_ipv4"],
        Ok(IpAddr::V6(_)) => ["lan_ipv6", "wan_ipv6"],
        Err(_) => return service,
    };
    let own = ServiceAddress { address: service.address.clone(), port: service.port };
    for kind in kinds {
        service.tagged_addresses.entry(kind.to_owned()).or_insert_with(|| own.clone());
    }
    service
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::CheckKind;

    fn accept(body: &str) -> (Service, Vec<CheckRegistration>) {
        service(body.as_bytes(), false).unwrap()
    }

    fn refuse(body: &str) -> String {
        service(body.as_bytes(), false).unwrap_err().text
    }

    #[test]
    fn a_registration_is_taken_over_as_it_is() {
        let (service, checks) = accept(
            r#"{"ID":"web-1","Name":"web","Tags":["v1","primary"],"Meta":{"version":"1"},
                "Port":70000,"Weights":{"Passing":10,"Warning":2},"enable_tag_override":true,
                "Check":{"CheckID":"web-1-ttl","Name":"web ttl","Notes":"n","TTL":"24h",
                         "Status":"passing"}}"#,
        );
        assert_eq!((service.id.as_str(), service.name.as_str()), ("web-1", "web"));
        assert_eq!(service.tags, ["v1", "primary"]);
        assert_eq!(service.port, 70_000);
        assert_eq!(service.weights, Weights { passing: 10, warning: 2 });
        assert!(service.enable_tag_override && service.tagged_addresses.is_empty());
        let [check] = &checks[..] else { panic!("{checks:?}") };
        assert_eq!(check.check.id, "web-1-ttl");
        assert_eq!((check.check.status, check.check.kind.as_str()), (Status::Passing, "ttl"));
        assert_eq!(check.check.service_id, "web-1");
        let day = Duration::from_secs(86_400);
        assert_eq!(check.definition.kind, CheckKind::Ttl { ttl: day });
    }

    #[test]
    fn checks_without_an_id_are_counted_when_there_are_several() {
        let (_, one) = accept(r#"{"Name":"a","Check":null,"Checks":[{"TTL":"1m0s"}]}"#);
        assert_eq!(
            (one[0].check.id.as_str(), one[0].check.name.as_str()),
            ("service:a", "Service 'a' check")
        );
        let (_, two) =
            accept(r#"{"Name":"a","Check":{"TTL":"1m"},"Checks":[{"TTL":60000000000}]}"#);
        assert_eq!(
            (two[0].check.id.as_str(), two[1].check.id.as_str()),
            ("service:a:1", "service:a:2")
        );
        assert_eq!(two[0].definition, two[1].definition);
        assert_eq!(two[0].check.status, Status::Critical);
        assert!(accept(r#"{"Name":"a","Check":{}}"#).1.is_empty());
    }

    #[test]
    fn an_ip_address_is_also_known_under_its_family() {
        let (service, _) = accept(
            r#"{"Name":"api","Address":"2001:db8::1","Port":443,
                "TaggedAddresses":{"lan":{"Address":"10.0.0.1","Port":1},
                                   "wan_ipv6":{"address":"::1","port":2}}}"#,
        );
        let kinds: Vec<_> =
            service.tagged_addresses.iter().map(|(kind, at)| (kind.as_str(), at.port)).collect();
        assert_eq!(kinds, [("lan", 1), ("lan_ipv6", 443), ("wan_ipv6", 2)]);
        let (service, _) = accept(r#"{"Name":"api","Address":"db1.example.com","Port":443}"#);
        assert!(service.tagged_addresses.is_empty());
    }

    #[test]
    fn what_a_check_needs_is_asked_for_and_what_it_leaves_out_is_filled_in() {
        let (_, checks) = accept(
            r#"{"Name":"a","Checks":[
                {"HTTP":"http://127.0.0.1/","Interval":"100ms","Header":{"X-A":["b","c"]},
                 "DeregisterCriticalServiceAfter":"10s","TLSSkipVerify":true,
                 "SuccessBeforePassing":3,"OutputMaxSize":99999},
                {"tcp":"127.0.0.1:1","interval":"5s","timeout":"1s"}]}"#,
        );
        assert_eq!(
            checks[0].definition.kind,
            CheckKind::Http {
                url: "http://127.0.0.1/".to_owned(),
                method: "GET".to_owned(),
                headers: BTreeMap::from([("X-A".to_owned(), vec!["b".to_owned(), "c".to_owned()])]),
                body: String::new(),
                tls_skip_verify: true,
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(10),
            }
        );
        assert_eq!(checks[0].definition.deregister_after, Some(Duration::from_secs(60)));
        assert_eq!(checks[0].definition.success_before_passing, 3);
        assert_eq!(checks[0].definition.failures_before_critical, 1);
        assert_eq!(checks[0].definition.output_bytes_max, 4096);
        assert_eq!(
            checks[1].definition.kind,
            CheckKind::Tcp {
                address: "127.0.0.1:1".to_owned(),
                interval: Duration::from_secs(5),
                timeout: Duration::from_secs(1),
            }
        );
    }

    #[test]
    fn refusals_are_in_consuls_words() {
        let cases = [
            (r#"{"Port":1}"#, "Missing service name"),
            (r#"{"Name":"a","Address":"0.0.0.0"}"#, "Invalid service address"),
            (r#"{"Name":"a","Address":"::"}"#, "Invalid service address"),
            (
                r#"{"Name":"a","Weights":{"Passing":0,"Warning":1}}"#,
                "Invalid Weights: Passing must be greater than 0",
            ),
            (
                r#"{"Name":"a","Weights":{"Passing":65536}}"#,
                "Invalid Weights: DNS Weight must be between 0 and 65535",
            ),
            (
                r#"{"Name":"a","Meta":{"a b":"c"}}"#,
                "Invalid Service Meta: Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters",
            ),
            (
                r#"{"Name":"a","Check":{"Interval":"1s","TTL":"1s"}}"#,
                "Invalid check: Interval and TTL cannot both be specified",
            ),
            (
                r#"{"Name":"a","Check":{"HTTP":"http://x/"}}"#,
                "Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks",
            ),
            (r#"{"Name":"a","Checks":[{}]}"#, "Invalid check: TTL must be > 0 for TTL checks"),
            (
                r#"{"Name":"a","Check":{"TTL":"1s","Status":"weird"}}"#,
                "Status for checks must 'passing', 'warning', 'critical'",
            ),
        ];
        for (body, text) in cases {
            assert_eq!(refuse(body), text, "{body}");
        }
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        assert!(
            refuse(r#"{"Name":"a","Connect":{"SidecarService":{}}}"#).contains("no service mesh")
        );
        assert!(refuse(r#"{"Name":"a","Proxy":{"Mode":"x"}}"#).contains("no service mesh"));
        assert!(refuse(r#"{"Name":"a","Namespace":"blue"}"#).contains("only \"default\""));
        assert!(refuse(r#"{"Name":"a","Check":{"GRPC":"x","Interval":"1s"}}"#).contains("gRPC"));
        let harmless = r#"{"Name":"a","Connect":{"Native":false,"SidecarService":null},"Proxy":{},
            "Namespace":"default","Locality":{"Region":"x"}}"#;
        assert_eq!(accept(harmless).0.name, "a");
    }

    #[test]
    fn scripts_are_taken_from_requests_only_where_that_was_allowed() {
        for key in ["Args", "ScriptArgs", "script_args"] {
            let body = format!(r#"{{"Name":"a","Check":{{"{key}":["/bin/x"],"Interval":"1s"}}}}"#);
            let fault = service(body.as_bytes(), false).unwrap_err();
            assert_eq!(fault.status, 500);
            assert!(fault.text.starts_with("Scripts are disabled on this agent from remote calls"));
            let (_, checks) = service(body.as_bytes(), true).unwrap();
            let CheckKind::Script { args, timeout, .. } = &checks[0].definition.kind else {
                panic!("{checks:?}");
            };
            assert_eq!(
                (args.as_slice(), *timeout),
                (&["/bin/x".to_owned()][..], Duration::from_secs(30))
            );
        }
    }

    #[test]
    fn a_check_alone_needs_a_name_and_has_it_as_its_id() {
        let registration =
            check(br#"{"Name":"Memory","ServiceID":"web-1","TTL":"1s"}"#, false).unwrap();
        assert_eq!(registration.check.id, "Memory");
        assert_eq!(registration.check.service_id, "web-1");
        assert_eq!(
            check(br#"{"ID":"m","TTL":"1s"}"#, false).unwrap_err().text,
            "Missing check name"
        );
        let registration = check(br#"{"ID":"m","Name":"Memory","TTL":"1s"}"#, false).unwrap();
        assert_eq!(registration.check.id, "m");
    }

    #[test]
    fn long_output_of_an_update_is_cut_and_says_so() {
        let body = format!(r#"{{"Status":"warning","Output":"{}"}}"#, "x".repeat(6_000));
        let (status, output) = update(body.as_bytes()).unwrap();
        assert_eq!(status, Status::Warning);
        assert!(output.ends_with("x ... (captured 4096 of 6000 bytes)"));
        let fault = update(br#"{"Status":"bogus"}"#).unwrap_err();
        assert_eq!(fault.text, "Invalid check status: 'bogus'");
    }
}
