//! What is uploaded: an SSH signature, `&`, and the report that it signs, as upstream's client sends it.

use std::collections::{BTreeMap, BTreeSet};

use attest::sshsig::{self, PublicKey};
use base::{Error, Result, Timestamp};
use certify::tree::{self, Budget};
use serde_json::{Map, Value, json};

use crate::accounts::is_name;
use crate::logic::evaluate::RESULTS;

/// Namespace of reports' signatures.
pub const NAMESPACE: &str = "report";
/// Ends a signature; after the newline and an ampersand the report begins.
const SEPARATOR: &str = "-----END SSH SIGNATURE-----\n&";
/// Documents of one upload.
const MOST_DOCUMENTS: usize = 64;
/// Results of one report.
const MOST_RESULTS: usize = 5_000;
/// Reports tell local time without a zone; nobody is further ahead than this.
const AHEAD: i64 = 14 * 3600 + 300;

/// How the report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/x-signed-yaml`.
    Yaml,
    /// `application/x-signed-json`.
    Json,
}

impl Format {
    /// Of a content type.
    ///
    /// # Errors
    /// `UnsupportedMediaType` for any other.
    pub fn of(content_type: Option<&str>) -> Result<Self> {
        match content_type.map(|t| t.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()) {
            Some(t) if t == "application/x-signed-yaml" => Ok(Format::Yaml),
            Some(t) if t == "application/x-signed-json" => Ok(Format::Json),
            _ => Err(Error::unsupported_media_type(
                "Content-Type is application/x-signed-yaml or application/x-signed-json.",
            )),
        }
    }
}

/// A body whose signature was checked.
pub struct Signed<'a> {
    /// The armored signature.
    pub signature: &'a str,
    /// What was signed.
    pub text: &'a str,
    /// The key that signed it.
    pub key: &'a PublicKey,
}

/// Takes a body apart and checks that one of `keys` signed it.
///
/// # Errors
/// `Unauthenticated` without a signature, or with a wrong one.
pub fn signed<'a>(body: &'a [u8], keys: &'a [PublicKey]) -> Result<Signed<'a>> {
    let body = std::str::from_utf8(body).map_err(|_| Error::unprocessable("The body is not UTF-8 text."))?;
    let at = body.find(SEPARATOR).ok_or_else(|| Error::unauthenticated("missing signature"))?;
    let end = at + SEPARATOR.len();
    let (signature, text) = (body.get(..end - 1).unwrap_or_default(), body.get(end..).unwrap_or_default());
    let key = sshsig::verify(keys, NAMESPACE, signature, text.as_bytes())?;
    Ok(Signed { signature, text, key })
}

/// A report, with what is needed of it.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The run's id.
    pub run: String,
    /// Which environment.
    pub subject: String,
    /// Which scope.
    pub scope: String,
    /// When.
    pub checked_at: Timestamp,
    /// Version (`*`) and case → result.
    pub results: BTreeMap<(String, String), i64>,
    /// The whole document.
    pub data: Value,
}

impl Submission {
    /// How many passed, were inconclusive, failed.
    pub fn counts(&self) -> [u32; 3] {
        RESULTS.map(|wanted| {
            let count = self.results.values().filter(|r| **r == wanted).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        })
    }
}

/// Reads the documents of a text.
///
/// # Errors
/// `Unprocessable` that names the document and the field.
pub fn documents(text: &str, format: Format, now: Timestamp) -> Result<Vec<Submission>> {
    let documents = match format {
        Format::Json => {
            vec![
                json_document(text)
                    .map_err(|e| Error::unprocessable(format!("The report is not JSON: {e}")))?,
            ]
        }
        Format::Yaml => yaml(text)?,
    };
    let mut submissions = Vec::new();
    for (index, data) in documents.into_iter().enumerate() {
        let place = format!("document {}: ", index + 1);
        submissions.push(submission(data, now).map_err(|why| Error::unprocessable(format!("{place}{why}")))?);
    }
    Ok(submissions)
}

fn yaml(text: &str) -> Result<Vec<Value>> {
    let (mut documents, budget) = (Vec::new(), Budget::of(text.len()));
    for document in serde_norway::Deserializer::from_str(text) {
        let number = documents.len() + 1;
        if number > MOST_DOCUMENTS {
            return Err(Error::unprocessable(format!("More than {MOST_DOCUMENTS} documents.")));
        }
        let value = tree::read(document, &budget);
        let value = value
            .map_err(|e| Error::unprocessable(format!("document {number}: not YAML of a report: {e}")))?;
        // A text without any document is read as one that is null; so is a comment.
        if !(value.is_null() && number == 1) {
            documents.push(value);
        }
    }
    Ok(documents)
}

