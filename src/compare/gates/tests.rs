//! Reading gates and testing figures with them.

use super::super::*;
use super::*;

fn accuracy(top1: f64) -> Accuracy {
    Accuracy { top1, top1_interval: [0.0, 1.0], top5: 0.9, top5_interval: [0.0, 1.0], samples: 100, mcnemar_p: None }
}

fn output(name: &str, sqnr_db: Option<f64>, max_abs: f64) -> OutputMetrics {
    OutputMetrics {
        name: name.to_owned(),
        max_abs,
        mean_abs: 0.1,
        rel_l2: 0.01,
        cosine: 0.99,
        sqnr_db,
        integers: false,
        empty: false,
        parts: Vec::new(),
    }
}

fn result() -> ComparisonResult {
    let mut task = TaskResult::new("a", OutputKind::Classification);
    task.agreement = Some(Agreement {
        top1: 0.98,
        top1_interval: [0.9, 1.0],
        top5_overlap: 0.94,
        top5_set: 0.7,
        ref_top1_in_top5: 1.0,
        samples: 100,
    });
    (task.accuracy, task.reference_accuracy) = (Some(accuracy(0.74)), Some(accuracy(0.75)));
    let outputs = vec![output("a", Some(18.0), 0.5), output("b", None, 0.0), output("c", Some(14.5), 0.25)];
    ComparisonResult { samples: 100, outputs, tasks: vec![task], ..ComparisonResult::default() }
}

fn evaluate(gate: &str, result: &ComparisonResult) -> (Option<f64>, bool, Option<String>) {
    let outcome = gate.parse::<Gate>().unwrap().evaluate(result, &Footprint::default());
    (outcome.value, outcome.passed, outcome.note)
}

#[test]
fn each_direction_includes_its_threshold() {
    let result = result();
    assert_eq!(evaluate("top1=0.98", &result), (Some(0.98), true, None));
    assert_eq!(evaluate("top1=0.981", &result), (Some(0.98), false, None));
    assert_eq!(evaluate(" max_abs = 0.5 ", &result), (Some(0.5), true, None));
    assert_eq!(evaluate("max_abs=0.4", &result), (Some(0.5), false, None));
    assert_eq!(evaluate("sqnr_db=15", &result), (Some(14.5), false, None));
    let (value, passed, _) = evaluate("accuracy_drop=0.02", &result);
    assert!(passed && (value.unwrap() - 0.01).abs() < 1e-12);
    assert!(!evaluate("accuracy_drop=0.005", &result).1);
    // Integers do not count beside other outputs.
    let mut indexed = result.clone();
    indexed.outputs[2].integers = true;
    assert_eq!(evaluate("sqnr_db=15", &indexed), (Some(18.0), true, None));
    indexed.outputs.iter_mut().for_each(|output| output.integers = true);
    assert_eq!(evaluate("sqnr_db=15", &indexed), (Some(14.5), false, None));
}

#[test]
fn what_was_not_measured_does_not_pass() {
    let mut result = result();
    assert_eq!(evaluate("mean_iou=0", &result), (None, false, Some("no output is a map of classes".to_owned())));
    result.tasks[0].accuracy = None;
    assert_eq!(evaluate("accuracy_drop=1", &result), (None, false, Some("no sample has a label".to_owned())));
    assert_eq!(evaluate("top1=0", &ComparisonResult::default()).2.unwrap(), "no sample was compared");
    result.outputs.truncate(1);
    result.outputs[0].sqnr_db = None;
    assert_eq!(evaluate("sqnr_db=99", &result), (None, true, Some("equal to the reference".to_owned())));
}

#[test]
fn differing_nan_fails_numeric_gates_only() {
    let mut result = result();
    result.non_finite.insert("b".to_owned(), NonFinite { target_nan: 3, differing: 3, ..NonFinite::default() });
    let (value, passed, note) = evaluate("cosine=0.5", &result);
    assert_eq!((value, passed), (Some(0.99), false));
    assert_eq!(note.unwrap(), "output `b` differs in 3 NaN or infinite values besides");
    result.outputs.retain(|output| output.sqnr_db.is_none());
    assert!(!evaluate("sqnr_db=5", &result).1);
    assert!(evaluate("top1=0.5", &result).1);
}

