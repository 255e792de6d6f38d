//! EfficientNet-Lite0 and 500 photos, where they are at hand (`../shared`, or the folder in CALIB_SHARED).

use std::path::Path;

use calib_test_support::efficientnet;

use super::{calib, json, python};

/// Arg-max of the float model by Pillow and onnxruntime, one `file class` line a photo.
const PREDICTIONS: &str = r#"
import os, sys
import numpy as np, onnxruntime as ort
from PIL import Image
model, folder = sys.argv[1:]
options = ort.SessionOptions(); options.intra_op_num_threads = 2
session = ort.InferenceSession(model, options)
for name in sorted(os.listdir(folder)):
    if not name.endswith(".JPEG"): continue
    image = Image.open(os.path.join(folder, name)).convert("RGB")
    width, height = image.size
    if width <= height: size = (256, int(256 * height / width))
    else: size = (int(256 * width / height), 256)
    image = image.resize(size, Image.BICUBIC)
    left, top = int(round((image.width - 224) / 2)), int(round((image.height - 224) / 2))
    x = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    x = ((x - 127) / 128).transpose(2, 0, 1)[None]
    print(name, int(session.run(None, {"input": x})[0].argmax()))
"#;

#[test]
fn the_main_job_on_real_photos() {
    let Some(shared) = efficientnet() else { return };
    let Some(mut command) = calib() else { return };
    let out = tempfile::tempdir().unwrap();
    let model = shared.join("models/efficientnet_lite0.onnx");
    let photos = shared.join("imagenet");
    command.args(["run", "--calib-samples", "100", "--precisions", "fp32,int8", "--bench-seconds", "0"]);
    command.args(["--tensorrt", "off", "--gate", "top1=0.975", "--gate", "top5=0.93", "--gate", "accuracy_drop=0.01"]);
    command.arg("--model").arg(&model).arg("--data").arg(&photos).arg("--labels").arg(photos.join("labels.csv"));
    command.arg("--out").arg(out.path()).assert().success();

    let report = json(&out.path().join("report.json"));
    let preprocess = report["dataset"]["preprocess"].as_str().unwrap();
    assert!(preprocess.contains("127") && preprocess.contains("bicubic"), "chosen by accuracy: {preprocess}");
    assert_eq!(report["dataset"]["evaluation"].as_array().unwrap().len(), 400);
    // Recovery holds its samples in up to 1 GiB.
    let peak = report["calibration"]["peak_rss_bytes"].as_u64().unwrap();
    assert!(peak < 1400 << 20, "{peak}");
    let float = std::fs::metadata(&model).unwrap().len();
    let int8 = std::fs::metadata(out.path().join("model.int8.onnx")).unwrap().len();
    assert!((0.24..0.28).contains(&(int8 as f64 / float as f64)), "{int8} of {float} bytes");
    let checker = "import sys, onnx; onnx.checker.check_model(sys.argv[1], full_check=True); print('ok')";
    python(checker, &[&out.path().join("model.int8.onnx")]);

    predictions_equal_those_of_python(&model, &photos, out.path());
}

/// Within two photos with the default JPEG decoder, to the photo with the exact one.
fn predictions_equal_those_of_python(model: &Path, photos: &Path, out: &Path) {
    let Some(expected) = python(PREDICTIONS, &[model, photos]) else { return };
    let expected: std::collections::BTreeMap<&str, usize> = expected
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, class)| (name, class.parse().unwrap()))
        .collect();
    let saved = out.join("float.npz");
    let mut command = calib().unwrap();
    command.args(["compare", "--preset", "imagenet-lite", "--ref", "ort", "--target", "ort", "--save-reference"]);
    command.arg(&saved).arg("--model").arg(model).arg("--data").arg(photos).assert().success();
    let logits = trtcalib::npz::read_npz(&saved).unwrap().remove("logits").unwrap();
    let classes = logits.shape()[1];
    let found: Vec<usize> = logits
        .to_f32()
        .chunks(classes)
        .map(|row| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0)
        .collect();
    assert_eq!(found.len(), expected.len());
    let differing: Vec<&&str> =
        expected.iter().zip(&found).filter(|((_, e), f)| *e != *f).map(|((n, _), _)| n).collect();
    let allowed = if cfg!(feature = "turbojpeg") { 0 } else { 2 };
    assert!(differing.len() <= allowed, "{differing:?}");
}
