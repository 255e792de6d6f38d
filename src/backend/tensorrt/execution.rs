//! Running an engine: pinned buffers, one stream, `enqueueV3`, optionally as a CUDA graph; times of the parts as
//! trtexec reports them.
//!
//! Outputs are lent for the time of a call only, since the next call overwrites them:
//!
//! ```compile_fail
//! # use trtcalib::{backend::{tensorrt::EngineRunner, Runner}, tensor::{TensorMap, TensorView}};
//! fn outputs_cannot_be_kept(runner: &mut EngineRunner, inputs: &TensorMap) {
//!     let mut kept: Option<TensorView<'_>> = None;
//!     runner.visit(inputs, &mut |_, view| { kept = Some(view); Ok(()) }).unwrap();
//! }
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use trtx::{TensorIOMode, TensorLocation, interfaces::ReportLayerTime, trtx_sys::Dims64};

#[cfg(feature = "tensorrt-rtx")]
use super::runtime_cache::Kernels;
use super::{
    Engine, RunnerOptions, TensorRtError, joined,
    log::Turn,
    profile::{holding, least_batch, likely_shape, values},
    slot::{Slot, element_type},
};
use crate::{
    backend::{
        BackendError, LayerTime, LikelyCall, Phases, Runner, TensorInfo, Visit,
        cuda::{CudaError, CudaGraph, CudaStream, Device, Timer, capture, wait},
        onnxruntime::check_inputs,
    },
    tensor::{ElementType, Tensor, TensorMap},
};

const RUNTIME: &str = "TensorRT";

/// Buffers for the current shapes, and the computation recorded over them.
struct Bound {
    graph: Option<CudaGraph>,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
}

/// Runs an engine.
pub struct EngineRunner {
    // Dropped in this order: the graph and its buffers, the context, its kernels, the engine with its runtime.
    bound: Option<Bound>,
    context: trtx::ExecutionContext<'static>,
    /// Kernels that were compiled, where they are to be kept.
    kernels: Option<Kernels>,
    engine: Engine,
    stream: Arc<CudaStream>,
    /// Host to device, computation, device to host.
    timers: [Timer; 3],
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    /// Inputs and outputs that the engine has in E4M3.
    e4m3: BTreeSet<String>,
    /// Samples of a batch at least, by the engine's profile.
    least_batch: usize,
    /// The least, likely and largest values of inputs that hold shapes.
    values: BTreeMap<String, [Vec<i64>; 3]>,
    cuda_graph: bool,
    phases: Option<Phases>,
    /// What the profiler reported; `None` until one is attached, which can be done once.
    profile: Option<Arc<LayerTimes>>,
}

// SAFETY: TensorRT and CUDA bind none of these objects to a thread (the GPU's context is made current before every
// call), and a `&mut` is needed to use them.
unsafe impl Send for EngineRunner {}

impl Drop for EngineRunner {
    fn drop(&mut self) {
        // Buffers and context must outlive what is on the stream, also where an error ended a call in the middle; and TensorRT
        // gives memory back to the GPU that is current. When the driver refuses, nothing can be done here.
        let _refused = wait(&self.stream);
    }
}

