use super::*;
use crate::report::example::{Size, report};

/// Text that would do harm in HTML, in attributes, in SVG, in scripts or in a reader's eye.
const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7}}\u{202e}\u{2028}日本 🦉";

fn hostile() -> Report {
    let mut report = report(&Size { layers: 8, flips: 8 });
    let text = || HOSTILE.to_owned();
    report.model.path = text();
    report.model.inputs[0].name = text();
    report.model.producer = Some(text());
    report.environment.cpu_model = text();
    report.environment.libraries.insert(text(), text());
    report.dataset.path = text();
    report.dataset.skipped[0].sample = text();
    report.dataset.skipped[0].reason = text();
    report.dataset.labels.as_mut().unwrap().names.values_mut().for_each(|name| *name = text());
    report.verdict.sentence = text();
    report.verdict.gates.iter_mut().for_each(|gate| (gate.result.value, gate.result.note) = (None, Some(text())));
    for precision in &mut report.precisions {
        precision.precision = text();
        precision.backend = text();
        precision.error = precision.error.as_ref().map(|_| text());
        for layer in precision.engine.iter_mut().flat_map(|engine| &mut engine.layers) {
            (layer.name, layer.layer_type, layer.nodes) = (text(), text(), vec![text()]);
        }
        for flip in &mut precision.flips {
            flip.sample += HOSTILE;
            flip.reference.iter_mut().chain(&mut flip.target).for_each(|scored| scored.name = Some(text()));
        }
    }
    for layer in &mut report.layers {
        layer.node = text();
        layer.op_type = text();
        layer.tensor = text();
        layer.precision = text();
    }
    report.advice[0].text = text();
    report.advice[0].nodes = vec![text()];
    report.advice[0].command = Some(text());
    report.notes = vec![text()];
    report.config = text();
    report.command = vec![text()];
    report.thumbnails.values_mut().for_each(|uri| *uri = format!("data:image/png;base64,{HOSTILE}"));
    report
}

#[test]
fn no_name_becomes_markup() {
    let page = html(&hostile()).unwrap();
    assert_eq!(page.matches("<script").count(), 1, "only ours");
    assert_eq!(page.matches("</script").count(), 1);
    assert!(!page.contains("<img"), "no thumbnail is valid, so none may be there");
    assert!(!page.contains("onerror=alert(2)>\""), "a quote must not survive either");
    assert!(page.contains("日本 🦉"));
    assert!(page.contains("{{7}}"));
}

