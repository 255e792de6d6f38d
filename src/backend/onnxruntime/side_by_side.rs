//! One model in several sessions of one thread: samples of a batch run side by side. Most operators are too small to share
//! among many cores, samples never are.

use prost::Message;
use rayon::prelude::*;

use super::{
    library::Loaded,
    runner::{SessionRunner, check_inputs},
    session,
};
use crate::{
    backend::{BackendError, BuildOptions, Runner, TensorInfo, Visit, threads_or_cores},
    onnx::Model,
    tensor::{TensorMap, rows, stacked},
};

/// Sessions at most.
const SESSIONS: usize = 16;
/// Bytes of weights in all sessions, and of outputs of all their samples, at most.
const BYTES: usize = 512 << 20;

/// A runner of `model` that takes the samples of a batch side by side, on as many cores as `options` has threads; one whose
/// operators share them where the model does not tell samples apart, or is too large to have it several times.
pub(super) fn build(loaded: &Loaded, model: &Model, options: &BuildOptions) -> Result<Box<dyn Runner>, BackendError> {
    let together =
        || Ok(Box::new(SessionRunner::new(session::build(loaded, model, options, None)?)) as Box<dyn Runner>);
    let most = threads_or_cores(options.threads).min(SESSIONS).min(BYTES / model.proto.encoded_len().max(1));
    if most < 2 {
        return together();
    }
    let alone = BuildOptions { threads: 1, ..options.clone() };
    let first = SessionRunner::new(session::build(loaded, model, &alone, None)?);
    let Some(bytes) = first.bytes_of_a_sample() else { return together() };
    let count = most.min(BYTES / bytes.max(1));
    if count < 2 {
        return together();
    }
    let others =
        (1..count).into_par_iter().map(|_| session::build(loaded, model, &alone, None).map(SessionRunner::new));
    let mut runners = others.collect::<Result<Vec<_>, _>>()?;
    runners.push(first);
    let free = |infos: &[TensorInfo]| {
        let free = |info: &TensorInfo| {
            let shape = info.shape.iter().enumerate().map(|(axis, &extent)| extent.filter(|_| axis > 0)).collect();
            TensorInfo { shape, ..info.clone() }
        };
        infos.iter().map(free).collect()
    };
    let (inputs, outputs) = (free(runners[0].inputs()), free(runners[0].outputs()));
    Ok(Box::new(SideBySide { runners, inputs, outputs }))
}

struct SideBySide {
    runners: Vec<SessionRunner>,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
}

impl Drop for SideBySide {
    /// A session takes some milliseconds to go.
    fn drop(&mut self) {
        self.runners.par_drain(..).for_each(drop);
    }
}

impl Runner for SideBySide {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn at_once(&self) -> usize {
        self.runners.len()
    }

    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
        let outputs = self.infer(inputs)?;
        outputs.iter().try_for_each(|(name, tensor)| visit(name, tensor.view())).map_err(BackendError::Visitor)
    }

    fn infer(&mut self, inputs: &TensorMap) -> Result<TensorMap, BackendError> {
        check_inputs(&self.inputs, inputs)?;
        let samples = inputs.values().next().and_then(|tensor| tensor.shape().first().copied()).unwrap_or(0);
        let each = samples.div_ceil(self.runners.len()).max(1);
        let count = samples.div_ceil(each);
        let share = |(place, runner): (usize, &mut SessionRunner)| {
            let mine = place * each..((place + 1) * each).min(samples);
            mine.map(|sample| {
                let one = rows(inputs, samples, sample..sample + 1).ok_or_else(|| unequal(inputs))?;
                let given = runner.infer(&one)?;
                match given.iter().find(|(_, tensor)| tensor.shape().first() != Some(&1)) {
                    Some((name, tensor)) => Err(not_a_sample(name, tensor.shape())),
                    None => Ok(given),
                }
            })
            .collect::<Result<Vec<TensorMap>, BackendError>>()
        };
        let given: Vec<_> = self.runners[..count].par_iter_mut().enumerate().map(share).collect();
        let given = given.into_iter().collect::<Result<Vec<_>, BackendError>>()?;
        Ok(stacked(given.into_iter().flatten()))
    }
}

fn unequal(inputs: &TensorMap) -> BackendError {
    let name = inputs.keys().cloned().collect::<Vec<_>>().join(", ");
    BackendError::Input { name, reason: "the inputs are not of equally many samples".to_owned() }
}

fn not_a_sample(output: &str, shape: &[usize]) -> BackendError {
    let reason = format!(
        "its output `{output}` has shape {shape:?} for one sample, though its first axis is declared as that of the \
         inputs, which counts samples; correct the declaration"
    );
    BackendError::Run { runtime: super::RUNTIME, reason }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::tests::*, *};
    use crate::{
        backend::Backend,
        onnx::{
            proto::{DimensionValue, NodeProto, TypeValue, ValueInfoProto},
            tests::float_info,
        },
    };

    /// Values of four features of each sample, whose first axis is called so.
    fn declared(name: &str, axis: Option<&str>) -> ValueInfoProto {
        let mut info = float_info(name, &[1, 4]);
        if let Some(TypeValue::TensorType(tensor)) = &mut info.r#type.as_mut().unwrap().value
            && let Some(axis) = axis
        {
            tensor.shape.as_mut().unwrap().dim[0].value = Some(DimensionValue::DimParam(axis.to_owned()));
        }
        info
    }

    fn softmax(input: Option<&str>, output: Option<&str>) -> Model {
        let node = NodeProto::new("Softmax", "s", &["x"], &["y"]);
        let mut model = model(vec![node], declared("x", input), "y", vec![]);
        model.graph_mut().output = vec![declared("y", output)];
        model
    }

    #[test]
    fn samples_side_by_side_give_what_each_gives_alone() {
        let Some(runtime) = runtime() else { return };
        let values: Vec<f32> = (0..7 * 4).map(|i| (i as f32 * 0.37).sin()).collect();
        let batch = BTreeMap::from([("x".to_owned(), floats(&[7, 4], &values))]);
        for axis in [Some("N"), None] {
            let model = softmax(axis, axis);
            let mut alone = runtime.build(&model, &BuildOptions { threads: 1, ..BuildOptions::default() }).unwrap();
            let one = |sample: usize| alone.infer(&rows(&batch, 7, sample..sample + 1).unwrap()).unwrap();
            let expected = stacked((0..7).map(one));
            for threads in [2, 3, 9] {
                let options = BuildOptions { threads, side_by_side: true, ..BuildOptions::default() };
                let mut runner = runtime.build(&model, &options).unwrap();
                assert_eq!((runner.at_once(), runner.inputs()[0].shape[0]), (threads, None));
                assert_eq!(runner.infer(&batch).unwrap(), expected, "{axis:?}, {threads} threads");
            }
        }
    }

    #[test]
    fn models_that_do_not_tell_samples_apart_run_as_they_do() {
        let Some(runtime) = runtime() else { return };
        let options = BuildOptions { threads: 4, side_by_side: true, ..BuildOptions::default() };
        let at_once = |input, output| runtime.build(&softmax(input, output), &options).unwrap().at_once();
        assert_eq!(at_once(Some("N"), Some("M")), 1);
        assert_eq!(at_once(Some("N"), None), 1);
        let one = BuildOptions { threads: 1, ..options.clone() };
        assert_eq!(runtime.build(&softmax(None, None), &one).unwrap().at_once(), 1);
    }
}
