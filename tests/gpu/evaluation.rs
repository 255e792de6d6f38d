//! Outputs compared on the GPU, batches that do not fit, and calibrations that go on after a stop.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use trtcalib::{
    artifact::ContentHash,
    backend::{Backend, BuildOptions, ExecutionProvider, Inputs, Runner, Tensors, onnxruntime::OnnxRuntime},
    calibrate::{Provenance, Shards},
    compare::{CompareOptions, Comparison, ComparisonResult, Sample},
    dataset::{BadPolicy, RandomDataset},
    session::{
        Control,
        calibration::{Calibrator, ObserveOptions, hold_out},
        checkpoint::Checkpoints,
        evaluation::{EvaluateOptions, Outputs, evaluate},
        model::Subject,
    },
    tensor::{ElementType, Tensor, TensorMap},
};

use super::values::{kind, on_memory_left};

const POLICY: BadPolicy = BadPolicy { max_share: 0.0, strict: true };

fn subject() -> (OnnxRuntime, Subject) {
    let runtime = OnnxRuntime::load(None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.onnx");
    std::fs::write(&path, include_bytes!("../../calib_data/demo.onnx")).unwrap();
    (runtime, Subject::load(runtime, &path, &BTreeMap::new()).unwrap())
}

fn runner(runtime: OnnxRuntime, subject: &Subject, provider: ExecutionProvider) -> Box<dyn Runner> {
    runtime.build(&subject.float, &BuildOptions { provider, ..BuildOptions::default() }).unwrap()
}

/// All but the last digits of sums.
fn assert_same(found: &ComparisonResult, expected: &ComparisonResult) {
    let debug = |result: &ComparisonResult| format!("{:?} {:?}", result.tasks, result.non_finite);
    assert_eq!((found.samples, debug(found)), (expected.samples, debug(expected)));
    for (found, expected) in found.outputs.iter().zip(&expected.outputs) {
        assert_eq!((found.max_abs, found.sqnr_db.is_some()), (expected.max_abs, expected.sqnr_db.is_some()));
        for (a, b) in
            [(found.mean_abs, expected.mean_abs), (found.rel_l2, expected.rel_l2), (found.cosine, expected.cosine)]
        {
            assert!((a - b).abs() <= 1e-11 * b.abs().max(1e-9), "{found:?} is not {expected:?}");
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn outputs_are_compared_on_the_device_as_on_the_host() {
    let (runtime, subject) = subject();
    let mut runners = [ExecutionProvider::Cuda(0), ExecutionProvider::CudaTf32(0)]
        .map(|provider| runner(runtime, &subject, provider));
    let names: Vec<String> = subject.outputs.iter().map(|info| info.name.clone()).collect();
    let options = CompareOptions { top_k: vec![3], ..CompareOptions::default() };
    let comparison = || Comparison::new(&names, &names, options.clone()).unwrap();
    let (mut on_device, mut on_host) = (comparison(), comparison());
    let input = &subject.inputs[0];
    for (seed, count) in [7_usize, 1, 7].into_iter().enumerate() {
        let shape: Vec<usize> = std::iter::once(count).chain(input.shape[1..].iter().map(|d| d.unwrap())).collect();
        let values = kind("normal", shape.iter().product(), seed as u64);
        let inputs = TensorMap::from([(input.name.clone(), Tensor::from_f32(shape, values).unwrap())]);
        let ids: Vec<String> = (0..count).map(|sample| format!("{seed}.{sample}")).collect();
        let samples: Vec<Sample<'_>> =
            ids.iter().map(|id| Sample { id, label: Some(1), mask: None, scene: None }).collect();
        let [reference, target] = &mut runners;
        let inputs = Inputs::plain(&inputs);
        let (mut r, mut t) = (TensorMap::new(), TensorMap::new());
        let both = reference.show(inputs, &mut |reference| {
            Ok(target.show(inputs, &mut |target| {
                assert!(matches!(target.outputs, Tensors::Device(..)));
                (r, t) = (reference.outputs.to_host()?, target.outputs.to_host()?);
                Ok(on_device.push(&samples, &reference.outputs, &target.outputs)?)
            })?)
        });
        both.unwrap();
        assert_eq!(r[&names[0]].shape()[0], count);
        on_host.push(&samples, &r, &t).unwrap();
    }
    let (found, expected) = (on_device.finish(), on_host.finish());
    assert!(expected.outputs[0].sqnr_db.is_some(), "TF32 must differ from FP32");
    assert!(expected.tasks.iter().any(|task| task.agreement.is_some()));
    assert_same(&found, &expected);
}

/// Evaluates FP32 against TF32 over random samples.
fn evaluated(samples: usize, batch: usize, memory: Option<usize>) -> (ComparisonResult, Option<usize>) {
    let (runtime, subject) = subject();
    let mut reference = runner(runtime, &subject, ExecutionProvider::Cuda(0));
    let mut target = runner(runtime, &subject, ExecutionProvider::CudaTf32(0));
    let dataset = RandomDataset::new(&subject.input_specs(), samples, 1).unwrap();
    let _taken = memory.map(on_memory_left);
    let mut targets: [&mut dyn Outputs; 1] = [&mut target];
    let options = EvaluateOptions { batch, policy: POLICY, compare: CompareOptions::default() };
    let control = Control { threads: 2, stop: &AtomicBool::new(false), progress: &|_| {}, checkpoints: None };
    let indices: Vec<usize> = (0..samples).collect();
    let mut found = evaluate(&mut reference, &mut targets, &dataset, &indices, &options, control).unwrap();
    (found.targets.remove(0).unwrap(), found.fitting_batch)
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_comparison_that_does_not_fit_goes_on_in_halves() {
    let (expected, fitting_batch) = evaluated(3000, 2048, None);
    assert_eq!((expected.samples, fitting_batch), (3000, None));
    let (found, fitting_batch) = evaluated(3000, 2048, Some(1 << 30));
    assert!(fitting_batch.is_some_and(|batch| batch < 2048), "{fitting_batch:?}");
    assert_eq!((found.samples, found.outputs.len()), (3000, expected.outputs.len()));
    let (a, b) = (found.outputs[0].sqnr_db.unwrap(), expected.outputs[0].sqnr_db.unwrap());
    // What TF32 rounds away depends on the kernels, and those on the batch.
    assert!((a - b).abs() < 3.0, "{a} and {b} dB");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_stopped_comparison_gives_the_figures_of_a_whole_one() {
    let (runtime, subject) = subject();
    let dataset = RandomDataset::new(&subject.input_specs(), 150, 3).unwrap();
    let indices: Vec<usize> = (0..150).collect();
    let options = EvaluateOptions { batch: 16, policy: POLICY, compare: CompareOptions::default() };
    let evaluate = |checkpoints: Option<&Checkpoints>, stop_after: usize| {
        let (stop, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
        let progress = |samples: usize| {
            let so_far = seen.fetch_add(samples, Ordering::Relaxed) + samples;
            stop.fetch_or(so_far >= stop_after, Ordering::Relaxed);
        };
        let mut reference = runner(runtime, &subject, ExecutionProvider::Cuda(0));
        let mut target = runner(runtime, &subject, ExecutionProvider::CudaTf32(0));
        let mut targets: [&mut dyn Outputs; 1] = [&mut target];
        let control = Control { threads: 2, stop: &stop, progress: &progress, checkpoints };
        evaluate(&mut reference, &mut targets, &dataset, &indices, &options, control)
            .map(|mut found| (found.ids, found.targets.remove(0).unwrap()))
    };
    let (ids, whole) = evaluate(None, usize::MAX).unwrap();
    assert!(ids.len() == 150 && whole.outputs[0].sqnr_db.is_some());
    for stop_after in [16, 64, 144] {
        let folder = tempfile::tempdir().unwrap();
        let hash = ContentHash::of_bytes(b"gpu");
        let open = || Checkpoints::open(folder.path(), hash.clone(), std::time::Duration::ZERO).unwrap().0;
        let stopped = evaluate(Some(&open()), stop_after).map(drop).unwrap_err().to_string();
        assert!(stopped.contains("interrupted"), "{stopped}");
        let (found_ids, found) = evaluate(Some(&open()), usize::MAX).unwrap();
        assert!(found_ids == ids && found == whole, "stopped after {stop_after}: {found:?} is not {whole:?}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn shards_and_a_stopped_calibration_give_the_counts_of_a_whole_one() {
    let (runtime, subject) = subject();
    let dataset = RandomDataset::new(&subject.input_specs(), 150, 3).unwrap();
    let parts = hold_out(&(0..150).collect::<Vec<_>>());
    let floats = subject.shapes.values().filter(|info| info.element_type.is_some_and(ElementType::is_float));
    let tensors = floats.map(|info| info.name.clone()).collect();
    let hash = ContentHash::of_bytes(b"gpu");
    let provenance =
        |shards| Provenance { model_hash: hash.clone(), data_hash: hash.clone(), random_data: true, shards };
    let options = ObserveOptions { batch: 16, threads: 1, provider: ExecutionProvider::Cuda(0), policy: POLICY };
    let observe = |shard: Option<usize>, checkpoints: Option<&Checkpoints>, stop_after: usize| {
        let (stop, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
        let progress = |samples: usize| {
            let so_far = seen.fetch_add(samples, Ordering::Relaxed) + samples;
            stop.fetch_or(so_far >= stop_after, Ordering::Relaxed);
        };
        let control = Control { threads: 2, stop: &stop, progress: &progress, checkpoints };
        let calibrator = Calibrator { runtime, subject: &subject, dataset: &dataset, options: &options, control };
        let (parts, shards) = match shard {
            Some(index) => (parts.shard(index, 2), Shards::one(index as u32, 2).unwrap()),
            None => (parts.clone(), Shards::whole()),
        };
        calibrator.observe(&tensors, &parts, &provenance(shards)).map(|observation| observation.histograms)
    };
    let whole = observe(None, None, usize::MAX).unwrap();
    assert_eq!((whole.fit_samples, whole.held_out_samples), (75, 75));
    // Batches of 16 leave 11 of 75 samples, and 6 and 5 of the shards' 38 and 37.
    let mut joined = observe(Some(0), None, usize::MAX).unwrap();
    joined.merge(observe(Some(1), None, usize::MAX).unwrap()).unwrap();
    assert!(joined.fit == whole.fit && joined.held_out == whole.held_out, "the counts of shards differ");
    for stop_after in [16, 33, 75, 100] {
        let folder = tempfile::tempdir().unwrap();
        let open = || Checkpoints::open(folder.path(), hash.clone(), std::time::Duration::ZERO).unwrap().0;
        let stopped = observe(None, Some(&open()), stop_after).map(drop).unwrap_err().to_string();
        assert!(stopped.contains("interrupted"), "{stopped}");
        let resumed = observe(None, Some(&open()), usize::MAX).unwrap();
        assert!(resumed.to_bytes().unwrap() == whole.to_bytes().unwrap(), "stopped after {stop_after}");
    }
}
