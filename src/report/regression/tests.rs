use super::*;
use crate::report::{
    Report,
    example::{Size, report},
};

/// Applies `change` to int8 on TensorRT and gives its row and the number of worse precisions.
fn changed(change: impl FnOnce(&mut Report)) -> (Vec<Cell>, usize) {
    let old = report(&Size { layers: 0, flips: 0 });
    let mut new = old.clone();
    change(&mut new);
    let result = regressions(&[Run { name: "new", report: &new }], &[Run { name: "old", report: &old }]);
    (
        result.table.rows.iter().find(|row| row[1].shows("int8") && row[2].shows("tensorrt")).unwrap().clone(),
        result.worse,
    )
}

#[test]
fn runs_over_other_data_or_gates_are_said_to_be_unlike() {
    use crate::report::example::{Size, report};
    let old = report(&Size { layers: 0, flips: 0 });
    let said = |new: &Report| {
        let said = unlike(&[Run { name: "new", report: new }], &[Run { name: "old", report: &old }]);
        said.into_iter().map(|s| s.replace("new and its baseline old differ in ", "")).collect::<Vec<_>>().join("; ")
    };
    let mut new = old.clone();
    assert_eq!(said(&new), "");
    new.dataset.evaluation_hash = None;
    assert_eq!(said(&new), "", "nothing is known of an older report");
    new.dataset.evaluation_hash = Some(crate::artifact::ContentHash::of_bytes(b"other pictures"));
    assert_eq!(said(&new), "what their evaluation samples of the same names, or the labels of these, are");
    new.dataset.evaluation_hash.clone_from(&old.dataset.evaluation_hash);
    new.dataset.truth_hash = Some(crate::artifact::ContentHash::of_bytes(b"masks"));
    assert_eq!(said(&new), "", "nothing is known of an older report");
    let mut of_masks = old.clone();
    of_masks.dataset.truth_hash = Some(crate::artifact::ContentHash::of_bytes(b"other masks"));
    assert_eq!(differences(&new, &of_masks), ["the label masks or labelled boxes of their evaluation samples"]);
    new.dataset.labels = None;
    assert_eq!(differences(&new, &of_masks), ["how many of their evaluation samples have labels: 0 and 1000"]);
    (new.dataset.labels, new.dataset.truth_hash) = (old.dataset.labels.clone(), None);
    for (words, what) in [
        ("ignore_label = 3\n", "the class of label masks that takes no part (`ignore_label`)"),
        ("[output_kind]\nlogits = \"generic\"\n", "the kinds that were given for outputs (`output_kind`)"),
        ("[detection]\niou = 0.5\n", "how boxes are read and judged (`detection`)"),
    ] {
        new.config =
            if words.starts_with('[') { format!("{}{words}", old.config) } else { format!("{words}{}", old.config) };
        assert_eq!(said(&new), what);
    }
    new.config.clone_from(&old.config);
    new.verdict.gates.pop();
    assert_eq!(said(&new), "their gates");
    new.dataset.preprocess = None;
    new.dataset.evaluation.push("one more".to_owned());
    assert!(said(&new).starts_with("the number of evaluation samples: "), "{}", said(&new));
    assert!(said(&new).ends_with("their preprocessing; their gates"), "{}", said(&new));
    new.model.path = "other.onnx".to_owned();
    assert_eq!(said(&new), "");
}

#[test]
fn every_run_of_a_model_is_judged_in_whatever_order() {
    let good = report(&Size { layers: 0, flips: 0 });
    let mut bad = good.clone();
    bad.precisions[4].agreement.as_mut().unwrap().top1 -= 0.5;
    bad.dataset.evaluation.push("one more".to_owned());
    let (good, bad) = (Run { name: "good", report: &good }, Run { name: "bad", report: &bad });
    for runs in [[good, bad], [bad, good]] {
        let found = regressions(&runs, &[Run { name: "old", ..good }]);
        assert_eq!((found.worse, found.compared), (1, 2 * good.report.precisions.len()));
        let worst: Vec<&str> = found.table.rows[0].iter().map(|cell| cell.text.as_str()).collect();
        assert!(worst.contains(&"worse") && worst.contains(&"bad"), "{worst:?}");
        assert!(found.table.rows.iter().all(|row| !row[3].shows("new")));
        // What makes them no measure of each other stands in the table as well, and on the page.
        let csv = found.table.csv().unwrap();
        assert_eq!(csv.matches("the number of evaluation samples: ").count(), good.report.precisions.len());
        let page = super::super::runs_html(&runs, &[Run { name: "old", ..good }]).unwrap();
        assert!(page.contains("bad and its baseline old differ in the number of evaluation samples: "), "{page}");
    }
}

