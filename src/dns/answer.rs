//! One packet in, one reply out: a function of the view, without clock, socket or lock.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RecordType};

use super::config::Config;
use super::cookie::{Asked, Cookies};
use super::fast::Fast;
use super::packet::{self, Query, Unread};
use super::record::{Options, Sections};
use super::recursion::Answer;
use super::recursion::key::wire_name;
use super::recursion::known::{Known, Missing};
use super::recursion::reply::Shown;
use super::resolve::{Given, resolve};
use super::wire;
use crate::catalog::View;
use crate::live::Distances;

/// How a packet came, which decides how long its reply may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Udp,
    /// Without the two bytes of length.
    Tcp,
    /// The same, and nobody sees more of it than its length.
    Tls,
}

/// A packet, and the circumstances its reply may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'p> {
    pub packet: &'p [u8],
    pub transport: Transport,
    /// Decides the order of records.
    pub seed: u64,
    /// Seconds since 1970: the SOA's serial.
    pub now_unix: u32,
    /// Who asks; `None`: nobody whom a cookie would do any good.
    pub client: Option<Client<'p>>,
    /// What other servers said so far; `None`: nobody else is asked for this client.
    pub known: Option<&'p Known>,
    /// How far away other nodes are; `None`: nobody knows.
    pub distances: Option<&'p Distances>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'p> {
    pub ip: IpAddr,
    /// What makes cookies for them.
    pub cookies: &'p Cookies,
}

/// How far a packet was answered.
pub enum Answered {
    /// Nothing is to be sent: the packet was too short to have an id, or itself a reply.
    Silence,
    /// The reply is written.
    Reply(Outcome),
    /// The reply is written, and would be more whole if others were asked about these hosts.
    Incomplete(Outcome, Missing),
    /// Others are to be asked. Nothing is written.
    Elsewhere(Box<Query>),
}

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Bytes(Vec<u8>),
    /// The packet was too short to have an id, or itself a reply.
    Silence,
}

/// What a reply was about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The type that was asked; `None` where the question could not be read.
    pub kind: Option<RecordType>,
    pub code: ResponseCode,
    pub is_truncated: bool,
    /// The client speaks EDNS, and the reply does.
    pub has_edns: bool,
    /// What the client showed of itself.
    pub cookie: Option<Asked>,
}

/// Answers a packet.
pub fn answer(
    view: &View,
    config: &Config,
    packet: &[u8],
    transport: Transport,
    seed: u64,
    now_unix: u32,
) -> Reply {
    let mut bytes = Vec::with_capacity(512);
    let request =
        Request { packet, transport, seed, now_unix, client: None, known: None, distances: None };
    match answer_into(view, config, request, &mut bytes) {
        Answered::Reply(_) | Answered::Incomplete(..) => Reply::Bytes(bytes),
        Answered::Silence | Answered::Elsewhere(_) => Reply::Silence,
    }
}

/// Answers a packet into a buffer that is used again.
pub fn answer_into(
    view: &View,
    config: &Config,
    request: Request<'_>,
    out: &mut Vec<u8>,
) -> Answered {
    answer_and_learn(view, config, request, None, out)
}

/// Answers a packet, and keeps the reply where it can be given again.
pub fn answer_and_learn(
    view: &View,
    config: &Config,
    request: Request<'_>,
    fast: Option<&mut Fast>,
    out: &mut Vec<u8>,
) -> Answered {
    let query = match packet::read(request.packet) {
        Ok(query) => query,
        Err(Unread::Refused(code)) => {
            wire::write_header(out, request.packet, code);
            return Answered::Reply(Outcome::unread(code));
        }
        Err(Unread::Ignored) => return Answered::Silence,
    };
    let Request { transport, seed, now_unix, client, known, distances, .. } = request;
    let is_foreign = client.is_some_and(|client| !config.allow_query.contains(client.ip));
    let refusal = is_foreign.then_some(ResponseCode::Refused).or_else(|| refusal(&query));
    let sections = match refusal {
        Some(code) => Sections::refused(code),
        None => {
            match resolve(Given { view, config, known, distances, seed, serial: now_unix }, &query)
            {
                Some(sections) => sections,
                None => return Answered::Elsewhere(Box::new(query)),
            }
        }
    };
    let options = options_for(&query, config, client, (transport, now_unix));
    let is_truncated = wire::write(out, &query, (&sections, &options), transport, config);
    if let Some(fast) = fast {
        fast.learn(request.packet, &query.text, &sections, config);
    }
    let cookie = query.edns.and_then(|edns| edns.cookie);
    let has_edns = sections.has_edns && query.edns.is_some();
    let (kind, code) = (Some(query.kind), sections.code);
    let outcome = Outcome { kind, code, is_truncated, has_edns, cookie };
    if sections.missing.is_empty() {
        Answered::Reply(outcome)
    } else {
        Answered::Incomplete(outcome, sections.missing)
    }
}

