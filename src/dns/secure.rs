//! The certificate of DNS over TLS and HTTPS: loaded, and loaded again when its files change.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Where the certificate, with those that lead to its CA, and its key are, in PEM form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("DNS over TLS cannot use {file}: {reason}; name a certificate and its key in PEM form")]
pub struct FilesError {
    file: String,
    reason: String,
}

/// A certificate that is in use.
#[derive(Debug)]
pub struct Certificate {
    files: Files,
    current: ArcSwap<CertifiedKey>,
}

impl Certificate {
    /// Loads it.
    pub fn load(files: Files) -> Result<Arc<Self>, FilesError> {
        let current = ArcSwap::new(load(&files)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// Makes what accepts connections with it, for the protocols that a client may choose from.
    pub fn acceptor(self: &Arc<Self>, protocols: &[&[u8]]) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Takes over new files when there are any, until the token is cancelled. Those that cannot be used
    /// are logged, and the certificate stays as it is.
    pub async fn renew(&self, token: CancellationToken) {
        let mut seen = self.changed_at();
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let now = self.changed_at();
            if now != seen {
                seen = now;
                self.reload();
            }
        }
    }

    /// Takes over the files as they are.
    pub fn reload(&self) {
        match load(&self.files) {
            Ok(key) => {
                self.current.store(key);
                info!(cert = %self.files.cert.display(), "DNS over TLS has a new certificate");
            }
            Err(error) => warn!(%error, "DNS over TLS keeps the certificate that it had"),
        }
    }

    /// Returns what clients are shown.
    #[cfg(test)]
    pub fn shown(&self) -> CertificateDer<'static> {
        self.current.load().cert[0].clone()
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        [&self.files.cert, &self.files.key]
            .map(|path| fs::metadata(path).and_then(|about| about.modified()).ok())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn load(files: &Files) -> Result<Arc<CertifiedKey>, FilesError> {
    let of =
        |path: &PathBuf, reason: String| FilesError { file: path.display().to_string(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|error| of(&files.cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(of(&files.cert, "it holds no certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| of(&files.key, error.to_string()))?;
    let key = CertifiedKey::from_der(chain, key, &ring::default_provider());
    key.map(Arc::new).map_err(|error| of(&files.key, error.to_string()))
}
