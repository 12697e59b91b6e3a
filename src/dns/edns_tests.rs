//! Questions with every option and flag of RFC 6891, section 6, known and unknown, as those ask them who
//! look for servers that get them wrong; and the flags of the header (RFC 1035, 2535, 4035).

use hickory_proto::op::Message;

use super::answer::{Reply, Transport, answer};
use super::config::Config;
use super::testing::{Catalog, question};

/// An OPT record: `version`, `flags`, and options as they are on the wire.
fn opt(bytes_max: u16, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
    let mut opt = vec![0, 0, 41];
    opt.extend_from_slice(&bytes_max.to_be_bytes());
    opt.extend_from_slice(&[0, version]);
    opt.extend_from_slice(&flags.to_be_bytes());
    opt.extend_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
    opt.extend_from_slice(options);
    opt
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap().to_be_bytes();
    [&code.to_be_bytes()[..], &length, data].concat()
}

/// A question with these records behind it, all in the additional section.
fn packet(text: &str, additionals: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = question(text, 0);
    packet[11] = u8::try_from(additionals.len()).unwrap();
    packet.extend(additionals.concat());
    packet
}

/// Shows a reply: code, flags of the header, how many answers; then of its OPT record version, flags and
/// the codes of its options.
fn show(packet: &[u8], transport: Transport) -> String {
    let catalog = (0..60)
        .fold(Catalog::new(), |catalog, n| catalog.instance(&format!("app a{n} 10.0.0.{n}:80")));
    let config = Config { nsid: "n1".to_owned(), ..Config::default() };
    let Reply::Bytes(bytes) = answer(&catalog.view, &config, packet, transport, 1, 1) else {
        return "silence".to_owned();
    };
    let reply = Message::from_vec(&bytes).unwrap();
    let flags = [(bytes[2], 0x04, "aa"), (bytes[2], 0x02, "tc"), (bytes[2], 0x01, "rd")];
    let more = [(bytes[3], 0x80, "ra"), (bytes[3], 0x40, "z"), (bytes[3], 0x20, "ad")];
    let flags = flags.into_iter().chain(more).chain([(bytes[3], 0x10, "cd")]);
    let flags: Vec<&str> =
        flags.filter(|(byte, bit, _)| byte & bit != 0).map(|(_, _, name)| name).collect();
    let edns = reply.edns.as_ref().map(|edns| {
        let options = edns.options().as_ref().iter();
        let options: Vec<u16> = options.map(|(code, _)| u16::from(*code)).collect();
        let is_clean = !edns.flags().dnssec_ok && edns.flags().z == 0;
        format!("v{}{} {options:?}", edns.version(), if is_clean { "" } else { " flags" })
    });
    let (code, count) = (u16::from(reply.metadata.response_code), reply.answers.len());
    format!("{code} {} {count} {}", flags.join(","), edns.unwrap_or_else(|| "-".to_owned()))
}

fn check(packet: &[u8], expected: &str) {
    assert_eq!(show(packet, Transport::Udp), expected);
}

const ONE: &str = "a1.app.internal. A";

#[test]
fn without_edns_there_is_none() {
    check(&packet(ONE, &[]), "0 aa,rd 1 -");
}

#[test]
fn edns_is_answered_with_edns_and_what_is_not_known_is_passed_over() {
    let plain = "0 aa,rd 1 v0 []";
    check(&packet(ONE, &[opt(4_096, 0, 0, &[])]), plain);
    check(&packet(ONE, &[opt(4_096, 0, 0, &option(100, &[]))]), plain);
    check(&packet(ONE, &[opt(4_096, 0, 0, &option(65_001, &[1, 2, 3]))]), plain);
    check(&packet(ONE, &[opt(4_096, 0, 0x0040, &[])]), plain);
    check(&packet(ONE, &[opt(4_096, 0, 0xffff, &[])]), plain);
    // Known ones: those that we have nothing on are not sent back.
    let subnet = option(8, &[0, 1, 24, 0, 192, 0, 2]);
    let all = [option(9, &[]), subnet, option(11, &[0, 100]), option(14, &[])].concat();
    check(&packet(ONE, &[opt(4_096, 0, 0, &all)]), plain);
    check(&packet(ONE, &[opt(4_096, 0, 0x8000, &option(3, &[]))]), "0 aa,rd 1 v0 [3]");
}

#[test]
fn another_version_is_refused_whatever_else_there_is() {
    let refused = "16 rd 0 v0 []";
    check(&packet(ONE, &[opt(4_096, 1, 0, &[])]), refused);
    check(&packet(ONE, &[opt(4_096, 255, 0, &[])]), refused);
    check(&packet(ONE, &[opt(4_096, 1, 0, &option(100, &[]))]), refused);
    check(&packet(ONE, &[opt(4_096, 1, 0x0040, &[])]), refused);
    check(&packet("none.internal. A", &[opt(4_096, 1, 0x8000, &[])]), refused);
}

#[test]
fn a_cut_reply_has_edns_and_small_sizes_count_as_512() {
    let large = "app.internal. A";
    let cut = |bytes_max| {
        let packet = packet(large, &[opt(bytes_max, 0, 0, &[])]);
        show(&packet, Transport::Udp)
    };
    assert_eq!(cut(512), "0 aa,tc,rd 29 v0 []");
    assert_eq!((cut(0), cut(511)), (cut(512), cut(512)));
    assert_eq!(cut(1_232), "0 aa,rd 60 v0 []");
    let over_tcp = packet(large, &[opt(512, 0, 0, &[])]);
    assert_eq!(show(&over_tcp, Transport::Tcp), "0 aa,rd 60 v0 []");
}

#[test]
fn malformed_edns_is_a_format_error() {
    let refused = "1 rd 0 -";
    let one = opt(4_096, 0, 0, &[]);
    check(&packet(ONE, &[one.clone(), one.clone()]), refused);
    let named = [&[1, b'x'][..], &one].concat();
    check(&packet(ONE, &[named]), refused);
    let mut long = opt(4_096, 0, 0, &option(3, &[]));
    let end = long.len();
    long[end - 1] = 9;
    check(&packet(ONE, &[long]), refused);
    let mut as_answer = packet(ONE, std::slice::from_ref(&one));
    as_answer.swap(7, 11);
    check(&as_answer, refused);
}

#[test]
fn flags_of_the_header_are_repeated_or_left_out_and_other_codes_refused() {
    let with = |at: usize, bits: u8| {
        let mut packet = packet(ONE, &[]);
        packet[at] ^= bits;
        packet
    };
    check(&with(2, 0x01), "0 aa 1 -");
    check(&with(2, 0x04), "0 aa,rd 1 -");
    check(&with(3, 0x10), "0 aa,rd,cd 1 -");
    // AD and the last bit without a meaning are not sent back.
    check(&with(3, 0x20), "0 aa,rd 1 -");
    check(&with(3, 0x40), "0 aa,rd 1 -");
    check(&with(3, 0x80), "0 aa,rd 1 -");
    check(&with(2, 15 << 3), "4 rd 0 -");
    let mut of_no_type = packet(ONE, &[]);
    let at = of_no_type.len() - 4;
    of_no_type[at..at + 2].copy_from_slice(&1_000_u16.to_be_bytes());
    check(&of_no_type, "0 aa,rd 0 -");
}
