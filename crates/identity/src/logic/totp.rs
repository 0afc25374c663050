//! One-time passwords by time (RFC 6238, as every authenticator app has them: SHA-1, 30 s, 6 digits).

use hmac::{Hmac, Mac as _};
use sha1::Sha1;

/// Seconds a passcode is for.
pub const PERIOD: i64 = 30;

/// Reads base32 without regard to padding, case and spaces; `None` where it is none.
pub fn seed(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut bytes) = (0u32, 0u32, Vec::new());
    for c in text.trim().trim_end_matches('=').bytes().filter(|c| *c != b' ') {
        let value = match c.to_ascii_uppercase() {
            letter @ b'A'..=b'Z' => letter - b'A',
            digit @ b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        };
        bits = (bits << 5) | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(bytes).filter(|b| !b.is_empty())
}

/// The passcode of a window of time.
pub fn passcode(seed: &[u8], step: i64) -> Option<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(seed).ok()?;
    mac.update(&u64::try_from(step).ok()?.to_be_bytes());
    let digest = mac.finalize().into_bytes();
    let offset = usize::from(digest.last()? & 0x0f);
    let word = u32::from_be_bytes(digest.get(offset..offset + 4)?.try_into().ok()?) & 0x7fff_ffff;
    Some(format!("{:06}", word % 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::{PERIOD, passcode, seed};

    #[test]
    fn the_vectors_of_the_rfc() {
        // RFC 6238, appendix B, the last six digits.
        let secret = b"12345678901234567890";
        for (at, code) in [(59, "287082"), (1_111_111_109, "081804"), (2_000_000_000, "279037")] {
            assert_eq!(passcode(secret, at / PERIOD).unwrap(), code);
        }
    }

    #[test]
    fn seeds_are_read_with_and_without_padding() {
        assert_eq!(seed("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ").unwrap(), b"12345678901234567890");
        assert_eq!(seed("me ======").unwrap(), b"a");
        assert_eq!(seed("1"), None);
        assert_eq!(seed(""), None);
    }
}
