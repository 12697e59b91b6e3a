//! Makes certificates: a cluster's CA, and one for each node. Reading and checking them is the
//! business of `tls.rs`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use uuid::Uuid;

use super::subject::{NAME_BYTES_MAX, NodeSubject, Subject, is_name, subject_of};
use crate::types::{ClusterId, NodeId};

/// How long a CA lives: ten years.
pub const CA_DAYS: u32 = 3_650;

/// How long a node's certificate lives unless told otherwise. A stolen key is of use so long.
pub const NODE_DAYS: u32 = 90;

/// How far back validity begins, so that a node whose clock is behind can start at once.
const BACKDATED: Duration = Duration::from_secs(86_400);

const DAY: Duration = Duration::from_secs(86_400);

/// The longest validity that can be asked for; later dates do not fit into a certificate.
const DAYS_MAX: u32 = 36_500;

/// Why a certificate could not be made. No file was changed, but for [`CertificateError::Write`].
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{} exists already; --force replaces it", .0.display())]
    Exists(PathBuf),
    #[error(
        "cannot read {}: {error}. Make a CA with `tribune tls ca`, or say where it is with --ca \
         and --ca-key",
        file.display()
    )]
    Read { file: PathBuf, error: io::Error },
    #[error("cannot write {}: {error}", file.display())]
    Write { file: PathBuf, error: io::Error },
    #[error("{} is not the certificate of a Tribune CA: {why}", file.display())]
    NotACa { file: PathBuf, why: String },
    #[error("{} does not hold a private key in PEM form: {why}", file.display())]
    NotAKey { file: PathBuf, why: String },
    #[error("the key in {} does not belong to the certificate in {}", key.display(), cert.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error(
        "'{0}' cannot be a node's name: it needs 1 to {NAME_BYTES_MAX} bytes without control \
         characters"
    )]
    BadName(String),
    #[error("a certificate can be valid for 1 to {DAYS_MAX} days, not {0}")]
    BadDays(u32),
    #[error("cannot make the certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// A certificate and its private key as PEM text. The key is a secret: it has no `Debug`.
pub struct Pems {
    pub certificate: String,
    pub key: String,
}

/// Where a certificate and its key were written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What to write into a node's certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRequest {
    pub node: NodeId,
    pub name: String,
    /// From now; see [`NODE_DAYS`].
    pub days: u32,
}

/// A certificate authority: one cluster's, able to sign.
pub struct Ca {
    cluster: ClusterId,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Makes a CA for a new cluster whose id is drawn at random.
    pub fn new(now: SystemTime) -> Result<Self, CertificateError> {
        Self::for_cluster(ClusterId(*Uuid::new_v4().as_bytes()), now)
    }

    /// Makes a further CA for a cluster, to take the place of one that nears its end.
    pub fn for_cluster(cluster: ClusterId, now: SystemTime) -> Result<Self, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&Subject::Ca(cluster), now, CA_DAYS)?;
        params.distinguished_name = common_name(&format!("Tribune CA {cluster}"));
        // It signs nodes and no further CAs.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { cluster, certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads a CA from the two files that [`make_ca`] wrote.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let pem = read(certificate)?;
        let not_a_ca = |why: String| CertificateError::NotACa { file: certificate.into(), why };
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| not_a_ca("it holds no certificate in PEM form".to_owned()))?;
        let cluster = match subject_of(&der) {
            Ok((Subject::Ca(cluster), _)) => cluster,
            Ok((Subject::Node(_), _)) => return Err(not_a_ca("it is that of a node".to_owned())),
            Err(error) => return Err(not_a_ca(error.to_string())),
        };
        let key_pair = KeyPair::from_pem(&read(key)?).map_err(|error| {
            CertificateError::NotAKey { file: key.into(), why: error.to_string() }
        })?;
        if !is_key_of(&der, &key_pair) {
            return Err(CertificateError::KeyMismatch {
                cert: certificate.into(),
                key: key.into(),
            });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key_pair)?;
        Ok(Self { cluster, certificate: pem, issuer })
    }

    /// Returns the cluster that this CA is for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Returns the CA's certificate, which every node needs.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a key for a node and signs its certificate.
    pub fn issue(&self, request: &NodeRequest, now: SystemTime) -> Result<Pems, CertificateError> {
        if !is_name(&request.name) {
            return Err(CertificateError::BadName(request.name.clone()));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let (cluster, node, name) = (self.cluster, request.node, request.name.clone());
        let subject = Subject::Node(NodeSubject { cluster, node, name });
        let mut params = params(&subject, now, request.days)?;
        params.distinguished_name = common_name(&request.name);
        params.subject_alt_names.extend(dns_name(&request.name));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node dials and is dialled.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pems { certificate, key: key.serialize_pem() })
    }
}

