//! Where the commands that work on a node's files find them: the same directory, and the same
//! certificates, that the agent would use.

use std::path::PathBuf;

use super::ConfigError;
use super::agent::{DATA_DIR, Tls, parse_node_id, tls};
use super::file::{self, File};
use crate::types::NodeId;

/// The flags of those commands, each with the environment variable that the agent reads, too.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct PlaceFlags {
    /// The agent's configuration file (TOML)
    #[arg(long, short, value_name = "FILE", env = "TRIBUNE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The agent's data directory [default: /var/lib/tribune]
    #[arg(long, value_name = "DIR", env = "TRIBUNE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Where a node's files are, and what its configuration says of who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub data_dir: PathBuf,
    pub node_id: Option<NodeId>,
    /// The node's certificate.
    pub cert: Option<PathBuf>,
}

impl Place {
    /// Lays the flags over the file that they name. Of the file only what is needed here is looked
    /// at, so that a mistake elsewhere in it stops no backup.
    pub fn from_flags(flags: PlaceFlags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let data_dir = flags.data_dir.or(file.data_dir).unwrap_or_else(|| DATA_DIR.into());
        let node_id = file.node_id.as_deref().map(parse_node_id).transpose()?;
        Ok(Self { data_dir, node_id, cert: file.gossip.cert })
    }
}

/// The flags of commands that go to other nodes as this host's.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct MemberFlags {
    /// The agent's configuration file (TOML), which names its certificates
    #[arg(long, short, value_name = "FILE", env = "TRIBUNE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The cluster's CA certificate (PEM)
    #[arg(long, value_name = "FILE", env = "TRIBUNE_CA")]
    pub ca: Option<PathBuf>,
    /// A node's certificate (PEM), this host's or any of the cluster
    #[arg(long, value_name = "FILE", env = "TRIBUNE_CERT")]
    pub cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "TRIBUNE_KEY")]
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Lays the flags over the file that they name.
    pub fn from_flags(flags: MemberFlags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => File::read(path)?.gossip,
            None => file::Gossip::default(),
        };
        let files = tls([
            ("ca", flags.ca.or(file.ca)),
            ("cert", flags.cert.or(file.cert)),
            ("key", flags.key.or(file.key)),
        ])?;
        files.ok_or_else(|| {
            ConfigError::new(
                "other nodes are spoken to under a certificate: name it with --ca, --cert and \
                 --key, or the agent's configuration with --config",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        std::fs::write(&config, "data_dir = '/data'\n[gossip]\ncert = 'n.pem'\n").unwrap();
        let flags = PlaceFlags { config: Some(config), data_dir: None };
        let place = Place::from_flags(flags.clone()).unwrap();
        assert_eq!(place.data_dir, PathBuf::from("/data"));
        assert_eq!(place.cert, Some("n.pem".into()), "half an identity is enough here");
        let flags = PlaceFlags { data_dir: Some("/flag".into()), ..flags };
        assert_eq!(Place::from_flags(flags).unwrap().data_dir, PathBuf::from("/flag"));
        let place = Place::from_flags(PlaceFlags::default()).unwrap();
        assert_eq!(place.data_dir, PathBuf::from(DATA_DIR));
    }
}
