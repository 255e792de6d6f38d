//! An engine in memory: library → logger → runtime → engine, owned together.
//!
//! ```compile_fail
//! # use trtcalib::backend::tensorrt::{Engine, EngineRunner};
//! fn an_engine_that_runs_cannot_be_taken_apart(engine: Engine) {
//!     let runner = EngineRunner::new(engine, &Default::default()).unwrap();
//!     drop(engine);
//!     drop(runner);
//! }
//! ```

use std::{collections::BTreeMap, path::Path};

use super::{
    EngineFault, EngineLayers, GpuMismatch, Library, Plan, Severity, TensorRtError, load,
    log::{Turn, logger},
    plan::older,
};
use crate::backend::cuda::{CudaError, Device};

/// An engine that was deserialized on a GPU.
pub struct Engine {
    // Fields are dropped in this order: an engine must not outlive its runtime, nor a runtime the GPU's context. The
    // logger, which both point to, is never dropped.
    pub(super) inner: trtx::CudaEngine<'static>,
    _runtime: trtx::Runtime<'static>,
    pub(super) device: Device,
    pub(super) flavour: super::Flavour,
    /// Version of the library, which its runtime cache depends on.
    #[cfg(feature = "tensorrt-rtx")]
    pub(super) version: String,
}

// SAFETY: TensorRT binds none of these objects to a thread; whoever owns the `Engine` is the only one to call them.
unsafe impl Send for Engine {}

impl Engine {
    /// Reads an engine and prepares it on GPU `device`. Every reason why it cannot run there is an error of its own.
    pub fn load(library: &Library, path: &Path, device: u32) -> Result<Self, TensorRtError> {
        let plan = Plan::read(path, library.flavour)?;
        plan.check_version(library.flavour, &library.version()?)?;
        let device = Device::open(device)?;
        Self::deserialize(library, &plan, device)
    }

    /// Prepares an engine that was read or built before.
    pub(super) fn deserialize(library: &Library, plan: &Plan, device: Device) -> Result<Self, TensorRtError> {
        let flavour = library.flavour;
        device.context().bind_to_thread().map_err(CudaError::from)?;
        load::runtime(library)?;
        let turn = Turn::take();
        let mut runtime = create_runtime(library, &turn)?;
        let fault = |fault| TensorRtError::Engine { engine: plan.path.clone(), fault };
        diagnose(&runtime, plan, &device, flavour).map_err(fault)?;
        let inner = runtime.deserialize_cuda_engine(&plan.bytes).map_err(|error| {
            let reason = turn.reason(&error.to_string());
            let lower = reason.to_lowercase();
            if lower.contains("incompatible device") || lower.contains("compute capability") {
                fault(EngineFault::Gpu(mismatch(plan, &device, flavour, reason)))
            } else {
                // Where nothing tells the version that built it, it may be an older one.
                let hint = if plan.sidecar.is_none() { older(flavour) } else { "; build it again on this machine" };
                fault(EngineFault::Refused(reason + hint))
            }
        })?;
        Ok(Self {
            inner,
            _runtime: runtime,
            device,
            flavour,
            #[cfg(feature = "tensorrt-rtx")]
            version: library.version()?,
        })
    }

    /// The layers, from TensorRT's engine inspector. `op_types` gives the operator of every ONNX node.
    pub fn layers(&self, op_types: &BTreeMap<String, String>) -> Result<EngineLayers, TensorRtError> {
        let turn = Turn::take();
        let failed = |error: trtx::Error| TensorRtError::Runtime {
            flavour: self.flavour,
            reason: turn.reason(&error.to_string()),
        };
        let inspector = self.inner.create_engine_inspector().map_err(failed)?;
        let json = inspector.engine_information(trtx::LayerInformationFormat::kJSON).map_err(failed)?;
        Ok(EngineLayers::parse(&json, op_types)?)
    }
}

/// Makes a runtime.
///
/// Without a usable driver TensorRT 11.4 returns neither a runtime nor a null pointer but an address near zero (a null
/// pointer adjusted to a base class), and logs an error. Dropping such a "runtime" would crash, so the log decides.
fn create_runtime(library: &Library, turn: &Turn) -> Result<trtx::Runtime<'static>, TensorRtError> {
    let failed = |reason: String| TensorRtError::Runtime {
        flavour: library.flavour,
        reason: format!("no runtime could be made: {reason}"),
    };
    let made = logger().and_then(trtx::Runtime::new).map_err(|error| failed(turn.reason(&error.to_string())))?;
    if turn.messages(Severity::Error).is_empty() {
        return Ok(made);
    }
    std::mem::forget(made);
    Err(failed(turn.reason("")))
}