#[test]
fn what_is_gone_from_one_of_several_runs_is_named_with_the_run() {
    let whole = report(&Size { layers: 0, flips: 0 });
    let mut less = whole.clone();
    less.precisions.retain(|row| row.precision != "fp16");
    let (whole, less) = (Run { name: "whole", report: &whole }, Run { name: "less", report: &less });
    let gone = |runs: &[Run<'_>], baseline: &[Run<'_>]| {
        let found = regressions(runs, baseline);
        let rows = found.table.rows.iter().filter(|row| row[3].shows("gone"));
        let rows: Vec<String> = rows.map(|row| format!("{} of {}", row[1].text, row[0].note)).collect();
        assert_eq!(found.worse, rows.len());
        rows
    };
    assert_eq!(gone(&[whole, less], &[Run { name: "old", ..whole }]), ["fp16 of less"]);
    // Runs of different precisions are compared with their likes.
    let olds = [Run { name: "old", ..whole }, Run { name: "old less", ..less }];
    assert!(gone(&[less, whole], &olds).is_empty());
    let mut other = whole.report.clone();
    other.model.path = "other.onnx".to_owned();
    let other = Run { name: "other", report: &other };
    assert_eq!(gone(&[whole], &[whole, other]).len(), other.report.precisions.len());
}

#[test]
fn a_change_counts_beyond_the_noise_only() {
    let (row, worse) = changed(|_| {});
    assert_eq!((row[3].text.as_str(), worse), ("same", 0));
    // The baseline's interval is ± 0.9 points.
    let agreement = |by: f64| changed(|r: &mut Report| r.precisions[4].agreement.as_mut().unwrap().top1 += by);
    assert_eq!(agreement(-0.008).1, 0);
    let (row, worse) = agreement(-0.010);
    assert_eq!((row[3].text.as_str(), row[6].text.as_str(), worse), ("worse", "-1.00\u{a0}pp", 1));
    assert_eq!(agreement(0.010).0[3].text, "better");
    // The SQNR of a baseline that scatters by more than a decibel may differ by as much.
    let sqnr = |by: f64, half: f64| {
        let mut old = report(&Size { layers: 0, flips: 0 });
        let before = old.precisions[4].outputs[0].sqnr_db.unwrap();
        old.precisions[4].sqnr_db_interval = Some([before - half, before + half]);
        let mut new = old.clone();
        new.precisions[4].outputs[0].sqnr_db = Some(before + by);
        sqnr_change(
            Subject { report: &old, precision: &old.precisions[4] },
            Subject { report: &new, precision: &new.precisions[4] },
        )
    };
    assert_eq!((sqnr(-1.5, 0.2).tone, sqnr(-1.5, 2.0).tone, sqnr(-2.5, 2.0).tone), (Tone::Bad, Tone::Plain, Tone::Bad));
    assert!(sqnr(-0.5, 2.0).note.contains("(16.4…20.4)"), "{}", sqnr(-0.5, 2.0).note);
}

#[test]
fn pixels_that_miss_their_masks_count_by_themselves() {
    let map = |pixel_accuracy: f64| {
        Some(crate::compare::Segmentation {
            pixel_agreement: 0.8,
            mean_iou: 0.75,
            class_iou: [(0, 0.75)].into(),
            pixel_accuracy: Some(pixel_accuracy),
            label_mean_iou: Some(0.25),
            label_class_iou: [(0, 0.25)].into(),
            standard_errors: None,
        })
    };
    let mut old = report(&Size { layers: 0, flips: 0 });
    old.precisions[4].segmentation = map(0.9);
    let mut new = old.clone();
    new.precisions[4].segmentation = map(0.85);
    let found = regressions(&[Run { name: "new", report: &new }], &[Run { name: "old", report: &old }]);
    let column = found.table.columns.iter().position(|column| column.key == "pixel_accuracy_change").unwrap();
    assert_eq!((found.worse, found.table.rows[0][column].text.as_str()), (1, "-5.00\u{a0}pp"));
}

