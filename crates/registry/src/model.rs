//! What is kept: uploads as they were signed, reports, results, and certificates.

use base::Timestamp;
use serde_json::Value;
use store::{Migration, Schema, Step};

store::resource! {
    /// What was sent in one upload: signature and signed text, as evidence.
    pub struct Upload, table "uploads", id String {
        unique: [],
        index: [account],
    } {
        /// Who sent it.
        pub account: String,
        /// Fingerprint of the key that signed it.
        pub key: String,
        /// Whether the text is JSON (else YAML).
        pub json: bool,
        /// The armored signature.
        pub signature: String,
        /// What was signed.
        pub text: String,
    }
}

store::resource! {
    /// A report; its id is the run's.
    pub struct Report, table "reports", id String {
        unique: [],
        index: [subject, checked_at],
    } {
        /// Which environment was judged.
        pub subject: String,
        /// The scope.
        pub scope: String,
        /// When.
        pub checked_at: Timestamp,
        /// How many cases passed, were inconclusive, failed.
        pub counts: [u32; 3],
        /// The upload it came in.
        pub upload: String,
        /// The whole document.
        pub data: Value,
    }
}

store::resource! {
    /// One result of one report.
    pub struct Outcome, table "outcomes", id String {
        unique: [[report, version, testcase]],
        index: [checked_at, subject, approval],
    } {
        /// The report.
        pub report: String,
        /// Its subject.
        pub subject: String,
        /// Its scope.
        pub scope: String,
        /// `*`, or the version an old report named.
        pub version: String,
        /// The case.
        pub testcase: String,
        /// 1, 0 or -1.
        pub result: i64,
        /// Passed, or approved by a reviewer.
        pub approval: bool,
        /// When it was found out.
        pub checked_at: Timestamp,
    }
}

store::resource! {
    /// A case of a subject that came to the same result again and again, without a gap in which nothing held.
    pub struct Span, table "spans", id String {
        unique: [],
        index: [subject, scope, newest, last],
    } {
        /// The subject.
        pub subject: String,
        /// The scope.
        pub scope: String,
        /// The case.
        pub testcase: String,
        /// What it came to.
        pub result: i64,
        /// First time.
        pub since: Timestamp,
        /// Last time.
        pub last: Timestamp,
        /// The report of the last time.
        pub report: String,
        /// Whether it is the newest of its case.
        pub newest: bool,
    }
}

store::resource! {
    /// A certificate and its signed forms; they never change. Only its revocation is added.
    pub struct Certificate, table "certificates", id String {
        unique: [[number]],
        index: [subject, scope],
    } {
        /// Its place in the status list.
        pub number: i64,
        /// Which environment.
        pub subject: String,
        /// The scope.
        pub scope: String,
        /// The version.
        pub version: String,
        /// Since when it is good.
        pub issued_at: Timestamp,
        /// Until when.
        pub expires_at: Timestamp,
        /// The document.
        pub document: String,
        /// Its SSH signature.
        pub signature: String,
        /// The verifiable credential.
        pub credential: String,
        /// Since when it is revoked.
        pub revoked_at: Option<Timestamp>,
        /// Why.
        pub reason: Option<String>,
    }
}

const MIGRATIONS: &[Migration] = &[Migration::new(
    1,
    "registry",
    &[
        Step::table::<Upload>(),
        Step::table::<Report>(),
        Step::table::<Outcome>(),
        Step::table::<Span>(),
        Step::table::<Certificate>(),
    ],
)];

/// The tables of a registry.
pub const SCHEMAS: &[Schema] = &[("registry", MIGRATIONS)];