/// Writes for a client what others answered.
pub fn pass_on(
    config: &Config,
    query: &Query,
    answer: &Answer,
    (client, transport, now_unix): (Client<'_>, Transport, u32),
    out: &mut Vec<u8>,
) -> Outcome {
    let options = options_for(query, config, Some(client), (transport, now_unix));
    let (kind, cookie) = (Some(query.kind), query.edns.and_then(|edns| edns.cookie));
    let has_edns = query.edns.is_some();
    let own = |out: &mut Vec<u8>, code| {
        let sections = Sections { is_recursion_available: true, ..Sections::refused(code) };
        let is_truncated = wire::write(out, query, (&sections, &options), transport, config);
        Outcome { kind, code, is_truncated, has_edns, cookie }
    };
    let (reply, age, is_stale) = match answer {
        Answer::Reply { reply, age, is_stale } => (reply, *age, *is_stale),
        Answer::Failed => return own(out, ResponseCode::ServFail),
        Answer::Refused => return own(out, ResponseCode::Refused),
    };
    let shown = Shown {
        id: query.id,
        name: &wire_name(&query.name),
        is_recursion_desired: query.is_recursion_desired,
        is_checking_disabled: query.is_checking_disabled,
        wants_authentic: query.wants_authentic,
        bytes_max: wire::bytes_max(query, transport, config),
        opt: &wire::opt(query, &options, config),
        age,
        ttl_max: u32::try_from(config.recursion.ttl_max.as_secs()).unwrap_or(u32::MAX),
        ttl_min: if is_stale { STALE_TTL } else { 0 },
    };
    let is_truncated = reply.write(out, &shown);
    let has_edns = has_edns && reply.has_edns;
    Outcome { kind, code: reply.code, is_truncated, has_edns, cookie }
}

impl Outcome {
    /// Of a question that could not be read.
    pub fn unread(code: ResponseCode) -> Self {
        Self { kind: None, code, is_truncated: false, has_edns: false, cookie: None }
    }
}

/// How long a client may remember what is too old, in seconds (RFC 8767, section 5).
const STALE_TTL: u32 = 30;

/// Returns what the reply's OPT record says beside sizes and codes.
fn options_for<'c>(
    query: &Query,
    config: &'c Config,
    client: Option<Client<'_>>,
    (transport, now_unix): (Transport, u32),
) -> Options<'c> {
    let Some(edns) = query.edns else { return Options::default() };
    let of_client =
        |client: Client<'_>| Some(client.cookies.answer(edns.cookie?, client.ip, now_unix));
    let nsid = if edns.asks_nsid { config.nsid.as_str() } else { "" };
    // Where the length can be seen anyway it would only make the reply longer.
    let is_padded = edns.asks_padding && transport == Transport::Tls;
    Options { nsid, cookie: client.and_then(of_client), is_padded }
}