#[test]
fn the_page_asks_for_nothing_from_outside() {
    let page = html(&report(&Size { layers: 20, flips: 3 })).unwrap();
    for reference in ["http:", "https:", "//cdn", "@import", "url("] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn a_page_of_500_layers_and_50_samples_stays_below_3_mb() {
    let page = html(&report(&Size { layers: 500, flips: 50 })).unwrap();
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert_eq!(page.matches("Magnitudes seen in calibration").count(), 500);
    assert_eq!(page.matches("<img ").count(), 50);
}

#[test]
fn a_page_of_4000_nodes_timed_on_three_machines_stays_below_3_mb() {
    let mut report = report(&Size { layers: 3000, flips: 10 });
    let names: Vec<String> = (0..4000).map(|i| format!("/stages.{}/blocks.{}/conv{i}/Conv", i / 400, i / 4)).collect();
    let node = |(i, name): (usize, &String)| {
        let from = if i == 0 { Vec::new() } else { vec![i - 1] };
        serde_json::json!({ "name": name, "op_type": "Conv", "from": from, "precision": "int8", "rule": "convolution" })
    };
    let nodes: Vec<_> = names.iter().enumerate().map(node).collect();
    report.graph = Some(serde_json::from_value(serde_json::json!({ "nodes": nodes })).unwrap());
    for (i, (layer, name)) in report.layers.iter_mut().zip(&names).enumerate() {
        layer.node.clone_from(name);
        layer.times = ["Jetson Orin Nano", "RTX 4090", "DRIVE Orin"]
            .map(|machine| crate::report::NodeTime {
                machine: machine.into(),
                engine_layer: format!("{name} + PWN({name}/Relu)"),
                ms: 1.0 / (i as f64 + 3.0),
                share: 1e-3,
                nodes: 2,
            })
            .into();
    }
    let page = html(&report).unwrap();
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert_eq!(page.matches("Magnitudes seen in calibration").count(), 250);
    assert_eq!(page.matches("ms on RTX 4090").count(), 1, "a column");
}

#[test]
fn emulated_time_is_said_and_compared_with_nothing() {
    let mut report = report(&Size { layers: 0, flips: 0 });
    let emulated = report.precisions.iter_mut().find(|p| p.backend == "onnxruntime-cpu" && !p.reference).unwrap();
    emulated.speedup = Some(crate::report::Speedup {
        against: "fp32".into(),
        figures: crate::bench::SpeedUp { ratio: 7.77, interval: [7.0, 8.0] },
    });
    let page = html(&report).unwrap();
    assert!(!page.contains("7.77"));
    assert!(page.contains("their times say nothing: int8 · onnxruntime-cpu."));
    let points = page.split("Quality over latency").nth(1).unwrap().split("</svg>").next().unwrap();
    assert_eq!(points.matches("<circle").count(), 4, "fp32 twice, fp16 and int8 on the device");
}

#[test]
fn a_report_without_its_optional_parts_has_no_empty_sections() {
    let mut report = report(&Size { layers: 0, flips: 0 });
    report.advice.clear();
    report.calibration = None;
    report.dataset.labels = None;
    report.verdict = crate::report::Verdict::new(Vec::new(), &[]);
    for precision in &mut report.precisions {
        precision.latency_ms = None;
        precision.accuracy = None;
        precision.flips_total = 0;
        precision.engine = None;
    }
    let page = html(&report).unwrap();
    for id in ["speed", "samples", "layers", "engines", "advice"] {
        assert!(!page.contains(&format!("id=\"{id}\"")), "{id}");
    }
    assert!(!page.contains("Top-1 acc."));
    assert!(page.contains("No gates were set") && !page.contains("Passed"), "nothing was decided");
}

#[test]
fn nothing_is_said_twice() {
    let mut report = report(&Size { layers: 0, flips: 0 });
    report.advice = (0..3)
        .map(|i| crate::report::Advice {
            level: AdviceLevel::Problem,
            text: format!("problem number {i}"),
            nodes: Vec::new(),
            command: Some("calib bisect --find plan".into()),
        })
        .collect();
    let page = html(&report).unwrap();
    assert_eq!(page.matches("calib bisect --find plan").count(), 1, "a command at the first that asks for it");
    assert_eq!(page.matches("Problem number 1").count(), 1);
    assert!(page.contains("3 problems, with what to do"));
    assert!(report.verdict.sentence.contains("is asked for") && !page.contains("is asked for"), "the gates say it");
}

#[test]
fn random_data_is_marked_and_absurd_figures_do_no_harm() {
    let mut report = report(&Size { layers: 4, flips: 0 });
    assert!(!html(&report).unwrap().contains("Random data"));
    report.dataset.random_data = true;
    for (layer, value) in report.layers.iter_mut().zip([f64::NAN, f64::INFINITY, 1e300, -1e-300]) {
        layer.graphwise_sqnr_db = Some(value);
        layer.layerwise_sqnr_db = Some(value);
        layer.amax = Some(value as f32);
        layer.histogram.as_mut().unwrap().limit = value as f32;
        layer.histogram.as_mut().unwrap().counts = vec![u64::MAX; 64];
    }
    let absurd = [f64::NAN, f64::INFINITY, 1e300, 1e-300, -1.0, 0.0];
    for (precision, value) in report.precisions.iter_mut().zip(absurd) {
        if let Some(latency) = &mut precision.latency_ms {
            latency.figures.median = value;
        }
    }
    let page = html(&report).unwrap();
    assert!(page.contains("Random data") && page.contains("<title>RANDOM DATA"));
}

#[test]
fn the_same_report_gives_the_same_bytes() {
    let size = Size { layers: 10, flips: 5 };
    assert_eq!(html(&report(&size)).unwrap(), html(&report(&size)).unwrap());
}

#[test]
fn names_between_backquotes_become_code_and_stay_escaped() {
    assert_eq!(pieces("keep `a` and `b`"), [(false, "keep "), (true, "a"), (false, " and "), (true, "b"), (false, "")]);
    assert_eq!(pieces("one ` alone"), [(false, "one ` alone")]);
    let mut report = report(&Size { layers: 0, flips: 0 });
    report.advice[0].text = "lift `<b>x`".into();
    assert!(html(&report).unwrap().contains("Lift <code>&#60;b&#62;x</code>"));
}
