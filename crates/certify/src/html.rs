//! The report as one page that needs nothing else.

use crate::checks::{Level, Verdict};
use crate::report::Report;
use crate::run::CaseResult;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1b}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #ddd}\
.PASS{color:#13692f}.FAIL{color:#b3121d}.ABORT{color:#8a5a00}.v{font-weight:600;white-space:nowrap}\
.n{color:#555;font-size:.9em}code{font-size:.92em}";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page.
pub(crate) fn page(report: &Report<'_>) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}: {1}</title><style>{STYLE}</style><h1>{0}: {1}</h1>\
         <p>Checked {2} by the versions of {3}; {4} calls, {5:.1} s. Run <code>{6}</code>.</p>",
        escaped(report.subject),
        escaped(&report.scope.name),
        report.at.iso_seconds(),
        escaped(report.date),
        report.calls,
        f64::from(u32::try_from(report.millis).unwrap_or(u32::MAX)) / 1000.0,
        escaped(&report.run),
    );
    out.push_str("<table><tr><th>Version</th><th>Holds as</th><th>Cases</th><th>Verdict</th><th>Passed</th><th>Failed</th><th>Aborted</th><th>Not run</th></tr>");
    for s in report.summaries {
        let class = if s.verdict == "FAIL" { "FAIL" } else { "PASS" };
        out.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"v {class}\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&s.version), escaped(&s.validity), escaped(&s.target), s.verdict, s.passed.len(), s.failed.len(),
            s.aborted.len(), s.missing.len(),
        ));
    }
    out.push_str("</table>");
    section(&mut out, report, "Cases", report.results);
    section(&mut out, report, "Answered by people", report.manual);
    section(&mut out, report, "Beyond the standard's checks", report.beyond);
    out.push_str("</html>\n");
    out
}

fn section(out: &mut String, report: &Report<'_>, heading: &str, results: &[CaseResult]) {
    if results.is_empty() {
        return;
    }
    out.push_str(&format!("<h2>{heading}</h2><table>"));
    let order = |v: Verdict| match v {
        Verdict::Fail => 0,
        Verdict::Abort => 1,
        Verdict::Pass => 2,
    };
    let mut sorted: Vec<&CaseResult> = results.iter().collect();
    sorted.sort_by_key(|r| order(r.verdict));
    for result in sorted {
        let verdict = result.verdict.name();
        out.push_str(&format!(
            "<tr id=\"{id}\"><td class=\"v {verdict}\">{verdict}</td><td><code>{id}</code><br>{title}",
            id = escaped(&result.id),
            title = escaped(report.title(&result.id)),
        ));
        for note in result.notes.iter().filter(|n| n.level != Level::Info) {
            out.push_str(&format!("<div class=\"n\">{}</div>", escaped(&note.text)));
        }
        out.push_str("</td></tr>");
    }
    out.push_str("</table>");
}
