//! A model in a lower precision from a table: what `calib quantize` does.

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Host, PipelineError, check_folders, model::Subject, quantize_options, scheme::require_op_types, unmatched,
};
use crate::{
    artifact::{ArtifactError, ContentHash, open_regular, same_file},
    backend::{Backend, BackendError, BuildOptions, onnxruntime::OnnxRuntime},
    calibrate::{CalibrationTable, cache::CalibrationCache},
    config::RunConfig,
    onnx::Model,
    quantize::{Finding, Follower, KeptFp32, Precision, quantize_following, validate_with},
    tensor::TensorMap,
};

/// What is to be written.
#[derive(Clone, Debug)]
pub struct QuantizeRequest {
    /// INT8, FP8, FP16 or BF16.
    pub precision: Precision,
    /// Calibration table, or TensorRT's cache; needed for INT8 and FP8.
    pub table: Option<PathBuf>,
    /// Model to write.
    pub output: PathBuf,
    /// Whether the model's float inputs and outputs are converted to the high precision too.
    pub convert_io: bool,
}

/// A model that was written.
#[derive(Debug, Serialize)]
pub struct QuantizeOutcome {
    /// Its file.
    pub model: PathBuf,
    /// Its precision.
    pub precision: Precision,
    /// Nodes that compute in the precision.
    pub nodes: usize,
    /// Nodes with Q/DQ.
    pub quantized_nodes: usize,
    /// Activations with Q/DQ.
    pub quantized_tensors: usize,
    /// Nodes that a conversion to 16 bits left in FP32, with the reasons.
    pub kept_fp32: Vec<KeptFp32>,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Hash of the file.
    pub hash: ContentHash,
    /// All nodes of the model.
    #[serde(skip)]
    pub all_nodes: usize,
}

