//! Maps of classes and boxes that engines give, compared and judged as those of ONNX Runtime are.

use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;
use trtcalib::onnx::proto::{AttributeProto, NodeProto};

use super::{ends, json, models, succeeds, text};

const SIZE: u32 = 32;
const PICTURES: u32 = 9;

/// Numbers that look random, between -1 and 1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let next = |state: &mut u64, ()| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((*state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0)
    };
    std::iter::repeat_n((), count).scan(seed, next).collect()
}

/// Nine pictures, and a mask of four classes for each, with 255 for what is unknown.
fn save_pictures(folder: &Path) {
    std::fs::create_dir_all(folder.join("images")).unwrap();
    std::fs::create_dir_all(folder.join("masks")).unwrap();
    for i in 0..PICTURES {
        let values = numbers((SIZE * SIZE * 3) as usize, u64::from(i) + 1);
        let shade = |x: u32, y: u32, c: u32| ((values[((y * SIZE + x) * 3 + c) as usize] + 1.0) * 127.0) as u8;
        let picture = RgbImage::from_fn(SIZE, SIZE, |x, y| Rgb([shade(x, y, 0), shade(x, y, 1), shade(x, y, 2)]));
        picture.save(folder.join(format!("images/{i}.png"))).unwrap();
        let mask = GrayImage::from_fn(SIZE, SIZE, |x, y| Luma([if x == y { 255 } else { shade(x, y, 0) / 64 }]));
        mask.save(folder.join(format!("masks/{i}.png"))).unwrap();
    }
}

/// Builds engines of `name.onnx` and of what quantization makes of it, and gives what compares them with it.
fn engines(folder: &Path, name: &str) -> [Vec<String>; 2] {
    let at = |file: &str| text(&folder.join(file)).to_owned();
    let (float, data, table, quantized) = (at(name), at("images"), at("table.json"), at("int8.onnx"));
    let model = ["--model", &float, "--data", &data, "--preset", "unit"];
    succeeds(&[&["calibrate", "-o", &table], &model[..]].concat());
    succeeds(&["quantize", "--model", &float, "--table", &table, "-o", &quantized]);
    ["fp32", "int8"].map(|number_type| {
        let plan = at(&format!("{number_type}.plan"));
        let from = if number_type == "fp32" { &float } else { &quantized };
        succeeds(&["build", "--model", from, "--reference", &float, "--data", &data, "--batch", "4", "-o", &plan]);
        // Nine samples in batches of four: the last one is a single sample.
        let compare = ["compare", "--ref", "ort", "--target", &plan, "--preset", "unit", "--batch", "4"];
        compare.map(str::to_owned).into()
    })
}

