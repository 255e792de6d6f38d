//! ONNX Runtime with its activations left on the GPU.

use std::collections::{BTreeMap, BTreeSet};

use trtcalib::{
    artifact::ContentHash,
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, TensorInfo,
        cuda::{Device, PairComparer, Uploader},
        onnxruntime::{DeviceRunner, OnnxRuntime},
    },
    calibrate::{Batch, CalibrateError, Provenance, Shards, observe, observe_on_device},
    compare::graphwise::Graphwise,
    onnx::Model,
    tensor::{ElementType, Tensor, TensorMap, rows},
};

use super::values::{kind, on_memory_left};

/// Samples in a whole batch of [`Fixture::batches`].
const WHOLE: usize = 16;

struct Fixture {
    runtime: OnnxRuntime,
    device: Device,
    model: Model,
    inputs: Vec<TensorInfo>,
    /// Everything that nodes of the model make as floating-point numbers.
    tensors: BTreeSet<String>,
}

fn fixture() -> Fixture {
    let runtime = OnnxRuntime::load(None).unwrap();
    let model = Model::from_bytes(include_bytes!("../../calib_data/demo.onnx").as_slice()).unwrap();
    let model = runtime.fold(&model).unwrap();
    let made: Vec<String> = model.graph().node.iter().flat_map(|node| node.output.clone()).collect();
    let options = BuildOptions { extra_outputs: made, threads: 1, ..BuildOptions::default() };
    let runner = runtime.build(&model, &options).unwrap();
    let floats = runner.outputs().iter().filter(|info| info.element_type.is_some_and(ElementType::is_float));
    let mut tensors: BTreeSet<String> = floats.map(|info| info.name.clone()).collect();
    tensors.extend(runner.inputs().iter().map(|info| info.name.clone()));
    let inputs = runner.inputs().to_vec();
    drop(runner);
    Fixture { runtime, device: Device::open(0).unwrap(), model, inputs, tensors }
}

impl Fixture {
    fn options(&self, tf32: bool) -> BuildOptions {
        let is_input = |name: &&String| self.inputs.iter().any(|info| info.name == **name);
        BuildOptions {
            extra_outputs: self.tensors.iter().filter(|name| !is_input(name)).cloned().collect(),
            provider: if tf32 { ExecutionProvider::CudaTf32(0) } else { ExecutionProvider::Cuda(0) },
            ..BuildOptions::default()
        }
    }

    fn on_device(&self, tf32: bool) -> DeviceRunner {
        let stream = self.device.stream().unwrap();
        self.runtime.build_on_device(&self.model, &self.options(tf32), &self.device, &stream).unwrap()
    }

    fn batch(&self, samples: usize, seed: u64) -> TensorMap {
        let input = &self.inputs[0];
        let shape: Vec<usize> = std::iter::once(samples).chain(input.shape[1..].iter().map(|d| d.unwrap())).collect();
        let values = kind("normal", shape.iter().product(), seed);
        TensorMap::from([(input.name.clone(), Tensor::from_f32(shape, values).unwrap())])
    }

    /// Batches of several sizes, the third held out.
    fn batches(&self) -> Vec<Batch> {
        let batch = |(i, samples): (usize, usize)| Batch {
            ids: (0..samples).map(|sample| format!("{i}.{sample}")).collect(),
            inputs: self.batch(samples, i as u64),
            held_out: i == 2,
        };
        [16, 16, 7, 16, 1].into_iter().enumerate().map(batch).collect()
    }
}

