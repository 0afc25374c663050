//! A run as one page that needs nothing else.

use crate::record::{Class, Iteration, seconds};
use crate::report::{Report, Summary, escaped};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1b1b1b}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;vertical-align:top;padding:.25rem .6rem;border-bottom:1px solid #ddd}td.r,th.r{text-align:right}\
.ok{color:#13692f}.bad{color:#b3121d}.skip{color:#8a5a00}.n{color:#555;font-size:.9em}code{font-size:.92em}\
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#444}";

/// Seconds as people read them.
fn time(seconds: f64) -> String {
    if !seconds.is_finite() {
        "–".into()
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

/// The page.
pub(crate) fn page(report: &Report<'_>) -> String {
    let (cloud, scenario, at) = match report.iterations.first() {
        Some(first) => (first.cloud.as_str(), first.scenario.as_str(), first.at.as_str()),
        None => ("", "", ""),
    };
    let (word, class) = if report.fine { ("all well", "ok") } else { ("not well", "bad") };
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}: {1}</title><style>{STYLE}</style><h1>{0}: {1}: <span class=\"{class}\">{word}</span></h1>\
         <p>{2} iterations since {3}.</p>",
        escaped(cloud),
        escaped(scenario),
        report.iterations.len(),
        escaped(at),
    );
    suspects(&mut out, report);
    iterations(&mut out, report.iterations);
    operations(&mut out, &report.operations);
    if let Some(last) = report.iterations.last() {
        course(&mut out, last);
    }
    failures(&mut out, report.iterations);
    out.push_str("</html>\n");
    out
}

fn suspects(out: &mut String, report: &Report<'_>) {
    let told = report.told;
    if !told.suspects.is_empty() {
        out.push_str("<h2>Hosts that are worse than their peers</h2><table><tr><th>Host</th><th>At what</th><th>By chance</th></tr>");
        for s in &told.suspects {
            let (host, text) = (escaped(&s.host), escaped(&s.told));
            out.push_str(&format!(
                "<tr><td class=\"bad\"><code>{host}</code></td><td>{text}</td><td>{:.0e}</td></tr>",
                s.chance
            ));
        }
        out.push_str("</table>");
    }
    if !told.unusual.is_empty() {
        out.push_str("<h2>Slower than usual</h2><table><tr><th>What</th><th class=\"r\">Now</th><th class=\"r\">Usually</th></tr>");
        for u in &told.unusual {
            out.push_str(&format!(
                "<tr><td>{}</td><td class=\"r bad\">{:.3}</td><td class=\"r\">{:.3}</td></tr>",
                escaped(&u.at),
                u.now,
                u.usual
            ));
        }
        out.push_str("</table>");
    }
    if !told.burns.is_empty() {
        let burns: Vec<String> = told.burns.iter().map(|b| format!("{} {:.1}", b.window, b.rate)).collect();
        out.push_str(&format!(
            "<p class=\"n\">Burn rate of the allowance for failures: {}.</p>",
            burns.join(", ")
        ));
    }
}

fn iterations(out: &mut String, all: &[Iteration]) {
    out.push_str("<h2>Iterations</h2>");
    let longest = all.iter().map(|i| seconds(i.us)).fold(0.001, f64::max);
    let wide = 900.0 / f64::from(u32::try_from(all.len().max(1)).unwrap_or(u32::MAX));
    out.push_str(&format!(
        "<svg viewBox=\"0 0 960 140\" role=\"img\" aria-label=\"Duration of each iteration\"><text x=\"0\" y=\"12\">{}</text>",
        time(longest)
    ));
    for (index, iteration) in all.iter().enumerate() {
        let high = 110.0 * seconds(iteration.us) / longest;
        let x = 55.0 + wide * f64::from(u32::try_from(index).unwrap_or(u32::MAX));
        let colour = if iteration.fine() { "#2e7d4f" } else { "#b3121d" };
        out.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{high:.1}\" fill=\"{colour}\"><title>{}: {}</title></rect>",
            125.0 - high,
            (wide - 1.0).clamp(0.5, 60.0),
            iteration.number,
            time(seconds(iteration.us)),
        ));
    }
    out.push_str("</svg>");
}

