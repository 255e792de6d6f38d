//! What `docs/benchmarks.md` says of GPUs: `cargo bench --bench gpu -- [BATCH]` (64 by default).
//!
//! The kernels against the device's copy bandwidth, then EfficientNet-Lite0: the bare forward pass, calibration with
//! activations left on the GPU, the same with activations copied to the host, and every tensor compared with that of
//! another run. Inputs are random and stay on the device where that is said. `CALIB_SHARED` names the folder with
//! `models/` (`../shared` by default). Every figure is the median of its rounds; methods take turns.
#![expect(clippy::print_stdout, reason = "a program of its own, whose result is this text")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use anyhow::Result;
use trtcalib::{
    artifact::ContentHash,
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider, Inputs,
        cuda::{CudaError, CudaStream, Device, DeviceView, MagnitudeCounter, Pair, PairComparer, Staged, Uploader},
        onnxruntime::{DeviceRunner, OnnxRuntime},
    },
    calibrate::{Batch, Histograms, Observing, Provenance, Shards, observe},
    compare::graphwise::TensorSums,
    dataset::{BadPolicy, Dataset, PrefetchOptions, SampleError},
    onnx::Model,
    pass::{Ran, Samples},
    quantize::{SchemeOptions, place},
    tensor::{ElementType, Tensor, TensorMap},
};

const ROUNDS: usize = 20;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Milliseconds on the host's clock.
fn ms<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Pseudo-random numbers between -1 and 1.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Median milliseconds between two marks on the stream.
fn device_ms(device: &Device, stream: &Arc<CudaStream>, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let timer = device.timer()?;
    work()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        timer.start(stream)?;
        work()?;
        timer.stop(stream)?;
        times.push(timer.elapsed_ms()?);
    }
    Ok(median(times))
}

/// What becomes of a number between -1 and 1.
type Shape = fn(f32) -> f32;

/// Bandwidth of copies and kernels on one large tensor.
fn kernels(device: &Device) -> Result<()> {
    let stream = device.stream()?;
    let bytes = 2_usize << 30;
    let source = stream.alloc_zeros::<u8>(bytes)?;
    let mut target = stream.alloc_zeros::<u8>(bytes)?;
    let copy = device_ms(device, &stream, || Ok(stream.memcpy_dtod(&source, &mut target)?))?;
    let bandwidth = 2.0 * bytes as f64 / copy / 1e6;
    println!("device copy of 2 GiB: {copy:.3} ms, {bandwidth:.0} GB/s read and written");
    drop((source, target));
    let noise = noise(1 << 24);
    let shapes: [(&str, Shape); 4] = [
        ("uniform", |x| x),
        ("bell, as in front of ReLU", |x| x * x * x * 4.0),
        ("clipped to 0..6", |x| (x * 12.0).clamp(0.0, 6.0)),
        ("constant", |_| 6.0),
    ];
    for element_type in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
        let count = (1 << 30) / element_type.size();
        for (name, shape) in shapes {
            let values: Vec<f32> = noise.iter().map(|&x| shape(x)).collect();
            let part = to_bytes(&values, element_type);
            let whole = part.repeat(count / values.len());
            let buffer = stream.clone_htod(&whole)?;
            let shape = [count];
            let view = DeviceView::of_bytes(&buffer, &stream, &shape, element_type)
                .ok_or_else(|| anyhow::anyhow!("the buffer is too small"))?;
            let mut counter = MagnitudeCounter::new(device, &stream, 1)?;
            let time = device_ms(device, &stream, || Ok(counter.count(&[(0, view)]).map(drop)?))?;
            let rate = whole.len() as f64 / time / 1e6;
            println!(
                "count {element_type} {name}: {time:.3} ms, {rate:.0} GB/s, {:.0} % of copying",
                rate / bandwidth * 100.0
            );
            if name == "uniform" || name == "constant" {
                let comparer = PairComparer::new(device, &stream)?;
                let other = stream.clone_htod(&whole)?;
                let target = DeviceView::of_bytes(&other, &stream, &shape, element_type)
                    .ok_or_else(|| anyhow::anyhow!("the buffer is too small"))?;
                let pair = [Pair { reference: view, target, threshold: 0.5 }];
                let time = device_ms(device, &stream, || Ok(comparer.sum(&pair).map(drop)?))?;
                let rate = 2.0 * whole.len() as f64 / time / 1e6;
                println!(
                    "compare {element_type} {name}: {time:.3} ms, {rate:.0} GB/s, {:.0} % of copying",
                    rate / bandwidth * 100.0
                );
            }
        }
    }
    Ok(())
}

