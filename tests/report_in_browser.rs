//! The report's pages in a real browser: sorting, filtering, searching, opening, copying and the theme work, nothing
//! that came from a file runs, and the console stays clean. Skipped with a message where no Chromium is installed.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use calib_test_support::{Need, root};
use serde_json::{Value, json};
use trtcalib::{
    bisect::findings::Findings,
    quantize::{GraphNode, ModelGraph, Precision, Rule},
    report::{Drawn, Elsewhere, Report, Run, bisection_html, graph_html, html, html_with, runs_html},
};

/// Runs when it becomes markup or script anywhere.
const HOSTILE: &str =
    "</script><script>pwned=1</script><img src=x onerror=pwned=1>\" onload=pwned=1 ' 日本 🦉 \u{202e}";

/// What the page is asked to do; writes its findings into `<pre id="findings">`.
const QUESTIONS: &str = include_str!("report_in_browser.js");

fn chromium() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found =
        names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()));
    Need::Browser.or_skip(found.ok_or("no Chromium found; install `chromium` to check the pages in a browser"))
}

/// The committed example with as many layers and samples as a page must bear, and with hostile names.
fn large_and_hostile() -> Report {
    let example = root().join("reports/example/report.json");
    let mut report = Report::read(&example).unwrap();
    let int8 = report.precisions.iter().position(|p| p.precision == "int8").unwrap();
    let (layers, flips) = (report.layers.clone(), report.precisions[int8].flips.clone());
    report.layers = layers.iter().cycle().take(500).cloned().collect();
    for (i, layer) in report.layers.iter_mut().enumerate() {
        layer.node = format!("/part.{i}{}{HOSTILE}", layer.node);
        layer.graphwise_sqnr_db = (i % 7 != 0).then(|| (i * 37 % 101) as f64 / 3.0);
    }
    report.graph = Some(graph(&report.layers.iter().map(|layer| layer.node.clone()).collect::<Vec<_>>()));
    report.precisions[int8].flips = flips.iter().cycle().take(50).cloned().collect();
    for (i, flip) in report.precisions[int8].flips.iter_mut().enumerate() {
        let sample = format!("{i} {}{HOSTILE}", flip.sample);
        if let Some(picture) = report.thumbnails.get(&flip.sample).cloned() {
            report.thumbnails.insert(sample.clone(), picture);
        }
        flip.sample = sample;
    }
    report.verdict.sentence += HOSTILE;
    report.config += HOSTILE;
    report.precisions[int8].precision += HOSTILE;
    report
}

/// A chain of 4,000 nodes with shortcuts: first those of the names, then parts of modules with hostile names.
fn graph(names: &[String]) -> ModelGraph {
    let node = |i: usize| GraphNode {
        name: names.get(i).cloned().unwrap_or_else(|| {
            let hostile = if (i / 25).is_multiple_of(10) { HOSTILE } else { "" };
            format!("/stage.{}/block.{}{hostile}/Conv_{i}", i / 500, i / 25)
        }),
        op_type: ["Conv", "Relu", "Add"][i % 3].to_owned(),
        from: if i == 0 {
            Vec::new()
        } else {
            Vec::from_iter(std::collections::BTreeSet::from([i - 1, i.saturating_sub(i % 3 + 1)]))
        },
        precision: Some(if i % 3 == 2 { Precision::Fp32 } else { Precision::Int8 }),
        rule: Some([Rule::Convolution, Rule::Planned, Rule::ResidualAdd][i % 3]),
        contents: None,
    };
    ModelGraph { nodes: (0..4000).map(node).collect() }
}

fn drawn<'a>(name: &'a str, graph: &'a ModelGraph) -> Drawn<'a> {
    Drawn { name, graph, report: None, profile: None }
}