/// Writes the model of `config` in a lower precision. ONNX Runtime is looked for as in [`super::Session::open`].
///
/// # Errors
/// The model or the table cannot be used, the output would overwrite the model, or it cannot be written.
pub fn quantize_file(
    config: &RunConfig,
    request: &QuantizeRequest,
    library: Option<&Path>,
    host: &Host,
) -> Result<QuantizeOutcome, PipelineError> {
    let QuantizeRequest { precision, table, output, convert_io } = request;
    let precision = *precision;
    config.validate()?;
    let Some(model) = &config.model else { bail!("no model was given; name one with --model FILE") };
    let runtime = OnnxRuntime::load(library)?;
    let subject = Subject::load(runtime, model, &config.shape)?;
    for finding in &subject.findings {
        host.warn(&format!("{}; {}", finding.message, finding.hint));
    }
    require_op_types(config, &subject)?;
    check_folders([output.as_path()])?;
    ensure!(
        !same_file(model, output),
        "{} would be written over the model it is made from; choose another -o",
        output.display()
    );
    let table = table.as_deref().map(|path| read_table(path, &subject)).transpose()?;
    let mut options = quantize_options(config, precision)?;
    let quantizes = precision.is_quantized() && !subject.place(&options.scheme)?.tensors_to_observe().is_empty();
    ensure!(
        table.is_some() || !quantizes,
        "{precision} needs ranges; make a table with `calib calibrate` and name it with --table FILE"
    );
    if precision.is_quantized() && !quantizes {
        host.warn(
            "nothing in this model is to be quantized, so the result is a float model; --explain lists the rule that decided for \
             every node",
        );
    }
    options.keep_io_types = !convert_io;
    // What needs a range only because of a plan or an exclusion: calibration could not know.
    let mut whole = options.scheme.clone();
    (whole.plan, whole.exclude, whole.include) = Default::default();
    (whole.exclude_op_types, whole.op_types) = Default::default();
    let known = if quantizes { subject.place(&whole)?.tensors_to_observe() } else { BTreeSet::new() };
    let lift = options.high_precision;
    let (quantized, followers) =
        quantize_following(&subject.folded, &subject.shapes, table.as_ref(), &mut options, lift, &|tensor| {
            !known.contains(tensor)
        })?;
    for Follower { node, tensor } in &followers {
        host.warn(&format!(
            "node `{node}` stays in {lift}, too: it was fused with one that does, and the table has no range for its input \
             `{tensor}`; to quantize it, calibrate with the same plan and exclusions"
        ));
    }
    if let Some(defects) = quantized.defects() {
        return Err(PipelineError::Input(defects));
    }
    for warning in unmatched(config, &subject, &quantized.placement)? {
        host.warn(&warning);
    }
    if let (Some(table), true) = (&table, precision.is_quantized()) {
        let zero = |tensor: &&String| table.tensors.get(*tensor).is_some_and(|range| range.amax == 0.0);
        for tensor in quantized.placement.tensors_to_observe().iter().filter(zero) {
            host.warn(&format!(
                "tensor `{tensor}` has the range 0 in the table: it gets a scale so small that other values are cut off"
            ));
        }
    }
    let halved = quantized.halved.as_ref().map(|halved| halved.precision);
    let unknown = match &table {
        None => {
            "without a table nobody knows which nodes reach magnitudes that fp16 cannot hold, so none stays in fp32 for them as in \
             `calib run`"
        }
        Some(table) if table.magnitudes.is_none() => {
            "the table has magnitudes of quantized tensors only, as TensorRT's caches and joined parts have: other nodes that reach \
             what fp16 cannot hold do not stay in fp32 for it as in `calib run`"
        }
        Some(_) => "",
    };
    if !unknown.is_empty() && halved == Some(Precision::Fp16) {
        host.warn(&format!("{unknown}; make one with `calib calibrate` and name it with --table FILE"));
    }
    quantized.model.save(output)?;
    host.wrote(output);
    let (bytes, hash) = if output.is_file() {
        (std::fs::metadata(output)?.len(), ContentHash::of_file(output)?)
    } else {
        // What went into a pipe or a device is not to be had again.
        let written = prost::Message::encode_to_vec(&quantized.model.proto);
        (written.len() as u64, ContentHash::of_bytes(&written))
    };
    Ok(QuantizeOutcome {
        model: output.clone(),
        precision,
        nodes: quantized.placement.nodes_in(precision),
        quantized_nodes: quantized.placement.quantized_nodes(),
        quantized_tensors: quantized.placement.tensors_to_observe().len(),
        all_nodes: quantized.placement.decisions.len(),
        kept_fp32: quantized.kept_fp32().to_vec(),
        bytes,
        hash,
    })
}

/// A calibration table of ours, or TensorRT's cache, which does not say which model it is of.
pub fn read_table(path: &Path, subject: &Subject) -> Result<CalibrationTable, PipelineError> {
    if is_cache(path)? {
        return Ok(CalibrationCache::load(path)?.to_table(subject.float.hash.clone()));
    }
    let table = CalibrationTable::load(path)?;
    table.check_model(&subject.float.hash)?;
    Ok(table)
}

/// Whether a file is TensorRT's calibration cache, and no table of ours.
pub(super) fn is_cache(path: &Path) -> Result<bool, PipelineError> {
    let mut start = Vec::new();
    let file = open_regular(path).map_err(|source| ArtifactError::Read { path: path.to_owned(), source })?;
    file.take(64).read_to_end(&mut start)?;
    Ok(CalibrationCache::begins_with(&start))
}

/// What TensorRT's rules hold against the Q/DQ of a model. ONNX Runtime (in `library`, or wherever it is found) is asked only
/// for what operators compute of constants.
///
/// # Errors
/// The graph has a cycle or a tensor made twice.
pub fn check_rules(model: &Model, library: Option<&Path>) -> Result<Vec<Finding>, PipelineError> {
    let compute = |constants: &Model| -> Result<TensorMap, BackendError> {
        OnnxRuntime::load(library)?.build(constants, &BuildOptions::default())?.infer(&TensorMap::new())
    };
    // What a function of the model does is judged where it is called.
    let (inlined, _) = model.inlined();
    Ok(validate_with(&inlined, &|constants| compute(constants).map_err(|error| error.to_string()))?)
}