fn to_bytes(values: &[f32], element_type: ElementType) -> Vec<u8> {
    match element_type {
        ElementType::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        ElementType::Bf16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The model under test and what of it is observed.
struct Subject {
    runtime: OnnxRuntime,
    model: Model,
    tensors: BTreeSet<String>,
    device: Device,
    inputs: TensorMap,
    batch: usize,
}

impl Subject {
    fn load(device: Device, batch: usize) -> Result<Self> {
        let shared = std::env::var_os("CALIB_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
        let runtime = OnnxRuntime::load(None)?;
        let model = runtime.fold(&Model::load(&shared.join("models/efficientnet_lite0.onnx"))?)?;
        let made: Vec<String> = model.graph().node.iter().flat_map(|node| node.output.clone()).collect();
        let mut shapes = runtime.infer_shapes(&model, &made)?;
        let runner = runtime.build(&model, &BuildOptions::default())?;
        shapes.extend(runner.inputs().iter().chain(runner.outputs()).map(|info| (info.name.clone(), info.clone())));
        let name = runner.inputs()[0].name.clone();
        let tensors = place(&model, &shapes, &SchemeOptions::default())?.tensors_to_observe();
        let input = Tensor::from_f32(vec![batch, 3, 224, 224], noise(batch * 3 * 224 * 224))?;
        Ok(Self { runtime, model, tensors, device, inputs: [(name, input)].into(), batch })
    }

    fn options(&self, returning: bool, tf32: bool) -> BuildOptions {
        let is_input = |name: &&String| self.inputs.contains_key(name.as_str());
        let extra_outputs =
            if returning { self.tensors.iter().filter(|name| !is_input(name)).cloned().collect() } else { Vec::new() };
        let provider = if tf32 { ExecutionProvider::CudaTf32(0) } else { ExecutionProvider::Cuda(0) };
        BuildOptions { extra_outputs, provider, ..BuildOptions::default() }
    }

    fn runner(&self, stream: &Arc<CudaStream>, returning: bool, tf32: bool) -> Result<DeviceRunner> {
        Ok(self.runtime.build_on_stream(&self.model, &self.options(returning, tf32), &self.device, stream)?)
    }

    fn batches(&self, count: usize) -> impl Iterator<Item = Batch> {
        (0..count).map(|index| Batch {
            ids: (0..self.batch).map(|sample| format!("{index}.{sample}")).collect(),
            inputs: self.inputs.clone(),
            held_out: false,
        })
    }

    fn provenance(&self) -> Provenance {
        let (model_hash, data_hash) = (self.model.hash.clone(), ContentHash::of_bytes(b"noise"));
        Provenance { model_hash, data_hash, random_data: true, shards: Shards::whole() }
    }

    fn rate(&self, ms: f64) -> f64 {
        self.batch as f64 / ms * 1e3
    }
}

/// One sample, over and over.
struct Repeated {
    inputs: TensorMap,
    ids: Vec<String>,
}

impl Dataset for Repeated {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn sample(&self, _: usize) -> Result<TensorMap, SampleError> {
        Ok(self.inputs.clone())
    }
}

/// Waits for the GPU.
fn finished(stream: &CudaStream) -> Result<(), BackendError> {
    stream.synchronize().map_err(|error| CudaError::from(error).into())
}

fn run_staged(runner: &mut DeviceRunner, staged: &Staged) -> Result<()> {
    let stream = runner.stream().clone();
    Ok(runner.run(staged, |_| finished(&stream))?)
}

fn calibration(subject: &Subject) -> Result<()> {
    let stream = subject.device.stream()?;
    let mut bare = subject.runner(&stream, false, false)?;
    let mut returning = subject.runner(&stream, true, false)?;
    let mut host = subject.runtime.build(&subject.model, &subject.options(true, false))?;
    let uploader = Uploader::new(&subject.device)?;
    let staged = bare.upload(&uploader, &subject.inputs, None, None)?;
    let numbers: BTreeMap<&str, usize> =
        subject.tensors.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut counter = MagnitudeCounter::new(&subject.device, &stream, numbers.len())?;
    let mut bytes = 0;
    let mut counted = |returning: &mut DeviceRunner| -> Result<()> {
        Ok(returning.run(&staged, |outputs| {
            let mut views = Vec::new();
            for tensor in staged.tensors() {
                views.extend(
                    numbers.get(tensor.name.as_str()).map(|&n| Ok::<_, BackendError>((n, tensor.view(&stream)?))),
                );
            }
            let mut views = views.into_iter().collect::<Result<Vec<_>, _>>()?;
            views.extend(outputs.iter().filter_map(|(name, view)| Some((*numbers.get(name)?, *view))));
            bytes = views.iter().map(|(_, view)| view.len() * view.element_type().size()).sum();
            Ok::<_, BackendError>(counter.count(&views).map(drop)?)
        })?)
    };
    let run = |runner: &mut DeviceRunner| run_staged(runner, &staged);
    for _ in 0..3 {
        run(&mut bare)?;
        run(&mut returning)?;
        counted(&mut returning)?;
    }
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        times[0].push(ms(|| run(&mut bare))?);
        times[1].push(ms(|| run(&mut returning))?);
        times[2].push(ms(|| counted(&mut returning))?);
    }
    let [bare_ms, returning_ms, counted_ms] = times.map(median);
    let batch = subject.batch;
    let median_of = |work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        (0..3).try_for_each(|_| work())?;
        Ok(median((0..200).map(|_| ms(&mut *work)).collect::<Result<Vec<_>>>()?))
    };
    let mut through = subject.runtime.build(&subject.model, &subject.options(false, false))?;
    let one = trtcalib::tensor::rows(&subject.inputs, subject.batch, 0..1).unwrap_or_default();
    let one_staged = bare.upload(&uploader, &one, None, None)?;
    println!(
        "one sample: {:.2} ms with its input on the device, {:.2} ms from and to host memory",
        median_of(&mut || run_staged(&mut bare, &one_staged))?,
        median_of(&mut || Ok(through.visit(&one, &mut |_, _| Ok(()))?))?
    );
    println!("batch {batch}, {} tensors, {:.2} GB a batch", numbers.len(), bytes as f64 / 1e9);
    println!("bare forward pass, inputs on the device: {bare_ms:.2} ms, {:.0} images/s", subject.rate(bare_ms));
    println!("forward pass that returns all tensors: {returning_ms:.2} ms, {:.0} images/s", subject.rate(returning_ms));
    println!(
        "forward pass and counting on the device: {counted_ms:.2} ms, {:.0} images/s; {:.2} of bare, {:.2} of returning",
        subject.rate(counted_ms),
        bare_ms / counted_ms,
        returning_ms / counted_ms
    );

    // Whole passes, uploads included, against the way through the host.
    let few = 4;
    let host_s =
        ms(|| Ok(observe(&mut *host, &subject.tensors, subject.provenance(), subject.batches(few)).map(drop)?))?;
    let host_ms = host_s / few as f64;
    let copy_ms = ms(|| Ok(host.visit(&subject.inputs, &mut |_, _| Ok(()))?))?;
    let many = 64;
    let mut observed = subject.runtime.build(&subject.model, &subject.options(true, false))?;
    let dataset = Repeated { inputs: one, ids: (0..many * batch).map(|index| index.to_string()).collect() };
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let (policy, stop) = (BadPolicy { max_share: 0.0, strict: true }, AtomicBool::new(false));
    let reading = PrefetchOptions { batch, threads: 4, policy, stop: &stop, skipped: &[] };
    let samples = Samples { dataset: &dataset, indices: &indices, reading };
    let mut counts = Observing::new(&*observed, &subject.tensors, Histograms::new(subject.provenance()))?;
    let mut ran = Ran::default();
    let device_ms = ms(|| {
        ran = samples.run(&mut [&mut observed], &mut counts)?;
        Ok(())
    })? / many as f64;
    println!(
        "through the host: {host_ms:.1} ms, {:.1} images/s (running and copying alone {copy_ms:.1} ms)",
        subject.rate(host_ms)
    );
    println!("counting on the device is {:.0} times as fast", host_ms / counted_ms);
    println!(
        "a whole pass, inputs read and uploaded: {device_ms:.2} ms, {:.0} images/s, GPU busy {:.0} %, {:.0} times the host way",
        subject.rate(device_ms),
        ran.utilisation() * 100.0,
        host_ms / device_ms
    );
    Ok(())
}

fn comparison(subject: &Subject) -> Result<()> {
    let stream = subject.device.stream()?;
    let (mut float, mut tf32) = (subject.runner(&stream, true, false)?, subject.runner(&stream, true, true)?);
    let uploader = Uploader::new(&subject.device)?;
    let shown = |tf32| subject.runtime.build(&subject.model, &subject.options(true, tf32));
    let (mut float_shown, mut tf32_shown) = (shown(false)?, shown(true)?);
    let inputs = Inputs::plain(&subject.inputs);
    let staged = float.upload(&uploader, &subject.inputs, None, None)?;
    let names: BTreeMap<String, String> =
        subject.options(true, false).extra_outputs.into_iter().map(|name| (name.clone(), name)).collect();
    let ids: Vec<String> = (0..subject.batch).map(|sample| sample.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let (mut floor, mut compared) = (Vec::new(), Vec::new());
    let mut graphwise = TensorSums::default();
    for round in 0..ROUNDS + 3 {
        let both = ms(|| {
            float.run(&staged, |_| finished(&stream))?;
            Ok(tf32.run(&staged, |_| finished(&stream))?)
        })?;
        let with = ms(|| {
            Ok(float_shown.show(inputs, &mut |reference| {
                Ok(tf32_shown.show(inputs, &mut |target| {
                    Ok(graphwise.push(&ids, &reference.outputs, &target.outputs, &names)?)
                })?)
            })?)
        })?;
        if round >= 3 {
            floor.push(both);
            compared.push(with);
        }
    }
    let (floor, compared) = (median(floor), median(compared));
    let mut host = TensorSums::default();
    let build = |tf32| subject.runtime.build(&subject.model, &subject.options(true, tf32));
    let (mut float, mut tf32) = (build(false)?, build(true)?);
    let host_ms = median(
        (0..3)
            .map(|_| {
                ms(|| {
                    let (reference, target) = (float.infer(&subject.inputs)?, tf32.infer(&subject.inputs)?);
                    Ok(host.push(&ids, &reference, &target, &names)?)
                })
            })
            .collect::<Result<Vec<_>>>()?,
    );
    println!(
        "two runs of all tensors: {floor:.2} ms; compared on the device: {compared:.2} ms ({:.2} of the runs alone); \
         through the host: {host_ms:.1} ms, {:.0} times as long",
        floor / compared,
        host_ms / compared
    );
    Ok(())
}

fn main() -> Result<()> {
    let batch = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(64);
    let device = Device::open(0)?;
    println!("{:?}", device.info());
    kernels(&device)?;
    let subject = Subject::load(device, batch)?;
    calibration(&subject)?;
    comparison(&subject)
}
