//! Making sessions: options, extra outputs, and the way the weights take.

use std::{
    borrow::Cow,
    cell::Cell,
    collections::{BTreeMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use ort::{
    ep::{self, ExecutionProvider as _},
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};
use prost::Message;
use tempfile::TempDir;

use super::{
    RUNTIME,
    float_kernels::{self, missing_kernel},
    library::Loaded,
    own_codes::with_own_codes,
    said::{NO_THREAD, reason},
    wide_ends::with_wide_ends,
};
use crate::{
    backend::{
        BackendError, BuildOptions, ExecutionProvider, OptimizationLevel, Purpose,
        cuda::{CudaStream, Device},
        threads_or_cores,
    },
    onnx::{
        Model,
        proto::{GraphProto, ModelProto, NodeProto, TensorProto, TypeValue, ValueInfoProto},
    },
    tensor::ElementType,
};

/// Models up to this size are handed over in memory; the weights of larger ones go through a file, which ONNX
/// Runtime maps instead of copying it twice.
pub(super) const IN_MEMORY_BYTES: usize = 128 << 20;

static SESSIONS_BUILT: AtomicU64 = AtomicU64::new(0);

/// Sessions that this process has built so far.
pub fn sessions_built() -> u64 {
    SESSIONS_BUILT.load(Ordering::Relaxed)
}

/// Threads up to which waking one costs less than to let it spin.
const FEW_THREADS: usize = 4;

/// A session and what it needs to stay alive.
pub(super) struct Built {
    pub session: Session,
    /// Files that the session has mapped.
    _files: Option<TempDir>,
    /// Where it writes the times of its layers.
    pub layer_times: Option<TempDir>,
    /// Operators of which nodes compute in `float32` for want of a BF16 kernel, and how many.
    pub in_float32: BTreeMap<String, usize>,
}

/// Makes a session for `model`; on a GPU it may work on a stream that the caller keeps longer than the session.
pub(super) fn build(
    loaded: &Loaded,
    model: &Model,
    options: &BuildOptions,
    stream: Option<&Arc<CudaStream>>,
) -> Result<Built, BackendError> {
    let mut model = with_wide_ends(model);
    let mut in_float32 = BTreeMap::new();
    // Every round puts at least one more node into float32, and none has two.
    for _ in 0..=model.graph().node.len() {
        let mut error = match build_as_it_is(loaded, &model, options, stream) {
            Ok(built) => return Ok(Built { in_float32, ..built }),
            Err(error) => error,
        };
        if let (BackendError::Build { reason, .. }, ExecutionProvider::Cpu) = (&mut error, options.provider)
            && missing_kernel(reason).is_some()
        {
            reason.push_str("; its CPU provider has no kernel for this node in the types of its inputs");
            if has_half(model.graph()) {
                reason.push_str(": a GPU runs it (ort-cuda:FILE, --provider cuda)");
            }
        }
        let missing = match &error {
            BackendError::Build { reason, .. } if options.provider.gpu().is_some() => missing_kernel(reason),
            _ => None,
        };
        let Some((widened, op_type, count)) = missing.and_then(|missing| float_kernels::in_float32(&model, &missing))
        else {
            return Err(error);
        };
        *in_float32.entry(op_type).or_default() += count;
        model = Cow::Owned(widened);
    }
    build_as_it_is(loaded, &model, options, stream)
}

fn build_as_it_is(
    loaded: &Loaded,
    model: &Model,
    options: &BuildOptions,
    stream: Option<&Arc<CudaStream>>,
) -> Result<Built, BackendError> {
    SESSIONS_BUILT.fetch_add(1, Ordering::Relaxed);
    let builder = builder(loaded, options, stream)?;
    let returns_intermediates = !options.extra_outputs.is_empty();
    let mut builder =
        without_wrong_rewrites(builder, model, returns_intermediates, options.purpose == Purpose::Deployed)
            .map_err(|error| refused(model, &error))?;
    let layer_times = options.layer_times.then(tempfile::tempdir).transpose().map_err(|error| BackendError::Build {
        runtime: RUNTIME,
        model: model.name(),
        reason: format!("no temporary folder for the times of its layers: {error}"),
    })?;
    if let Some(folder) = &layer_times {
        builder = builder.with_profiling(folder.path().join("layers")).map_err(|error| refused(model, &error))?;
    }
    Ok(Built { layer_times, ..commit(builder, model, &options.extra_outputs)? })
}

/// Whether so many threads can live at the same time. ONNX Runtime 1.31 waits for ever where some of a session's threads start
/// and others, for want of memory, do not.
fn can_start(threads: usize) -> bool {
    // What a thread of the system's has, unless its user says otherwise.
    const STACK: usize = 8 << 20;
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let closed = gate.lock();
        let waits = || drop(gate.lock());
        let started = (1..threads).all(|_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, waits).is_ok());
        drop(closed);
        started
    })
}

