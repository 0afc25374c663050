//! The report: YAML for the compliance monitor, JSON for programs.

use base::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::checks::{Level, Verdict};
use crate::pyyaml::{Node, dump};
use crate::rules::{Scope, TestCase};
use crate::run::{CaseResult, Summary};

/// Everything about a run.
pub struct Report<'a> {
    /// The rules.
    pub scope: &'a Scope,
    /// Who was judged.
    pub subject: &'a str,
    /// When.
    pub at: Timestamp,
    /// By the versions of which day.
    pub date: &'a str,
    /// The run.
    pub run: String,
    /// How it was called.
    pub argv: Vec<String>,
    /// Values of the scope's variables.
    pub assignment: Vec<(String, String)>,
    /// Only these sections.
    pub sections: Vec<String>,
    /// The version asked for.
    pub forced_version: Option<String>,
    /// The pattern asked for.
    pub forced_tests: Option<String>,
    /// Results of programs.
    pub results: &'a [CaseResult],
    /// Answers of people.
    pub manual: &'a [CaseResult],
    /// The set `beyond`.
    pub beyond: &'a [CaseResult],
    /// Rules of `beyond`.
    pub beyond_rules: &'a [TestCase],
    /// How each version came out.
    pub summaries: &'a [Summary],
    /// Calls made, and how long the run took.
    pub calls: usize,
    /// Milliseconds of the run.
    pub millis: u64,
}

/// Where something can be read about a case.
#[derive(Serialize)]
struct About<'a> {
    title: &'a str,
    url: Option<&'a str>,
    standard: Option<&'a str>,
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::Info => "INFO",
        Level::Warning => "WARNING",
        Level::Error => "ERROR",
    }
}

fn texts(lines: &[String]) -> Node {
    Node::List(lines.iter().map(|l| Node::from(l.as_str())).collect())
}

fn optional(value: Option<&str>) -> Node {
    value.map_or(Node::Null, Node::from)
}

/// What the lines of a case look like to the monitor: one line each, without what could be taken for a verdict.
fn stderr(results: &[CaseResult]) -> Vec<String> {
    let mut lines = Vec::new();
    for result in results {
        for note in &result.notes {
            let text = note.text.replace(['\n', '\r'], " ");
            lines.push(format!("{}: {}: {text}", prefix(note.level), result.id));
        }
    }
    lines
}

fn invocation(id: &str, cmd: &str, results: &[CaseResult]) -> Node {
    let stdout: Vec<String> = results.iter().map(|r| format!("{}: {}", r.id, r.verdict.name())).collect();
    let stderr = stderr(results);
    let count = |word: &str| {
        let lines = stdout.iter().chain(&stderr).filter(|l| l.to_lowercase().starts_with(word));
        Node::Int(i64::try_from(lines.count()).unwrap_or(i64::MAX))
    };
    Node::Map(vec![
        ("id".into(), id.into()),
        ("cmd".into(), cmd.into()),
        (
            "results".into(),
            Node::Map(results.iter().map(|r| (r.id.clone(), Node::Int(r.verdict.value().into()))).collect()),
        ),
        ("rc".into(), Node::Int(0)),
        ("stdout".into(), texts(&stdout)),
        ("stderr".into(), texts(&stderr)),
        ("info".into(), count("info")),
        ("warning".into(), count("warning")),
        ("error".into(), count("error")),
        ("critical".into(), count("critical")),
    ])
}

impl Report<'_> {
    /// For the compliance monitor.
    pub fn yaml(&self, uuid: impl Fn() -> String) -> String {
        let mut invocations = Vec::new();
        let parts = [("allod certify", self.results), ("allod certify --answers", self.manual)];
        for (cmd, results) in parts.into_iter().filter(|(_, r)| !r.is_empty()) {
            let id = uuid();
            let node = invocation(&id, cmd, results);
            invocations.push((id, node));
        }
        // Naive time, without a fraction where there is none: Python's.
        let at = self.at.iso_naive().replace('T', " ");
        let at = at.strip_suffix(".000000").unwrap_or(&at).to_owned();
        let assignment = self.assignment.iter().map(|(k, v)| (k.clone(), Node::from(v.as_str()))).collect();
        let sections = if self.sections.is_empty() { Node::Null } else { texts(&self.sections) };
        dump(&Node::Map(vec![
            (
                "spec".into(),
                Node::Map(vec![
                    ("uuid".into(), self.scope.uuid.as_str().into()),
                    ("name".into(), self.scope.name.as_str().into()),
                    ("url".into(), self.scope.url.as_str().into()),
                ]),
            ),
            ("checked_at".into(), Node::Bare(at)),
            ("reference_date".into(), Node::Bare(self.date.to_owned())),
            ("subject".into(), self.subject.into()),
            (
                "run".into(),
                Node::Map(vec![
                    ("uuid".into(), self.run.as_str().into()),
                    ("argv".into(), texts(&self.argv)),
                    ("assignment".into(), Node::Map(assignment)),
                    ("sections".into(), sections),
                    ("forced_version".into(), optional(self.forced_version.as_deref())),
                    ("forced_tests".into(), optional(self.forced_tests.as_deref())),
                    ("invocations".into(), Node::Map(invocations)),
                ]),
            ),
        ]))
    }

    fn about(&self, id: &str) -> Option<&TestCase> {
        self.scope.case(id).or_else(|| self.beyond_rules.iter().find(|c| c.id == id))
    }

    /// For programs: with reasons, times and the set `beyond`.
    pub fn json(&self) -> Value {
        let cases = |results: &[CaseResult]| -> Vec<Value> {
            let one = |r: &CaseResult| {
                let mut value = json!(r);
                let about = self.about(&r.id).map(|c| About {
                    title: &c.title,
                    url: c.url.as_deref(),
                    standard: c.standard.as_deref().or(self.scope.module_of(&r.id).map(|m| m.id.as_str())),
                });
                if let (Some(Value::Object(about)), Some(value)) =
                    (about.map(|a| json!(a)), value.as_object_mut())
                {
                    value.extend(about);
                }
                value
            };
            results.iter().map(one).collect()
        };
        json!({
            "subject": self.subject,
            "scope": {"uuid": self.scope.uuid, "name": self.scope.name},
            "checked_at": self.at.iso_micros(),
            "reference_date": self.date,
            "run": self.run,
            "seconds": f64::from(u32::try_from(self.millis).unwrap_or(u32::MAX)) / 1000.0,
            "calls": self.calls,
            "versions": self.summaries,
            "results": cases(self.results),
            "manual": cases(self.manual),
            "beyond": cases(self.beyond),
        })
    }

    /// For people.
    pub fn html(&self) -> String {
        crate::html::page(self)
    }

    /// Title of a case.
    pub fn title(&self, id: &str) -> &str {
        self.about(id).map_or("", |c| c.title.as_str())
    }

    /// Whether everything that holds today passed.
    pub fn fine(&self) -> bool {
        self.results.iter().all(|r| r.verdict == Verdict::Pass)
    }
}