#[test]
fn boxes_count_as_classes_do() {
    let detection = |map: f64, recall: f64| {
        serde_json::from_value(serde_json::json!({
            "head": "yolox", "labelled_pictures": 64, "map50_95": map, "map50_95_interval": [map - 0.1, map + 0.1],
            "map50": null, "map75": null, "map_small": null, "map_medium": null, "map_large": null, "mar_1": null,
            "mar_10": null, "mar_100": null, "mar_small": null, "mar_medium": null, "mar_large": null,
            "per_class": [], "confidence": { "confidence": [], "precision": [], "recall": [], "f1": [] },
            "reference_map50_95": 0.354, "map50_95_drop_interval": [0.354 - map - 0.03, 0.354 - map + 0.03],
            "agreement": {
                "confidence": 0.25, "precision": 0.7, "precision_interval": [0.66, 0.74], "recall": recall,
                "recall_interval": [recall - 0.05, recall + 0.05], "precision_75": 0.5, "recall_75": 0.5,
                "mean_iou": 0.8, "score_shift": 0.0, "lost": 1, "gained": 1, "common": 1, "pictures": 64
            }
        }))
        .unwrap()
    };
    let tone = |map: f64, recall: f64| {
        let old = &mut report(&Size { layers: 0, flips: 0 });
        let new = &mut old.clone();
        for (report, map, recall) in [(&mut *old, 0.24, 0.7), (&mut *new, map, recall)] {
            report.precisions.iter_mut().for_each(|precision| precision.detection = Some(detection(map, recall)));
        }
        let found = regressions(&[Run { name: "new", report: new }], &[Run { name: "old", report: old }]);
        let at = |key: &str| found.table.columns.iter().position(|column| column.key == key).unwrap();
        let row = found.table.rows.iter().find(|row| row[1].shows("int8") && row[2].shows("tensorrt")).unwrap();
        let is_reference = |row: &&Vec<Cell>| row[1].shows("fp32") && row[2].shows("onnxruntime-cpu");
        let reference = found.table.rows.iter().find(is_reference).unwrap();
        assert!(reference[at("detection_map50_95_change")].value.is_some());
        assert!(reference[at("detection_f1_change")].value.is_none(), "it is that of the reference with itself");
        ["detection_map50_95_change", "detection_f1_change"].map(|key| row[at(key)].tone)
    };
    assert_eq!(tone(0.24, 0.7), [Tone::Dim, Tone::Dim]);
    // 4 points of mAP are within the interval over pictures, and beyond that of the drop on the same pictures.
    assert_eq!(tone(0.20, 0.68), [Tone::Bad, Tone::Plain]);
    assert_eq!(tone(0.28, 0.5), [Tone::Good, Tone::Bad]);
}

#[test]
fn latencies_of_another_machine_are_not_compared() {
    let slower = |r: &mut Report| r.precisions[4].latency_ms.as_mut().unwrap().figures.median *= 1.5;
    let (row, worse) = changed(slower);
    assert_eq!((row[8].text.as_str(), worse), ("+50.0\u{a0}%", 1));
    let (row, worse) = changed(|r| {
        slower(r);
        r.environment.gpu = None;
    });
    assert_eq!((row[8].text.as_str(), worse), ("not comparable", 0));
}

#[test]
fn what_no_longer_runs_or_is_gone_is_worse() {
    assert_eq!(changed(|r| r.precisions[4].error = Some("no".into())).1, 1);
    assert_eq!(
        changed(|r| {
            r.precisions.pop();
        })
        .1,
        1
    );
}

#[test]
fn figures_that_are_gone_are_worse() {
    let gone = |change: fn(&mut Report)| {
        let (row, worse) = changed(change);
        let said: Vec<&str> = row.iter().filter(|cell| cell.tone == Tone::Bad).map(|cell| cell.text.as_str()).collect();
        assert_eq!((row[3].text.as_str(), worse), ("worse", 1), "{said:?}");
        said[1..].join("; ")
    };
    assert_eq!(gone(|r| r.precisions[4].accuracy = None), "Top-1 accuracy");
    assert_eq!(gone(|r| r.precisions[4].outputs.clear()), "output `logits`");
    assert_eq!(gone(|r| r.precisions[4].agreement = None), "Top-1 agreement with the reference");
    // Of the precision that failed nothing else is told, and of the reference nothing against itself.
    assert_eq!(
        gone(|r| (r.precisions[4].error, r.precisions[4].accuracy) = (Some("no".into()), None)),
        "failed → did not run"
    );
    // The same by output, where there are several.
    let mut old = report(&Size { layers: 0, flips: 0 });
    let task = |output: &str| OutputTask {
        output: output.to_owned(),
        kind: crate::compare::OutputKind::Classification,
        agreement: old.precisions[4].agreement.clone(),
        top_k: Vec::new(),
        accuracy: None,
        segmentation: None,
    };
    let (tasks, mut second) = (vec![task("logits"), task("kind")], old.precisions[4].outputs[0].clone());
    "kind".clone_into(&mut second.name);
    (old.precisions[4].tasks, old.precisions[4].outputs) = (tasks, vec![second.clone(), second]);
    "logits".clone_into(&mut old.precisions[4].outputs[0].name);
    let mut new = old.clone();
    let told = |new: &Report| {
        let subject = |report| Subject { report, precision: &report.precisions[4] };
        super::gone(subject(&old), subject(new)).text
    };
    assert_eq!(told(&new), Cell::missing().text);
    new.precisions[4].tasks.pop();
    assert_eq!(told(&new), "figures of `kind`");
    new.precisions[4].outputs.pop();
    assert_eq!(told(&new), "output `kind`");
    (new.precisions[4].tasks, new.precisions[4].outputs) = (Vec::new(), old.precisions[4].outputs.clone());
    assert_eq!(told(&new), "figures of all but one of `logits`, `kind`");
    // A single one that is left has its figures in those of the precision.
    new.precisions[4].outputs.pop();
    assert_eq!(told(&new), "output `kind`");
}
