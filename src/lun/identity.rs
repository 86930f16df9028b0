//! Names that a LUN bears for ever, derived from pool and volume.

use crate::fs::VolumeId;

/// The 24-bit company field of the NAA-6 identifier. Bit 1 of its first byte marks it as locally
/// administered (IEEE 802), so that it collides with no maker's; the rest says "LF".
const LOCAL_OUI: u32 = 0x02_4c_46;

fn digest(pool_id: &[u8; 16], volume: VolumeId, what: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("lunfs 2026 LUN identity");
    hasher.update(pool_id);
    hasher.update(&volume.0.to_be_bytes());
    hasher.update(what.as_bytes());
    *hasher.finalize().as_bytes()
}

/// SPC-4 NAA IEEE Registered Extended: 6h, company, 100 bits of the digest.
pub(super) fn naa(pool_id: &[u8; 16], volume: VolumeId) -> [u8; 16] {
    let mut naa = [0; 16];
    let digest = digest(pool_id, volume, "naa");
    for (to, from) in naa.iter_mut().zip(digest) {
        *to = from;
    }
    let [a, b, c, d] = (0x6000_0000 | (LOCAL_OUI << 4)).to_be_bytes();
    let [_, _, _, last, ..] = naa;
    let head = [a, b, c, d | (last & 0x0f)];
    for (to, from) in naa.iter_mut().zip(head) {
        *to = from;
    }
    naa
}

/// The unit serial number where none is set: 16 hexadecimal digits.
pub(super) fn default_serial(pool_id: &[u8; 16], volume: VolumeId) -> String {
    let digest = digest(pool_id, volume, "serial");
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_and_last() {
        let a = naa(&[1; 16], VolumeId(17));
        assert_eq!(a, naa(&[1; 16], VolumeId(17)));
        assert_ne!(a, naa(&[1; 16], VolumeId(18)));
        assert_ne!(a, naa(&[2; 16], VolumeId(17)));
        assert_eq!((a[0], a[1], a[2], a[3] & 0xf0), (0x60, 0x24, 0xc4, 0x60));
        let serial = default_serial(&[1; 16], VolumeId(17));
        assert_eq!(serial.len(), 16);
        assert_ne!(serial, default_serial(&[1; 16], VolumeId(18)));
    }
}