fn operations(out: &mut String, all: &[Summary]) {
    out.push_str(
        "<h2>Operations</h2><table><tr><th>Operation</th><th class=\"r\">Tried</th><th class=\"r\">Failed</th>\
         <th class=\"r\">Skipped</th><th class=\"r\">Min</th><th class=\"r\">Median</th><th class=\"r\">p95</th><th class=\"r\">Max</th></tr>",
    );
    for s in all {
        let failed: usize = s.failed.values().sum();
        let class = if failed > 0 { "r bad" } else { "r" };
        out.push_str(&format!(
            "<tr><td><code>{}</code></td><td class=\"r\">{}</td><td class=\"{class}\">{failed}</td><td class=\"r\">{}</td>\
             <td class=\"r\">{}</td><td class=\"r\">{}</td><td class=\"r\">{}</td><td class=\"r\">{}</td></tr>",
            escaped(&s.op), s.tried, s.skipped, time(s.min), time(s.median), time(s.p95), time(s.max),
        ));
    }
    out.push_str("</table>");
}

/// The last iteration over time: a bar for each operation.
fn course(out: &mut String, iteration: &Iteration) {
    let tried: Vec<_> = iteration.records.iter().filter(|r| r.class != Class::Skipped).collect();
    let moment = |text: &str| base::Timestamp::parse(text).map_or(0, |t| t.0);
    let begin = moment(&iteration.at);
    #[expect(clippy::cast_precision_loss, reason = "positions on a picture")]
    let x = |us: i64| 60.0 + 880.0 * us.max(0) as f64 / iteration.us.max(1) as f64;
    let rows = u32::try_from(tried.len()).unwrap_or(u32::MAX);
    out.push_str(&format!(
        "<h2>The last iteration over time</h2><svg viewBox=\"0 0 960 {}\" role=\"img\" aria-label=\"When each operation ran\">",
        20 + rows * 6
    ));
    for (row, record) in (0..rows).zip(&tried) {
        let from = moment(&record.at) - begin;
        let length = i64::try_from(record.us).unwrap_or(i64::MAX);
        // What is measured from an earlier moment ends where it was noted.
        let width = (x(from.saturating_add(length)) - x(from)).clamp(0.8, (945.0 - x(from)).max(0.8));
        let colour = if record.class == Class::Ok { "#3b6ea5" } else { "#b3121d" };
        out.push_str(&format!(
            "<rect x=\"{:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"5\" fill=\"{colour}\"><title>{}: {}</title></rect>",
            x(from),
            4 + row * 6,
            escaped(&record.told()),
            time(record.seconds()),
        ));
    }
    out.push_str(&format!(
        "<text x=\"880\" y=\"{}\">{}</text></svg>",
        16 + rows * 6,
        time(seconds(iteration.us))
    ));
}

fn failures(out: &mut String, all: &[Iteration]) {
    let failed: Vec<_> = all.iter().flat_map(|i| i.failures().map(move |r| (i.number, r))).collect();
    let left: Vec<_> = all.iter().flat_map(|i| i.left.iter().map(move |l| (i.number, l))).collect();
    if failed.is_empty() && left.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Failures</h2><table><tr><th>Iteration</th><th>Record</th><th>When</th><th>What</th></tr>",
    );
    for (number, record) in failed.iter().take(500) {
        out.push_str(&format!(
            "<tr><td>{number}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            record.seq,
            escaped(&record.at),
            escaped(&record.told()),
        ));
    }
    for (number, text) in left {
        out.push_str(&format!(
            "<tr><td>{number}</td><td></td><td></td><td>left behind: {}</td></tr>",
            escaped(text)
        ));
    }
    out.push_str("</table>");
}
