//! `deploy/`: the run's models and a few samples, for a machine that runs engines.

use std::path::PathBuf;

use super::{Job, Variant};
use crate::{
    backend::Runner,
    deploy::{DEPLOY, Given, ToDeploy, write},
    onnx::{
        Model,
        proto::{DimensionValue, TensorProto, TypeValue, ValueInfoProto},
    },
    quantize::of_random_data,
    session::{PipelineError, Within},
    tensor::{TensorMap, stacked},
};

/// Samples that are given where the batch is free, at most.
const MOST_SAMPLES: usize = 8;
/// Values of all outputs for them, at most: trtexec writes each as text.
const MOST_VALUES: usize = 2_000_000;

impl Job<'_> {
    /// Writes the folder.
    pub(super) fn deploy(&mut self, variants: &mut [Variant]) -> Result<(), PipelineError> {
        let folder = self.out.join(DEPLOY);
        let float = self.float_file()?;
        let (inputs, reference) = self.given_inputs()?;
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
        for variant in variants.iter_mut().filter(|variant| variant.error.is_none()) {
            let (Some(artifact), Some(model)) = (&variant.artifact, &variant.model) else { continue };
            let gives = |runner: &mut Box<dyn Runner>| {
                inputs.iter().map(|call| runner.infer(call).ok()).collect::<Option<Vec<_>>>()
            };
            let given = variant.runner.as_mut().filter(|_| !inputs.is_empty()).and_then(gives);
            let expected = given.map(stacked);
            let file = self.out.join(&artifact.path);
            models.push(Given {
                precision: variant.precision.name(),
                file,
                dynamic: dynamic(model),
                batches,
                expected,
            });
        }
        let inputs = if batches && inputs.len() > 1 { vec![stacked(inputs)] } else { inputs };
        let samples = inputs.first().and_then(|call| call.values().next()?.shape().first().copied()).unwrap_or(1);
        let random_data =
            self.session.config.random_data || variants.iter().filter_map(|t| t.model.as_ref()).any(of_random_data);
        let what = ToDeploy { model_hash: &subject.float.hash, models, inputs: &inputs, samples, random_data };
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

    /// Inputs of a few samples and what the float model gives for them; as few as keep its outputs small. A model that fixes
    /// its batch is called several times.
    fn given_inputs(&mut self) -> Result<(Vec<TensorMap>, Option<TensorMap>), PipelineError> {
        let subject = &self.session.subject;
        let fixed = subject.fixed_batch();
        // A GPU looks for kernels anew for every shape, which takes seconds in FP16: it knows those of single samples.
        let alone = self.session.provider.gpu().filter(|_| fixed.is_none()).map(|_| 1);
        if let Some(batch) = fixed.filter(|_| !subject.takes_whole_inputs()).or(alone) {
            return self.given_calls(batch);
        }
        let mut samples = fixed.unwrap_or_else(|| MOST_SAMPLES.min(self.split.evaluation.len().max(1)));
        loop {
            let Some((_, inputs)) = self.first_call(samples) else { return Ok((Vec::new(), None)) };
            let given = self.session.reference().infer(&inputs)?;
            if values(&given) <= MOST_VALUES || samples == 1 || fixed.is_some() {
                return Ok((vec![inputs], Some(given)));
            }
            samples /= 2;
        }
    }

    /// The same for calls of `batch` samples each.
    fn given_calls(&mut self, batch: usize) -> Result<(Vec<TensorMap>, Option<TensorMap>), PipelineError> {
        let (mut inputs, mut given, mut all) = (Vec::new(), Vec::new(), 0);
        for call in self.first_batches(batch, (MOST_SAMPLES / batch).max(1)) {
            let outputs = self.session.reference().infer(&call)?;
            all += values(&outputs);
            // What does not run over the samples cannot be put behind that of another call.
            let over_samples = outputs.values().all(|output| output.shape().first() == Some(&batch));
            if !given.is_empty() && (all > MOST_VALUES || !over_samples) {
                break;
            }
            inputs.push(call);
            given.push(outputs);
        }
        let given = (!given.is_empty()).then(|| stacked(given));
        Ok((inputs, given))
    }
}

/// Values of all outputs.
fn values(outputs: &TensorMap) -> usize {
    outputs.values().map(|output| output.values().view().len()).sum()
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