/// A bisection of a model of 500 operators with hostile names, which tried a plan for every number of them up to 12.
fn bisection() -> Findings {
    let names: Vec<String> = (0..500).map(|i| format!("/part.{i}{HOSTILE}")).collect();
    let layer = |(i, name): (usize, &String)| {
        let (sqnr_db, op_type) = ((i * 37 % 101) as f64 / 2.0, ["Conv", "Gemm"][i % 2]);
        json!({ "node": name, "op_type": op_type, "tensor": name, "layerwise_sqnr_db": sqnr_db,
            "weight_sqnr_db": sqnr_db + 1.0, "activation_sqnr_db": sqnr_db + 2.0, "dead_channels": [],
            "activations": [{ "tensor": name, "saturated": 0.001, "saturation_noise": 0.5, "dead_channels": [] }] })
    };
    let trial = |count: usize| {
        let top1 = 0.9 + count as f64 / 200.0;
        let verdict = json!({ "passed": count > 9, "score": top1, "metrics": { "top1": top1 } });
        json!({ "plan": format!("{count:064}"), "phase": "prefix", "lifted": names[..count], "cost": count * count,
            "verdict": verdict })
    };
    let trials: Vec<Value> = (0..12).map(trial).collect();
    let value = json!({
        "format_version": 1, "tool": { "name": "calib", "version": "0" }, "model": HOSTILE, "model_hash": "0".repeat(64),
        "target": "int8", "seconds": 1.0,
        "layers": names.iter().enumerate().map(layer).collect::<Vec<_>>(),
        "outputs": [{ "node": names[7], "relative_noise": 0.1, "sqnr_db": 10.0 }, { "node": names[8], "sqnr_db": 20.0 }],
        "plan": { "gates": [{ "metric": "top1", "threshold": 0.945 }], "lift": "fp16", "cost": "time", "samples": 50,
            "curve": [], "check_samples": 0,
            "search": { "outcome": "found", "trial": trials[10], "minimal": true, "ranking": names, "trials": trials } },
        "graph": graph(&names),
        "advice": [{ "level": "warning", "text": HOSTILE, "nodes": names, "command": HOSTILE }],
    });
    serde_json::from_value(value).unwrap()
}

/// Opens a file with more arguments; `folder` is the browser's own.
fn browse(browser: &str, folder: &Path, file: &Path, arguments: &[&str]) -> Output {
    Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(arguments)
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap()
}

/// Opens `page` in a window of that width with the questions in it and returns the findings.
fn ask(browser: &str, page: &str, width: u32) -> String {
    let folder = tempfile::tempdir().unwrap();
    let nonce = page.split("<script nonce=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let file = folder.path().join("page.html");
    fs::write(&file, page.replace("</body>", &format!("<script nonce=\"{nonce}\">{QUESTIONS}</script></body>")))
        .unwrap();
    let window = format!("--window-size={width},900");
    let output = browse(browser, folder.path(), &file, &["--enable-logging=stderr", "--dump-dom", &window]);
    let log = String::from_utf8_lossy(&output.stderr);
    let console: Vec<_> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "the console is not clean: {console:#?}");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings = dom.split("<pre id=\"findings\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    findings.unwrap_or_else(|| panic!("the page did not answer: {log}")).to_owned()
}

#[test]
fn the_pages_work_and_nothing_foreign_runs() {
    let Some(browser) = chromium() else { return };
    let report = large_and_hostile();
    let page = html(&report).unwrap();
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    let runs = [Run { name: "first", report: &report }, Run { name: HOSTILE, report: &report }];
    let pages = [
        ("report", page),
        ("runs", runs_html(&runs, &[]).unwrap()),
        ("regressions", runs_html(&runs, &runs[..1]).unwrap()),
        ("bisection", bisection_html(&bisection(), None).unwrap()),
        ("graph", graph_html(drawn(HOSTILE, &graph(&[])), None).unwrap()),
        ("graphs", graph_html(drawn(HOSTILE, &graph(&[])), Some(drawn("b", &graph(&["other".to_owned()])))).unwrap()),
    ];
    for ((name, page), width) in pages.iter().flat_map(|page| [(page, 1280), (page, 400)]) {
        let findings = ask(browser, page, width);
        let failed: Vec<_> = findings.lines().filter(|line| !line.starts_with("ok ")).collect();
        assert!(failed.is_empty(), "{name}, {width} pixels wide: {failed:#?}");
        let least = if ["report", "bisection"].contains(name) { 30 } else { 10 };
        assert!(findings.lines().count() >= least, "{name} answered too little: {findings}");
    }
}

/// The example with all that a report can hold: gates, figures from elsewhere, boxes, advice.
fn crowded() -> Report {
    let mut report = large_and_hostile();
    report.verdict.gates = report.verdict.gates.iter().cycle().take(90).cloned().collect();
    report.advice = report.advice.iter().cycle().take(30).cloned().collect();
    report.notes = (0..12).map(|i| format!("something to know of this run, number {i}, told in a sentence")).collect();
    let latency = report.precisions[0].latency_ms.clone().unwrap();
    let there = |machine: &str| -> Elsewhere {
        let layers: Vec<Value> =
            (0..300).map(|i| json!({ "layer": format!("layer {i}"), "mean_ms": 0.1, "share": 0.003 })).collect();
        serde_json::from_value(json!({ "machine": { "name": machine, "tensorrt": "10.3.0", "date": "2026-11-27T09:00:00Z" },
            "files": ["int8.times.json", "int8.profile.json", "int8.layers.json", "int8.outputs.json"], "tied_by": "hash",
            "latency_ms": latency, "layer_times": layers }))
        .unwrap()
    };
    let thumbnail = report.thumbnails.values().next().unwrap().clone();
    let found = json!({ "corners": [1.0, 2.0, 11.0, 7.0], "score": 0.5, "class": 3 });
    let changed: Vec<Value> = (0..12)
        .map(|i| {
            report.thumbnails.insert(format!("boxes {i}"), thumbnail.clone());
            json!({ "sample": format!("boxes {i}"), "size": [640, 480], "lost": [found], "gained": [], "common": [found] })
        })
        .collect();
    let detection = json!({ "head": "YOLO", "changed": changed, "agreement": { "confidence": 0.25, "precision": 0.9,
        "precision_interval": [0.8, 0.95], "recall": 0.9, "recall_interval": null, "precision_75": 0.8, "recall_75": 0.8,
        "mean_iou": 0.9, "score_shift": 0.0, "lost": 12, "gained": 0, "common": 12, "pictures": 12 } });
    for precision in &mut report.precisions {
        precision.measured_elsewhere = ["Jetson Orin Nano", "RTX 4090"].map(there).into();
        precision.detection = (!precision.reference).then(|| serde_json::from_value(detection.clone()).unwrap());
    }
    report
}

/// Prints a page, and tells the pages of the paper and how many of them are A4.
fn printed(browser: &str, page: &str) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let (file, paper) = (folder.path().join("page.html"), folder.path().join("paper.pdf"));
    fs::write(&file, page).unwrap();
    let print = format!("--print-to-pdf={}", paper.display());
    browse(browser, folder.path(), &file, &[&print, "--no-pdf-header-footer"]);
    let printed = fs::read(&paper).unwrap();
    let text = String::from_utf8_lossy(&printed);
    (text.matches("/Type /Page\n").count(), text.matches("/MediaBox [0 0 594.9").count())
}

