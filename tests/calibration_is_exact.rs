//! The calibration table of a real model does not depend on how its samples were run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{cell::Cell, collections::BTreeSet, error::Error, path::Path, thread};

use calib_test_support::{Need, root, shared};
use trtcalib::{
    artifact::ContentHash,
    backend::{Backend, BuildOptions, onnxruntime::OnnxRuntime},
    calibrate::{Batch, CalibrationTable, Choice, Histograms, Provenance, Shards, observe, tables},
    config::RunConfig,
    onnx::Model,
    quantize::Precision,
    session::{CalibrateOptions, Host, Session},
    tensor::Tensor,
};

const SAMPLES: usize = 8;

fn sample(index: usize, side: usize) -> impl Iterator<Item = f32> {
    let mut state = index as u32 + 1;
    (0..3 * side * side).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn table(
    runtime: OnnxRuntime,
    model: &Model,
    threads: usize,
    order: &[usize],
    size: usize,
    side: usize,
) -> Result<CalibrationTable, Box<dyn Error>> {
    let tensors: BTreeSet<String> =
        model.graph().node.iter().filter(|node| node.op_type() == "Conv").map(|node| node.input[0].clone()).collect();
    let extra_outputs = tensors.iter().filter(|name| *name != "input").cloned().collect();
    let options = BuildOptions { threads, extra_outputs, ..BuildOptions::default() };
    let mut runner = runtime.build(model, &options)?;
    let (held_out, fit): (Vec<usize>, Vec<usize>) = order.iter().partition(|&&index| index % 4 == 3);
    let parts = [(fit, false), (held_out, true)];
    let batches = parts.iter().flat_map(|(indices, held_out)| {
        indices.chunks(size).map(|indices| {
            let values = indices.iter().flat_map(|&index| sample(index, side)).collect();
            let input = Tensor::from_f32(vec![indices.len(), 3, side, side], values).expect("values fit the shape");
            let ids = indices.iter().map(usize::to_string).collect();
            Batch { ids, inputs: [("input".to_owned(), input)].into(), held_out: *held_out }
        })
    });
    let provenance = Provenance {
        model_hash: model.hash.clone(),
        data_hash: ContentHash::of_bytes(b"noise"),
        random_data: true,
        shards: Shards::whole(),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let histograms = pool.install(|| observe(&mut *runner, &tensors, provenance, batches))?;
    Ok(tables(&histograms, 99.99, &[Choice::Auto])?.remove(0))
}

/// The tables of `model`, which takes images of `side` by `side` pixels, must be the same for every way to its samples.
fn exact(model: &Path, side: usize) {
    let Some(runtime) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let model = Model::load(model).unwrap();
    let order: Vec<usize> = (0..SAMPLES).collect();
    let backwards: Vec<usize> = order.iter().rev().copied().collect();
    let expected = table(runtime, &model, 1, &order, 1, side).unwrap();
    assert!(expected.tensors.len() > 2, "{expected:?}");
    assert_eq!(table(runtime, &model, 2, &order, 4, side).unwrap(), expected);
    assert_eq!(table(runtime, &model, 3, &backwards, 3, side).unwrap(), expected);
}

#[test]
fn batch_size_order_and_threads_change_no_bit() {
    exact(&root().join("calib_data/demo.onnx"), 64);
}

#[test]
fn batch_size_order_and_threads_change_no_bit_of_efficientnet_lite0() {
    if let Some(model) = shared("models/efficientnet_lite0.onnx") {
        exact(&model, 224);
    }
}

/// What is done while thresholds are chosen sees the counts, once, in the thread that asked.
#[test]
fn work_beside_the_choice_of_thresholds_changes_no_bit() {
    let Some(_) = Need::OnnxRuntime.or_skip(OnnxRuntime::load(None)) else { return };
    let config = RunConfig::load(&root().join("configs/demo.toml")).unwrap();
    let config = RunConfig { calib_samples: 16, ..config };
    let session = Session::open(config, None, &Host::default()).unwrap();
    let (here, calls) = (thread::current().id(), Cell::new(0));
    let beside = |histograms: &Histograms| {
        assert_eq!((thread::current().id(), histograms.samples()), (here, 16));
        calls.set(calls.get() + 1);
    };
    let table = |options| session.calibrate(Precision::Int8, options).unwrap().chosen.table.tensors;
    let alone = table(CalibrateOptions::default());
    assert_eq!(table(CalibrateOptions { beside: Some(&beside), ..CalibrateOptions::default() }), alone);
    assert_eq!((calls.get(), alone.is_empty()), (1, false));
}
