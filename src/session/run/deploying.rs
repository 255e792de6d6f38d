//! `deploy/`: the run's models and a few samples, for a machine that runs engines.

use std::path::PathBuf;

use super::{Job, Target};
use crate::{
    deploy::{DEPLOY, Given, ToDeploy, write},
    onnx::{
        Model,
        proto::{DimensionValue, TensorProto, TypeValue, ValueInfoProto},
    },
    session::{PipelineError, Within},
    tensor::TensorMap,
};

/// Samples that are given where the batch is free, at most.
const MOST_SAMPLES: usize = 8;
/// Values of all outputs for them, at most: trtexec writes each as text.
const MOST_VALUES: usize = 2_000_000;

impl Job<'_> {
    /// Writes the folder.
    pub(super) fn deploy(&mut self, targets: &mut [Target]) -> Result<(), PipelineError> {
        let folder = self.out.join(DEPLOY);
        let float = self.float_file()?;
        let (inputs, reference) = self.given_inputs()?;
        let samples = inputs.as_ref().and_then(|inputs| inputs.values().next()?.shape().first().copied()).unwrap_or(1);
        let name = self.reference_name();
        let subject = &self.session.subject;
        let batches = subject.fixed_batch().is_none();
        let mut models = vec![Given {
            precision: name,
            file: float,
            dynamic: dynamic(&subject.float),
            batches,
            expected: reference,
        }];
        for target in targets.iter_mut().filter(|target| target.error.is_none()) {
            let (Some(artifact), Some(model)) = (&target.artifact, &target.model) else { continue };
            let expected = match (&inputs, &mut target.runner) {
                (Some(inputs), Some(runner)) => runner.infer(inputs).ok(),
                _ => None,
            };
            let file = self.out.join(&artifact.path);
            models.push(Given { precision: target.precision.name(), file, dynamic: dynamic(model), batches, expected });
        }
        let what = ToDeploy { model_hash: &subject.float.hash, models, inputs: inputs.as_ref(), samples };
        write(&folder, &what).within(|| format!("cannot write {}", folder.display()))?;
        self.session.host.wrote(&folder.join("deploy.sh"));
        Ok(())
    }

    /// The file of the float model with bound shapes and all of its weights: its own where it has both.
    fn float_file(&self) -> Result<PathBuf, PipelineError> {
        let float = &self.session.subject.float;
        let own = float.path.as_deref().filter(|_| self.session.config.shape.is_empty() && !float.external_data);
        if let Some(own) = own {
            return Ok(own.to_owned());
        }
        let path = self.out.join("model.float.onnx");
        float.save(&path)?;
        Ok(path)
    }

    /// Inputs of a few samples and what the float model gives for them; as few as keep its outputs small.
    fn given_inputs(&mut self) -> Result<(Option<TensorMap>, Option<TensorMap>), PipelineError> {
        let fixed = self.session.subject.fixed_batch();
        let mut samples = fixed.unwrap_or_else(|| MOST_SAMPLES.min(self.split.evaluation.len().max(1)));
        loop {
            let inputs = self.first_batch(samples);
            let given = match &inputs {
                Some(inputs) => Some(self.session.reference.infer(inputs)?),
                None => None,
            };
            let values: usize =
                given.iter().flat_map(|given| given.values()).map(|t| t.shape().iter().product::<usize>()).sum();
            let small = given.is_some() && values <= MOST_VALUES;
            if small || samples == 1 || fixed.is_some() {
                return Ok((inputs, given));
            }
            samples /= 2;
        }
    }
}

/// Inputs of a model whose shapes are not fixed.
fn dynamic(model: &Model) -> Vec<String> {
    let graph = model.graph();
    let weights: std::collections::BTreeSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    let is_free = |input: &&ValueInfoProto| {
        let Some(TypeValue::TensorType(tensor)) = input.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else {
            return false;
        };
        let dims = tensor.shape.as_ref().map(|shape| &shape.dim);
        dims.is_some_and(|dims| dims.iter().any(|dim| !matches!(dim.value, Some(DimensionValue::DimValue(_)))))
    };
    let inputs = graph.input.iter().filter(|input| !weights.contains(input.name()));
    inputs.filter(is_free).map(|input| input.name().to_owned()).collect()
}