#[test]
fn gates_tell_of_nan_that_both_sides_have() {
    let mut result = result();
    let alike = NonFinite { reference_nan: 2, reference_infinite: 1, target_nan: 2, target_infinite: 1, differing: 0 };
    result.non_finite.insert("b".to_owned(), alike);
    let told = Some("3 values of output `b` are NaN or infinite on both sides alike".to_owned());
    assert_eq!(evaluate("cosine=0.5", &result), (Some(0.99), true, told.clone()));
    assert_eq!(evaluate("top1=0.5", &result).2, told);
    assert_eq!((evaluate("cosine[c]=0.5", &result).2, evaluate("latency_ms=5", &result).0), (None, None));
    result.outputs.retain(|output| output.sqnr_db.is_none());
    assert_eq!(evaluate("sqnr_db=5", &result), (None, true, told));
}

#[test]
fn gates_that_cannot_be_read_say_what_can() {
    let error = |text: &str| text.parse::<Gate>().unwrap_err().to_string();
    assert!(error("topp=1").starts_with("unknown metric `topp` in gate `topp=1`; known are top1, top5, "));
    assert!(error("top1").contains("metric[[output]]=threshold"));
    assert!(error("top1=nan").contains("finite number"));
    assert_eq!(error("top1=98"), "gate `top1=98`: top1 lies between 0 and 1; write top1=0.98 for 98 %");
    assert!(
        error("accuracy=-0.1").contains("between 0 and 1") && error("accuracy_drop=2").contains("between -1 and 1")
    );
    assert!("sqnr_db=98".parse::<Gate>().is_ok() && "accuracy_drop=-0.01".parse::<Gate>().is_ok());
    assert_eq!("top1=0.98".parse::<Gate>().unwrap().to_string(), "top1=0.98");
}

#[test]
fn every_part_of_a_gate_is_read_and_written_back() {
    let gate = |text: &str| text.parse::<Gate>().unwrap();
    let plain = |metric, threshold| Gate { precision: None, metric, part: None, threshold, confidence: None };
    assert_eq!(gate("top1>=0.98"), plain(Metric::Top1, 0.98));
    assert_eq!(gate("latency_ratio <= 0.6"), plain(Metric::LatencyRatio, 0.6));
    let int8 = Gate { precision: Some("int8".to_owned()), ..plain(Metric::Top1, 0.98) };
    assert_eq!(gate("INT8: top1=0.98"), int8);
    let bounded = Gate { confidence: Some(0.95), ..int8.clone() };
    assert_eq!((gate("int8:top1>=0.98@95%"), gate("int8:top1=0.98@0.95")), (bounded.clone(), bounded));
    // Names of tensors may hold every sign of the grammar.
    let part = Gate { part: Some("a=b:c[0]".to_owned()), ..plain(Metric::SqnrDb, 15.0) };
    assert_eq!(gate("sqnr_db[a=b:c[0]]=15"), part);
    for text in ["top1=0.98", "int8:top1=0.98@99.9%", "fp16:sqnr_db[x]=15", "size_mb=12.5"] {
        assert_eq!(gate(text).to_string(), text);
    }
    assert!(int8.is_for("int8") && !int8.is_for("fp16") && gate("top1=1").is_for("fp16"));
    let error = |text: &str| text.parse::<Gate>().unwrap_err().to_string();
    assert_eq!(error("max_abs>=0.5"), "gate `max_abs>=0.5`: of max_abs less is better; write max_abs<=0.5");
    assert!(error("top1[x]=0.9").contains("not a figure of a single output"));
    assert!(error("max_abs=15@95%").contains("max_abs has no confidence interval; top1, "));
    assert!("sqnr_db=15@90%".parse::<Gate>().is_ok());
    assert!(error("top1=1@95%").contains("no number of samples"));
    assert!(error("detection_recall=0.9@90%").contains("at 95% confidence; write @95%"));
    assert!(error("top1=0.9@95").contains("write @95%") && error("top1=0.9@").contains("write @95%"));
    assert!(error("sqnr_db[]=15").contains("not of the form") && error(":top1=0.9").contains("not of the form"));
}

#[test]
fn a_confidence_tests_the_bound_of_the_interval() {
    let result = result();
    // Wilson's formula with the quantiles of Python's statistics.NormalDist.
    for (level, lower) in [(0.95, 0.929_988_21), (0.9, 0.941_351_63), (0.99, 0.904_183_02)] {
        let outcome = format!("top1=0.94@{level}").parse::<Gate>().unwrap().evaluate(&result, &Footprint::default());
        assert!((outcome.bound.unwrap() - lower).abs() < 1e-6, "{outcome:?}");
        assert_eq!((outcome.value, outcome.passed), (Some(0.98), lower >= 0.94));
    }
    assert!(evaluate("accuracy=0.64@95%", &result).1 && !evaluate("accuracy=0.65@95%", &result).1);
}

