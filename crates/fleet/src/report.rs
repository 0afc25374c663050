//! A run as text, as JSON and as a picture.

use std::fmt::Write;

use crate::run::{Outcome, Sample};

/// Width and height of a chart.
const SIZE: (f64, f64) = (900.0, 220.0);
/// Colours of lines.
const COLOURS: [&str; 8] =
    ["#1b7837", "#2166ac", "#b2182b", "#762a83", "#e08214", "#5aae61", "#4d4d4d", "#c51b7d"];

impl Outcome {
    /// Whether everything held.
    pub fn sound(&self) -> bool {
        self.violations.is_empty()
    }

    /// What an operator reads at the end.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let calls: u64 = self.calls.answers.values().sum();
        let (median, p99) = self.call_us();
        let _ = writeln!(
            text,
            "seed {}: {} hosts, {} virtual minutes and {} s to come to rest, in {:.1} s",
            self.seed, self.hosts, self.minutes, self.rest_s, self.wall_s
        );
        let _ = writeln!(
            text,
            "{} servers made, {calls} calls ({median} µs median, {p99} µs p99), {} faults, {} driver calls, {} reports",
            self.servers_made,
            self.script.fault.len(),
            self.events.get("driver").copied().unwrap_or(0),
            self.events.get("report").copied().unwrap_or(0),
        );
        if let Some(last) = self.samples.last() {
            let _ = writeln!(
                text,
                "{} transactions read and {} write; {} MiB; the checker took {:.1} s of the time",
                last.transactions.0, last.transactions.1, last.memory_mib, last.checking_s
            );
        }
        let _ = writeln!(text, "trace {}", self.hash);
        for (at, violation) in &self.violations {
            let shown: String = violation.to_string().chars().take(1_000).collect();
            let _ = writeln!(text, "VIOLATION at {at} s: {shown}");
        }
        if !self.sound() {
            let _ = writeln!(
                text,
                "\nreplay with --seed {}; the faults were:\n\n{}",
                self.seed,
                self.script.text()
            );
        }
        text
    }

    /// Processor time of calls in microseconds: median and 99 of 100.
    pub fn call_us(&self) -> (u32, u32) {
        let mut micros = self.calls.micros.clone();
        micros.sort_unstable();
        let part = |n: usize| micros.get(micros.len().saturating_sub(1) * n / 100).copied().unwrap_or(0);
        (part(50), part(99))
    }

    /// A page with charts: servers by state, what has not converged, hosts that are well, calls and what they cost.
    pub fn page(&self) -> String {
        let states = ["active", "stopped", "paused", "suspended", "building", "deleting", "error"];
        let of = |state: &'static str| {
            let value = move |s: &Sample| s.servers.get(state).copied().unwrap_or(0) as f64;
            (state, self.series(value))
        };
        let faults: Vec<(f64, f64, &str)> =
            self.script.fault.iter().map(|f| (f.at as f64, f.lasts as f64, f.kind.name())).collect();
        let lately: Vec<_> =
            faults.iter().filter(|f| matches!(f.2, "server_failover" | "ovn_outage")).collect();
        let mut page = String::from(
            "<!doctype html><meta charset=\"utf-8\"><title>allod simulate</title><style>body{font:14px system-ui;margin:2em;\
             max-width:960px}svg{display:block;margin:0 0 1.5em}text{font:11px system-ui;fill:#444}h2{font-size:15px;margin:0}\
             pre{white-space:pre-wrap}.legend span{margin-right:1em}</style>",
        );
        let _ = write!(
            page,
            "<h1>{} hosts, seed {}</h1><pre>{}</pre>",
            self.hosts,
            self.seed,
            escape(&self.head())
        );
        page += "<p>Grey: no server process or no network backend.</p>";
        let bands: Vec<(f64, f64)> = lately.iter().map(|f| (f.0, f.1)).collect();
        let servers: Vec<_> = states.into_iter().map(of).collect();
        self.chart(&mut page, "Servers", &servers, &bands);
        let open = [("not converged", self.series(|s| s.unconverged as f64))];
        self.chart(&mut page, "What has not converged", &open, &bands);
        let well = [("hosts with nothing wrong", self.series(|s| s.hosts_well as f64))];
        self.chart(&mut page, "Hosts", &well, &bands);
        let calls = [("calls", self.series(|s| s.calls as f64))];
        self.chart(&mut page, "Calls between two samples", &calls, &bands);
        let cost = [
            ("median", self.series(|s| f64::from(s.call_us.0))),
            ("99 of 100", self.series(|s| f64::from(s.call_us.1))),
        ];
        self.chart(&mut page, "Cost of a call in real microseconds", &cost, &bands);
        let cost = |s: &Sample| (s.servers_asked as f64, s.wall_s - s.checking_s);
        let cost = [("seconds", self.samples.iter().map(cost).collect())];
        self.chart(
            &mut page,
            "Real seconds without the checker (up) against requests for servers (across)",
            &cost,
            &[],
        );
        page
    }

    fn head(&self) -> String {
        self.summary().lines().take(40).collect::<Vec<_>>().join("\n")
    }

    fn series(&self, value: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
        self.samples.iter().map(|s| (s.at as f64, value(s))).collect()
    }

    fn chart(&self, page: &mut String, title: &str, lines: &[(&str, Vec<(f64, f64)>)], bands: &[(f64, f64)]) {
        let (width, height) = SIZE;
        let last = lines.iter().flat_map(|(_, points)| points.iter().map(|p| p.0)).fold(1.0_f64, f64::max);
        let timed = !title.contains("(across)");
        let values = lines.iter().flat_map(|(_, points)| points.iter().map(|p| p.1));
        let top = values.fold(1.0_f64, f64::max);
        let (x, y) =
            (|t: f64| 40.0 + t / last * (width - 50.0), |v: f64| height - 20.0 - v / top * (height - 35.0));
        let _ = write!(page, "<h2>{title}</h2><div class=\"legend\">");
        for ((name, _), colour) in lines.iter().zip(COLOURS) {
            let _ = write!(page, "<span style=\"color:{colour}\">{name}</span>");
        }
        let _ = write!(page, "</div><svg width=\"{width}\" height=\"{height}\">");
        for (at, lasts) in bands {
            let wide = (x(at + lasts) - x(*at)).max(1.0);
            let _ = write!(
                page,
                "<rect x=\"{:.1}\" y=\"5\" width=\"{wide:.1}\" height=\"{}\" fill=\"#ddd\"/>",
                x(*at),
                height - 25.0
            );
        }
        let base = height - 20.0;
        let _ = write!(
            page,
            "<path d=\"M40 5V{base}H{width}\" fill=\"none\" stroke=\"#888\"/><text x=\"2\" y=\"16\">{top:.0}</text>\
             <text x=\"2\" y=\"{base}\">0</text><text x=\"40\" y=\"{:.0}\">0</text><text x=\"{:.0}\" y=\"{:.0}\">{:.0}{}</text>",
            height - 5.0,
            width - 50.0,
            height - 5.0,
            if timed { last / 60.0 } else { last },
            if timed { " min" } else { "" }
        );
        for ((_, points), colour) in lines.iter().zip(COLOURS) {
            let mut path = String::new();
            for (n, (at, value)) in points.iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if n == 0 { "M" } else { "L" }, x(*at), y(*value));
            }
            let _ =
                write!(page, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
        }
        page.push_str("</svg>");
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
