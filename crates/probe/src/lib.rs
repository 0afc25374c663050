//! Watches any OpenStack cloud as its tenants feel it: makes a small environment, uses it, removes it, and measures.
//!
//! What is done is data ([`scenario`], `data/*.yaml`); how, is in [`engine`] (the course of an iteration), `make` and
//! `checks` (the API) and `guests` (what is seen from inside). Everything that is told of a run, anywhere, is made of the
//! same records ([`record`]).
//!
//! Invariant: whatever is made in the cloud is in the journal before it is made, and nothing else is ever removed.
//!
//! Start reading at [`scenario::Scenario`], then [`engine::Engine::iterate`].

mod board;
mod checks;
pub mod cli;
pub mod engine;
pub mod grafana;
mod guests;
pub mod hands;
mod html;
mod key;
pub mod learned;
mod make;
pub mod meter;
pub mod peers;
pub mod push;
pub mod record;
pub mod report;
pub mod scenario;
pub mod stats;
mod template;
mod view;