fn json_document(text: &str) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = tree::read(&mut reader, &Budget::of(text.len()))?;
    reader.end()?;
    Ok(value)
}

fn text<'a>(data: &'a Value, pointer: &str) -> Result<&'a str, String> {
    let value = data.pointer(pointer).and_then(Value::as_str);
    value.ok_or_else(|| format!("{}: a text is wanted", pointer.trim_start_matches('/').replace('/', ".")))
}

fn submission(data: Value, now: Timestamp) -> Result<Submission, String> {
    if !data.is_object() {
        return Err("a mapping is wanted".into());
    }
    let subject = text(&data, "/subject")?.to_owned();
    let scope = text(&data, "/spec/uuid")?.to_owned();
    let run = text(&data, "/run/uuid")?.to_owned();
    for (name, value) in [("subject", &subject), ("spec.uuid", &scope), ("run.uuid", &run)] {
        if !is_name(value) {
            return Err(format!("{name}: 1 to 128 letters, digits, '.', '_' and '-' are wanted"));
        }
    }
    let told = text(&data, "/checked_at")?;
    let checked_at = moment(told).ok_or("checked_at: YYYY-MM-DD hh:mm:ss is wanted")?;
    if checked_at > now.plus_secs(AHEAD) {
        return Err("checked_at: is in the future".into());
    }
    let results = match data.get("versions") {
        Some(versions) => by_version(versions)?,
        None => by_invocation(&data)?,
    };
    if results.len() > MOST_RESULTS {
        return Err(format!("more than {MOST_RESULTS} results"));
    }
    Ok(Submission { run, subject, scope, checked_at, results, data })
}

/// `2026-11-22 05:00:00.123456`, with `T`, or with a zone.
fn moment(text: &str) -> Option<Timestamp> {
    Timestamp::parse(&text.trim().replacen(' ', "T", 1)).filter(|t| t.as_secs() > 0)
}

fn object<'a>(value: Option<&'a Value>, place: &str) -> Result<&'a Map<String, Value>, String> {
    value.and_then(Value::as_object).ok_or_else(|| format!("{place}: a mapping is wanted"))
}

fn result(value: Option<&Value>, place: &str) -> Result<i64, String> {
    let number = value.and_then(Value::as_i64).filter(|n| RESULTS.contains(n));
    number.ok_or_else(|| format!("{place}: 1 (PASS), 0 (ABORT) or -1 (FAIL) is wanted"))
}

fn checked_id(id: &str, place: &str) -> Result<(), String> {
    is_name(id).then_some(()).ok_or_else(|| format!("{place}: {id:?} is no id of a case"))
}

/// As reports are today: results by invocation.
fn by_invocation(data: &Value) -> Result<BTreeMap<(String, String), i64>, String> {
    let mut results = BTreeMap::new();
    for (name, invocation) in object(data.pointer("/run/invocations"), "run.invocations")? {
        let place = format!("run.invocations.{name}.results");
        for (id, value) in object(invocation.get("results"), &place)? {
            checked_id(id, &place)?;
            results.insert(("*".to_owned(), id.clone()), result(Some(value), &format!("{place}.{id}"))?);
        }
    }
    Ok(results)
}

/// As reports were once: results by version of the scope.
fn by_version(versions: &Value) -> Result<BTreeMap<(String, String), i64>, String> {
    let mut results = BTreeMap::new();
    for (version, cases) in object(Some(versions), "versions")? {
        let place = format!("versions.{version}");
        checked_id(version, &place)?;
        for (id, value) in object(Some(cases), &place)? {
            checked_id(id, &place)?;
            let found = result(value.get("result"), &format!("{place}.{id}.result"))?;
            results.insert((version.clone(), id.clone()), found);
        }
    }
    Ok(results)
}

/// A report for everybody: of the output only lines that tell a verdict, a warning or an error. Upstream's rule.
pub fn redacted(data: &Value) -> Value {
    let mut data = data.clone();
    let Some(Value::Object(invocations)) = data.pointer_mut("/run/invocations") else { return data };
    for invocation in invocations.values_mut().filter_map(Value::as_object_mut) {
        let verdict = |line: &str| {
            let last = line.rsplit_once(": ").map_or(line, |(_, last)| last);
            matches!(last, "PASS" | "ABORT" | "FAIL")
        };
        let warning = |line: &str| line.starts_with("WARNIN") || line.starts_with("ERROR:");
        let left = [kept(invocation.get_mut("stdout"), verdict), kept(invocation.get_mut("stderr"), warning)];
        if left.contains(&true) {
            invocation.insert("redacted".into(), json!(true));
        }
    }
    data
}