fn mismatch(plan: &Plan, device: &Device, flavour: super::Flavour, reason: String) -> GpuMismatch {
    let options = plan.sidecar.as_ref().map(|sidecar| &sidecar.options);
    GpuMismatch {
        flavour,
        gpu: device.info().name.clone(),
        compute_capability: device.info().compute_capability,
        built_for: options.map(|options| options.compute_capabilities.clone()).unwrap_or_default(),
        reason,
    }
}

/// TensorRT-RTX tells from the header whether an engine goes with this machine.
#[cfg(feature = "tensorrt-rtx")]
fn diagnose(
    runtime: &trtx::Runtime<'_>,
    plan: &Plan,
    device: &Device,
    flavour: super::Flavour,
) -> Result<(), EngineFault> {
    use trtx::{EngineInvalidityDiagnostics as Why, EngineValidity};
    let refused = |error: trtx::Error| EngineFault::Refused(error.to_string());
    let (validity, why) = runtime.engine_validity(&plan.bytes).map_err(refused)?;
    if !matches!(validity, EngineValidity::kINVALID) {
        return Ok(());
    }
    Err(if why.contains(Why::UNSUPPORTED_CC) {
        EngineFault::Gpu(mismatch(plan, device, flavour, String::new()))
    } else if why.intersects(Why::OLD_CUDA_DRIVER | Why::OLD_CUDA_RUNTIME) {
        EngineFault::OldDriver
    } else if why.contains(Why::INSUFFICIENT_GPU_MEMORY) {
        EngineFault::Memory
    } else {
        EngineFault::Refused(format!("the library calls its header invalid ({why:?})"))
    })
}

/// TensorRT tells when it deserializes.
#[cfg(feature = "tensorrt")]
#[expect(clippy::unnecessary_wraps, reason = "the other flavour finds faults")]
fn diagnose(
    _runtime: &trtx::Runtime<'_>,
    _plan: &Plan,
    _device: &Device,
    _flavour: super::Flavour,
) -> Result<(), EngineFault> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use calib_test_support::Need;

    use super::*;
    use crate::backend::tensorrt::{Flavour, compiled_flavour, find_library};

    /// The runtime of the flavour under test: TensorRT-RTX, or the lean runtime of TensorRT 11.
    fn library() -> Option<Library> {
        let found = find_library(compiled_flavour().unwrap(), None);
        Need::TensorRt.or_skip(found.ok_or("no TensorRT library; run `make setup-test`"))
    }

    #[test]
    fn without_a_driver_there_is_an_error_and_no_crash() {
        let Some(library) = library() else { return };
        if Device::open(0).is_ok() {
            return Need::NoGpu.skip("there is a GPU");
        }
        load::runtime(&library).unwrap();
        let turn = Turn::take();
        let made = create_runtime(&library, &turn);
        match library.flavour {
            Flavour::TensorRt => {
                let error = made.unwrap_err().to_string();
                assert!(error.contains("no runtime could be made") && error.contains("CUDA"), "{error}");
            }
            // TensorRT-RTX notices the missing driver only when it deserializes.
            Flavour::TensorRtRtx => assert!(made.is_ok()),
        }
        drop(turn);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.plan");
        let magic: &[u8] = if library.flavour == Flavour::TensorRt { b"ftrt" } else { b"vtrt" };
        let mut bytes = magic.to_vec();
        bytes.resize(64, 0);
        bytes[16] = 64;
        bytes[24..27].copy_from_slice(&[1, 7, 1]);
        std::fs::write(&path, bytes).unwrap();
        let error = Engine::load(&library, &path, 0).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains("CUDA")), "{error:?}");
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn with_a_driver_there_is_a_runtime_which_refuses_a_foreign_plan() {
        let Some(library) = library() else { return };
        let device = Device::open(0).unwrap();
        device.context().bind_to_thread().unwrap();
        load::runtime(&library).unwrap();
        drop(create_runtime(&library, &Turn::take()).unwrap());
        for magic in [b"ftrt", b"vtrt", b"\x7fELF"] {
            let mut bytes = magic.to_vec();
            bytes.extend((0..8192_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()));
            let plan = Plan { path: "foreign.plan".into(), bytes, sidecar: None };
            let error = Engine::deserialize(&library, &plan, device.clone()).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains("foreign.plan")), "{error:?}");
        }
    }
}
