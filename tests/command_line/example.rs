//! `reports/example` is what the demo gives: its deterministic part is made again and compared.

use serde_json::Value;

use super::{calib, json, root};

/// What differs from machine to machine and from day to day, or hangs on the last bits of a processor's arithmetic.
const FREE: [&str; 17] = [
    "created",
    "command",
    "config",
    "environment",
    "tool",
    "seconds",
    "images_per_second",
    "peak_rss_bytes",
    "latency_ms",
    "speed_at",
    "throughput_fps",
    "speedup",
    "flips",
    "flips_total",
    "thumbnails",
    "timings",
    "hash",
];

/// Relative difference that another processor may make.
const TOLERANCE: f64 = 0.05;

/// Paths at which two reports differ.
fn differences(path: &str, expected: &Value, found: &Value, into: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                if !FREE.contains(&key.as_str()) {
                    let missing = Value::Null;
                    let [a, b] = [a, b].map(|map| map.get(key).unwrap_or(&missing));
                    differences(&format!("{path}.{key}"), a, b, into);
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, into);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            if (a - b).abs() > TOLERANCE * a.abs().max(b.abs()) {
                into.push(format!("{path}: {a} became {b}"));
            }
        }
        _ if expected == found => {}
        _ => into.push(format!("{path}: {expected:.60} became {found:.60}")),
    }
}

#[test]
fn the_demo_gives_the_committed_example() {
    let out = tempfile::tempdir().unwrap();
    let Some(mut command) = calib() else { return };
    command.current_dir(root()).args(["run", "--config", "configs/demo.toml", "--tensorrt", "off"]);
    command.args(["--bench-seconds", "0", "--out"]).arg(out.path()).assert().success();
    let expected = json(&root().join("reports/example/report.json"));
    assert!(expected["layers"].as_array().is_some_and(|layers| layers.len() > 10));
    let mut found = Vec::new();
    differences("report", &expected, &json(&out.path().join("report.json")), &mut found);
    assert!(found.is_empty(), "`make example` records the example again if this is meant: {found:#?}");
}
