//! One streaming pass whose activations never leave the GPU.
//!
//! A thread runs the model and counts its outputs where ONNX Runtime left them, while the next batches are read and
//! copied. The counts are those that [`observe`](super::observe) makes of the same activations.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    Batch, CalibrateError, Histograms, Provenance,
    histogram::{self, Histogram, NonFinite, ObserveError},
    observe::locate,
};
use crate::{
    backend::{
        BackendError,
        cuda::{self, CudaError, MagnitudeCounter, Magnitudes, Staged, Uploader},
        onnxruntime::{DeviceOutput, DeviceRunner},
    },
    tensor::{ElementType, Tensor, TensorMap},
};

// The kernels count in the same bins.
const _: () = assert!(histogram::BINS == cuda::BINS && histogram::MIN_EXPONENT == cuda::MIN_EXPONENT);

/// Batches that are on the device or on their way there.
const STAGED: usize = 3;

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

/// A batch whose inputs are on their way.
struct Arriving {
    batch: Batch,
    staged: Staged,
}

/// Runs every batch on the GPU and counts the magnitudes of `tensors` there. Like [`observe`](super::observe), with the
/// same errors; a batch that does not fit into the GPU's memory is halved, and so are all after it.
pub fn observe_on_device(
    runner: &mut DeviceRunner,
    tensors: &BTreeSet<String>,
    provenance: Provenance,
    batches: impl IntoIterator<Item = Batch>,
) -> Result<(Histograms, DeviceUse), CalibrateError> {
    let expected = runner.inputs().to_vec();
    let uploader = Uploader::new(runner.device()).map_err(BackendError::from)?;
    let mut pass = Pass::new(runner, tensors, provenance)?;
    let (send, arriving) = bounded::<Arriving>(STAGED - 2);
    let (give_back, used) = bounded::<Staged>(STAGED);
    std::thread::scope(|scope| {
        let pass = &mut pass;
        let worker = scope.spawn(move || pass.follow(&arriving, &give_back));
        let uploaded = (|| {
            for batch in batches {
                let staged = DeviceRunner::upload(&expected, &uploader, &batch.inputs, used.try_recv().ok())?;
                if send.send(Arriving { batch, staged }).is_err() {
                    // The worker has failed, and says why.
                    break;
                }
            }
            Ok::<(), CalibrateError>(())
        })();
        drop(send);
        let followed = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        followed.and(uploaded)
    })?;
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
    most: usize,
}

impl<'r> Pass<'r> {
    fn new(
        runner: &'r mut DeviceRunner,
        tensors: &BTreeSet<String>,
        provenance: Provenance,
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
            most: usize::MAX,
        })
    }

    /// Works on batches as they arrive.
    fn follow(&mut self, arriving: &Receiver<Arriving>, give_back: &Sender<Staged>) -> Result<(), CalibrateError> {
        loop {
            let started = Instant::now();
            let Ok(Arriving { batch, staged }) = arriving.recv() else { return Ok(()) };
            self.usage.waited += started.elapsed();
            let started = Instant::now();
            self.work(&batch, &staged)?;
            self.usage.busy += started.elapsed();
            let samples =
                if batch.held_out { &mut self.histograms.held_out_samples } else { &mut self.histograms.fit_samples };
            *samples += batch.ids.len();
            // Nobody waits for memory at the end.
            let _ = give_back.try_send(staged);
        }
    }

    /// Counts a batch, whole or in parts that fit.
    fn work(&mut self, batch: &Batch, staged: &Staged) -> Result<(), CalibrateError> {
        let samples = batch.ids.len();
        if samples <= self.most {
            match self.count(staged, batch.held_out, &batch.ids) {
                Err(CalibrateError::Backend(BackendError::Cuda(CudaError::OutOfMemory))) if samples > 1 => {
                    self.halve(samples);
                }
                other => return other,
            }
        }
        let mut first = 0;
        while first < samples {
            let last = samples.min(first + self.most);
            let ids = &batch.ids[first..last];
            let inputs = rows(&batch.inputs, samples, first, last).ok_or(CudaError::OutOfMemory);
            let inputs = inputs.map_err(BackendError::from)?;
            let expected = self.runner.inputs().to_vec();
            let counted = DeviceRunner::upload(&expected, &self.uploader, &inputs, None)
                .map_err(CalibrateError::from)
                .and_then(|staged| self.count(&staged, batch.held_out, ids));
            match counted {
                Err(CalibrateError::Backend(BackendError::Cuda(CudaError::OutOfMemory))) if last - first > 1 => {
                    self.halve(last - first);
                }
                other => {
                    other?;
                    first = last;
                }
            }
        }
        Ok(())
    }

    fn halve(&mut self, samples: usize) {
        self.most = samples / 2;
        self.usage.halved_to = Some(self.most);
    }

    fn count(&mut self, staged: &Staged, held_out: bool, ids: &[String]) -> Result<(), CalibrateError> {
        let Self { runner, numbers, seen, fit, held_out: held, .. } = self;
        let counter = if held_out { held } else { fit };
        let stream = runner.stream().clone();
        runner.run(staged, |outputs: &[DeviceOutput<'_>]| {
            let mut views = Vec::with_capacity(numbers.len());
            for tensor in staged.tensors() {
                if let Some(&number) = numbers.get(&tensor.name) {
                    views.push((number, tensor.view(&stream).map_err(BackendError::from)?));
                }
            }
            // A tensor that is both was taken as input.
            let is_input = |name: &str| staged.tensors().iter().any(|tensor| tensor.name == name);
            for (name, view) in outputs.iter().filter(|(name, _)| !is_input(name)) {
                if let Some(&number) = numbers.get(*name) {
                    views.push((number, *view));
                }
            }
            let bad = counter.count(&views).map_err(BackendError::from)?;
            for (number, _) in &views {
                seen[*number] = true;
            }
            let Some(bad) = bad else { return Ok(()) };
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

/// Samples `first..last` of a batch of `samples`; `None` for inputs whose first axis is not the batch.
fn rows(inputs: &TensorMap, samples: usize, first: usize, last: usize) -> Option<TensorMap> {
    let cut = |(name, tensor): (&String, &Tensor)| {
        let (&extent, rest) = tensor.shape().split_first()?;
        let values = tensor.values().view();
        let row = values.len() / samples;
        let shape = std::iter::once(last - first).chain(rest.iter().copied()).collect();
        let tensor = Tensor::new(shape, values.slice(row * first..row * last).to_owned()).ok()?;
        (extent == samples).then_some((name.clone(), tensor))
    };
    inputs.iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_batch_are_its_rows() {
        let x = Tensor::from_f32(vec![4, 2], (0..8).map(|i| i as f32).collect()).unwrap();
        let inputs = TensorMap::from([("x".to_owned(), x)]);
        let half = rows(&inputs, 4, 1, 3).unwrap();
        assert_eq!((half["x"].shape(), half["x"].to_f32()), (&[2, 2][..], vec![2.0, 3.0, 4.0, 5.0]));
        let shared = TensorMap::from([("scale".to_owned(), Tensor::from_f32(vec![1], vec![2.0]).unwrap())]);
        assert!(rows(&shared, 4, 0, 2).is_none());
    }

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