impl EngineRunner {
    /// Makes an engine ready to run. A CUDA graph is recorded at the first call of each shape.
    pub fn new(mut engine: Engine, options: &RunnerOptions) -> Result<Self, TensorRtError> {
        let flavour = engine.flavour;
        let device = engine.device.clone();
        device.context().bind_to_thread().map_err(CudaError::from)?;
        let turn = Turn::take();
        let failed = |error: trtx::Error| TensorRtError::Runtime { flavour, reason: turn.reason(&error.to_string()) };
        let (context, kernels) = match &options.runtime_cache {
            None => (engine.inner.create_execution_context().map_err(failed)?, None),
            Some(path) => Kernels::context(&mut engine, path, &turn)?,
        };
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        let (mut e4m3, mut ranges) = (BTreeSet::new(), BTreeMap::new());
        for index in 0..engine.inner.nb_io_tensors().map_err(failed)? {
            let name = engine.inner.io_tensor_name(index).map_err(failed)?;
            let extents = engine.inner.tensor_shape(&name).map_err(failed)?;
            let data_type = engine.inner.tensor_data_type(&name).map_err(failed)?;
            if data_type == trtx::DataType::kFP8 {
                e4m3.insert(name.clone());
            }
            let info = TensorInfo {
                element_type: element_type(data_type),
                shape: extents.iter().map(|&extent| usize::try_from(extent).ok()).collect(),
                name,
            };
            known_type(&engine, &info)?;
            check_format(&engine, &info.name)?;
            match engine.inner.tensor_io_mode(&info.name).map_err(failed)? {
                TensorIOMode::kINPUT => {
                    if let Some(values) = values(&engine.inner, &info).map_err(failed)? {
                        ranges.insert(info.name.clone(), values);
                    }
                    inputs.push(info);
                }
                _ => outputs.push(info),
            }
        }
        let least_batch = least_batch(&engine.inner, &mut inputs);
        let timers = [device.timer()?, device.timer()?, device.timer()?];
        let stream = device.stream()?;
        Ok(Self {
            bound: None,
            context,
            engine,
            stream,
            timers,
            inputs,
            outputs,
            e4m3,
            least_batch,
            values: ranges,
            cuda_graph: options.cuda_graph,
            phases: None,
            kernels,
            profile: None,
        })
    }

    fn failed(&self, reason: String) -> TensorRtError {
        TensorRtError::Runtime { flavour: self.engine.flavour, reason }
    }

    /// Makes buffers for these inputs, unless they are there; says whether it did.
    fn bind(&mut self, inputs: &TensorMap) -> Result<bool, TensorRtError> {
        if let Some(bound) = &self.bound {
            let fit = bound.inputs.iter().map(|slot| slot.fits(&inputs[&slot.name])).collect::<Result<Vec<_>, _>>()?;
            if fit.into_iter().all(|fits| fits) {
                return Ok(false);
            }
        }
        wait(&self.stream)?;
        self.bound = None;
        let (turn, flavour) = (Turn::take(), self.engine.flavour);
        let mut slots = Vec::new();
        for info in &self.inputs {
            let tensor = &inputs[&info.name];
            self.check_values(&info.name, tensor)?;
            let extents: Vec<i64> = tensor.shape().iter().map(|&extent| extent as i64).collect();
            self.context.set_input_shape(&info.name, &Dims64::from_slice(&extents)).map_err(|error| {
                let reason = turn.reason(&error.to_string());
                self.failed(format!(
                    "input `{}` cannot have the shape {:?}: {reason}; take another --batch, or build the engine with a profile \
                     that holds it (`calib build --profile {}=MIN:OPT:MAX`)",
                    info.name,
                    tensor.shape(),
                    info.name
                ))
            })?;
            let mut slot = self.slot(&info.name, known_type(&self.engine, info)?, tensor.shape().to_vec())?;
            slot.fill(tensor)?;
            // Before any output is looked at: the values of an input in host memory may decide an output's shape.
            slot.show_to(&mut self.context, &self.stream, flavour, &turn)?;
            slots.push(slot);
        }
        let mut outputs = Vec::new();
        for info in &self.outputs {
            let shape = self.context.tensor_shape(&info.name).map_err(|error| self.failed(error.to_string()))?;
            let rank = usize::try_from(shape.nbDims).map_err(|_| {
                let reason = turn.reason("TensorRT tells no reason");
                self.failed(format!("no shape of output `{}` follows from these inputs: {reason}", info.name))
            })?;
            let extents =
                shape.d.iter().take(rank).map(|&extent| usize::try_from(extent)).collect::<Result<Vec<_>, _>>();
            let extents = extents.map_err(|_| {
                self.failed(format!(
                    "the shape of output `{}` depends on values, not only on shapes; such outputs are not supported: remove it from \
                     the model's outputs, or let trtexec or Polygraphy run the engine and compare what they save, one sample a \
                     call (--target saved:outputs.json)",
                    info.name
                ))
            })?;
            outputs.push(self.slot(&info.name, known_type(&self.engine, info)?, extents)?);
        }
        for slot in &mut outputs {
            slot.show_to(&mut self.context, &self.stream, flavour, &turn)?;
        }
        self.bound = Some(Bound { graph: None, inputs: slots, outputs });
        Ok(true)
    }

