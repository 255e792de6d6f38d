//! The programs in `examples/` do what they say, each with what the one before it wrote.

#![expect(dead_code, reason = "`main` reads arguments")]

#[path = "../examples/calibrate_from_an_iterator.rs"]
mod calibrate_from_an_iterator;
#[path = "../examples/compare_two_models.rs"]
mod compare_two_models;
#[path = "../examples/quantize_with_a_plan.rs"]
mod quantize_with_a_plan;
#[path = "../examples/read_a_report.rs"]
mod read_a_report;

use calib_test_support::{Need, root};
use trtcalib::backend::onnxruntime::OnnxRuntime;

#[test]
fn ranges_from_an_iterator_quantize_a_model_that_is_compared() {
    let Some(_) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let folder = tempfile::tempdir().unwrap();
    let [table, all, most] = ["table.json", "all.onnx", "most.onnx"].map(|name| folder.path().join(name));
    let model = root().join("calib_data/demo.onnx");
    assert!(calibrate_from_an_iterator::run(&model, &table).unwrap() > 20);
    let quantized = quantize_with_a_plan::run(&model, &table, &all, &[]).unwrap();
    let lifted = ["/stem/conv/Conv".to_owned()];
    assert_eq!(quantize_with_a_plan::run(&model, &table, &most, &lifted).unwrap(), quantized - 1);
    let compare = |target: &std::path::Path| {
        let [reference, target] = [&*model, target].map(|path| path.to_str().unwrap().to_owned());
        compare_two_models::run(&reference, &target, &root().join("configs/demo.toml")).unwrap()
    };
    let itself = compare(&model);
    assert_eq!((itself.passed, itself.targets[0].result.as_ref().unwrap().outputs[0].sqnr_db), (Some(true), None));
    let outcome = compare(&most);
    let result = outcome.targets[0].result.as_ref().unwrap_or_else(|| panic!("{:?}", outcome.targets[0].error));
    assert!(result.outputs[0].sqnr_db.is_some_and(|db| (1.0..40.0).contains(&db)), "{:?}", result.outputs);
}

#[test]
fn a_report_is_read() {
    let lines = read_a_report::run(&root().join("reports/example/report.json")).unwrap();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("fp32 (onnxruntime-cpu): - % agree, - dB, "), "{lines:?}");
    assert!(lines[2].starts_with("int8 (onnxruntime-cpu): 97.50 % agree, 20.39 dB, "), "{lines:?}");
}
