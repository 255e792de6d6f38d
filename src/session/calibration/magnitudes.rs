//! Largest magnitudes of the tensors that no histogram counts: they decide what FP16 can hold.

use std::collections::{BTreeMap, BTreeSet};

use super::Calibrator;
use crate::{
    backend::{Backend, BuildOptions},
    calibrate::CalibrationTable,
    dataset::PrefetchOptions,
    pass::Samples,
    session::PipelineError,
    tensor::ElementType,
};

/// Samples looked at, at most.
const SAMPLES: usize = 8;
/// Tensors that one pass returns: more take fewer passes and more memory.
const TENSORS_PER_PASS: usize = 128;
/// Magnitudes between these are not kept: FP16 holds them whatever a few samples have not shown.
const NOT_KEPT: std::ops::Range<f32> = 1.0 / 1024.0..1024.0;

impl Calibrator<'_> {
    /// Largest finite magnitudes, other than [`NOT_KEPT`], of the FP32 tensors that `table` has no range of, over the first of
    /// `samples`; `None` where there are none.
    pub(super) fn magnitudes(
        &self,
        table: &CalibrationTable,
        samples: &[usize],
    ) -> Result<Option<BTreeMap<String, f32>>, PipelineError> {
        let subject = self.subject;
        let samples = &samples[..samples.len().min(SAMPLES)];
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
            let reading = PrefetchOptions { batch: 1, ..self.reading() };
            let samples = Samples { dataset: self.dataset, indices: samples, reading };
            samples.each(&mut *runner, |_, outputs| {
                outputs.on_host(|outputs| {
                    for (name, view) in outputs.iter().filter(|(name, _)| is_wanted(name)) {
                        let values = view.to_f32();
                        let finite = values.iter().map(|value| value.abs()).filter(|value| value.is_finite());
                        let largest = finite.fold(0.0, f32::max);
                        if largest > 0.0 && !NOT_KEPT.contains(&largest) {
                            let known = magnitudes.entry((*name).to_owned()).or_default();
                            *known = known.max(largest);
                        }
                    }
                    Ok::<_, PipelineError>(())
                })
            })?;
        }
        Ok(Some(magnitudes))
    }
}