#[test]
fn too_few_samples_are_said_to_decide_nothing() {
    let undecidable = |gate: &str, samples| gate.parse::<Gate>().unwrap().undecidable(samples);
    // 0.98 z² / 0.02 with z = 1.959964.
    assert!(undecidable("top1=0.98@95%", 188).unwrap().ends_with("cannot pass; at least 189 samples are needed"));
    assert_eq!(undecidable("top1=0.98@95%", 189), None);
    assert!(
        undecidable("top1=0.98", 20).unwrap().contains("may be 0.839 (at 95% confidence), so passing shows little")
    );
    assert!(undecidable("top5>=0.99@95%", 1).is_some());
    assert_eq!((undecidable("top1=1", 5), undecidable("sqnr_db=20", 1)), (None, None));
    // z / (n + 2) with no answer changed: 1.959964 / 0.01 - 2.
    let drop = undecidable("accuracy_drop<=0.01@95%", 193).unwrap();
    assert!(
        drop.contains("no answer changed the true drop may be 0.010 (at 95% confidence), so the gate cannot"),
        "{drop}"
    );
    assert!(drop.ends_with("at least 194 samples are needed"), "{drop}");
    assert_eq!(undecidable("accuracy_drop<=0.01@95%", 194), None);
    assert!(undecidable("accuracy_drop=0.001", 120).unwrap().contains("passing shows little"));
    assert_eq!(undecidable("accuracy_drop=0", 10), None, "none changed is a clear wish");
    for gate in ["sqnr_db>=10@95%", "mean_iou>=0.5@95%", "map50_95>=0.3@95%"] {
        assert!(undecidable(gate, 1).unwrap().ends_with("cannot pass; at least 2 are needed"), "{gate}");
        assert_eq!(undecidable(gate, 2), None);
    }
    assert_eq!(undecidable("latency_ms<=5@95%", 1), None);
}

#[test]
fn figures_of_differences_have_intervals_from_how_samples_scatter() {
    let mut result = result();
    let errors = |sqnr_db| StandardErrors {
        samples: 100,
        sqnr_db: Some(sqnr_db),
        cosine: Some(0.001),
        mean_abs: Some(0.01),
        parts: BTreeMap::new(),
    };
    result.standard_errors = [("a", 0.1), ("c", 0.5)].map(|(name, error)| (name.to_owned(), errors(error))).into();
    result.tasks[0].only_one_right = Some([6, 5]);
    let found = |gate: &str| gate.parse::<Gate>().unwrap().evaluate(&result, &Footprint::default());
    let near = |gate: &str, expected: [f64; 2]| {
        let interval = found(gate).interval.unwrap();
        assert!(interval.iter().zip(expected).all(|(own, there)| (own - there).abs() < 1e-4), "{gate}: {interval:?}");
    };
    // Student's t of 99 degrees of freedom at 95 % is 1.98422 (scipy.stats.t.ppf(0.975, 99)).
    near("sqnr_db=14", [14.5 - 0.992_11, 14.5 + 0.992_11]);
    near("sqnr_db[a]=14", [18.0 - 0.198_42, 18.0 + 0.198_42]);
    near("mean_abs=1", [0.1 - 0.019_84, 0.1 + 0.019_84]);
    near("cosine=0.9", [0.99 - 0.001_98, 0.99 + 0.001_98]);
    // Wilson's interval of 94 of 100, which is the widest that shares with this mean can have.
    near("top5=0.9", [0.875_229, 0.972_198]);
    // (6.5 - 5.5) / 102 ± 1.95996 · sqrt((12 / 102 - (1 / 102)²) / 102).
    near("accuracy_drop=0.1", [0.009_804 - 0.066_536, 0.009_804 + 0.066_536]);
    let bounded = found("sqnr_db=14@95%");
    assert!(!bounded.passed && bounded.value == Some(14.5) && bounded.bound.unwrap() < 14.0, "{bounded:?}");
    assert_eq!(found("max_abs=1").interval, None, "a largest value has none");
}