fn compared(orders: &str, compare: &[String], more: &[&str]) -> Value {
    let arguments: Vec<&str> = compare.iter().map(String::as_str).chain(more.iter().copied()).collect();
    json(orders, &arguments)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn maps_of_classes_are_compared_with_the_reference_and_with_masks() {
    let folder = tempfile::tempdir().unwrap();
    save_pictures(folder.path());
    let side = i64::from(SIZE);
    let nodes = vec![
        NodeProto::new("Conv", "first", &["x", "w1"], &["a"]),
        NodeProto::new("Relu", "relu", &["a"], &["b"]),
        NodeProto::new("Conv", "last", &["b", "w2", "bias"], &["scores"]),
        NodeProto::new("GlobalAveragePool", "pool", &["b"], &["p"]),
        NodeProto::new("Flatten", "flat", &["p"], &["f"]),
        NodeProto::new("Gemm", "gemm", &["f", "g"], &["kind"]),
    ];
    let weights = vec![
        models::weight("w1", &[8, 3, 1, 1], numbers(24, 41)),
        models::weight("w2", &[4, 8, 1, 1], numbers(32, 42)),
        models::weight("bias", &[4], vec![0.9, -0.6, 0.3, 0.0]),
        models::weight("g", &[8, 6], numbers(48, 43)),
    ];
    let outputs = vec![models::float("scores", &[-1, 4, side, side]), models::float("kind", &[-1, 6])];
    models::save(folder.path(), "maps", nodes, vec![models::float("x", &[-1, 3, side, side])], outputs, weights);
    let [fp32, int8] = engines(folder.path(), "maps.onnx");
    let masks = folder.path().join("masks");
    let masks = ["--labels", text(&masks)];

    let found = compared("", &fp32, &masks);
    let task = |found: &Value, target: usize| found["targets"][target]["result"]["tasks"][0].clone();
    let map = task(&found, 0);
    assert_eq!(number(&map["segmentation"]["pixel_agreement"]), 1.0, "{map}");
    let [label_iou, reference_iou] =
        ["segmentation", "reference_segmentation"].map(|of| number(&map[of]["label_mean_iou"]));
    assert_eq!(label_iou, reference_iou);
    assert!(label_iou > 0.01 && label_iou < 0.9, "{map}");
    assert_eq!(found["targets"][0]["result"]["tasks"][1]["kind"], "classification");

    // The engine is judged as the Q/DQ model that it was built from, which ONNX Runtime runs beside it.
    let found = compared("", &int8, &masks);
    let [engine, model] = [0, 1].map(|target| number(&task(&found, target)["segmentation"]["pixel_agreement"]));
    assert!(engine > 0.9 && engine < 1.0 && (engine - model).abs() < 0.02, "{engine} {model}");
    assert!(found["engine_errors"][0]["result"]["outputs"].as_array().unwrap().len() == 2, "{found}");

    // The bias is not doubled with the hidden layer, so other classes win.
    let faulty = compared("fault=relu", &fp32, &masks);
    let agreement = number(&task(&faulty, 0)["segmentation"]["pixel_agreement"]);
    assert!(agreement < 0.98, "{agreement}");
    let gate: Vec<&str> = fp32.iter().map(String::as_str).chain(["--gate", "pixel_agreement=0.999"]).collect();
    assert!(ends(1, "fault=relu", &gate).contains("FAILED"));
    succeeds(&gate);
}

/// Writes `boxes.onnx`, a detector, beside its pictures.
pub(super) fn save_detector(folder: &Path) {
    save_pictures(folder);
    let (side, cells) = (i64::from(SIZE), 16);
    // A cell of 8x8 pixels gives one box of about its size, and scores of three classes: YOLOv8's layout.
    let nodes = vec![
        NodeProto::new("Conv", "stem", &["x", "w0"], &["a"]),
        NodeProto::new("Relu", "relu", &["a"], &["b"]),
        NodeProto::new("Conv", "middle", &["b", "w1"], &["d"]),
        NodeProto::new("Conv", "cells", &["d", "w"], &["c"]).with(AttributeProto::ints("strides", &[8, 8])),
        NodeProto::new("Sigmoid", "sigmoid", &["c"], &["s"]),
        NodeProto::new("Reshape", "flat", &["s", "shape"], &["f"]),
        NodeProto::new("Mul", "scale", &["f", "scales"], &["m"]),
        NodeProto::new("Add", "grid", &["m", "places"], &["boxes"]),
    ];
    let shape = trtcalib::tensor::Tensor::new(vec![3], trtcalib::tensor::Values::I64(vec![0, 7, cells])).unwrap();
    let of = |value: &dyn Fn(usize, usize) -> f32| (0..7 * 16).map(|at| value(at / 16, at % 16)).collect::<Vec<f32>>();
    let scales = of(&|row, _| if row < 4 { 8.0 } else { 1.0 });
    let places = of(&|row, cell| match row {
        0 => (cell % 4 * 8) as f32,
        1 => (cell / 4 * 8) as f32,
        2 | 3 => 6.0,
        _ => 0.0,
    });
    let weights = vec![
        models::weight("w0", &[16, 3, 1, 1], numbers(48, 50)),
        models::weight("w1", &[16, 16, 1, 1], numbers(256, 52)),
        models::weight("w", &[7, 16, 8, 8], numbers(7 * 16 * 64, 51)),
        trtcalib::onnx::proto::TensorProto::from_tensor("shape", shape),
        models::weight("scales", &[1, 7, 16], scales),
        models::weight("places", &[1, 7, 16], places),
    ];
    let output = vec![models::float("boxes", &[-1, 7, cells])];
    models::save(folder, "boxes", nodes, vec![models::float("x", &[-1, 3, side, side])], output, weights);
}

#[test]
fn boxes_are_decoded_and_paired_with_the_references() {
    let folder = tempfile::tempdir().unwrap();
    save_detector(folder.path());
    let [fp32, int8] = engines(folder.path(), "boxes.onnx");
    let head = ["--head", "yolov8"];
    let agreement = |found: &Value| found["targets"][0]["result"]["detection"]["agreement"].clone();
    let same = agreement(&compared("", &fp32, &head));
    assert!(number(&same["common"]) > 50.0, "{same}");
    assert_eq!((number(&same["precision"]), number(&same["recall"])), (1.0, 1.0), "{same}");
    let close = agreement(&compared("", &int8, &head));
    assert!(number(&close["recall"]) > 0.5 && number(&close["mean_iou"]) < 1.0, "{close}");
    // Twice the score and twice the size.
    let faulty = agreement(&compared("fault=sigmoid", &fp32, &head));
    assert!(number(&faulty["mean_iou"]) < 0.9 || number(&faulty["recall"]) < 0.9, "{faulty}");
    let gate: Vec<&str> =
        fp32.iter().map(String::as_str).chain(["--head", "yolov8", "--gate", "detection_iou=0.99"]).collect();
    assert!(ends(1, "fault=sigmoid", &gate).contains("FAILED"));
    succeeds(&gate);
}