/// Whether lines were left out.
fn kept(lines: Option<&mut Value>, keep: impl Fn(&str) -> bool) -> bool {
    let Some(value) = lines else { return false };
    let Some(lines) = value.as_array_mut() else {
        // Nothing is known of what is not a list of lines, so nothing of it is shown.
        *value = json!(["(the following has been redacted)"]);
        return true;
    };
    let before = lines.len();
    lines.retain(|line| line.as_str().is_some_and(&keep));
    if lines.len() == before {
        return false;
    }
    lines.insert(0, json!("(the following has been redacted)"));
    true
}

/// Subjects of some reports, each once.
pub fn subjects(submissions: &[Submission]) -> BTreeSet<&str> {
    submissions.iter().map(|s| s.subject.as_str()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

    fn report() -> Value {
        json!({
            "spec": {"uuid": "s"}, "checked_at": "2026-11-01 05:00:00.5", "subject": "c",
            "run": {"uuid": "r", "invocations": {"i": {"results": {"a": 1, "b": -1}, "stdout": ["a: PASS", "secret"],
                "stderr": ["ERROR: b", "DEBUG: token"]}}},
        })
    }

    #[test]
    fn a_fault_is_told_by_document_and_field() {
        let cases: [(&str, Value, &str); 11] = [
            ("/subject", json!(7), "subject"),
            ("/subject", json!("<b>"), "subject"),
            ("/spec/uuid", json!(null), "spec.uuid"),
            ("/checked_at", json!("soon"), "checked_at"),
            ("/checked_at", json!("2027-11-01 05:00:00"), "future"),
            ("/run/uuid", json!("../x"), "run.uuid"),
            ("/run/invocations", json!([]), "run.invocations"),
            ("/run/invocations/i/results", json!(null), "run.invocations.i.results"),
            ("/run/invocations/i/results/a", json!(2), "run.invocations.i.results.a"),
            ("/run/invocations/i/results/a", json!(null), "run.invocations.i.results.a"),
            ("", json!("x"), "mapping"),
        ];
        let good = serde_json::to_string(&report()).unwrap();
        for (pointer, value, place) in cases {
            let mut broken = report();
            *broken.pointer_mut(pointer).unwrap() = value;
            let text = format!("{good}\n---\n{broken}\n");
            let error = documents(&text, Format::Yaml, NOW).unwrap_err();
            assert_eq!(error.kind(), base::Kind::Unprocessable);
            assert!(error.public().starts_with("document 2: "), "{}", error.public());
            assert!(error.public().contains(place), "{pointer}: {}", error.public());
        }
    }

    #[test]
    fn old_reports_and_several_documents_are_read() {
        let mut old = report();
        old["versions"] = json!({"v4": {"a": {"result": 0, "invocation": "i"}}});
        let text = format!("---\n{}\n---\n{old}\n", report());
        let found = documents(&text, Format::Yaml, NOW).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].counts(), found[1].counts()), ([1, 0, 1], [0, 1, 0]));
        assert_eq!(found[1].results.keys().next().unwrap().0, "v4");
        assert_eq!(found[0].checked_at.iso_micros(), "2026-11-01T05:00:00.500000Z");
        assert!(documents("# nothing\n", Format::Yaml, NOW).unwrap().is_empty());
        assert!(documents("", Format::Yaml, NOW).unwrap().is_empty());
        assert_eq!(documents(&report().to_string(), Format::Json, NOW).unwrap().len(), 1);
        let bomb = format!(
            "a: &a [{}]\nb: &b [{}]\nc: &c [{}]\nd: [{}]\n",
            "1,".repeat(300),
            "*a,".repeat(300),
            "*b,".repeat(300),
            "*c,".repeat(300)
        );
        assert!(documents(&bomb, Format::Yaml, NOW).is_err());
    }

    #[test]
    fn of_the_output_only_verdicts_are_public() {
        let shown = redacted(&report()).to_string();
        assert!(shown.contains("a: PASS") && shown.contains("ERROR: b") && shown.contains("redacted"));
        assert!(!shown.contains("secret") && !shown.contains("token"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered_without_a_panic(text in "\\PC{0,200}") {
            let _ = documents(&text, Format::Yaml, NOW);
            let _ = documents(&text, Format::Json, NOW);
            prop_assert!(signed(text.as_bytes(), &[]).is_err());
        }
    }
}
