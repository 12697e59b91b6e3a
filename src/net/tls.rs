//! This node's certificate: loaded, checked, and made into TLS settings under which only nodes of
//! the same cluster can speak to each other. Certificates are made in `certificates.rs`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::subject::{NodeSubject, Subject, subject_of};
pub use super::subject::{Validity, words};
use crate::types::{ClusterId, NodeId};

/// The protocol that nodes speak over TLS. Another number is another protocol.
const ALPN: &[u8] = b"tribune/1";

/// What is spoken on the connection of somebody who only comes for a snapshot: see `snapshot/`.
pub(super) const SNAPSHOT_ALPN: &[u8] = b"tribune-snapshot/1";

/// The three files of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The CA's certificate; two while one CA takes over from another.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Who this node is, and how it proves it.
pub struct Identity {
    subject: NodeSubject,
    /// The certificate's, as far as a CA counts as long.
    validity: Validity,
    warnings: Vec<String>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Why a node cannot use its certificate. Each says which file is at fault and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {file}: {error}. {remedy}")]
    Unreadable { file: String, error: String, remedy: &'static str },
    #[error("{file} holds no {what} in PEM form: a block that begins with -----BEGIN. {remedy}")]
    NotPem { file: String, what: &'static str, remedy: &'static str },
    #[error("{file} is not the certificate of a Tribune {wanted}: {why}. {remedy}")]
    WrongKind { file: String, wanted: &'static str, why: String, remedy: &'static str },
    #[error(
        "{file} belongs to cluster {theirs}, but the CA in {ca} to cluster {ours}: sign the node's \
         certificate with this cluster's CA"
    )]
    OtherCluster { file: String, ca: String, theirs: ClusterId, ours: ClusterId },
    #[error("{file} holds CAs of different clusters, {first} and {second}: keep one cluster's")]
    MixedCas { file: String, first: ClusterId, second: ClusterId },
    #[error("{file} expired {ago} ago: make a new one with {remedy}")]
    Expired { file: String, ago: String, remedy: &'static str },
    #[error("{file} becomes valid only in {wait}: is this host's clock right?")]
    NotYetValid { file: String, wait: String },
    #[error("{file} was not signed by the CA in {ca}: sign it with that CA, or name the right one")]
    NotSigned { file: String, ca: String },
    #[error("the key in {key} does not belong to the certificate in {file}: they come in pairs")]
    KeyMismatch { file: String, key: String },
    #[error("everyone on this host can read the key {file} (mode {mode:04o}): chmod 600 {file}")]
    KeyExposed { file: String, mode: u32 },
    #[error("cannot use the certificate {file}: {why}")]
    Unusable { file: String, why: String },
}

const MAKE_CA: &str = "`tribune tls ca` makes a CA";
const MAKE_NODE: &str = "`tribune tls node NAME` makes a node's certificate and key";

/// A piece of PEM and how to call it in an error.
struct Source {
    name: String,
    pem: Vec<u8>,
}

impl Identity {
    /// Loads and checks the files of a node, so that whatever is wrong with them is said at the
    /// start and not by a peer's refusal later.
    pub fn load(files: &Files, now: SystemTime) -> Result<Self, TlsError> {
        let ca = Source::read(&files.ca, MAKE_CA)?;
        let cert = Source::read(&files.cert, MAKE_NODE)?;
        let key = Source::read(&files.key, MAKE_NODE)?;
        let warnings = check_mode(&files.key)?;
        Ok(Self { warnings, ..Self::from_sources(&ca, &cert, &key, now)? })
    }

    /// Checks certificates that were never in a file: those of `tribune dev` and of tests.
    pub fn from_pem(ca: &str, cert: &str, key: &str, now: SystemTime) -> Result<Self, TlsError> {
        let source = |name: &str, pem: &str| Source { name: name.into(), pem: pem.into() };
        let (ca, cert) = (source("the CA's certificate", ca), source("the certificate", cert));
        Self::from_sources(&ca, &cert, &source("the private key", key), now)
    }