#[test]
fn shares_of_pixels_have_intervals_from_groups_of_samples() {
    let mut result = result();
    let errors = SegmentationErrors {
        groups: 16,
        pixel_agreement: 0.01,
        mean_iou: 0.02,
        pixel_accuracy: None,
        label_mean_iou: None,
    };
    let (agreement, iou) = (0.9, 0.7);
    result.tasks[0].segmentation = Some(Segmentation {
        pixel_agreement: agreement,
        mean_iou: iou,
        class_iou: BTreeMap::new(),
        pixel_accuracy: None,
        label_mean_iou: None,
        label_class_iou: BTreeMap::new(),
        standard_errors: Some(errors),
    });
    let found = |gate: &str| gate.parse::<Gate>().unwrap().evaluate(&result, &Footprint::default());
    // Student's t of 15 degrees of freedom at 95 %: scipy.stats.t.ppf(0.975, 15).
    let t = 2.131_449_545_56;
    let interval = found("pixel_agreement=0.5").interval.unwrap();
    assert!((interval[0] - (agreement - 0.01 * t)).abs() < 1e-9, "{interval:?}");
    let bound = found("mean_iou=0.1@95%").bound.unwrap();
    assert!((bound - (iou - 0.02 * t).max(0.0)).abs() < 1e-9, "{bound}");
}

#[test]
fn one_output_time_and_size_are_tested_where_they_are_known() {
    let mut result = result();
    assert_eq!(evaluate("sqnr_db[a]=15", &result), (Some(18.0), true, None));
    assert_eq!(evaluate("sqnr_db[c]=15", &result), (Some(14.5), false, None));
    assert!(evaluate("sqnr_db[x]=15", &result).2.unwrap().contains("no output"));
    // NaN of another output is not this one's.
    result.non_finite.insert("c".to_owned(), NonFinite { differing: 3, ..NonFinite::default() });
    assert!(evaluate("sqnr_db[a]=15", &result).1 && !evaluate("cosine[c]=0", &result).1);
    assert!(evaluate("latency_ms=5", &result).2.unwrap().contains("no latency was measured"));
    let footprint = Footprint {
        latency_ms: Some(4.0),
        latency_ms_interval: Some([3.9, 4.2]),
        latency_ratio: Some(0.7),
        latency_ratio_interval: Some([0.6, 0.8]),
        size_mb: Some(5.0),
    };
    let passes = |gate: &str| {
        // Without samples, too: they are figures of the file.
        gate.parse::<Gate>().unwrap().evaluate(&ComparisonResult::default(), &footprint).passed
    };
    assert!(passes("latency_ms=4") && passes("latency_ratio<=0.7") && passes("size_mb=5"));
    assert!(!passes("latency_ms=4.1@95%") && passes("latency_ms=4.2@95%") && passes("latency_ratio=0.8@95%"));
    assert!(!passes("latency_ms=3.9") && !passes("latency_ratio=0.5") && !passes("size_mb=4"));
}

#[test]
fn the_worst_part_counts_and_parts_can_be_named() {
    let mut result = result();
    let part = |name: &str, sqnr_db| PartMetrics {
        name: name.to_owned(),
        axis: 0,
        ranges: vec![[0, 4]],
        max_abs: 2.0,
        mean_abs: 0.1,
        rel_l2: 0.1,
        cosine: 0.9,
        sqnr_db: Some(sqnr_db),
    };
    result.outputs[0].parts = vec![part("boxes", 30.0), part("scores", 2.0)];
    assert_eq!(evaluate("sqnr_db=15", &result), (Some(2.0), false, None), "18 dB in all hide 2 dB on the scores");
    assert_eq!(evaluate("sqnr_db[boxes]=15", &result), (Some(30.0), true, None));
    assert_eq!(evaluate("sqnr_db[ a/scores ]=1", &result), (Some(2.0), true, None));
    assert_eq!(evaluate("sqnr_db[a]=1", &result), (Some(2.0), true, None));
    assert_eq!(evaluate("sqnr_db[c]=1", &result), (Some(14.5), true, None));
    // The part's own scatter, of sixteen groups, is what counts.
    let errors = |samples, sqnr_db| StandardErrors {
        samples,
        sqnr_db: Some(sqnr_db),
        cosine: None,
        mean_abs: None,
        parts: BTreeMap::new(),
    };
    let whole = StandardErrors { parts: [("scores".to_owned(), errors(16, 0.5))].into(), ..errors(100, 0.1) };
    result.standard_errors.insert("a".to_owned(), whole);
    let gate = "sqnr_db=1@95%".parse::<Gate>().unwrap().evaluate(&result, &Footprint::default());
    assert!((gate.bound.unwrap() - (2.0 - 0.5 * 2.131_449_545_56)).abs() < 1e-9, "{gate:?}");
    assert_eq!(evaluate("max_abs[boxes]=1", &result).0, Some(2.0));
    let (value, passed, why) = evaluate("sqnr_db[score]=1", &result);
    assert_eq!((value, passed), (None, false));
    assert!(why.unwrap().contains("no part of one"));
}

