//! Federation without tables: what identities are made of when they come from elsewhere.
//!
//! The mapping rules of Keystone (claims in, user, groups and projects out), signed tokens (JWS: read by the key set of
//! their issuer, and made), and the issuers themselves (discovery and key sets, fetched over HTTPS and remembered).
//!
//! Invariant: no store and no cloud in here. Rules are pure; a token is believed only if its signature, issuer, audience
//! and times all hold; every question to an issuer is bounded in time, size and frequency, whoever makes us ask.
//!
//! Start reading at [`mapping::Rules`], then [`jose::KeySet::verify`], then [`issuer::Issuers`].

pub mod issuer;
pub mod jose;
pub mod mapping;
