//! Who wrote something, and where.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::version::Epoch;

/// A node's identity: 16 bytes, shown as a UUID, never given to another node.
///
/// It is written into the node's certificate and into the first column of every row the node
/// owns, so it outlives restarts, renames and changes of address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub [u8; 16]);

/// A cluster's identity. Certificates carry it, so two clusters can never merge by a copied
/// configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(pub [u8; 16]);

/// The region a node belongs to. `0` is the only region of a cluster that has not been divided.
///
/// Every origin carries it from the first day, so that a cluster can be divided later without a
/// new format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Scope(pub u16);

/// One writer's stream of versions: a node during one epoch.
///
/// The order of origins is the last word of the merge order, so it must be the same on all nodes:
/// scope, then node, then epoch, each as big-endian bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Origin {
    pub scope: Scope,
    pub node: NodeId,
    pub epoch: Epoch,
}

impl Origin {
    /// The length of [`Origin::to_bytes`].
    pub const BYTES: usize = 26;

    /// Returns the origin as bytes whose order is the order of origins.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&self.scope.0.to_be_bytes());
        bytes[2..18].copy_from_slice(&self.node.0);
        bytes[18..].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes
    }

    /// Reads what [`Origin::to_bytes`] wrote; `None` when the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        Some(Self {
            scope: Scope(u16::from_be_bytes(bytes[..2].try_into().ok()?)),
            node: NodeId(bytes[2..18].try_into().ok()?),
            epoch: Epoch(u64::from_be_bytes(bytes[18..].try_into().ok()?)),
        })
    }
}

/// The text is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a UUID (like 9f2c3c1e-7d3b-4a55-8c3e-0a6f2f1f5b11)")]
pub struct ParseIdError(pub String);

macro_rules! shown_as_uuid {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Uuid::from_bytes(self.0).as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text)
                    .map(|uuid| Self(uuid.into_bytes()))
                    .map_err(|_| ParseIdError(text.to_owned()))
            }
        }
    )+};
}

shown_as_uuid!(NodeId, ClusterId);

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `node/epoch`, with the scope before it where there is one: what logs show.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scope != Scope::default() {
            write!(f, "{}:", self.scope.0)?;
        }
        write!(f, "{}/{}", self.node, self.epoch.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_survives_its_bytes_and_they_sort_alike() {
        let low = Origin { scope: Scope(0), node: NodeId([9; 16]), epoch: Epoch(7) };
        let high = Origin { scope: Scope(1), node: NodeId([1; 16]), epoch: Epoch(1) };
        assert_eq!(Origin::from_bytes(&low.to_bytes()), Some(low));
        assert_eq!(Origin::from_bytes(&high.to_bytes()), Some(high));
        assert_eq!(low.cmp(&high), low.to_bytes().cmp(&high.to_bytes()));
        assert_eq!(Origin::from_bytes(&[0; 25]), None);
    }

    #[test]
    fn an_id_is_read_as_it_is_shown() {
        let text = "11111111-2222-3333-4444-555555555555";
        assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        assert!("n1".parse::<NodeId>().unwrap_err().to_string().contains("'n1' is not a UUID"));
    }
}
