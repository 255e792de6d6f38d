//! ONNX Runtime with its activations left on the GPU.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicBool,
};

use trtcalib::{
    artifact::ContentHash,
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, Inputs, Runner, TensorInfo,
        cuda::{Device, Uploader},
        onnxruntime::{DeviceRunner, OnnxRuntime},
    },
    calibrate::{Batch, CalibrateError, Histograms, Observing, Provenance, Shards, observe},
    compare::graphwise::TensorSums,
    dataset::{BadPolicy, Dataset, PrefetchOptions, SampleError},
    onnx::Model,
    pass::{Ran, Samples},
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

    fn runner(&self) -> Box<dyn Runner> {
        self.runtime.build(&self.model, &self.options(false)).unwrap()
    }

    fn on_device(&self, tf32: bool) -> DeviceRunner {
        let stream = self.device.stream().unwrap();
        self.runtime.build_on_stream(&self.model, &self.options(tf32), &self.device, &stream).unwrap()
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

/// The samples of batches, one by one.
struct Rows(Vec<(String, TensorMap)>);

impl Rows {
    fn of(batches: &[Batch], held_out: bool) -> Self {
        let chosen = batches.iter().filter(|batch| batch.held_out == held_out);
        let row = |batch: &Batch, index: usize| {
            let inputs = rows(&batch.inputs, batch.ids.len(), index..index + 1);
            (batch.ids[index].clone(), inputs.unwrap_or_else(|| batch.inputs.clone()))
        };
        Self(chosen.flat_map(|batch| (0..batch.ids.len()).map(|index| row(batch, index)).collect::<Vec<_>>()).collect())
    }
}

impl Dataset for Rows {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.0[index].0
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn sample(&self, index: usize) -> Result<TensorMap, SampleError> {
        Ok(self.0[index].1.clone())
    }
}

/// Counts on the device what a model gives for the samples of `batches`, put together to batches of `whole` in the order
/// that `order` makes of them.
fn observed(
    runner: &mut Box<dyn Runner>,
    tensors: &BTreeSet<String>,
    batches: &[Batch],
    whole: usize,
    order: impl Fn(&mut Vec<usize>),
) -> Result<(Histograms, Ran), CalibrateError> {
    let mut observing = Observing::new(&**runner, tensors, Histograms::new(provenance()))?;
    let mut total = Ran::default();
    for held_out in [false, true] {
        observing.hold_out(held_out)?;
        let dataset = Rows::of(batches, held_out);
        let mut indices: Vec<usize> = (0..dataset.len()).collect();
        order(&mut indices);
        let (policy, stop) = (BadPolicy { max_share: 0.0, strict: true }, AtomicBool::new(false));
        let reading = PrefetchOptions { batch: whole, threads: 2, policy, stop: &stop, skipped: &[] };
        let samples = Samples { dataset: &dataset, indices: &indices, reading };
        total.add(samples.run(&mut [runner], &mut observing)?);
    }
    Ok((observing.finish()?, total))
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
    let batches: Vec<Batch> = batches().collect();
    let (found, ran) = observed(&mut fixture.runner(), &fixture.tensors, &batches, WHOLE, |_| {}).unwrap();
    assert_eq!((found.fit_samples, found.held_out_samples), (48, 0));
    assert!(found == expected, "histograms differ");
    assert!(ran.on_device && ran.fitting_batch.is_none() && ran.utilisation() > 0.0, "{ran:?}");
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn counts_do_not_depend_on_how_samples_are_put_into_batches() {
    let fixture = fixture();
    let (batches, mut runner) = (fixture.batches(), fixture.runner());
    let (expected, _) = observed(&mut runner, &fixture.tensors, &batches, WHOLE, |_| {}).unwrap();
    assert_eq!((expected.fit_samples, expected.held_out_samples), (49, 7));
    // Each sample has another place and other neighbours, and another one is alone with fillers.
    for shift in [0, 5] {
        let order = |indices: &mut Vec<usize>| {
            indices.reverse();
            indices.rotate_left(shift);
        };
        let (found, _) = observed(&mut runner, &fixture.tensors, &batches, WHOLE, order).unwrap();
        assert!(found == expected, "histograms differ");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn what_cannot_be_calibrated_on_the_device_is_an_error() {
    let fixture = fixture();
    let mut runner = fixture.runner();
    let mut observe = |tensors: &BTreeSet<String>, batches: Vec<Batch>| {
        observed(&mut runner, tensors, &batches, WHOLE, |_| {}).map(drop).unwrap_err()
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
    let (mut float_there, mut tf32_there) = (build(false), build(true));
    let thresholds: BTreeMap<String, f32> = names.keys().map(|name| (name.clone(), 0.5)).collect();
    let (mut host, mut device) = (TensorSums::new(thresholds.clone()), TensorSums::new(thresholds));
    for batch in fixture.batches() {
        let ids: Vec<&str> = batch.ids.iter().map(String::as_str).collect();
        let (reference, target) = (float.infer(&batch.inputs).unwrap(), tf32.infer(&batch.inputs).unwrap());
        host.push(&ids, &reference, &target, &names).unwrap();
        let inputs = Inputs::plain(&batch.inputs);
        float_there
            .show(inputs, &mut |reference| {
                Ok(tf32_there.show(inputs, &mut |target| {
                    Ok(device.push(&ids, &reference.outputs, &target.outputs, &names)?)
                })?)
            })
            .unwrap();
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
    let batch = |samples: usize| Batch {
        ids: (0..samples).map(|sample| sample.to_string()).collect(),
        inputs: fixture.batch(samples, 7),
        held_out: false,
    };
    let one = [batch(2048)];
    let (expected, _) = observed(&mut fixture.runner(), &fixture.tensors, &one, 2048, |_| {}).unwrap();
    let mut tight = fixture.runner();
    // Libraries take memory of their own at the first run.
    observed(&mut tight, &fixture.tensors, &[batch(1)], 1, |_| {}).unwrap();
    let taken = on_memory_left(300 << 20);
    let (found, ran) = observed(&mut tight, &fixture.tensors, &one, 2048, |_| {}).unwrap();
    drop(taken);
    assert!(ran.fitting_batch.is_some_and(|batch| batch < 2048), "{ran:?}");
    // Another batch may round otherwise, but loses no value.
    let count = |histograms: &Histograms| -> Vec<u64> {
        histograms.fit.values().map(trtcalib::calibrate::histogram::Histogram::count).collect()
    };
    assert_eq!((found.fit_samples, count(&found)), (2048, count(&expected)));
}
