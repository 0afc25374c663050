//! Hashes that Keystone writes and we do not: `bcrypt_sha256`, `scrypt`, `pbkdf2_sha512`, in passlib's notation.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

/// Passlib's base64: without padding, `.` for `+`, trailing bits of no meaning.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
/// Most rounds of PBKDF2 computed for a login.
const MOST_ROUNDS: u32 = 10_000_000;
/// Most memory scrypt may take, in bytes.
const MOST_MEMORY: u64 = 256 * 1024 * 1024;

/// Whether `password` is that of `hash`; `None` for what is no hash of these kinds.
pub fn matches(password: &[u8], hash: &str) -> Option<bool> {
    if let Some(rest) = hash.strip_prefix("$bcrypt-sha256$") {
        return bcrypt_sha256(password, rest);
    }
    if let Some(rest) = hash.strip_prefix("$scrypt$") {
        return scrypt(password, rest);
    }
    pbkdf2_sha512(password, hash.strip_prefix("$pbkdf2-sha512$")?)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.replace('.', "+")).ok()
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

fn number(params: &str, name: &str) -> Option<u32> {
    params.split(',').find_map(|p| p.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// `v=2,t=2b,r=12$salt$digest`; of version 1: `2b,12$salt$digest`.
fn bcrypt_sha256(password: &[u8], rest: &str) -> Option<bool> {
    let mut parts = rest.split('$');
    let (params, salt, digest) = (parts.next()?, parts.next()?, parts.next()?);
    let encoded = base64::engine::general_purpose::STANDARD;
    let (kind, rounds, input) = if params.starts_with("v=") {
        let kind = params.split(',').find_map(|p| p.strip_prefix("t="))?;
        let mut mac = Hmac::<Sha256>::new_from_slice(salt.as_bytes()).ok()?;
        mac.update(password);
        (kind, number(params, "r")?, encoded.encode(mac.finalize().into_bytes()))
    } else {
        let (kind, rounds) = params.split_once(',')?;
        (kind, rounds.parse().ok()?, encoded.encode(Sha256::digest(password)))
    };
    bcrypt::verify(input.as_bytes(), &format!("${kind}${rounds:02}${salt}{digest}")).ok()
}

/// `ln=16,r=8,p=1$salt$digest`.
fn scrypt(password: &[u8], rest: &str) -> Option<bool> {
    let mut parts = rest.split('$');
    let (params, salt, digest) = (parts.next()?, decode(parts.next()?)?, decode(parts.next()?)?);
    let (ln, r, p) = (number(params, "ln")?, number(params, "r")?, number(params, "p")?);
    let memory = 1u64.checked_shl(ln)?.checked_mul(u64::from(r))?.checked_mul(128)?;
    if ln == 0 || ln > 24 || memory > MOST_MEMORY || p > 16 || digest.len() != 32 {
        return None;
    }
    let params = scrypt::Params::new(u8::try_from(ln).ok()?, r, p, digest.len()).ok()?;
    let mut made = vec![0; digest.len()];
    scrypt::scrypt(password, &salt, &params, &mut made).ok()?;
    Some(same(&made, &digest))
}

/// `25000$salt$digest`.
fn pbkdf2_sha512(password: &[u8], rest: &str) -> Option<bool> {
    let mut parts = rest.split('$');
    let (rounds, salt, digest) = (parts.next()?, decode(parts.next()?)?, decode(parts.next()?)?);
    let rounds: NonZeroU32 = rounds.parse().ok()?;
    if rounds.get() > MOST_ROUNDS || digest.len() != 64 {
        return None;
    }
    let mut made = vec![0; digest.len()];
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA512, rounds, &salt, password, &mut made);
    Some(same(&made, &digest))
}
