//! One streaming pass whose activations never leave the GPU.
//!
//! Outputs are counted where ONNX Runtime left them, while another thread reads and copies the next batches. The counts
//! are those that [`observe`](super::observe) makes of the same activations.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    Batch, CalibrateError, Histograms, Provenance,
    histogram::{self, Histogram, NonFinite, ObserveError},
    observe::locate,
};
use crate::{
    backend::{
        BackendError,
        cuda::{self, CudaError, MagnitudeCounter, Magnitudes, Staged, Uploader, in_parts, send_ahead},
        onnxruntime::{DeviceOutput, DeviceRunner, cut},
    },
    tensor::{self, ElementType, TensorMap},
};

// The kernels count in the same bins.
const _: () = assert!(histogram::BINS == cuda::BINS && histogram::MIN_EXPONENT == cuda::MIN_EXPONENT);

/// What the GPU was doing during a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceUse {
    /// Time in which it ran the model or counted.
    pub busy: Duration,
    /// Time in which it waited for samples.
    pub waited: Duration,
    /// The batch that it was cut down to for lack of memory.
    pub halved_to: Option<usize>,
}

impl DeviceUse {
    /// Share of the time that the GPU was at work, between 0 and 1.
    pub fn utilisation(&self) -> f64 {
        let total = (self.busy + self.waited).as_secs_f64();
        if total > 0.0 { self.busy.as_secs_f64() / total } else { 0.0 }
    }

    /// Adds another pass.
    pub fn add(&mut self, other: Self) {
        self.busy += other.busy;
        self.waited += other.waited;
        self.halved_to = match (self.halved_to, other.halved_to) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// Runs every batch on the GPU and counts the magnitudes of `tensors` there. Like [`observe`](super::observe), with the
/// same errors; a batch that does not fit into the GPU's memory is halved, and so are all after it.
///
/// Libraries may round otherwise in a batch of another size. So smaller batches are filled up to `whole` samples, and
/// what a sample gives does not depend on how many there are beside it, if the model's tensors have the number of samples
/// as their first extent and nothing else in their shapes varies. Otherwise batches run as they are.
pub fn observe_on_device(
    runner: &mut DeviceRunner,
    tensors: &BTreeSet<String>,
    provenance: Provenance,
    whole: usize,
    batches: impl IntoIterator<Item = Batch, IntoIter: Send>,
) -> Result<(Histograms, DeviceUse), CalibrateError> {
    let uploader = Uploader::new(runner.device()).map_err(BackendError::from)?;
    let mut pass = Pass::new(runner, tensors, provenance, whole)?;
    let rows = pass.whole;
    let send = |batch: &Batch, used| uploader.upload(&batch.inputs, rows, used).ok();
    let waited = send_ahead(batches.into_iter(), send, |batch, sent| {
        let started = Instant::now();
        let done = pass.work(&batch, sent)?;
        pass.usage.busy += started.elapsed();
        Ok::<_, CalibrateError>(done)
    })?;
    pass.usage.waited = waited;
    pass.finish()
}

/// What one pass keeps.
struct Pass<'r> {
    runner: &'r mut DeviceRunner,
    /// Numbers of the tensors.
    numbers: BTreeMap<String, usize>,
    /// Whether any sample gave the tensor.
    seen: Vec<bool>,
    uploader: Uploader,
    fit: MagnitudeCounter,
    held_out: MagnitudeCounter,
    histograms: Histograms,
    usage: DeviceUse,
    /// Samples that batches are filled up to, where they can be.
    whole: Option<usize>,
    most: usize,
}

impl<'r> Pass<'r> {
    fn new(
        runner: &'r mut DeviceRunner,
        tensors: &BTreeSet<String>,
        provenance: Provenance,
        whole: usize,
    ) -> Result<Self, CalibrateError> {
        let types: BTreeMap<&str, Option<ElementType>> = runner
            .outputs()
            .iter()
            .chain(runner.inputs())
            .map(|info| (info.name.as_str(), info.element_type))
            .collect();
        for tensor in tensors {
            match types.get(tensor.as_str()) {
                None => return Err(CalibrateError::NoSuchTensor { tensor: tensor.clone() }),
                Some(Some(element_type)) if !element_type.is_float() => {
                    return Err(CalibrateError::NotFloat { tensor: tensor.clone(), element_type: *element_type });
                }
                Some(_) => {}
            }
        }
        let fills = runner.fills(runner.outputs().iter().filter(|info| tensors.contains(&info.name)));
        let counter = || MagnitudeCounter::new(runner.device(), runner.stream(), tensors.len());
        let (fit, held_out) = (counter().map_err(BackendError::from)?, counter().map_err(BackendError::from)?);
        let uploader = Uploader::new(runner.device()).map_err(BackendError::from)?;
        Ok(Self {
            runner,
            numbers: tensors.iter().enumerate().map(|(number, name)| (name.clone(), number)).collect(),
            seen: vec![false; tensors.len()],
            uploader,
            fit,
            held_out,
            histograms: Histograms::new(provenance),
            usage: DeviceUse::default(),
            whole: fills.then_some(whole),
            most: usize::MAX,
        })
    }

