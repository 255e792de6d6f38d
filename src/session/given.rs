//! What a model gives for inputs that another program saved.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

use super::{PipelineError, model::Subject};
use crate::{
    backend::{Backend, BuildOptions, onnxruntime::OnnxRuntime},
    compare::OutputsWriter,
    dataset::{BadPolicy, DataOptions, PrefetchOptions, holds_images, open},
    pass::Samples,
    tensor::Blocks,
};

/// Outputs of an ONNX model for all inputs of a file: `.npz`, or what Polygraphy's `--save-inputs` wrote.
///
/// # Errors
/// The file holds no arrays for the model's inputs; the model cannot be read or run; its outputs are not told apart by sample.
pub fn outputs_for(runtime: OnnxRuntime, model: &Path, inputs: &Path) -> Result<Blocks, PipelineError> {
    ensure!(
        !holds_images(inputs),
        "{}: inputs are arrays, as .npz or as Polygraphy's --save-inputs wrote them",
        inputs.display()
    );
    let subject = Subject::load(runtime, model, &BTreeMap::new())?;
    let data = open(&DataOptions {
        path: inputs,
        labels: None,
        classes: &BTreeMap::new(),
        category_ids: &[],
        key_points: None,
        inputs: &subject.input_specs(),
        preprocess: None,
    })?;
    let mut runner = runtime.build(&subject.float, &BuildOptions::default())?;
    let names: Vec<String> = subject.outputs.iter().map(|output| output.name.clone()).collect();
    let mut writer = OutputsWriter::new(&names)?;
    let indices: Vec<usize> = (0..data.dataset.len()).collect();
    let never = AtomicBool::new(false);
    let reading = PrefetchOptions {
        batch: subject.usual_batch(),
        threads: 1,
        policy: BadPolicy { max_share: 0.0, strict: true },
        stop: &never,
        skipped: &[],
    };
    Samples { dataset: &*data.dataset, indices: &indices, reading }
        .each(&mut *runner, |part, given| Ok::<_, PipelineError>(writer.push_part(part, &given.to_host()?)?))?;
    Ok(writer.read_back()?.1)
}
