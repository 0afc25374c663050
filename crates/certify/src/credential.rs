//! A report as a verifiable credential, and credentials of others looked at.

use attest::SigningKey;
use base::Timestamp;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::report::Report;

/// A report as a credential. `yaml`: what goes to the monitor; its hash ties both together.
pub(crate) fn of_report(key: &SigningKey, report: &Report<'_>, yaml: &str) -> String {
    let results: Map<String, Value> = report
        .results
        .iter()
        .chain(report.manual)
        .map(|r| (r.id.clone(), json!(r.verdict.value())))
        .collect();
    let version = |s: &crate::run::Summary| json!({"version": s.version, "validity": s.validity, "target": s.target, "verdict": s.verdict});
    let claims = json!({
        "id": format!("urn:uuid:{}", report.run),
        "type": ["VerifiableCredential", "ComplianceReport"],
        "validFrom": report.at.iso_seconds(),
        "credentialSubject": {
            "type": "OperatorEnvironment",
            "name": report.subject,
            "scope": {"name": report.scope.name, "uuid": report.scope.uuid},
            "versions": report.summaries.iter().map(version).collect::<Vec<_>>(),
            "results": results,
            "report": {
                "run": report.run,
                "mediaType": "application/yaml",
                "digestSRI": format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(yaml))),
            },
        },
    });
    attest::credential::sign(key, claims.as_object().cloned().unwrap_or_default())
}

/// What there is to say against a credential whose signature is right; nothing: it is good, if it is not revoked.
pub(crate) fn against(
    credential: &Map<String, Value>,
    issuer: Option<&str>,
    report: Option<&str>,
    now: Timestamp,
) -> Vec<String> {
    let mut found = Vec::new();
    let text = |name: &str| credential.get(name).and_then(Value::as_str);
    let told = text("issuer").unwrap_or_default();
    if issuer.is_some_and(|wanted| wanted != told) {
        found.push(format!("issued by {told}"));
    }
    let mut moment = |name: &str, wrong: &dyn Fn(Timestamp) -> bool, word: &str| match text(name) {
        None => {}
        Some(text) => match Timestamp::parse(text) {
            Some(at) if wrong(at) => found.push(format!("{word} {text}")),
            Some(_) => {}
            None => found.push(format!("{name} is no moment: {text}")),
        },
    };
    moment("validFrom", &|at| now < at, "valid only from");
    moment("validUntil", &|at| now >= at, "valid only until");
    if let Some(report) = report {
        let digest = format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(report)));
        let held = credential.get("credentialSubject").and_then(|s| s.pointer("/report/digestSRI"));
        if held.and_then(Value::as_str) != Some(&digest) {
            found.push("it belongs to another report".into());
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use base::Entropy;

    use super::*;
    use crate::checks::Verdict;
    use crate::rules::{Kind, Scope};
    use crate::run::{CaseResult, Choice, summaries};

    #[test]
    fn a_report_is_a_credential_that_is_good_for_that_report_alone() {
        let scope = Scope::builtin(Kind::Kaas).unwrap();
        let results = [CaseResult {
            id: "version-policy-check".into(),
            verdict: Verdict::Pass,
            notes: Vec::new(),
            millis: 1,
        }];
        let versions = Choice::versions(&scope, "2026-11-22", None).unwrap();
        let summaries = summaries(&scope, &versions, &results);
        let at = Timestamp::parse("2026-11-22T05:00:00").unwrap();
        let report = Report {
            scope: &scope,
            subject: "c",
            at,
            date: "2026-11-22",
            run: "r".into(),
            argv: Vec::new(),
            assignment: Vec::new(),
            sections: Vec::new(),
            forced_version: None,
            forced_tests: None,
            results: &results,
            manual: &[],
            beyond: &[],
            beyond_rules: &[],
            summaries: &summaries,
            calls: 0,
            millis: 1,
        };
        let key = SigningKey::read(&SigningKey::generate(&Entropy::seeded(1))).unwrap();
        let yaml = report.yaml(|| "i".into());
        let token = of_report(&key, &report, &yaml);
        let credential = attest::credential::verify(&token).unwrap();
        let subject = &credential["credentialSubject"];
        assert_eq!((&subject["name"], &subject["results"]["version-policy-check"]), (&json!("c"), &json!(1)));
        assert_eq!(subject["versions"][0]["verdict"], "TENTATIVE pass");
        let did = key.did();
        let none: [String; 0] = [];
        assert_eq!(against(&credential, Some(&did), Some(&yaml), at), none);
        assert_eq!(against(&credential, None, None, at), none);
        let early = against(&credential, Some("did:key:z"), Some("other"), at.plus_secs(-1));
        assert_eq!(early.len(), 3, "{early:?}");
    }
}