/// Makes a CA for a new cluster in `directory`: `ca.pem` and `ca-key.pem`. Existing files are only
/// replaced with `force`: a cluster that loses its CA's key can take in no further node.
pub fn make_ca(
    directory: &Path,
    force: bool,
    now: SystemTime,
) -> Result<(ClusterId, Written), CertificateError> {
    make_ca_of(directory, &Ca::new(now)?, force)
}

/// Writes a CA like [`make_ca`].
pub fn make_ca_of(
    directory: &Path,
    ca: &Ca,
    force: bool,
) -> Result<(ClusterId, Written), CertificateError> {
    let files =
        Written { certificate: directory.join("ca.pem"), key: directory.join("ca-key.pem") };
    refuse_existing(&files, force)?;
    let key = ca.issuer.key().serialize_pem();
    write_pair(&files, &Pems { certificate: ca.certificate.clone(), key }, force)?;
    Ok((ca.cluster, files))
}

/// Makes a node's certificate, signed by `ca`, in `directory`: `NAME.pem` and `NAME-key.pem`.
pub fn make_node(
    ca: &Ca,
    request: &NodeRequest,
    directory: &Path,
    force: bool,
    now: SystemTime,
) -> Result<Written, CertificateError> {
    let stem = file_stem(&request.name)?;
    let files = Written {
        certificate: directory.join(format!("{stem}.pem")),
        key: directory.join(format!("{stem}-key.pem")),
    };
    refuse_existing(&files, force)?;
    write_pair(&files, &ca.issue(request, now)?, force)?;
    Ok(files)
}

fn params(
    subject: &Subject,
    now: SystemTime,
    days: u32,
) -> Result<CertificateParams, CertificateError> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(CertificateError::BadDays(days));
    }
    let mut params = CertificateParams::default();
    // rcgen's dates are those of a crate that we do not otherwise need.
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_1970.saturating_sub(BACKDATED);
    params.not_after = epoch + since_1970 + DAY * days;
    params.subject_alt_names = vec![SanType::URI(subject.to_string().try_into()?)];
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    // X.509 allows 64 characters here; the whole name is in the URI.
    let short: String = name.chars().take(64).collect();
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, short);
    distinguished
}

/// The name as a DNS name, where it can be one: for tools that look at certificates.
fn dns_name(name: &str) -> Option<SanType> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_dns = name.split('.').all(is_label);
    is_dns.then(|| name.try_into().ok().map(SanType::DnsName)).flatten()
}

fn is_key_of(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use x509_parser::prelude::FromDer;
    x509_parser::certificate::X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
        *parsed.public_key().subject_public_key.data == *key.public_key_raw()
    })
}

/// A node's name can hold what a file's name cannot.
fn file_stem(name: &str) -> Result<&str, CertificateError> {
    let is_fit = is_name(name) && !name.contains('/') && !name.starts_with('.');
    if is_fit { Ok(name) } else { Err(CertificateError::BadName(name.to_owned())) }
}

fn read(file: &Path) -> Result<String, CertificateError> {
    fs::read_to_string(file).map_err(|error| CertificateError::Read { file: file.into(), error })
}

