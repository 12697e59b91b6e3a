//! The short form in which two nodes compare what they hold: origins fall into 256 buckets, and
//! each bucket has one hash over the heads in it. Both hashes are part of the protocol.

use crate::types::{Origin, Version};

/// How many buckets a ledger is hashed into: 2 KiB of hashes tell which of thousands of origins
/// two nodes differ in to within a few.
pub const BUCKETS: usize = 256;

/// Returns the bucket that an origin falls into.
pub fn bucket_of(origin: Origin) -> u8 {
    (mix(fold(origin)) >> 56) as u8
}

/// Returns a head's share in its bucket's hash, which is the exclusive or of all shares.
pub(super) fn head_hash(origin: Origin, head: Version) -> u64 {
    mix(fold(origin) ^ mix(head.0))
}

/// FNV-1a over the origin's bytes.
fn fold(origin: Origin) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    origin.to_bytes().iter().fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// The finalizer of SplitMix64: every bit of the input moves half the bits of the output, so that
/// the exclusive or of many shares does not cancel out by accident.
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::origin;

    #[test]
    fn the_hashes_of_the_protocol_do_not_change() {
        assert_eq!(bucket_of(origin(1)), 12);
        assert_eq!(head_hash(origin(1), Version(1)), 0x5924_02b1_802e_e7a5);
    }

    #[test]
    fn a_thousand_origins_fall_into_nearly_all_buckets() {
        let buckets: std::collections::BTreeSet<u8> = (0..1_000_u16)
            .map(|count| {
                let mut origin = origin(0);
                origin.node.0[..2].copy_from_slice(&count.to_be_bytes());
                bucket_of(origin)
            })
            .collect();
        assert!(buckets.len() > 240, "{}", buckets.len());
    }
}