#[test]
fn on_paper_every_report_is_three_pages_of_a4() {
    let Some(browser) = chromium() else { return };
    let example = fs::read_to_string(root().join("reports/example/report.html")).unwrap();
    assert_eq!(printed(browser, &example), (3, 3));
    let crowded = html_with(&crowded(), &bisection()).unwrap();
    for section in ["elsewhere", "boxes", "tradeoff", "network", "layers", "advice"] {
        assert!(crowded.contains(&format!("<h2 id=\"{section}\"")), "{section}");
    }
    assert_eq!(printed(browser, &crowded), (3, 3));
    // Whatever a reader has opened.
    let nonce = crowded.split("<script nonce=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let opens = "for (const button of document.querySelectorAll('.open')) button.click(); \
                 for (const one of document.querySelectorAll('details')) one.open = true;";
    let opened = crowded.replace("</body>", &format!("<script nonce=\"{nonce}\">{opens}</script></body>"));
    assert_eq!(printed(browser, &opened), (3, 3));
    // Without the script that sets it smaller it is more.
    let unfitted = crowded.replace("addEventListener(\"beforeprint\", fit)", "void fit");
    assert!(unfitted != crowded && printed(browser, &unfitted).0 > 3);
}

#[test]
fn a_page_that_misbehaves_is_caught() {
    let Some(browser) = chromium() else { return };
    let example = root().join("reports/example/report.json");
    let page = html(&Report::read(&example).unwrap()).unwrap();
    // A sort that does nothing, and a foreign script.
    let broken = page.replace("item.parentNode.append(item)", "void item");
    assert!(ask(browser, &broken, 1280).lines().any(|line| line.starts_with("FAILED Layers: sorts by")));
    let caught =
        std::panic::catch_unwind(|| ask(browser, &page.replace("<main", "<script>pwned=1</script><main"), 1280));
    assert!(caught.is_err(), "the content security policy reports a foreign script on the console");
}