    /// TensorRT need not notice that an input holds a shape which its profile does not.
    fn check_values(&self, name: &str, tensor: &Tensor) -> Result<(), TensorRtError> {
        let (Some([min, _, max]), Some(given)) = (self.values.get(name), tensor.to_integers()) else { return Ok(()) };
        if given.iter().zip(min).zip(max).all(|((value, min), max)| (min..=max).contains(&value)) {
            return Ok(());
        }
        let [given, min, max] = [&given, min, max].map(|values| joined(values));
        Err(self.failed(format!(
            "input `{name}` cannot hold {given}: the engine's profile goes from {min} to {max}; build the engine with a profile \
             that holds it (`calib build --profile {name}=MIN:OPT:MAX`)"
        )))
    }

    fn slot(&self, name: &str, element_type: ElementType, shape: Vec<usize>) -> Result<Slot, TensorRtError> {
        let is_e4m3 = self.e4m3.contains(name);
        let size = if is_e4m3 { 1 } else { element_type.size() };
        let bytes = shape.iter().try_fold(size, |bytes, &extent| bytes.checked_mul(extent));
        let bytes =
            bytes.ok_or_else(|| self.failed(format!("tensor `{name}` of shape {shape:?} is too large")))?.max(1);
        let location = self.engine.inner.tensor_location(name).map_err(|error| self.failed(error.to_string()))?;
        let device = match location {
            TensorLocation::kHOST => None,
            TensorLocation::kDEVICE => Some(self.stream.alloc_zeros(bytes).map_err(CudaError::from)?),
        };
        Ok(Slot { name: name.to_owned(), element_type, is_e4m3, shape, host: self.device().pinned(bytes)?, device })
    }

    fn device(&self) -> &Device {
        &self.engine.device
    }

    /// Copies in, computes, copies out, and waits.
    fn run(&mut self, inputs: &TensorMap) -> Result<(), TensorRtError> {
        self.device().context().bind_to_thread().map_err(CudaError::from)?;
        let new_shapes = self.bind(inputs)?;
        self.record()?;
        let flavour = self.engine.flavour;
        let Some(bound) = &mut self.bound else { return Ok(()) };
        let stream = &self.stream;
        let [h2d, compute, d2h] = &self.timers;
        for slot in &mut bound.inputs {
            slot.fill(&inputs[&slot.name])?;
        }
        h2d.start(stream)?;
        for slot in &mut bound.inputs {
            if let Some(device) = &mut slot.device {
                stream.memcpy_htod(&slot.host, device).map_err(CudaError::from)?;
            }
        }
        h2d.stop(stream)?;
        compute.start(stream)?;
        let started = Instant::now();
        match &bound.graph {
            Some(graph) => graph.launch().map_err(CudaError::from)?,
            None => enqueue(&mut self.context, stream, flavour)?,
        }
        let enqueue_ms = started.elapsed().as_secs_f64() * 1e3;
        compute.stop(stream)?;
        d2h.start(stream)?;
        for slot in &mut bound.outputs {
            if let Some(device) = &slot.device {
                stream.memcpy_dtoh(device, &mut slot.host).map_err(CudaError::from)?;
            }
        }
        d2h.stop(stream)?;
        wait(stream)?;
        self.phases = Some(Phases {
            enqueue_ms,
            h2d_ms: h2d.elapsed_ms()?,
            compute_ms: compute.elapsed_ms()?,
            d2h_ms: d2h.elapsed_ms()?,
        });
        // Kernels are compiled for shapes that are new.
        match self.kernels.as_mut().filter(|_| new_shapes) {
            Some(kernels) => kernels.keep(&self.engine, &Turn::take()),
            None => Ok(()),
        }
    }