    fn from_sources(
        ca: &Source,
        cert: &Source,
        key: &Source,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let (roots, cluster, of_ca) = roots(ca, now)?;
        let chain = cert.certificates(MAKE_NODE)?;
        let (subject, validity) = node_subject(cert, &chain[0], now)?;
        let validity = validity.and(of_ca);
        if subject.cluster != cluster {
            let (file, ca) = (cert.name.clone(), ca.name.clone());
            return Err(TlsError::OtherCluster {
                file,
                ca,
                theirs: subject.cluster,
                ours: cluster,
            });
        }
        check_signature(ca, cert, &roots, &chain, now)?;
        let key = private_key(cert, key, &chain)?;
        Ok(Self { subject, validity, warnings: Vec::new(), roots: Arc::new(roots), chain, key })
    }

    /// Returns the cluster that this node belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.subject.cluster
    }

    /// Returns this node's id.
    pub fn node(&self) -> NodeId {
        self.subject.node
    }

    /// Returns this node's name.
    pub fn name(&self) -> &str {
        &self.subject.name
    }

    /// Returns from when until when the certificate counts, and the CA's.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Returns what is not wrong but should be looked at, as sentences for the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns a secret that lasts as long as the private key, for tokens that must outlive a
    /// restart.
    pub(super) fn secret(&self) -> &[u8] {
        self.key.secret_der()
    }

    /// Returns the settings for connections that others begin.
    pub(super) fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let verifier = PeerVerifier::new(self)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec(), SNAPSHOT_ALPN.to_vec()];
        // No tickets: a resumed session would skip the check of the certificate's validity, and
        // with it a full handshake's third of a millisecond is all there is to gain.
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// Returns the settings for connections that this node begins.
    pub(super) fn client_config(&self) -> Result<ClientConfig, rustls::Error> {
        self.client_config_for(ALPN)
    }

    /// Returns the settings for a connection on which a snapshot is asked for.
    pub(super) fn visitor_config(&self) -> Result<ClientConfig, rustls::Error> {
        self.client_config_for(SNAPSHOT_ALPN)
    }

    fn client_config_for(&self, protocol: &[u8]) -> Result<ClientConfig, rustls::Error> {
        let verifier = PeerVerifier::new(self)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![protocol.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        Ok(config)
    }
}

