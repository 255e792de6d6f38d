//! Where the time of one call on a GPU goes: `cargo bench --bench gpu_latency -- MODEL [BATCH]` (a batch of 1 by default).
//!
//! The same model in ways of which each differs from one before it in a single point, first ONNX Runtime by itself, then this
//! program's runners. Ways take turns, so that a drift of the machine hits all alike. The last two alternate between two
//! batches in one runner: what that costs beyond a batch of its own is what changing shapes costs.
#![expect(clippy::print_stdout, reason = "a program of its own, whose result is this text")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use calib::{
    backend::{
        Backend, BackendError, BuildOptions, ExecutionProvider,
        cuda::{CudaStream, Device, Uploader},
        onnxruntime::OnnxRuntime,
    },
    onnx::Model,
    tensor::{Tensor, TensorMap},
};
use ort::{
    ep,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, Session},
    value::{DynTensor, TensorElementType, TensorRef},
};

const WARM_UP: usize = 50;
const ROUNDS: usize = 500;

/// A way to make one call.
struct Way<'a> {
    name: &'static str,
    call: Box<dyn FnMut() -> Result<()> + 'a>,
}

fn way<'a>(name: &'static str, call: impl FnMut() -> Result<()> + 'a) -> Way<'a> {
    Way { name, call: Box::new(call) }
}

/// A session with the options that this program gives its own, and nothing else of it.
fn session(runtime: &OnnxRuntime, path: &Path, stream: Option<&Arc<CudaStream>>) -> Result<Session> {
    let mut cuda =
        ep::CUDA::default().with_tf32(false).with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic);
    if let Some(stream) = stream {
        // SAFETY: `main` keeps the stream longer than the session.
        cuda = unsafe { cuda.with_compute_stream(stream.cu_stream().cast()) };
    }
    let builder = Session::builder(runtime.environment())?;
    // The error holds the builder, which must stay on this thread.
    let builder = builder.with_execution_providers([cuda.build().error_on_failure()]);
    let mut builder = builder.map_err(|error| anyhow::anyhow!("{}", error.message()))?;
    Ok(builder.commit_from_file(path)?)
}

/// A binding whose input and outputs are in device memory. The input's values are whatever was there.
fn binding(session: &Session, input: &str, shape: &[usize]) -> Result<(IoBinding, DynTensor)> {
    let memory = || MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default);
    let allocator = Allocator::new(session, memory()?)?;
    let value = DynTensor::new(&allocator, TensorElementType::Float32, shape.to_vec())?;
    let mut binding = session.create_binding()?;
    binding.bind_input(input, &value)?;
    for output in session.outputs() {
        binding.bind_output_to_device(output.name(), &memory()?)?;
    }
    Ok((binding, value))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let path = PathBuf::from(arguments.next().context("usage: gpu_latency MODEL [BATCH]")?);
    let batch: usize = arguments.next().map_or(Ok(1), |batch| batch.parse())?;
    let runtime = OnnxRuntime::load(None)?;
    let device = Device::open(0)?;
    println!("{:?}", device.info());
    let stream = device.stream()?;
    let model = Model::load(&path)?;

    let session = |stream| session(&runtime, &path, stream);
    let (mut own, mut own_bound) = (session(None)?, session(None)?);
    let (mut ours_bound, mut ours_rebound) = (session(Some(&stream))?, session(Some(&stream))?);
    let name = own.inputs()[0].name().to_owned();
    let options = BuildOptions { provider: ExecutionProvider::Cuda(0), ..BuildOptions::default() };
    let mut in_place = runtime.build_on_device(&model, &options, &device, &device.stream()?)?;
    let (mut host, mut mixed) = (runtime.build(&model, &options)?, runtime.build(&model, &options)?);
    let extents = &in_place.inputs()[0].shape;
    let shape = |batch: usize| -> Result<Vec<usize>> {
        let rest = extents.iter().skip(1).map(|extent| extent.context("only the batch of the model may vary"));
        std::iter::once(Ok(batch)).chain(rest).collect()
    };
    let inputs = |batch: usize| -> Result<TensorMap> {
        let shape = shape(batch)?;
        let values = (0..shape.iter().product::<usize>()).map(|i| (i % 255) as f32 / 255.0 - 0.5).collect();
        Ok([(name.clone(), Tensor::from_f32(shape, values)?)].into())
    };
    let (one, many) = (inputs(batch)?, inputs(64 * batch)?);
    let (own_binding, _kept) = binding(&own_bound, &name, &shape(batch)?)?;
    let (ours_binding, _kept_too) = binding(&ours_bound, &name, &shape(batch)?)?;
    let (mut rebinding, value) = binding(&ours_rebound, &name, &shape(batch)?)?;
    let pageable = one[&name].to_f32();
    let staged = in_place.upload(&Uploader::new(&device)?, &one, None, None)?;
    let input = name.as_str();
    let lent = shape(batch)?;
    let wait = || -> Result<()> { Ok(stream.synchronize()?) };

    let mut ways = [
        way("session.run, pageable memory, ONNX Runtime's stream", || {
            let tensor = TensorRef::from_array_view((lent.clone(), pageable.as_slice()))?;
            let outputs = own.run(ort::inputs![input => tensor])?;
            outputs[0].try_extract_tensor::<f32>()?;
            Ok(())
        }),
        way("bound once to device memory", || {
            let outputs = own_bound.run_binding(&own_binding)?;
            drop(outputs);
            Ok(own_binding.synchronize_outputs()?)
        }),
        way("the same on a stream of ours", || {
            drop(ours_bound.run_binding(&ours_binding)?);
            wait()
        }),
        way("the same, its input bound again for every call", || {
            rebinding.bind_input(input, &value)?;
            drop(ours_rebound.run_binding(&rebinding)?);
            wait()
        }),
        way("DeviceRunner, input on the device", || Ok(in_place.run(&staged, |_| Ok::<_, BackendError>(()))?)),
        way("GpuRunner, from and to host memory", || Ok(host.visit(&one, &mut |_, _| Ok(()))?)),
    ];
    let mut times = vec![Vec::with_capacity(ROUNDS); ways.len()];
    let mut alternating = [Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS)];
    for round in 0..WARM_UP + ROUNDS {
        for (way, times) in ways.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (way.call)()?;
            if round >= WARM_UP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        for (inputs, times) in [&one, &many].into_iter().zip(&mut alternating) {
            let start = Instant::now();
            mixed.visit(inputs, &mut |_, _| Ok(()))?;
            if round >= WARM_UP {
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    println!("batch {batch}, medians of {ROUNDS} rounds in turns");
    let [one, many] = alternating;
    let names = ways.iter().map(|way| way.name).chain(["GpuRunner, in turns with 64 times the batch", "that batch"]);
    for (name, times) in names.zip(times.iter().cloned().chain([one, many])) {
        let (least, median) = (times.iter().copied().fold(f64::INFINITY, f64::min), median(times));
        println!("{median:8.3} ms (least {least:.3})  {name}");
    }
    Ok(())
}
