//! Pure functions: no I/O, no clock, no store.

pub mod access;
pub mod body;
pub mod catalog;
pub mod certificate;
pub mod domain_options;
pub mod ec2;
pub mod inference;
pub mod oauth1;
pub mod payload;
pub mod saml;
pub mod totp;
