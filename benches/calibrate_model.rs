//! Cost of calibrating a real model: `cargo bench --bench calibrate_model -- [BATCH] [IMAGES] [THREADS]`.
//!
//! EfficientNet-Lite0 over photos: the plain forward pass and calibration, both without decoding; then the peak memory
//! of the process (with both sessions). `CALIB_SHARED` names the folder with `models/` and `imagenet/` (`../shared` by
//! default); ONNX Runtime is found as the program finds it.
#![expect(clippy::print_stdout, reason = "a program of its own, whose result is this text")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use trtcalib::{
    artifact::ContentHash,
    backend::{Backend, BackendError, BuildOptions, Runner, onnxruntime::OnnxRuntime},
    calibrate::{Batch, Choice, Provenance, Shards, observe, tables},
    onnx::{Model, proto::ValueInfoProto},
    tensor::Tensor,
};

/// Activations in front of convolutions and matrix products, and the shortcuts of additions.
fn quantized(model: &Model) -> BTreeSet<String> {
    let consumed = model.graph().node.iter().filter_map(|node| match node.op_type() {
        "Conv" | "Gemm" => node.input.first(),
        "Add" => node.input.get(1),
        _ => None,
    });
    consumed.cloned().collect()
}

/// The middle of a photo at 224 × 224, normalised.
fn decode(path: &Path) -> Result<Vec<f32>> {
    let image = image::open(path)?.resize_to_fill(224, 224, image::imageops::FilterType::Triangle).to_rgb8();
    let channel = |c: usize| image.pixels().map(move |pixel| (f32::from(pixel.0[c]) - 127.0) / 128.0);
    Ok((0..3).flat_map(channel).collect())
}

/// A batch of photos.
fn batch(index: usize, paths: &[PathBuf]) -> Batch {
    let values = paths.iter().flat_map(|path| decode(path).unwrap_or_else(|_| vec![0.0; 3 * 224 * 224])).collect();
    let input = Tensor::from_f32(vec![paths.len(), 3, 224, 224], values).expect("values fit the shape");
    let ids = paths.iter().map(|path| path.display().to_string()).collect();
    Batch { ids, inputs: [("input".to_owned(), input)].into(), held_out: index % 4 == 3 }
}

/// Milliseconds that one pass without looking at its results takes.
fn forward_ms(runner: &mut dyn Runner, batch: &Batch) -> Result<f64, BackendError> {
    let start = Instant::now();
    runner.visit(&batch.inputs, &mut |_, _| Ok(()))?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The most memory the process ever had, in MB; 0 where the system does not tell.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default() / 1e3
}

fn main() -> Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let [size, images, threads] = [(0, 4), (1, 100), (2, 0)].map(|(i, default)| *numbers.get(i).unwrap_or(&default));
    let shared = std::env::var_os("CALIB_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let mut photos: Vec<PathBuf> = std::fs::read_dir(shared.join("imagenet"))
        .with_context(|| format!("no photos in {}; set CALIB_SHARED", shared.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "JPEG"))
        .collect();
    photos.sort();
    photos.truncate(images);

    let model = Model::load(&shared.join("models/efficientnet_lite0.onnx"))?;
    let tensors = quantized(&model);
    let runtime = OnnxRuntime::load(None)?;
    let inputs: BTreeSet<&str> = model.graph().input.iter().map(ValueInfoProto::name).collect();
    let extra_outputs = tensors.iter().filter(|name| !inputs.contains(name.as_str())).cloned().collect();
    let returning = BuildOptions { threads, extra_outputs, ..BuildOptions::default() };
    let mut plain = runtime.build(&model, &BuildOptions { threads, ..BuildOptions::default() })?;
    let mut observed = runtime.build(&model, &returning)?;

    // Batch by batch in turn, so that whatever else the machine does hits both alike.
    let (mut floor, mut calibrated) = (Vec::new(), Vec::new());
    let mut handed_over: Option<Instant> = None;
    let mut failure = None;
    let batches = photos.chunks(size).enumerate().map_while(|(index, paths)| {
        calibrated.extend(handed_over.take().map(|start| start.elapsed().as_secs_f64() * 1e3));
        let batch = batch(index, paths);
        match forward_ms(&mut *plain, &batch) {
            Ok(ms) => floor.push(ms),
            Err(error) => failure = Some(error),
        }
        handed_over = Some(Instant::now());
        failure.is_none().then_some(batch)
    });
    let (model_hash, data_hash) = (model.hash.clone(), ContentHash::of_bytes(b"photos"));
    let provenance = Provenance { model_hash, data_hash, random_data: false, shards: Shards::whole() };
    let histograms = observe(&mut *observed, &tensors, provenance, batches)?;
    failure.map_or(Ok(()), Err)?;
    let mut returned = Vec::new();
    for (index, paths) in photos.chunks(size).take(10).enumerate() {
        returned.push(forward_ms(&mut *observed, &batch(index, paths))?);
    }
    let start = Instant::now();
    tables(&histograms, 99.99, &[Choice::Auto])?;
    let choosing = start.elapsed().as_secs_f64();
    let [floor, returned, calibrated] = [floor, returned, calibrated].map(|ms| median(ms) / size as f64);
    println!("{} photos, batch {size}, {} tensors, per photo (medians):", photos.len(), tensors.len());
    println!("forward {floor:.2} ms, with these tensors as outputs {returned:.2} ms, calibration {calibrated:.2} ms");
    println!("calibration / forward {:.2}, peak memory {:.0} MB", calibrated / floor, peak_rss_mb());
    println!("thresholds by every method: {choosing:.2} s");
    Ok(())
}
