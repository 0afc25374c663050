//! Judges any OpenStack cloud by the rules of Sovereign Cloud Stack, as its tenants see it.
//!
//! What is judged is data (`data/*.yaml`: cases, modules, versions, the timeline, with the ids upstream gives them); how, is
//! a small set of functions in [`checks`]. Verdicts mean what they mean upstream: PASS, FAIL, and ABORT where the question
//! could not be answered. The report is the one the compliance monitor takes.
//!
//! Invariant: whatever a check makes in the cloud is in the journal before it is made ([`journal`]), and nothing else is
//! ever removed.
//!
//! Start reading at [`rules`] (what), [`run`] (the course of a run), [`checks`] (how).

pub mod checks;
pub mod cli;
mod credential;
mod dates;
pub mod facts;
pub mod flavor_name;
mod html;
pub mod journal;
pub mod kube;
mod manual;
mod pyyaml;
pub mod report;
pub mod rules;
pub mod run;
mod sign;
pub mod tempest;
pub mod tree;
