//! What is kept: uploads as they were signed, reports, results, and certificates.

use std::collections::BTreeMap;

use base::{Result, Timestamp};
use serde_json::Value;
use store::{Migration, Query, Schema, Step, Tx};

use crate::logic::evaluate::Latest;

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
    /// The newest results of a subject in a scope: what its newest spans say, in one row.
    pub struct Standing, table "standings", id String {
        unique: [[subject, scope]],
        index: [],
    } {
        /// The subject.
        pub subject: String,
        /// The scope.
        pub scope: String,
        /// Its cases.
        pub results: BTreeMap<String, Latest>,
    }
}

impl Standing {
    /// One without results.
    pub fn new(subject: &str, scope: &str) -> Self {
        Standing {
            // No name has a slash.
            id: format!("{subject}/{scope}"),
            meta: Default::default(),
            subject: subject.to_owned(),
            scope: scope.to_owned(),
            results: BTreeMap::new(),
        }
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

const MIGRATIONS: &[Migration] = &[
    Migration::new(
        1,
        "registry",
        &[
            Step::table::<Upload>(),
            Step::table::<Report>(),
            Step::table::<Outcome>(),
            Step::table::<Span>(),
            Step::table::<Certificate>(),
        ],
    ),
    // Registries that do not know it would not keep it up to date.
    Migration::new(2, "standings", &[Step::table::<Standing>(), Step::data(fill)]).compatible_from(2),
];

/// Standings of the spans that are there.
fn fill(tx: &mut Tx<'_>) -> Result<()> {
    tx.delete_where::<Standing>(&Query::new())?;
    let mut standings: BTreeMap<(String, String), Standing> = BTreeMap::new();
    for span in tx.list::<Span>(&Query::new().eq("newest", true))? {
        let key = (span.subject.clone(), span.scope.clone());
        let standing = standings.entry(key).or_insert_with(|| Standing::new(&span.subject, &span.scope));
        standing.results.insert(span.testcase.clone(), Latest::of(&span));
    }
    tx.insert_many(&mut standings.into_values().collect::<Vec<_>>())
}

/// The tables of a registry.
pub const SCHEMAS: &[Schema] = &[("registry", MIGRATIONS)];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::sync::Arc;

    use base::{Clock, SystemClock};
    use store::Store;

    use super::*;

    #[tokio::test]
    async fn what_the_version_before_has_taken_stands_as_it_stood() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("db").display());
        let open = async |schemas: &[Schema]| {
            Store::open(&url, Arc::new(SystemClock), base::Entropy::system(), schemas).await.unwrap()
        };
        const BEFORE: &[Schema] = &[("registry", MIGRATIONS.split_at(1).0)];
        let span = |testcase: &str, result, newest| Span {
            id: format!("{testcase}{newest}"),
            meta: Default::default(),
            subject: "a".into(),
            scope: "s".into(),
            testcase: testcase.into(),
            result,
            since: SystemClock.now(),
            last: SystemClock.now(),
            report: "r".into(),
            newest,
        };
        let before = open(BEFORE).await;
        let written = before.write(move |tx| {
            tx.insert_many(&mut [span("x", 1, true), span("x", -1, false), span("y", 0, true)])
        });
        written.await.unwrap();
        drop(before);
        let read = open(SCHEMAS).await.read(|tx| tx.need::<Standing>(&"a/s".to_owned())).await.unwrap();
        let results: Vec<_> = read.results.iter().map(|(case, l)| (case.as_str(), l.result)).collect();
        assert_eq!(results, [("x", 1), ("y", 0)]);
    }
}
