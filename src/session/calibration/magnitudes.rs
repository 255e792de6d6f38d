//! Largest magnitudes of the tensors that no histogram counts: they decide what FP16 can hold.

use std::collections::{BTreeMap, BTreeSet};

use super::Calibrator;
use crate::{
    backend::{Backend, BuildOptions},
    calibrate::CalibrationTable,
    dataset::{PrefetchOptions, prefetch},
    session::PipelineError,
    tensor::{ElementType, TensorView},
};

/// Samples looked at, at most (or a whole batch where the model fixes it).
const SAMPLES: usize = 8;
/// Tensors that one pass returns: more take fewer passes and more memory.
const TENSORS_PER_PASS: usize = 128;
/// Lesser magnitudes are not kept: FP16 holds them whatever a few samples have not shown.
const KEPT_FROM: f32 = 1024.0;

impl Calibrator<'_> {
    /// Largest finite magnitudes, from [`KEPT_FROM`] on, of the FP32 tensors that `table` has no range of, over the first of
    /// `samples`; `None` where there are too few for a batch.
    pub(super) fn magnitudes(
        &self,
        table: &CalibrationTable,
        samples: &[usize],
    ) -> Result<Option<BTreeMap<String, f32>>, PipelineError> {
        let subject = self.subject;
        let batch = subject.fixed_batch().unwrap_or(1).max(1);
        let samples = &samples[..samples.len().min(SAMPLES.max(batch)) / batch * batch];
        if samples.is_empty() {
            return Ok(None);
        }
        let is_wanted = |name: &str| {
            let is_float = subject.shapes.get(name).is_some_and(|info| info.element_type == Some(ElementType::F32));
            is_float && !table.tensors.contains_key(name)
        };
        let made = subject.folded.graph().node.iter().flat_map(|node| &node.output);
        let tensors: Vec<&String> = made.filter(|name| is_wanted(name)).collect();
        let outputs: BTreeSet<&str> = subject.outputs.iter().map(|info| info.name.as_str()).collect();
        let mut magnitudes: BTreeMap<String, f32> = BTreeMap::new();
        for tensors in tensors.chunks(TENSORS_PER_PASS) {
            let extra_outputs =
                tensors.iter().filter(|name| !outputs.contains(name.as_str())).map(|&name| name.clone()).collect();
            let (threads, provider) = (self.options.threads, self.options.provider);
            let build = BuildOptions { threads, extra_outputs, provider, ..BuildOptions::default() };
            let mut runner = self.runtime.build(&subject.folded, &build)?;
            let mut look = |name: &str, view: TensorView<'_>| {
                if is_wanted(name) {
                    let values = view.to_f32();
                    let finite = values.iter().map(|value| value.abs()).filter(|value| value.is_finite());
                    let largest = finite.fold(0.0, f32::max);
                    if largest >= KEPT_FROM {
                        let known = magnitudes.entry(name.to_owned()).or_default();
                        *known = known.max(largest);
                    }
                }
                Ok(())
            };
            let reading = PrefetchOptions { batch, ..self.reading(&[]) };
            let (looked, pass) = prefetch(self.dataset, samples, reading, |batches| {
                for batch in batches {
                    runner.visit(&batch.inputs, &mut look)?;
                }
                Ok::<_, PipelineError>(())
            });
            looked?;
            pass?;
        }
        Ok(Some(magnitudes))
    }
}