/// Switches off the rewrites that ONNX Runtime 1.31 gets wrong.
fn without_wrong_rewrites(
    builder: SessionBuilder,
    model: &Model,
    returns_intermediates: bool,
    deployed: bool,
) -> ort::Result<SessionBuilder> {
    let has_fp8 = (17..=20).any(|data_type| element_types(model.graph()).contains(&data_type));
    let mut disabled = Vec::new();
    if has_half(model.graph()) {
        // The one fuses a Transpose with an FP16 MatMul and crashes when that runs; the other multiplies 16-bit scales
        // in 16 bits for the scale of an integer bias, where the product is often 0.
        disabled.extend(["MatmulTransposeFusion", "WeightBiasQuantization"]);
    }
    if has_fp8 {
        disabled.extend(["ClipQuantRewrite", "ReluQuantRewrite"]);
    }
    if returns_intermediates {
        // It merges a convolution with the sum behind it even if the convolution's own result was asked for, and the
        // session fails for want of that result.
        disabled.push("ConvAddActivationFusion");
    }
    // Rewriting Q/DQ of FP8 into integer operators ends in an error.
    let in_float = has_fp8 || !deployed;
    let builder = if in_float { builder.with_config_entry("session.disable_quant_qdq", "1")? } else { builder };
    Ok(if disabled.is_empty() { builder } else { builder.with_disabled_optimizers(disabled.join(";"))? })
}

/// True for a graph with values in FP16 or BF16.
pub(super) fn has_half(graph: &GraphProto) -> bool {
    let types = element_types(graph);
    [ElementType::F16, ElementType::Bf16].iter().any(|half| types.contains(&half.onnx()))
}

/// Element types by which a graph can get to values of a type: constants, inputs, casts.
fn element_types(graph: &GraphProto) -> HashSet<i32> {
    let attributes = graph.node.iter().flat_map(|node| &node.attribute);
    let constants = attributes.filter_map(|attribute| attribute.t.as_deref()).chain(&graph.initializer);
    let inputs = graph.input.iter().filter_map(|input| match input.r#type.as_ref()?.value.as_ref()? {
        TypeValue::TensorType(tensor) => tensor.elem_type,
        _ => None,
    });
    let casts = graph.node.iter().filter(|node| node.op_type() == "Cast").filter_map(|node| node.attr_i("to"));
    constants.map(TensorProto::data_type).chain(inputs).chain(casts.map(|to| to as i32)).collect()
}

/// ONNX Runtime's refusal of a model, without the wrapping that repeats itself.
pub(super) fn refused<R>(model: &Model, error: &ort::Error<R>) -> BackendError {
    BackendError::Build { runtime: RUNTIME, model: model.name(), reason: reason(error) }
}