/// Makes ring the process's cryptography for HTTP clients, which take the default one. The first
/// call counts; later ones change nothing.
pub fn install_provider() {
    // An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
impl Identity {
    /// Returns this node as it would be if its CA file held another cluster's CA as well, which
    /// loading refuses.
    pub(super) fn trusting(&self, other: &super::certificates::Ca) -> Self {
        let mut roots = (*self.roots).clone();
        let pem = other.certificate().as_bytes();
        roots.add(CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
        Self {
            subject: self.subject.clone(),
            validity: self.validity,
            warnings: Vec::new(),
            roots: Arc::new(roots),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Source {
    fn read(file: &Path, remedy: &'static str) -> Result<Self, TlsError> {
        let name = file.display().to_string();
        match fs::read(file) {
            Ok(pem) => Ok(Self { name, pem }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let error = "there is no such file".to_owned();
                Err(TlsError::Unreadable { file: name, error, remedy })
            }
            Err(error) => {
                let remedy = "The user that runs Tribune must be able to read it";
                Err(TlsError::Unreadable { file: name, error: error.to_string(), remedy })
            }
        }
    }

    /// Returns at least one certificate.
    fn certificates(&self, remedy: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.pem).collect();
        let certificates = certificates.unwrap_or_default();
        if certificates.is_empty() {
            let (file, what) = (self.name.clone(), "certificate");
            return Err(TlsError::NotPem { file, what, remedy });
        }
        Ok(certificates)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads the CAs: whom to believe, of which cluster, and as long as any of them counts.
fn roots(ca: &Source, now: SystemTime) -> Result<(RootCertStore, ClusterId, Validity), TlsError> {
    let mut roots = RootCertStore::empty();
    let mut cluster = None;
    let mut counts: Option<Validity> = None;
    for certificate in ca.certificates(MAKE_CA)? {
        let wrong = |why: String| TlsError::WrongKind {
            file: ca.name.clone(),
            wanted: "CA",
            why,
            remedy: MAKE_CA,
        };
        let (subject, validity) =
            subject_of(&certificate).map_err(|error| wrong(error.to_string()))?;
        let Subject::Ca(of) = subject else { return Err(wrong("it is that of a node".into())) };
        let first = *cluster.get_or_insert(of);
        if first != of {
            return Err(TlsError::MixedCas { file: ca.name.clone(), first, second: of });
        }
        // One of two that has expired is what the second is there for.
        if validity.not_after > now {
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            let longer = counts.filter(|counts| counts.not_after >= validity.not_after);
            counts = Some(longer.unwrap_or(validity));
        } else if roots.is_empty() {
            let ago = span(now, validity.not_after);
            let (file, remedy) = (ca.name.clone(), "`tribune tls ca`");
            cluster = Some(of);
            if ca.certificates(MAKE_CA)?.len() == 1 {
                return Err(TlsError::Expired { file, ago, remedy });
            }
        }
    }
    let cluster = cluster.expect("there is at least one certificate, and each sets it or fails");
    let Some(counts) = counts else {
        let (file, remedy) = (ca.name.clone(), "`tribune tls ca`");
        return Err(TlsError::Expired { file, ago: "some time".to_owned(), remedy });
    };
    Ok((roots, cluster, counts))
}

fn node_subject(
    cert: &Source,
    certificate: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<(NodeSubject, Validity), TlsError> {
    let wrong = |why: String| TlsError::WrongKind {
        file: cert.name.clone(),
        wanted: "node",
        why,
        remedy: MAKE_NODE,
    };
    let (subject, validity) = subject_of(certificate).map_err(|error| wrong(error.to_string()))?;
    let Subject::Node(subject) = subject else {
        return Err(wrong("it is that of a CA".to_owned()));
    };
    if validity.not_after <= now {
        let (file, ago) = (cert.name.clone(), span(now, validity.not_after));
        return Err(TlsError::Expired { file, ago, remedy: "`tribune tls node`" });
    }
    if validity.not_before > now {
        let (file, wait) = (cert.name.clone(), span(validity.not_before, now));
        return Err(TlsError::NotYetValid { file, wait });
    }
    Ok((subject, validity))
}

fn check_signature(
    ca: &Source,
    cert: &Source,
    roots: &RootCertStore,
    chain: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(), TlsError> {
    let unusable = |error: rustls::Error| match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => TlsError::NotSigned { file: cert.name.clone(), ca: ca.name.clone() },
        error => TlsError::Unusable { file: cert.name.clone(), why: error.to_string() },
    };
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since_1970);
    let parsed = ParsedCertificate::try_from(&chain[0]).map_err(unusable)?;
    let algorithms = provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, &chain[1..], now, algorithms.all)
        .map_err(unusable)
}

fn private_key(
    cert: &Source,
    key: &Source,
    chain: &[CertificateDer<'static>],
) -> Result<PrivateKeyDer<'static>, TlsError> {
    let not_pem =
        |_| TlsError::NotPem { file: key.name.clone(), what: "private key", remedy: MAKE_NODE };
    let der = PrivateKeyDer::from_pem_slice(&key.pem).map_err(not_pem)?;
    match CertifiedKey::from_der(chain.to_vec(), der.clone_key(), &provider()) {
        Ok(_) => Ok(der),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(TlsError::KeyMismatch { file: cert.name.clone(), key: key.name.clone() })
        }
        Err(error) => Err(TlsError::Unusable { file: key.name.clone(), why: error.to_string() }),
    }
}

/// A key that the whole host can read is refused; one that a group can read is how containers
/// hand out secrets, and is mentioned.
fn check_mode(file: &PathBuf) -> Result<Vec<String>, TlsError> {
    let Ok(metadata) = fs::metadata(file) else { return Ok(Vec::new()) };
    let mode = metadata.permissions().mode() & 0o777;
    let name = file.display();
    if mode & 0o007 != 0 {
        return Err(TlsError::KeyExposed { file: name.to_string(), mode });
    }
    let is_shared = mode & 0o070 != 0;
    let warning = format!("the key {name} can be read by its group (mode {mode:04o})");
    Ok(is_shared.then_some(warning).into_iter().collect())
}

/// Says how far apart two times are.
fn span(later: SystemTime, earlier: SystemTime) -> String {
    words(later.duration_since(earlier).unwrap_or(Duration::ZERO))
}

/// Believes a peer that shows a certificate of this cluster's CA with this cluster's id. Which
/// node it is, is read from it afterwards; the host it lives on does not matter.
#[derive(Debug)]
struct PeerVerifier {
    cluster: ClusterId,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn new(identity: &Identity) -> Result<Arc<Self>, rustls::Error> {
        let roots = identity.roots.clone();
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let algorithms = provider().signature_verification_algorithms;
        Ok(Arc::new(Self { cluster: identity.cluster(), roots, clients, algorithms }))
    }

    fn check_subject(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let refused = |why: String| {
            let why: Arc<dyn std::error::Error + Send + Sync> = Arc::from(Box::from(why));
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why)))
        };
        match subject_of(certificate) {
            Ok((Subject::Node(subject), _)) if subject.cluster == self.cluster => Ok(()),
            Ok((Subject::Node(subject), _)) => Err(refused(format!(
                "the certificate is for cluster {}, not {}",
                subject.cluster, self.cluster
            ))),
            Ok((Subject::Ca(_), _)) => Err(refused("the certificate is that of a CA".to_owned())),
            Err(error) => Err(refused(format!("the certificate is not a node's: {error}"))),
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let (roots, algorithms) = (&self.roots, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        self.check_subject(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.check_subject(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

/// Reads which cluster and node a certificate's file names. Whether it is valid now, and who signed
/// it, is not looked at.
pub fn named_in(cert: &Path) -> Result<(ClusterId, NodeId), TlsError> {
    let source = Source::read(cert, MAKE_NODE)?;
    let certificates = source.certificates(MAKE_NODE)?;
    match peer_of(&certificates[0]) {
        Some(subject) => Ok((subject.cluster, subject.node)),
        None => {
            let (file, why) = (source.name, "it names no node".to_owned());
            Err(TlsError::WrongKind { file, wanted: "node", why, remedy: MAKE_NODE })
        }
    }
}

/// Reads from when until when a certificate's file counts.
pub fn validity_in(cert: &Path) -> Result<Validity, TlsError> {
    let source = Source::read(cert, MAKE_NODE)?;
    let certificates = source.certificates(MAKE_NODE)?;
    match subject_of(&certificates[0]) {
        Ok((_, validity)) => Ok(validity),
        Err(error) => {
            let (file, why) = (source.name, error.to_string());
            Err(TlsError::WrongKind { file, wanted: "node", why, remedy: MAKE_NODE })
        }
    }
}

/// Reads who a peer is from the certificate that the handshake has verified.
pub(super) fn peer_of(certificate: &CertificateDer<'_>) -> Option<NodeSubject> {
    match subject_of(certificate) {
        Ok((Subject::Node(subject), _)) => Some(subject),
        Ok((Subject::Ca(_), _)) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificates::{self, Ca, NodeRequest, Pems};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn issue(ca: &Ca, days: u32, now: SystemTime) -> Pems {
        let request = NodeRequest { node: NodeId([7; 16]), name: "web 1".to_owned(), days };
        ca.issue(&request, now).unwrap()
    }

    fn refusal(ca: &str, cert: &str, key: &str, now: SystemTime) -> String {
        Identity::from_pem(ca, cert, key, now).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn a_node_reads_who_it_is_from_its_certificate() {
        let now = SystemTime::now();
        let ca = Ca::new(now).unwrap();
        let pems = issue(&ca, 90, now);
        let identity =
            Identity::from_pem(ca.certificate(), &pems.certificate, &pems.key, now).unwrap();
        assert_eq!(identity.cluster(), ca.cluster());
        assert_eq!((identity.node(), identity.name()), (NodeId([7; 16]), "web 1"));
        let days = identity.validity().not_after.duration_since(now).unwrap().as_secs() / 86_400;
        assert!((89..=90).contains(&days));
        assert!(identity.server_config().is_ok() && identity.client_config().is_ok());
    }

    #[test]
    fn each_fault_is_a_sentence_that_names_its_cause() {
        let now = SystemTime::now();
        let ca = Ca::new(now).unwrap();
        let other = Ca::new(now).unwrap();
        let twin = Ca::for_cluster(ca.cluster(), now).unwrap();
        let Pems { certificate: cert, key } = issue(&ca, 90, now);
        let check = |ca: &str, cert: &str, key: &str, now, expected: &str| {
            let refusal = refusal(ca, cert, key, now);
            assert!(refusal.contains(expected), "{refusal} - expected: {expected}");
        };
        check(ca.certificate(), &cert, &key, now + 100 * DAY, "expired 10 days ago");
        check(
            ca.certificate(),
            &cert,
            &key,
            now - 10 * DAY - DAY / 2,
            "becomes valid only in 9 days",
        );
        check(ca.certificate(), &cert, &key, now + 4_000 * DAY, "CA's certificate expired");
        check(other.certificate(), &cert, &key, now, "belongs to cluster");
        check(twin.certificate(), &cert, &key, now, "was not signed by the CA");
        check(ca.certificate(), &cert, &issue(&ca, 90, now).key, now, "does not belong");
        check(&cert, &cert, &key, now, "not the certificate of a Tribune CA: it is that of a node");
        check(ca.certificate(), ca.certificate(), &key, now, "a Tribune node: it is that of a CA");
        check("", &cert, &key, now, "holds no certificate in PEM form");
        check(ca.certificate(), &cert, &cert, now, "holds no private key in PEM form");
        let both = format!("{}{}", ca.certificate(), other.certificate());
        check(&both, &cert, &key, now, "CAs of different clusters");
    }

    #[test]
    fn two_cas_of_one_cluster_serve_while_one_takes_over_from_the_other() {
        let now = SystemTime::now();
        let old = Ca::new(now - 3_640 * DAY).unwrap();
        let new = Ca::for_cluster(old.cluster(), now).unwrap();
        let both = format!("{}{}", old.certificate(), new.certificate());
        for (ca, now) in [(&old, now), (&new, now), (&new, now + 20 * DAY)] {
            let pems = issue(ca, 90, now);
            assert!(Identity::from_pem(&both, &pems.certificate, &pems.key, now).is_ok());
        }
    }

    #[test]
    fn a_certificate_without_our_uri_is_refused() {
        let now = SystemTime::now();
        let ca = Ca::new(now).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["web.example".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        let refusal = refusal(ca.certificate(), &cert, &key.serialize_pem(), now);
        assert!(refusal.contains("names no node"), "{refusal}");
    }

    #[test]
    fn a_key_that_everyone_can_read_is_refused_and_a_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (_, ca_files) = certificates::make_ca(directory.path(), false, now).unwrap();
        let ca = Ca::load(&ca_files.certificate, &ca_files.key).unwrap();
        let request = NodeRequest { node: NodeId([7; 16]), name: "n".to_owned(), days: 9 };
        let node = certificates::make_node(&ca, &request, directory.path(), false, now).unwrap();
        let files = Files { ca: ca_files.certificate, cert: node.certificate, key: node.key };
        assert!(Identity::load(&files, now).unwrap().warnings().is_empty());
        let load = |mode| {
            fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
            Identity::load(&files, now).map(|identity| identity.warnings().len())
        };
        assert_eq!(load(0o640), Ok(1));
        assert!(load(0o644).unwrap_err().to_string().contains("mode 0644): chmod 600"));
        let missing = Files { cert: Path::new("/nowhere/n.pem").into(), ..files };
        let refusal = Identity::load(&missing, now).map(|_| ()).unwrap_err().to_string();
        assert!(refusal.starts_with("cannot read /nowhere/n.pem: there is no such file."));
    }
}