#[test]
fn detectors_are_gated_by_boxes() {
    let mut result = result();
    let note = |result: &ComparisonResult, gate: &str| evaluate(gate, result).2.unwrap();
    assert_eq!(note(&result, "detection_recall=0.5"), "the model has no detection head that is known");
    let agreement = DetectionAgreement {
        confidence: 0.25,
        precision: 0.8,
        precision_interval: None,
        recall: 0.6,
        recall_interval: Some([0.5, 0.72]),
        precision_75: 0.7,
        recall_75: 0.5,
        mean_iou: Some(0.9),
        mean_iou_interval: Some([0.85, 0.93]),
        score_shift: None,
        lost: 4,
        gained: 2,
        common: 6,
        pictures: 9,
    };
    let detection = DetectionResult {
        head: "yolox".to_owned(),
        accuracy: None,
        reference_map50_95: Some(0.5),
        map50_95_drop_interval: Some([0.02, 0.12]),
        agreement,
        changed: Vec::new(),
    };
    result.detection = Some(detection);
    assert_eq!(evaluate("detection_recall=0.6", &result), (Some(0.6), true, None));
    assert_eq!(evaluate("detection_precision=0.81", &result), (Some(0.8), false, None));
    assert_eq!(evaluate("detection_iou=0.9", &result), (Some(0.9), true, None));
    assert_eq!(note(&result, "map50_95=0.1"), "no sample has labelled boxes");
    let figures = average_precision::CocoFigures {
        map50_95: Some(0.4),
        map50: Some(0.7),
        ..average_precision::CocoFigures::default()
    };
    result.detection.as_mut().unwrap().accuracy = Some(DetectionAccuracy {
        labelled_pictures: 9,
        figures,
        map50_95_interval: None,
        map50_interval: Some([0.6, 0.8]),
        per_class: Vec::new(),
        confidence: average_precision::ConfidenceCurve::default(),
    });
    assert_eq!(evaluate("map50=0.7", &result), (Some(0.7), true, None));
    let (drop, passed, _) = evaluate("map50_95_drop=0.05", &result);
    assert!(!passed && (drop.unwrap() - 0.1).abs() < 1e-12);
    assert!(evaluate("map50_95_drop=0.11", &result).1);

    // Their intervals come from drawing pictures anew; the end that lies towards failing is tested.
    let outcome = |gate: &str| gate.parse::<Gate>().unwrap().evaluate(&result, &Footprint::default());
    assert_eq!(outcome("detection_recall=0.6").interval, Some([0.5, 0.72]));
    let (near, far) = (outcome("detection_recall=0.5@95%"), outcome("detection_recall=0.51@95%"));
    assert_eq!((near.passed, far.passed, near.bound), (true, false, Some(0.5)));
    let (near, far) = (outcome("map50_95_drop=0.12@95%"), outcome("map50_95_drop=0.11@95%"));
    assert_eq!((near.passed, far.passed, near.bound), (true, false, Some(0.12)));
    assert_eq!(outcome("map50=0.6@95%").bound, Some(0.6));
    assert_eq!(outcome("detection_iou=0.8").interval, Some([0.85, 0.93]));
    let unknown = outcome("detection_precision=0.1@95%");
    assert!(!unknown.passed && unknown.note.unwrap().contains("no interval"));

    // Shares of nothing say nothing; boxes that only the target has are wrong.
    let mut counted = |lost, gained, precision| {
        let agreement = &mut result.detection.as_mut().unwrap().agreement;
        (agreement.common, agreement.lost, agreement.gained) = (0, lost, gained);
        (agreement.precision, agreement.recall) = (precision, 1.0);
        ["detection_precision=0.5", "detection_recall=0.5"].map(|gate| evaluate(gate, &result).0)
    };
    assert_eq!([counted(0, 0, 1.0), counted(0, 3, 0.0)], [[None, None], [Some(0.0), None]]);
    assert!(note(&result, "detection_recall=0.5").contains("the reference has no box"));
}
