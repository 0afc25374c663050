//! A Grafana dashboard for the metrics of [`crate::meter`].

use serde_json::{Value, json};

/// The dashboard, as Grafana imports it.
pub fn dashboard() -> Value {
    let mut panels: Vec<Value> = Vec::new();
    let mut add = |title: &str, kind: &str, unit: &str, queries: &[(&str, &str)], width: u32| {
        let index = u32::try_from(panels.len()).unwrap_or(0);
        let targets: Vec<Value> = queries
            .iter()
            .zip('A'..='Z')
            .map(|((expr, legend), name)| {
                json!({"refId": name.to_string(), "expr": expr, "legendFormat": legend,
                "datasource": {"type": "prometheus", "uid": "${datasource}"}})
            })
            .collect();
        panels.push(json!({
            "id": index + 1, "title": title, "type": kind, "targets": targets,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"h": if kind == "stat" { 4 } else { 8 }, "w": width, "x": 0, "y": 0},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        }));
    };
    let tried = "allod_probe_operations_total{cloud=~\"$cloud\",class!=\"skipped\"}";
    let good = "allod_probe_operations_total{cloud=~\"$cloud\",class=\"ok\"}";
    let rate = format!("sum(increase({good}[$__range])) / sum(increase({tried}[$__range]))");
    add("Operations that worked", "stat", "percentunit", &[(&rate, "")], 6);
    let calls = "sum(increase(allod_probe_calls_total{cloud=~\"$cloud\",class=\"ok\"}[$__range])) / \
                 sum(increase(allod_probe_calls_total{cloud=~\"$cloud\"}[$__range]))";
    add("Calls that worked", "stat", "percentunit", &[(calls, "")], 6);
    add(
        "Since the last good iteration",
        "stat",
        "s",
        &[("time() - max(allod_probe_last_good_iteration_timestamp_seconds{cloud=~\"$cloud\"})", "")],
        6,
    );
    add("Left behind", "stat", "short", &[("sum(allod_probe_left_behind{cloud=~\"$cloud\"})", "")], 6);
    add(
        "Failures by class",
        "timeseries",
        "short",
        &[(
            "sum by (class) (increase(allod_probe_operations_total{cloud=~\"$cloud\",class!~\"ok|skipped\"}[$__rate_interval]))",
            "{{class}}",
        )],
        12,
    );
    add(
        "Failures by host",
        "timeseries",
        "short",
        &[(
            "sum by (host) (increase(allod_probe_operations_total{cloud=~\"$cloud\",class!~\"ok|skipped\",host!=\"\"}[$__rate_interval]))",
            "{{host}}",
        )],
        12,
    );
    let p95 = |of: &str| {
        format!(
            "histogram_quantile(0.95, sum by (le, {of}) (rate(allod_probe_operation_seconds_bucket{{cloud=~\"$cloud\"}}[$__rate_interval])))"
        )
    };
    add("Operations, 95 of 100", "timeseries", "s", &[(&p95("op"), "{{op}}")], 12);
    add(
        "Phases of calls, 95 of 100",
        "timeseries",
        "s",
        &[(
            "histogram_quantile(0.95, sum by (le, phase) (rate(allod_probe_call_phase_seconds_bucket{cloud=~\"$cloud\"}[$__rate_interval])))",
            "{{phase}}",
        )],
        12,
    );
    add(
        "Iteration",
        "timeseries",
        "s",
        &[("allod_probe_iteration_seconds{cloud=~\"$cloud\"}", "{{cloud}}")],
        12,
    );
    add(
        "Burn rate of the objective",
        "timeseries",
        "short",
        &[("allod_probe_slo_burn_rate{cloud=~\"$cloud\"}", "{{window}}")],
        12,
    );
    add(
        "Measured in guests",
        "timeseries",
        "short",
        &[(
            "avg by (op, measure, unit) (allod_probe_measure{cloud=~\"$cloud\"})",
            "{{op}} {{measure}} ({{unit}})",
        )],
        12,
    );
    add(
        "Hosts worse than their peers",
        "timeseries",
        "short",
        &[("allod_probe_suspect_worse{cloud=~\"$cloud\"}", "{{host}} {{at}}")],
        12,
    );
    place(&mut panels);
    json!({
        "title": "Allod probe", "uid": "allod-probe", "schemaVersion": 39, "version": 1, "refresh": "1m",
        "time": {"from": "now-24h", "to": "now"}, "timezone": "utc", "tags": ["openstack"], "panels": panels,
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
            {"name": "cloud", "type": "query", "label": "Cloud", "includeAll": true, "multi": true, "refresh": 2,
             "datasource": {"type": "prometheus", "uid": "${datasource}"},
             "query": {"query": "label_values(allod_probe_iterations_total, cloud)", "refId": "cloud"}},
        ]},
    })
}

/// Lines of 24 columns.
fn place(panels: &mut [Value]) {
    let (mut x, mut y, mut high) = (0, 0, 0);
    for panel in panels {
        let get = |p: &Value, name: &str| {
            p.pointer(&format!("/gridPos/{name}")).and_then(Value::as_u64).unwrap_or(0)
        };
        let (w, h) = (get(panel, "w"), get(panel, "h"));
        if x + w > 24 {
            (x, y, high) = (0, y + high, 0);
        }
        high = high.max(h);
        if let Some(position) = panel.get_mut("gridPos") {
            *position = json!({"x": x, "y": y, "w": w, "h": h});
        }
        x += w;
    }
}