    /// Counts a batch, whole or in parts that fit. Returns the inputs that were sent, unless they have to make room.
    fn work(&mut self, batch: &Batch, mut sent: Option<Staged>) -> Result<Option<Staged>, CalibrateError> {
        let samples = batch.ids.len();
        let does_not_fit =
            |error: &CalibrateError| matches!(error, CalibrateError::Backend(error) if error.is_out_of_memory());
        let mut most = self.most;
        let worked = in_parts(&mut most, samples, does_not_fit, |range, most| {
            let (ids, staged) = (&batch.ids[range.clone()], sent.take().filter(|_| range.len() == samples));
            let inputs = tensor::part(&batch.inputs, samples, range).ok_or(CudaError::OutOfMemory);
            let inputs = inputs.map_err(BackendError::from)?;
            let rows = self.whole.map(|whole| whole.min(most));
            if !self.count(&inputs, staged.as_ref(), batch.held_out, ids, rows)? {
                self.whole = None;
                self.count(&inputs, None, batch.held_out, ids, None)?;
            }
            sent = staged;
            Ok(())
        });
        if most < self.most {
            (self.most, self.usage.halved_to) = (most, Some(most));
        }
        worked?;
        let counted =
            if batch.held_out { &mut self.histograms.held_out_samples } else { &mut self.histograms.fit_samples };
        *counted += samples;
        Ok(sent)
    }

    /// Runs a batch and counts its samples. False, and nothing counted, when it was filled up to `rows` and a tensor does
    /// not have as many.
    fn count(
        &mut self,
        inputs: &TensorMap,
        sent: Option<&Staged>,
        held_out: bool,
        ids: &[String],
        rows: Option<usize>,
    ) -> Result<bool, CalibrateError> {
        let Self { runner, numbers, seen, fit, held_out: held, uploader, .. } = self;
        runner.check(inputs, rows)?;
        let own;
        let staged = if let Some(sent) = sent.filter(|sent| sent.is_like(runner.device(), inputs, rows)) {
            sent
        } else {
            own = uploader.upload(inputs, rows, None).map_err(BackendError::from)?;
            &own
        };
        let counter = if held_out { held } else { fit };
        let stream = runner.stream().clone();
        runner.run(staged, |outputs: &[DeviceOutput<'_>]| {
            let mut given = Vec::with_capacity(numbers.len());
            for tensor in staged.tensors() {
                if let Some(&number) = numbers.get(&tensor.name) {
                    given.push((number, tensor.view(&stream).map_err(BackendError::from)?));
                }
            }
            // A tensor that is both was taken as input.
            let is_input = |name: &str| staged.tensors().iter().any(|tensor| tensor.name == name);
            for (name, view) in outputs.iter().filter(|(name, _)| !is_input(name)) {
                if let Some(&number) = numbers.get(*name) {
                    given.push((number, *view));
                }
            }
            if rows.is_some_and(|rows| given.iter().any(|(_, view)| view.shape().first() != Some(&rows))) {
                return Ok(false);
            }
            let shapes: Vec<Vec<usize>> = given.iter().map(|(_, view)| cut(view.shape(), rows, ids.len())).collect();
            let views = given.iter().zip(&shapes);
            let views: Vec<_> =
                views.filter_map(|((number, view), shape)| Some((*number, view.begin(shape)?))).collect();
            let bad = counter.count(&views).map_err(BackendError::from)?;
            for (number, _) in &views {
                seen[*number] = true;
            }
            let Some(bad) = bad else { return Ok(true) };
            let name = numbers.iter().find(|(_, number)| **number == bad.tensor).map(|(name, _)| name.as_str());
            let shape = views.iter().find(|(number, _)| *number == bad.tensor).map(|(_, view)| view.shape());
            let error = ObserveError::NonFinite(NonFinite { index: bad.index as usize });
            Err(locate(error, name.unwrap_or_default(), shape.unwrap_or_default(), ids))
        })
    }

    fn finish(self) -> Result<(Histograms, DeviceUse), CalibrateError> {
        let Self { numbers, seen, fit, held_out, mut histograms, usage, .. } = self;
        if histograms.samples() == 0 {
            return Err(CalibrateError::NoData);
        }
        if let Some((tensor, _)) = numbers.iter().find(|(_, number)| !seen[**number]) {
            return Err(CalibrateError::NeverObserved { tensor: tensor.clone() });
        }
        for (samples, counter, part) in [
            (histograms.fit_samples, fit, &mut histograms.fit),
            (histograms.held_out_samples, held_out, &mut histograms.held_out),
        ] {
            if samples == 0 {
                continue;
            }
            let counted = counter.finish().map_err(BackendError::from)?;
            for ((name, _), magnitudes) in numbers.iter().zip(counted) {
                part.insert(name.clone(), histogram_of(magnitudes)?);
            }
        }
        Ok((histograms, usage))
    }
}

fn histogram_of(Magnitudes { counts, zeros, min, max }: Magnitudes) -> Result<Histogram, CalibrateError> {
    let reason = |reason| BackendError::from(CudaError::Call(format!("the GPU's counts are wrong: {reason}")));
    Ok(Histogram::from_parts(counts, zeros, min, max).map_err(reason)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_of_the_gpu_add_up() {
        let of = |busy, waited, halved_to| DeviceUse {
            busy: Duration::from_secs(busy),
            waited: Duration::from_secs(waited),
            halved_to,
        };
        let mut total = of(1, 0, None);
        total.add(of(2, 9, Some(8)));
        total.add(of(0, 0, Some(16)));
        assert_eq!((total, total.utilisation()), (of(3, 9, Some(8)), 0.25));
        assert_eq!(DeviceUse::default().utilisation(), 0.0);
    }
}