    /// Records the computation, if that is asked for and not done.
    fn record(&mut self) -> Result<(), TensorRtError> {
        let Some(bound) = self.bound.as_mut().filter(|bound| self.cuda_graph && bound.graph.is_none()) else {
            return Ok(());
        };
        let (context, stream, flavour) = (&mut self.context, &self.stream, self.engine.flavour);
        // TensorRT finishes work that was put off at the first launch of a shape, which cannot be recorded.
        enqueue(context, stream, flavour)?;
        wait(stream)?;
        // SAFETY: the graph lies beside its buffers in `bound` and is dropped before them; it is launched on `stream`.
        bound.graph = Some(unsafe { capture(stream, || enqueue(context, stream, flavour)) }?);
        Ok(())
    }

    fn profile(&mut self, inputs: &TensorMap, calls: usize) -> Result<Vec<LayerTime>, TensorRtError> {
        self.device().context().bind_to_thread().map_err(CudaError::from)?;
        self.bind(inputs)?;
        let times = if let Some(times) = &self.profile {
            Arc::clone(times)
        } else {
            let times = Arc::new(LayerTimes::default());
            let attached = self.context.set_profiler(Box::new(Reporter(Arc::clone(&times))));
            attached.map_err(|error| self.failed(error.to_string()))?;
            Arc::clone(self.profile.insert(times))
        };
        self.context.set_enqueue_emits_profile(true);
        enqueue(&mut self.context, &self.stream, self.engine.flavour)?;
        times.take();
        let profiled = (0..calls).try_for_each(|_| enqueue(&mut self.context, &self.stream, self.engine.flavour));
        self.context.set_enqueue_emits_profile(false);
        profiled?;
        Ok(times.take())
    }
}

/// Puts the computation on the stream.
fn enqueue(
    context: &mut trtx::ExecutionContext<'static>,
    stream: &CudaStream,
    flavour: super::Flavour,
) -> Result<(), TensorRtError> {
    let turn = Turn::take();
    // SAFETY: the stream is alive, and so is the memory at every address, as `bind` says.
    let done = unsafe { context.enqueue_v3(stream.cu_stream().cast()) };
    done.map_err(|error| TensorRtError::Runtime { flavour, reason: turn.reason(&error.to_string()) })
}

/// What is copied in and out has a type that tensors have here.
fn known_type(engine: &Engine, info: &TensorInfo) -> Result<ElementType, TensorRtError> {
    info.element_type.ok_or_else(|| {
        let name = &info.name;
        let reason = match engine.inner.tensor_data_type(name) {
            Ok(kind) => format!(
                "the engine takes or gives `{name}` in the type {kind:?}, which is not supported; cast it in the model"
            ),
            Err(error) => error.to_string(),
        };
        TensorRtError::Runtime { flavour: engine.flavour, reason }
    })
}

/// What is copied in and out is row major; an engine may want packed channels instead.
fn check_format(engine: &Engine, name: &str) -> Result<(), TensorRtError> {
    let failed = |reason: String| TensorRtError::Runtime { flavour: engine.flavour, reason };
    let refused = |error: trtx::Error| failed(error.to_string());
    if engine.inner.tensor_format(name).map_err(refused)? == trtx::TensorFormat::kLINEAR {
        return Ok(());
    }
    let format = engine.inner.tensor_format_desc(name).map_err(refused)?;
    Err(failed(format!(
        "the engine takes or gives `{name}` in the format `{format}`, and only row major values are supported; build it \
         with linear formats for its inputs and outputs (trtexec: without --inputIOFormats and --outputIOFormats)"
    )))
}

