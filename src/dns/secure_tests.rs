//! DNS over TLS and over HTTPS, spoken by somebody else's client.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::opt::EdnsCode;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{Config, Secure};
use super::secure::{Certificate, Files};
use super::server::{BindError, Dns};
use super::testing::running::{PATIENCE, Running, framed};
use super::testing::{Catalog, question};
use crate::dns::testing::data_of;

/// Writes a certificate for `localhost` that signs itself.
fn certify(directory: &Path) -> (Files, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = Files { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    (files, made.cert.der().clone())
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn start(files: Files) -> Running {
    let secure = Some(Secure { files, tls: vec![any()], https: vec![any()] });
    let catalog = (0..60)
        .fold(Catalog::new(), |catalog, n| catalog.instance(&format!("app a{n} 10.0.0.{n}:80")));
    let config = Config { listen: vec![(any(), false)], secure, ..Config::default() };
    Running::start(config, catalog.view)
}

async fn connect(to: SocketAddr, root: &CertificateDer<'static>) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dot".to_vec()];
    let stream = TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

async fn ask(stream: &mut TlsStream<TcpStream>, packet: &[u8]) -> (usize, Message) {
    stream.write_all(&framed(packet)).await.unwrap();
    let length = usize::from(timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap());
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await.unwrap();
    (length, Message::from_vec(&reply).unwrap())
}

#[tokio::test]
async fn dns_over_tls_gives_the_whole_and_fills_up_what_was_filled_up() {
    let home = tempfile::tempdir().unwrap();
    let (files, root) = certify(home.path());
    let running = start(files);
    let mut stream = connect(running.secure[0], &root).await;
    let (_, reply) = ask(&mut stream, &question("app.internal. A", 0)).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (60, false));
    let mut packet = question("a1.app.internal. A", 1_232);
    let (length, _) = ask(&mut stream, &packet).await;
    assert!(length < 100, "nobody asked for more");
    let end = packet.len();
    packet[end - 1] = 9;
    packet.extend_from_slice(&[0, 12, 0, 5, 0, 0, 0, 0, 0]);
    for (text, expected) in [("a1.app.internal. A", 468), ("app.internal. A", 1_404)] {
        let mut asked = question(text, 1_232);
        asked.truncate(asked.len() - 2);
        asked.extend_from_slice(&packet[end - 2..]);
        let (length, reply) = ask(&mut stream, &asked).await;
        let options = reply.edns.unwrap();
        assert!(options.option(EdnsCode::Padding).is_some());
        assert_eq!(length, expected, "{text}");
    }
    // In the clear it would only make the reply longer.
    let reply = running.ask_bytes(&packet).await;
    assert!(reply.len() < 100);
    running.stop().await;
}

#[tokio::test]
async fn dns_over_https_answers_gets_and_posts() {
    let home = tempfile::tempdir().unwrap();
    let (files, root) = certify(home.path());
    let running = start(files);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = reqwest::Certificate::from_der(&root).unwrap();
    let builder = || reqwest::Client::builder().tls_certs_only([root.clone()]).timeout(PATIENCE);
    let base = format!("https://localhost:{}", running.secure[1].port());
    let packet = question("a1.app.internal. A", 0);
    let get = format!("{base}/dns-query?dns={}", URL_SAFE_NO_PAD.encode(&packet));
    for client in [builder().http1_only().build().unwrap(), builder().build().unwrap()] {
        let post = client.post(format!("{base}/dns-query"));
        let post = post.header("content-type", "application/dns-message").body(packet.clone());
        for request in [client.get(&get), post] {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["content-type"], "application/dns-message");
            assert_eq!(response.headers()["cache-control"], "max-age=0");
            let reply = Message::from_vec(&response.bytes().await.unwrap()).unwrap();
            assert_eq!(data_of(&reply.answers[0]), "10.0.0.1");
        }
    }
    let client = builder().build().unwrap();
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status();
    let to = format!("{base}/dns-query");
    assert_eq!(status(client.get(format!("{base}/"))).await, 404);
    assert_eq!(status(client.get(&to)).await, 400);
    assert_eq!(status(client.get(format!("{to}?dns=!!"))).await, 400);
    assert_eq!(status(client.get(format!("{to}?dns=AAAA"))).await, 400);
    assert_eq!(status(client.put(&to)).await, 405);
    assert_eq!(status(client.post(&to).body(packet)).await, 415);
    let long = client.post(&to).header("content-type", "application/dns-message");
    assert_eq!(status(long.body(vec![0; 5_000])).await, 413);
    running.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_over_and_a_broken_one_is_not() {
    let home = tempfile::tempdir().unwrap();
    let (files, first) = certify(home.path());
    let certificate = Certificate::load(files.clone()).unwrap();
    assert_eq!(certificate.shown(), first);
    let (_, second) = certify(home.path());
    certificate.reload();
    assert_eq!(certificate.shown(), second);
    std::fs::write(&files.key, "no key").unwrap();
    certificate.reload();
    assert_eq!(certificate.shown(), second);
    let secure = Some(Secure { files: files.clone(), tls: vec![any()], https: vec![] });
    let Err(error @ BindError::Certificate(_)) = Dns::bind(Config { secure, ..Config::default() })
    else {
        panic!("it has no key");
    };
    let key = files.key.display();
    assert!(error.to_string().starts_with(&format!("DNS over TLS cannot use {key}: ")), "{error}");
}