fn provenance() -> Provenance {
    let hash = ContentHash::of_bytes(b"gpu");
    Provenance { model_hash: hash.clone(), data_hash: hash, random_data: true, shards: Shards::whole() }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn outputs_on_the_device_are_those_that_come_to_the_host() {
    let fixture = fixture();
    let mut host = fixture.runtime.build(&fixture.model, &fixture.options(false)).unwrap();
    let mut device = fixture.on_device(false);
    let uploader = Uploader::new(&fixture.device).unwrap();
    let stream = device.stream().clone();
    let mut used = None;
    // Shapes change, and the buffers of earlier batches are used again.
    for (seed, samples) in [8, 8, 3, 8].into_iter().enumerate() {
        let inputs = fixture.batch(samples, seed as u64);
        let expected = host.infer(&inputs).unwrap();
        let staged = device.upload(&uploader, &inputs, None, used.take()).unwrap();
        let compared = device.run(&staged, |outputs| {
            for (name, view) in outputs {
                let expected = &expected[*name];
                assert_eq!((view.shape(), view.element_type()), (expected.shape(), expected.element_type()));
                let mut bytes = vec![0_u8; view.len() * view.element_type().size()];
                // SAFETY: as many bytes as the view has.
                unsafe { cudarc::driver::result::memcpy_dtoh_async(&mut bytes, view.address(), stream.cu_stream()) }
                    .unwrap();
                stream.synchronize().unwrap();
                assert!(bytes == expected.view().values.bytes(), "{name} of batch {seed} differs");
            }
            Ok::<_, BackendError>(outputs.len())
        });
        assert_eq!(compared.unwrap(), host.outputs().len());
        used = Some(staged);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn shapes_in_turns_give_what_each_gives_alone() {
    let fixture = fixture();
    let options = BuildOptions { provider: ExecutionProvider::Cuda(0), ..BuildOptions::default() };
    let build = || fixture.runtime.build(&fixture.model, &options).unwrap();
    let mut runner = build();
    // More shapes than keep their buffers.
    for (seed, samples) in [1, 7, 2, 7, 3, 5, 4, 1, 7].into_iter().enumerate() {
        let inputs = fixture.batch(samples, seed as u64);
        assert!(runner.infer(&inputs).unwrap() == build().infer(&inputs).unwrap(), "{samples} samples, call {seed}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn histograms_made_on_the_device_are_those_made_on_the_host() {
    let fixture = fixture();
    let mut host = fixture.runtime.build(&fixture.model, &fixture.options(false)).unwrap();
    // The same batches, but nothing fills them up here.
    let batches = || fixture.batches().into_iter().filter(|batch| batch.ids.len() == WHOLE);
    let expected = observe(&mut *host, &fixture.tensors, provenance(), batches()).unwrap();
    let mut device = fixture.on_device(false);
    let (found, usage) = observe_on_device(&mut device, &fixture.tensors, provenance(), WHOLE, batches()).unwrap();
    assert_eq!((found.fit_samples, found.held_out_samples), (48, 0));
    assert!(found == expected, "histograms differ");
    assert!(usage.halved_to.is_none() && usage.utilisation() > 0.0, "{usage:?}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn counts_do_not_depend_on_how_samples_are_put_into_batches() {
    let fixture = fixture();
    let mut device = fixture.on_device(false);
    let (expected, _) =
        observe_on_device(&mut device, &fixture.tensors, provenance(), WHOLE, fixture.batches()).unwrap();
    assert_eq!((expected.fit_samples, expected.held_out_samples), (49, 7));
    // The same samples in threes, so that each has another place and other neighbours.
    let name = &fixture.inputs[0].name;
    let threes = fixture.batches().into_iter().flat_map(|batch| {
        let samples = batch.ids.len();
        let part = move |first: usize| {
            let range = first..samples.min(first + 3);
            let inputs = rows(&batch.inputs, samples, range.clone()).unwrap();
            Batch { ids: batch.ids[range].to_vec(), inputs, held_out: batch.held_out }
        };
        (0..samples).step_by(3).map(part).collect::<Vec<_>>()
    });
    let threes: Vec<Batch> = threes.collect();
    assert!(threes.iter().any(|batch| batch.inputs[name].shape()[0] < 3));
    let (found, _) = observe_on_device(&mut device, &fixture.tensors, provenance(), WHOLE, threes).unwrap();
    assert!(found == expected, "histograms differ");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn what_cannot_be_calibrated_on_the_device_is_an_error() {
    let fixture = fixture();
    let mut device = fixture.on_device(false);
    let mut observe = |tensors: &BTreeSet<String>, batches: Vec<Batch>| {
        observe_on_device(&mut device, tensors, provenance(), WHOLE, batches).map(drop).unwrap_err()
    };
    assert!(matches!(observe(&fixture.tensors, Vec::new()), CalibrateError::NoData));
    let unknown = BTreeSet::from(["nowhere".to_owned()]);
    assert!(matches!(observe(&unknown, fixture.batches()), CalibrateError::NoSuchTensor { .. }));
    let mut bad = fixture.batches();
    let name = fixture.inputs[0].name.clone();
    let (shape, _) = bad[1].inputs[&name].clone().into_parts();
    let mut values = bad[1].inputs[&name].to_f32();
    let row = values.len() / 16;
    values[5 * row + 3] = f32::NAN;
    bad[1].inputs.insert(name.clone(), Tensor::from_f32(shape, values).unwrap());
    let only_input = BTreeSet::from([name]);
    let message = observe(&only_input, bad).to_string();
    assert!(message.contains("for sample 1.5"), "{message}");
    let mut misshapen = fixture.batches();
    misshapen[0].inputs.insert("other".to_owned(), Tensor::from_f32(vec![1], vec![0.0]).unwrap());
    assert!(observe(&fixture.tensors, misshapen).to_string().contains("the model has no such input"));
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn graphwise_figures_of_the_device_are_those_of_the_host() {
    let fixture = fixture();
    let names: BTreeMap<String, String> =
        fixture.options(false).extra_outputs.into_iter().map(|name| (name.clone(), name)).collect();
    let build = |tf32| fixture.runtime.build(&fixture.model, &fixture.options(tf32)).unwrap();
    let (mut float, mut tf32) = (build(false), build(true));
    let stream = fixture.device.stream().unwrap();
    let build = |tf32| {
        fixture.runtime.build_on_device(&fixture.model, &fixture.options(tf32), &fixture.device, &stream).unwrap()
    };
    let (mut float_there, mut tf32_there) = (build(false), build(true));
    let (comparer, uploader) =
        (PairComparer::new(&fixture.device, &stream).unwrap(), Uploader::new(&fixture.device).unwrap());
    let thresholds: BTreeMap<String, f32> = names.keys().map(|name| (name.clone(), 0.5)).collect();
    let (mut host, mut device) = (Graphwise::new(thresholds.clone()), Graphwise::new(thresholds));
    for batch in fixture.batches() {
        let ids: Vec<&str> = batch.ids.iter().map(String::as_str).collect();
        host.run_batch(&ids, &batch.inputs, &mut *float, &mut *tf32, &names).unwrap();
        let staged = float_there.upload(&uploader, &batch.inputs, None, None).unwrap();
        device.run_batch_on_device(&ids, &staged, &mut float_there, &mut tf32_there, &comparer, &names).unwrap();
    }
    let (host, device) = (host.finish(), device.finish());
    assert_eq!(host.len(), names.len());
    let mut differing = 0;
    for (name, expected) in &host {
        let found = &device[name];
        assert_eq!(
            (found.count, found.max_abs, found.saturated, found.non_finite),
            (expected.count, expected.max_abs, expected.saturated, expected.non_finite),
            "{name}"
        );
        assert!((found.cosine - expected.cosine).abs() < 1e-12, "{name}");
        let sqnr = found.sqnr_db.zip(expected.sqnr_db).map_or(0.0, |(a, b)| (a - b).abs());
        assert!(sqnr < 1e-8 && found.sqnr_db.is_some() == expected.sqnr_db.is_some(), "{name}");
        differing += usize::from(found.sqnr_db.is_some());
    }
    assert!(differing > 0, "TF32 must differ from FP32 somewhere");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_batch_that_does_not_fit_is_halved_and_nothing_is_lost() {
    let fixture = fixture();
    let mut roomy = fixture.on_device(false);
    let batch = |samples: usize| Batch {
        ids: (0..samples).map(|sample| sample.to_string()).collect(),
        inputs: fixture.batch(samples, 7),
        held_out: false,
    };
    let one = || vec![batch(2048)];
    let (expected, _) = observe_on_device(&mut roomy, &fixture.tensors, provenance(), 2048, one()).unwrap();
    drop(roomy);
    let mut tight = fixture.on_device(false);
    // Libraries take memory of their own at the first run.
    let few = [Batch { ids: vec!["0".to_owned()], inputs: fixture.batch(1, 7), held_out: false }];
    observe_on_device(&mut tight, &fixture.tensors, provenance(), 1, few).unwrap();
    let taken = on_memory_left(300 << 20);
    let (found, usage) = observe_on_device(&mut tight, &fixture.tensors, provenance(), 2048, one()).unwrap();
    drop(taken);
    assert!(usage.halved_to.is_some_and(|batch| batch < 2048), "{usage:?}");
    // Another batch may round otherwise, but loses no value.
    let count = |histograms: &trtcalib::calibrate::Histograms| -> Vec<u64> {
        histograms.fit.values().map(trtcalib::calibrate::histogram::Histogram::count).collect()
    };
    assert_eq!((found.fit_samples, count(&found)), (2048, count(&expected)));
}