fn refuse_existing(files: &Written, force: bool) -> Result<(), CertificateError> {
    let existing = [&files.certificate, &files.key].into_iter().find(|file| file.exists());
    match existing {
        Some(file) if !force => Err(CertificateError::Exists(file.clone())),
        Some(_) | None => Ok(()),
    }
}

fn write_pair(files: &Written, pems: &Pems, force: bool) -> Result<(), CertificateError> {
    if let Some(directory) = files.key.parent() {
        fs::create_dir_all(directory)
            .map_err(|error| CertificateError::Write { file: directory.into(), error })?;
    }
    // The key first: a certificate without its key would look like something that can be used.
    write_new(&files.key, &pems.key, 0o600, force)?;
    write_new(&files.certificate, &pems.certificate, 0o644, force)
}

/// Writes a file that did not exist, or with `force` one in its place. The mode is there from the
/// first moment.
fn write_new(file: &Path, text: &str, mode: u32, force: bool) -> Result<(), CertificateError> {
    let write = || -> io::Result<()> {
        if force {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let mut handle = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
        handle.write_all(text.as_bytes())?;
        handle.sync_all()
    };
    write().map_err(|error| CertificateError::Write { file: file.into(), error })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn request(name: &str) -> NodeRequest {
        NodeRequest { node: NodeId([7; 16]), name: name.to_owned(), days: NODE_DAYS }
    }

    #[test]
    fn a_ca_is_found_again_in_its_files_and_signs() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (cluster, files) = make_ca(directory.path(), false, now).unwrap();
        let ca = Ca::load(&files.certificate, &files.key).unwrap();
        assert_eq!(ca.cluster(), cluster);
        let node = make_node(&ca, &request("web-1.example"), directory.path(), false, now).unwrap();
        assert!(node.certificate.ends_with("web-1.example.pem"));
        for key in [&files.key, &node.key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn nothing_is_overwritten_without_force() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (first, files) = make_ca(directory.path(), false, now).unwrap();
        let refusal = make_ca(directory.path(), false, now).unwrap_err().to_string();
        assert!(refusal.ends_with("ca.pem exists already; --force replaces it"), "{refusal}");
        fs::remove_file(&files.certificate).unwrap();
        assert!(make_ca(directory.path(), false, now).is_err(), "the key alone stands in the way");
        let (second, _) = make_ca(directory.path(), true, now).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn what_is_no_ca_is_refused_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (_, files) = make_ca(directory.path(), false, now).unwrap();
        let ca = Ca::load(&files.certificate, &files.key).unwrap();
        let node = make_node(&ca, &request("n"), directory.path(), false, now).unwrap();
        let refusal = |certificate: &Path, key: &Path| {
            Ca::load(certificate, key).map(|_| ()).unwrap_err().to_string()
        };
        assert!(refusal(&node.certificate, &files.key).contains("it is that of a node"));
        assert!(refusal(&files.certificate, &node.key).contains("does not belong to"));
        assert!(refusal(&files.key, &files.key).contains("no certificate in PEM form"));
        assert!(refusal(Path::new("/nowhere/ca.pem"), &files.key).contains("`tribune tls ca`"));
    }

    #[test]
    fn names_and_days_are_checked() {
        let ca = Ca::new(SystemTime::now()).unwrap();
        assert!(ca.issue(&request("ein Name mit Leerzeichen"), SystemTime::now()).is_ok());
        assert!(ca.issue(&request(""), SystemTime::now()).is_err());
        assert!(ca.issue(&request("a\nb"), SystemTime::now()).is_err());
        let ever = NodeRequest { days: 0, ..request("n") };
        assert!(ca.issue(&ever, SystemTime::now()).is_err());
        let directory = tempfile::tempdir().unwrap();
        let up = make_node(&ca, &request("../n"), directory.path(), false, SystemTime::now());
        assert!(matches!(up, Err(CertificateError::BadName(_))));
    }
}