/// Refuses what is well formed and still not for us, whatever its name.
fn refusal(query: &Query) -> Option<ResponseCode> {
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if !matches!(query.class, DNSClass::IN | DNSClass::ANY) {
        return Some(ResponseCode::Refused);
    }
    // There is no zone to transfer: the catalog has its own ways to be copied.
    match query.kind {
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    use proptest::prelude::*;

    use super::*;
    use crate::dns::testing::{Catalog, ask, data_of, question};

    fn catalog() -> Catalog {
        let catalog = Catalog::new().instance("db d1 db.example.com:1");
        (0..40)
            .fold(catalog, |catalog, n| catalog.instance(&format!("app a{n} 10.0.0.{n}:{n} t{n}")))
    }

    fn udp(packet: &[u8]) -> Message {
        ask(&catalog().view, &Config::default(), packet, Transport::Udp)
    }

    #[test]
    fn an_opt_record_comes_back_iff_one_came() {
        assert!(udp(&question("a1.app.internal. A", 0)).edns.is_none());
        let edns = udp(&question("a1.app.internal. A", 4_096)).edns.unwrap();
        assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1_232, false));
        assert!(udp(&question("none.internal. A", 600)).edns.is_some());
        // As Consul does it.
        assert!(udp(&question("example.com. A", 1_232)).edns.is_none());
    }

    #[test]
    fn a_later_edns_version_is_refused_as_such_and_nothing_else_is_said() {
        let mut packet = question("a1.app.internal. A", 1_232);
        let version_at = packet.len() - 5;
        packet[version_at] = 1;
        let reply = udp(&packet);
        // 16 has two names; the decoder shows the other one.
        assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
        assert_eq!(reply.edns.unwrap().version(), 0);
        assert!(reply.answers.is_empty());
    }

    #[test]
    fn edns_options_and_flags_that_nobody_knows_change_nothing() {
        let mut packet = question("a1.app.internal. A", 1_232);
        let end = packet.len();
        // DO and every undefined flag, and an option of an unknown code.
        packet[end - 4..].copy_from_slice(&[0xff, 0xff, 0, 8]);
        packet.extend_from_slice(&[0xfd, 0xe9, 0, 4, 1, 2, 3, 4]);
        let reply = udp(&packet);
        assert_eq!(reply.answers.len(), 1);
        let edns = reply.edns.unwrap();
        assert!(
            !edns.flags().dnssec_ok && edns.flags().z == 0 && edns.options().as_ref().is_empty()
        );
    }

    #[test]
    fn who_asks_which_server_it_is_and_brings_a_cookie_gets_both() {
        let (config, cookies) =
            (Config { nsid: "n1".to_owned(), ..Config::default() }, Cookies::default());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let client = Some(Client { ip: address, cookies: &cookies });
        let reply = |options: &[u8]| {
            let mut packet = question("a1.app.internal. A", 1_232);
            let end = packet.len();
            packet[end - 1] = u8::try_from(options.len()).unwrap();
            packet.extend_from_slice(options);
            let (transport, seed, now_unix) = (Transport::Udp, 1, 77);
            let packet = &packet;
            let (known, distances) = (None, None);
            let request = Request { packet, transport, seed, now_unix, client, known, distances };
            let mut bytes = Vec::new();
            answer_into(&catalog().view, &config, request, &mut bytes);
            let reply = Message::from_vec(&bytes).unwrap();
            let options = reply.edns.as_ref().map(|edns| edns.options().as_ref().to_vec());
            let shown = |(code, option): &(EdnsCode, EdnsOption)| {
                (u16::from(*code), Vec::try_from(option).unwrap())
            };
            let options = options.unwrap_or_default().iter().map(shown).collect::<Vec<_>>();
            (reply.metadata.response_code, options)
        };
        let none = (ResponseCode::NoError, vec![]);
        assert_eq!(reply(&[]), none);
        let nsid = (3, b"n1".to_vec());
        assert_eq!(reply(&[0, 3, 0, 0]), (ResponseCode::NoError, vec![nsid.clone()]));
        let asked = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        let cookie = cookies.answer(Asked::read(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap(), address, 77);
        let cookie = (10, cookie.to_vec());
        let both = [&[0, 3, 0, 0], &asked[..]].concat();
        assert_eq!(reply(&both), (ResponseCode::NoError, vec![nsid, cookie]));
        // A header alone, as for anything that is malformed.
        assert_eq!(reply(&[0, 10, 0, 3, 1, 2, 3]), (ResponseCode::FormErr, vec![]));
    }

    #[test]
    fn only_the_internet_class_is_answered() {
        for (class, expected) in [(255, ResponseCode::NoError), (3, ResponseCode::Refused)] {
            let mut packet = question("a1.app.internal. A", 0);
            let end = packet.len();
            packet[end - 1] = class;
            assert_eq!(udp(&packet).metadata.response_code, expected);
        }
    }

    #[test]
    fn id_question_and_recursion_bits_are_repeated() {
        let mut packet = question("a1.aPP.internal. SRV", 0);
        packet[3] |= 0x10;
        let (asked, reply) = (Message::from_vec(&packet).unwrap(), udp(&packet));
        assert_eq!(reply.metadata.id, asked.metadata.id);
        assert_eq!(reply.queries, asked.queries);
        assert!(reply.queries[0].name().eq_case(asked.queries[0].name()));
        assert!(reply.metadata.recursion_desired && reply.metadata.checking_disabled);
        assert!(reply.metadata.authoritative && !reply.metadata.recursion_available);
    }

    #[test]
    fn every_order_comes_up() {
        let catalog = Catalog::new();
        let catalog = catalog
            .instance("x a 10.0.0.1:1")
            .instance("x b 10.0.0.2:1")
            .instance("x c 10.0.0.3:1");
        let packet = question("x.internal. A", 0);
        let mut orders: BTreeMap<String, usize> = BTreeMap::new();
        for seed in 0..600 {
            let Reply::Bytes(bytes) =
                answer(&catalog.view, &Config::default(), &packet, Transport::Udp, seed, 1)
            else {
                panic!("no reply");
            };
            let reply = Message::from_vec(&bytes).unwrap();
            let order: Vec<String> = reply.answers.iter().map(data_of).collect();
            *orders.entry(order.join(" ")).or_default() += 1;
        }
        assert_eq!(orders.len(), 6);
        assert!(orders.values().all(|count| (60..140).contains(count)), "{orders:?}");
    }

    /// Holds a reply to what every reply must be.
    fn check(packet: &[u8], transport: Transport, config: &Config) -> Result<(), TestCaseError> {
        let bytes = match answer(&catalog().view, config, packet, transport, 1, 1) {
            Reply::Bytes(bytes) => bytes,
            Reply::Silence => {
                prop_assert!(packet.len() < 12 || packet[2] & 0x80 != 0);
                return Ok(());
            }
        };
        let reply = Message::from_vec(&bytes).expect("a reply that can be read");
        prop_assert_eq!(reply.metadata.message_type, MessageType::Response);
        prop_assert_eq!(&bytes[..2], &packet[..2]);
        let edns_bytes = Message::from_vec(packet).ok().and_then(|asked| asked.edns);
        let edns_bytes = edns_bytes.map_or(512, |edns| edns.max_payload().clamp(512, 1_232));
        if transport == Transport::Udp {
            prop_assert!(bytes.len() <= usize::from(edns_bytes), "{} bytes", bytes.len());
        }
        if let Some(question) = reply.queries.first() {
            let asked = Message::from_vec(packet).unwrap();
            prop_assert!(question.name().eq_case(asked.queries[0].name()));
        }
        Ok(())
    }

    fn transport() -> impl Strategy<Value = Transport> {
        prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_bytes_get_a_whole_reply_or_none(
            packet in proptest::collection::vec(any::<u8>(), 0..600),
            transport in transport(),
        ) {
            check(&packet, transport, &Config::default())?;
        }

        #[test]
        fn a_damaged_question_gets_a_whole_reply_or_none(
            name in "((_?[a-z0-9]{1,9}|app|db|node|service|addr|dc1)\\.){0,4}(internal|consul|in-addr\\.arpa|com)\\.",
            kind in prop_oneof![
                Just("A"), Just("AAAA"), Just("SRV"), Just("ANY"), Just("TXT"), Just("SOA"),
                Just("NS"), Just("PTR"), Just("CNAME"), Just("MX"), Just("AXFR"),
            ],
            edns_bytes in prop_oneof![Just(0u16), any::<u16>()],
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            length in any::<prop::sample::Index>(),
            is_cut in any::<bool>(),
            transport in transport(),
            disable_compression in any::<bool>(),
        ) {
            let mut packet = question(&format!("{name} {kind}"), edns_bytes);
            for (place, value) in damage {
                let place = place.index(packet.len());
                packet[place] = value;
            }
            if is_cut {
                packet.truncate(length.index(packet.len()));
            }
            let config = Config { disable_compression, ..Config::default() };
            check(&packet, transport, &config)?;
        }
    }
}