/// Session options, the same for every model.
pub(super) fn builder(
    loaded: &Loaded,
    options: &BuildOptions,
    stream: Option<&Arc<CudaStream>>,
) -> Result<SessionBuilder, BackendError> {
    if !can_start(threads_or_cores(options.threads)) {
        return Err(BackendError::Library(NO_THREAD.to_owned()));
    }
    let builder = configured(loaded, options).map_err(|error| BackendError::Library(error.message().to_owned()))?;
    match options.provider.gpu() {
        None if options.purpose == Purpose::Part => {
            let without = builder.with_execution_providers([ep::CPU::default().with_arena_allocator(false).build()]);
            without.map_err(|error| BackendError::Library(error.message().to_owned()))
        }
        None => Ok(builder),
        Some(device) => {
            require_cuda()?;
            // The provider's own message for a missing GPU or driver names neither.
            drop(Device::open(device)?);
            // cuDNN's refusals of single algorithms are logged as errors although others follow.
            loaded.environment.set_log_level(ort::logging::LogLevel::Fatal);
            // The fastest of all convolution algorithms changes from run to run, and with it the last bits.
            let search = ep::cuda::ConvAlgorithmSearch::Heuristic;
            let tf32 = matches!(options.provider, ExecutionProvider::CudaTf32(_));
            let mut cuda = ep::CUDA::default().with_device_id(device as i32).with_tf32(tf32);
            cuda = cuda.with_conv_algorithm_search(search);
            if let Some(stream) = stream {
                // SAFETY: the caller keeps the stream, which belongs to this device's primary context.
                cuda = unsafe { cuda.with_compute_stream(stream.cu_stream().cast()) };
            }
            let registered = builder.with_execution_providers([cuda.build().error_on_failure()]);
            registered.map_err(|error| unusable_cuda(explain_provider(error.message())))
        }
    }
}

/// Refuses a library that was built without the CUDA provider.
pub(super) fn require_cuda() -> Result<(), BackendError> {
    if ep::CUDA::is_available().unwrap_or(false) {
        return Ok(());
    }
    Err(unusable_cuda(
        "this ONNX Runtime was built without it; use the library of the PyPI package onnxruntime-gpu, see `calib doctor`"
            .to_owned(),
    ))
}

fn unusable_cuda(reason: String) -> BackendError {
    BackendError::Provider { provider: "CUDAExecutionProvider".to_owned(), reason }
}

/// The library's message, with what to install.
fn explain_provider(message: &str) -> String {
    let hint = if ["failed to map segment", "annot allocate memory"].iter().any(|short| message.contains(short)) {
        "there was no memory left for it: let the program take more with --max-memory-mb"
    } else if message.contains("libcudnn") {
        "cuDNN 9 is missing: pip install nvidia-cudnn-cu13, and put its nvidia/cudnn/lib on LD_LIBRARY_PATH"
    } else if message.contains(".so.12") {
        "this ONNX Runtime was built for CUDA 12, and CUDA 13 is needed: pip install onnxruntime-gpu 1.31 or newer"
    } else if message.contains("libcu") {
        "libraries of CUDA 13 are missing: pip install nvidia-cublas nvidia-cuda-runtime nvidia-curand nvidia-cufft, and \
         put their nvidia/cu13/lib on LD_LIBRARY_PATH"
    } else {
        "it needs CUDA 13, cuDNN 9 and an ONNX Runtime built for them (the PyPI wheel `onnxruntime-gpu`)"
    };
    format!("{}; {hint}; see `calib doctor`", message.trim())
}

fn configured(loaded: &Loaded, options: &BuildOptions) -> ort::Result<SessionBuilder> {
    let level = match options.optimization {
        OptimizationLevel::Disabled => GraphOptimizationLevel::Disable,
        OptimizationLevel::Basic => GraphOptimizationLevel::Level1,
        OptimizationLevel::All => GraphOptimizationLevel::All,
    };
    Ok(SessionBuilder::new(&loaded.environment)?
        .with_optimization_level(level)?
        .with_intra_threads(options.threads)?
        .with_inter_threads(1)?
        // Patterns save time when every tensor is reused. Returned tensors are not: with 48 of EfficientNet-Lite0's
        // at batch 8 a pattern costs 130 MB on top of 400 and gains nothing.
        .with_memory_pattern(options.extra_outputs.is_empty())?
        // Between two runs others work: who looks at the outputs, and the other models of a comparison. Threads that spin
        // until the next run would take the cores away from them (and from the next model of an interleaved benchmark).
        .with_config_entry("session.force_spinning_stop", "1")?
        // On few cores they are taken away during a run, too: from those who read the next samples.
        .with_intra_op_spinning(
            options.purpose == Purpose::Deployed || options.threads == 0 || options.threads > FEW_THREADS,
        )?
        // Without VNNI, products of U8 and S8 saturate at 16 bits: wrong results are not a measure of INT8.
        .with_precise_qmm()?)
}