impl Runner for EngineRunner {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
        check_inputs(&self.inputs, inputs)?;
        let failed = |error: &dyn std::error::Error| BackendError::Run { runtime: RUNTIME, reason: error.to_string() };
        self.run(inputs).map_err(|error| failed(&error))?;
        for slot in self.bound.iter().flat_map(|bound| &bound.outputs) {
            let shown = slot.show(&mut |view| visit(&slot.name, view).map_err(BackendError::Visitor));
            shown.map_err(|error| failed(&error))??;
        }
        Ok(())
    }

    fn least_batch(&self) -> usize {
        self.least_batch
    }

    fn likely_call(&self) -> Option<LikelyCall> {
        let (mut shapes, mut values) = (BTreeMap::new(), TensorMap::new());
        for info in &self.inputs {
            if let Some([_, likely, _]) = self.values.get(&info.name) {
                values.insert(info.name.clone(), holding(info, likely)?);
            } else {
                shapes.insert(info.name.clone(), likely_shape(&self.engine.inner, &info.name)?);
            }
        }
        (!values.is_empty()).then_some(LikelyCall { shapes, values })
    }

    fn phases(&self) -> Option<Phases> {
        self.phases
    }

    fn layer_times(&mut self, inputs: &TensorMap, calls: usize) -> Result<Option<Vec<LayerTime>>, BackendError> {
        check_inputs(&self.inputs, inputs)?;
        let times = self.profile(inputs, calls);
        times.map(Some).map_err(|error| BackendError::Run { runtime: RUNTIME, reason: error.to_string() })
    }
}

/// TensorRT 11 compiles kernels when it builds: there are none to keep.
#[cfg(feature = "tensorrt")]
enum Kernels {}

#[cfg(feature = "tensorrt")]
impl Kernels {
    fn context(
        _: &mut Engine,
        _: &std::path::Path,
        _: &Turn,
    ) -> Result<(trtx::ExecutionContext<'static>, Option<Self>), TensorRtError> {
        Err(TensorRtError::Option(
            "--runtime-cache is an option of TensorRT-RTX; TensorRT 11 compiles kernels when it builds".to_owned(),
        ))
    }

    fn keep(&mut self, _: &Engine, _: &Turn) -> Result<(), TensorRtError> {
        match *self {}
    }
}

/// Collects what the profiler reports.
#[derive(Default)]
struct LayerTimes(Mutex<Reports>);

#[derive(Default)]
struct Reports {
    /// Layers in the order of their first report.
    order: Vec<String>,
    milliseconds: BTreeMap<String, Vec<f64>>,
}

impl LayerTimes {
    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The times so far; forgets them.
    fn take(&self) -> Vec<LayerTime> {
        let Reports { order, mut milliseconds } = std::mem::take(&mut *self.reports());
        let summed = |layer: String| {
            let ms = milliseconds.remove(&layer)?;
            LayerTime::new(layer, &ms)
        };
        order.into_iter().filter_map(summed).collect()
    }
}

/// What the context holds of it.
struct Reporter(Arc<LayerTimes>);

impl ReportLayerTime for Reporter {
    fn report_layer_time(&self, layer: &str, ms: f32) {
        let reports = &mut *self.0.reports();
        if !reports.milliseconds.contains_key(layer) {
            reports.order.push(layer.to_owned());
        }
        reports.milliseconds.entry(layer.to_owned()).or_default().push(f64::from(ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_times_are_summed_up_in_the_order_of_execution() {
        let times = Arc::new(LayerTimes::default());
        for (layer, ms) in [("b", 1.0), ("a", 2.0), ("b", 9.0), ("a", 2.5), ("b", 3.0)] {
            Reporter(Arc::clone(&times)).report_layer_time(layer, ms);
        }
        let layer = |layer: &str, ms: &[f64]| LayerTime::new(layer.to_owned(), ms).unwrap();
        assert_eq!(times.take(), [layer("b", &[1.0, 9.0, 3.0]), layer("a", &[2.0, 2.5])]);
        assert_eq!(times.take(), []);
    }

    #[test]
    fn a_runner_may_move_to_another_thread() {
        fn sendable<T: Send>() {}
        sendable::<EngineRunner>();
    }
}