thread_local! {
    static PANIC_IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// True while this thread does what panics on some models, and tells it as an error: hooks need not report a defect.
pub fn panic_is_expected() -> bool {
    PANIC_IS_EXPECTED.get()
}

/// The session that `commit` makes. The crate between here and ONNX Runtime panics where that works out extents below 0,
/// as of products that overflow.
fn committed<R>(
    model: &Model,
    commit: impl FnOnce() -> Result<Session, ort::Error<R>>,
) -> Result<Session, BackendError> {
    PANIC_IS_EXPECTED.set(true);
    let session = catch_unwind(AssertUnwindSafe(|| commit().map_err(|error| refused(model, &error))));
    PANIC_IS_EXPECTED.set(false);
    session.unwrap_or_else(|_| {
        let reason = "the extents of a tensor overflow; the file is damaged or hostile".to_owned();
        Err(BackendError::Build { runtime: RUNTIME, model: model.name(), reason })
    })
}

/// Loads the model into a session.
pub(super) fn commit(
    mut builder: SessionBuilder,
    model: &Model,
    extra_outputs: &[String],
) -> Result<Built, BackendError> {
    let proto = with_own_codes(with_outputs(model, extra_outputs)?);
    if fits_in_memory(&proto) {
        let bytes = proto.encode_to_vec();
        drop(proto);
        let session = committed(model, || builder.commit_from_memory(&bytes))?;
        return Ok(Built { session, _files: None, layer_times: None, in_float32: BTreeMap::new() });
    }
    let unwritable = |reason: String| BackendError::Build { runtime: RUNTIME, model: model.name(), reason };
    let files = tempfile::tempdir().map_err(|error| unwritable(format!("no temporary folder: {error}")))?;
    let path = files.path().join("model.onnx");
    let copy = Model { external_data: true, ..model.with_proto(proto.into_owned()) };
    copy.save(&path).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        unwritable(format!("{error}{cause}; large models pass through a file, set TMPDIR to a disk with room for them"))
    })?;
    drop(copy);
    let session = committed(model, || builder.commit_from_file(&path))?;
    Ok(Built { session, _files: Some(files), layer_times: None, in_float32: BTreeMap::new() })
}

/// Whether a model is handed over in memory.
pub(super) fn fits_in_memory(proto: &ModelProto) -> bool {
    proto.encoded_len() <= IN_MEMORY_BYTES
}

/// The model with intermediate tensors among its outputs. Their types are left to ONNX Runtime.
fn with_outputs<'m>(model: &'m Model, extra_outputs: &[String]) -> Result<Cow<'m, ModelProto>, BackendError> {
    if extra_outputs.is_empty() {
        return Ok(Cow::Borrowed(&model.proto));
    }
    let graph = model.graph();
    let made = graph.node.iter().flat_map(|node: &NodeProto| node.output.iter().map(String::as_str));
    let given = graph.input.iter().map(ValueInfoProto::name).chain(graph.initializer.iter().map(TensorProto::name));
    let known: HashSet<&str> = made.chain(given).collect();
    if let Some(unknown) = extra_outputs.iter().find(|name| !known.contains(name.as_str())) {
        return Err(BackendError::Build {
            runtime: RUNTIME,
            model: model.name(),
            reason: format!("it has no tensor `{unknown}` to return; `calib inspect` lists its tensors"),
        });
    }
    let mut proto = model.proto.clone();
    let outputs = &mut proto.graph.get_or_insert_default().output;
    let mut present: HashSet<String> = outputs.iter().map(|output| output.name().to_owned()).collect();
    for name in extra_outputs.iter().filter(|name| present.insert((*name).clone())) {
        outputs.push(ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() });
    }
    Ok(Cow::Owned(proto))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_does_not_load_comes_with_what_it_lacks() {
        for (message, lacks) in [
            ("libcudnn.so.9: cannot open shared object file: No such file or directory", "nvidia-cudnn-cu13"),
            ("libcublasLt.so.12: cannot open shared object file: No such file or directory", "built for CUDA 12"),
            ("libcublasLt.so.13: cannot open shared object file: No such file or directory", "nvidia-cublas"),
            ("libcublasLt.so.13: failed to map segment from shared object", "--max-memory-mb"),
            ("Unknown error", "needs CUDA 13, cuDNN 9"),
        ] {
            let explained = explain_provider(message);
            assert!(explained.starts_with(message) && explained.contains(lacks), "{explained}");
        }
    }
}
