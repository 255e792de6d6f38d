//! One streaming pass over the calibration samples: memory does not grow with their number.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{
    CalibrateError, Histograms, Provenance,
    histogram::{self, Histogram, NonFinite, ObserveError},
};
use crate::{
    backend::{self, Accelerator, BackendError, Counter, DeviceView, Given, Inputs, Magnitudes, Runner, Tensors},
    pass::{Consumer, Part},
    tensor::{TensorMap, TensorView},
};

/// Samples that run together.
pub struct Batch {
    /// Names of the samples, in the order of the inputs' first axis.
    pub ids: Vec<String>,
    /// The model's inputs.
    pub inputs: TensorMap,
    /// Whether the samples are kept from fitting, for `auto` to measure on.
    pub held_out: bool,
}

/// Counts the magnitudes of tensors where a runner left them: in host memory, or on a device, which they never leave.
pub struct Observing<'a> {
    tensors: &'a BTreeSet<String>,
    inputs: BTreeSet<String>,
    histograms: Histograms,
    held_out: bool,
    there: Option<There>,
}

/// What a device has counted and not told yet.
struct There {
    counter: Box<dyn Counter>,
    /// Numbers of the tensors that it has seen.
    seen: BTreeSet<usize>,
    samples: usize,
}

// Both count in the same bins.
const _: () = assert!(histogram::BINS == backend::BINS && histogram::MIN_EXPONENT == backend::MIN_EXPONENT);

impl<'a> Observing<'a> {
    /// Goes on with `histograms`. Each of `tensors` must be an input or an output of the runner.
    ///
    /// # Errors
    /// One of them is neither.
    pub fn new(
        runner: &dyn Runner,
        tensors: &'a BTreeSet<String>,
        histograms: Histograms,
    ) -> Result<Self, CalibrateError> {
        let inputs: BTreeSet<String> = runner.inputs().iter().map(|info| info.name.clone()).collect();
        let available = |name: &str| inputs.contains(name) || runner.outputs().iter().any(|info| info.name == name);
        match tensors.iter().find(|name| !available(name)) {
            Some(tensor) => Err(CalibrateError::NoSuchTensor { tensor: tensor.clone() }),
            None => Ok(Self { tensors, inputs, histograms, held_out: false, there: None }),
        }
    }

    /// Whether the samples that follow are kept from fitting.
    ///
    /// # Errors
    /// The device fails.
    pub fn hold_out(&mut self, held_out: bool) -> Result<(), CalibrateError> {
        if self.held_out != held_out {
            self.collect()?;
            self.held_out = held_out;
        }
        Ok(())
    }

    /// The counts so far; those of a device come from there.
    ///
    /// # Errors
    /// The device fails.
    pub fn histograms(&mut self) -> Result<&Histograms, CalibrateError> {
        self.collect()?;
        Ok(&self.histograms)
    }

    /// The counts, checked by [`check_complete`].
    ///
    /// # Errors
    /// The device fails; there was no sample; a tensor was never seen.
    pub fn finish(mut self) -> Result<Histograms, CalibrateError> {
        self.collect()?;
        check_complete(&self.histograms, self.tensors)?;
        Ok(self.histograms)
    }

    fn collect(&mut self) -> Result<(), CalibrateError> {
        let Some(There { counter, seen, samples }) = self.there.take() else { return Ok(()) };
        let mut found = BTreeMap::new();
        for (number, (name, magnitudes)) in self.tensors.iter().zip(counter.finish()?).enumerate() {
            if seen.contains(&number) {
                found.insert(name.clone(), histogram_of(magnitudes)?);
            }
        }
        let mut counted = Histograms::new(self.histograms.provenance.clone());
        if self.held_out {
            (counted.held_out, counted.held_out_samples) = (found, samples);
        } else {
            (counted.fit, counted.fit_samples) = (found, samples);
        }
        self.histograms.add(counted);
        Ok(())
    }

    /// Adds the counts of a batch, all tensors side by side on the current rayon pool or on the device. Fails on the first
    /// value that is not finite, naming tensor and sample; what was counted is then of no more use.
    ///
    /// # Errors
    /// Such a value, a tensor of other than floating-point numbers, or a failure of the device.
    pub fn push(&mut self, ids: &[String], given: &Given<'_>) -> Result<(), CalibrateError> {
        match (&given.inputs, &given.outputs) {
            (Tensors::Device(device, inputs), Tensors::Device(_, outputs)) => {
                let views = wanted(self.tensors, &self.inputs, inputs, outputs);
                self.count_there(ids, *device, &views)
            }
            (inputs, outputs) => {
                inputs.on_host(|inputs| outputs.on_host(|outputs| self.count_here(ids, inputs, outputs)))
            }
        }
    }

    fn count_here(
        &mut self,
        ids: &[String],
        given: &[(&str, TensorView<'_>)],
        made: &[(&str, TensorView<'_>)],
    ) -> Result<(), CalibrateError> {
        let Self { tensors, inputs, histograms, held_out, .. } = self;
        let Histograms { fit, held_out: kept, fit_samples, held_out_samples, .. } = histograms;
        let (part, samples) = if *held_out { (kept, held_out_samples) } else { (fit, fit_samples) };
        let views = wanted(tensors, inputs, given, made);
        for name in views.keys().filter(|name| !part.contains_key(**name)).collect::<Vec<_>>() {
            part.insert((*name).to_owned(), Histogram::default());
        }
        let work: Vec<_> =
            part.iter_mut().filter_map(|(name, counts)| Some((name, counts, *views.get(name.as_str())?))).collect();
        let count = |(name, counts, view): (&String, &mut Histogram, TensorView<'_>)| {
            let counted = counts.observe(view).map_err(|error| locate(error, name, view.shape, ids));
            counted.map_err(|error| (!inputs.contains(name), error))
        };
        let failed: Vec<_> = work.into_par_iter().with_max_len(1).filter_map(|work| count(work).err()).collect();
        *samples += ids.len();
        // What is wrong with an input is the cause of the rest.
        let first = failed.into_iter().min_by_key(|(made, _)| *made);
        first.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn count_there(
        &mut self,
        ids: &[String],
        device: &dyn Accelerator,
        views: &BTreeMap<&str, DeviceView<'_>>,
    ) -> Result<(), CalibrateError> {
        let numbers = self.tensors.iter().enumerate();
        let mut numbered = Vec::with_capacity(views.len());
        for (number, name, view) in numbers.filter_map(|(n, name)| Some((n, name, *views.get(name.as_str())?))) {
            if !view.element_type().is_float() {
                return Err(locate(ObserveError::NotFloat(view.element_type()), name, view.shape(), ids));
            }
            numbered.push((number, view));
        }
        let there = match &mut self.there {
            Some(there) => there,
            none => {
                let counter = device.counter(self.tensors.len())?;
                none.insert(There { counter, seen: BTreeSet::new(), samples: 0 })
            }
        };
        let bad = there.counter.count(&numbered)?;
        there.seen.extend(numbered.iter().map(|(number, _)| *number));
        there.samples += ids.len();
        let Some(bad) = bad else { return Ok(()) };
        let name = self.tensors.iter().nth(bad.tensor).map_or("", String::as_str);
        let shape = views.get(name).map_or(&[][..], DeviceView::shape);
        Err(locate(ObserveError::NonFinite(NonFinite { index: bad.index as usize }), name, shape, ids))
    }
}

impl Consumer for Observing<'_> {
    type Error = CalibrateError;

    fn take(&mut self, part: &Part<'_>, given: &[Option<&Given<'_>>]) -> Result<(), CalibrateError> {
        given.iter().flatten().try_for_each(|given| self.push(part.ids, given))
    }

    /// A count that finds no memory counts nothing.
    fn may_repeat(&self, error: &CalibrateError) -> bool {
        matches!(error, CalibrateError::Backend(error) if error.is_out_of_memory())
    }
}

/// Those of `tensors` that were given or made, by name; a tensor that is both counts as input.
fn wanted<'v, V: Copy>(
    tensors: &BTreeSet<String>,
    inputs: &BTreeSet<String>,
    given: &[(&'v str, V)],
    made: &[(&'v str, V)],
) -> BTreeMap<&'v str, V> {
    let made = made.iter().filter(|(name, _)| !inputs.contains(*name));
    given.iter().chain(made).copied().filter(|(name, _)| tensors.contains(*name)).collect()
}

fn histogram_of(Magnitudes { counts, zeros, min, max }: Magnitudes) -> Result<Histogram, CalibrateError> {
    let failed = |reason| BackendError::Run {
        runtime: "counting on the device",
        reason: format!("its counts are wrong: {reason}"),
    };
    Ok(Histogram::from_parts(counts, zeros, min, max).map_err(failed)?)
}

/// Runs every batch in one go, as it is: [`Observing`] from beginning to end, for samples that come from anywhere.
///
/// # Errors
/// The model cannot be run, and as [`Observing::push`] and [`Observing::finish`].
pub fn observe(
    runner: &mut dyn Runner,
    tensors: &BTreeSet<String>,
    provenance: Provenance,
    batches: impl IntoIterator<Item = Batch>,
) -> Result<Histograms, CalibrateError> {
    let mut observing = Observing::new(runner, tensors, Histograms::new(provenance))?;
    for Batch { ids, inputs, held_out } in batches {
        observing.hold_out(held_out)?;
        let push = &mut |given: &Given<'_>| Ok(observing.push(&ids, given)?);
        runner.show(Inputs::plain(&inputs), push).map_err(unwrap_visitor)?;
    }
    observing.finish()
}

/// Checks that there were samples and that every one of `tensors` was seen.
pub fn check_complete(histograms: &Histograms, tensors: &BTreeSet<String>) -> Result<(), CalibrateError> {
    if histograms.samples() == 0 {
        return Err(CalibrateError::NoData);
    }
    let seen = |name: &String| histograms.fit.contains_key(name) || histograms.held_out.contains_key(name);
    match tensors.iter().find(|name| !seen(name)) {
        Some(tensor) => Err(CalibrateError::NeverObserved { tensor: tensor.clone() }),
        None => Ok(()),
    }
}

/// Names the tensor and the sample that an error is about.
fn locate(error: ObserveError, tensor: &str, shape: &[usize], ids: &[String]) -> CalibrateError {
    let tensor = tensor.to_owned();
    match error {
        ObserveError::NotFloat(element_type) => CalibrateError::NotFloat { tensor, element_type },
        ObserveError::NonFinite(NonFinite { index }) => {
            let per_sample: usize = shape.iter().skip(1).product();
            let of_batch = shape.first() == Some(&ids.len());
            let sample = ids.get(index / per_sample.max(1)).filter(|_| of_batch);
            let sample = sample.map_or_else(|| format!("one of {}", ids.join(", ")), |id| format!("sample {id}"));
            CalibrateError::NonFinite { tensor, sample }
        }
    }
}

/// Gets back what the visitor above returned.
fn unwrap_visitor(error: BackendError) -> CalibrateError {
    match error {
        BackendError::Visitor(error) => match error.downcast() {
            Ok(error) => *error,
            Err(error) => BackendError::Visitor(error).into(),
        },
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::ContentHash,
        backend::{TensorInfo, Visit},
        calibrate::{Choice, Shards, tables},
        tensor::{ElementType, Tensor, Values},
    };

    /// `y = 2x`, `sum` of everything (one value a batch), and `classes`, which are integers.
    struct Double {
        inputs: Vec<TensorInfo>,
        outputs: Vec<TensorInfo>,
    }

    impl Double {
        fn new() -> Self {
            let info = |name: &str, element_type| TensorInfo {
                name: name.to_owned(),
                element_type: Some(element_type),
                shape: vec![None],
            };
            Self {
                inputs: vec![info("x", ElementType::F32)],
                outputs: vec![
                    info("y", ElementType::F32),
                    info("sum", ElementType::F32),
                    info("classes", ElementType::I64),
                ],
            }
        }
    }

    impl Runner for Double {
        fn inputs(&self) -> &[TensorInfo] {
            &self.inputs
        }

        fn outputs(&self) -> &[TensorInfo] {
            &self.outputs
        }

        fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
            let x = &inputs["x"];
            let doubled: Vec<f32> = x.to_f32().iter().map(|x| 2.0 * x).collect();
            let sum = Tensor::from_f32(vec![1, 1], vec![doubled.iter().sum()]).unwrap();
            let y = Tensor::from_f32(x.shape().to_vec(), doubled).unwrap();
            let classes = Tensor::new(vec![1], Values::I64(vec![1])).unwrap();
            for (name, tensor) in [("y", &y), ("sum", &sum), ("classes", &classes)] {
                visit(name, tensor.view()).map_err(BackendError::Visitor)?;
            }
            Ok(())
        }
    }

    const WIDTH: usize = 300;

    fn sample(index: usize) -> Vec<f32> {
        (0..WIDTH).map(|i| ((index * 31 + i * 17) % 101) as f32 * (index + 1) as f32 * 0.01 - 3.0).collect()
    }

    /// Samples in the given order; every fourth is held out, and so never shares a batch with the others.
    fn batches(order: &[usize], size: usize) -> Vec<Batch> {
        let (held_out, fit): (Vec<usize>, Vec<usize>) = order.iter().partition(|&&i| i % 4 == 3);
        let batch = |indices: &[usize], held_out| Batch {
            ids: indices.iter().map(|i| format!("{i}.jpg")).collect(),
            inputs: [(
                "x".to_owned(),
                Tensor::from_f32(vec![indices.len(), WIDTH], indices.iter().flat_map(|&i| sample(i)).collect())
                    .unwrap(),
            )]
            .into(),
            held_out,
        };
        fit.chunks(size).map(|c| batch(c, false)).chain(held_out.chunks(size).map(|c| batch(c, true))).collect()
    }

    fn provenance(shards: Shards) -> Provenance {
        let hash = ContentHash::of_bytes(b"x");
        Provenance { model_hash: hash.clone(), data_hash: hash, random_data: false, shards }
    }

    fn run(names: &[&str], shards: Shards, batches: Vec<Batch>) -> Result<Histograms, CalibrateError> {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        observe(&mut Double::new(), &names, provenance(shards), batches)
    }

    #[test]
    fn batches_order_threads_and_shards_change_no_bit() {
        let order: Vec<usize> = (0..24).collect();
        let whole = run(&["x", "y"], Shards::whole(), batches(&order, 24)).unwrap();
        let expected = tables(&whole, 99.9, &[Choice::Auto]).unwrap();
        let check = |found: Histograms| {
            assert_eq!(found, whole);
            assert_eq!(tables(&found, 99.9, &[Choice::Auto]).unwrap(), expected);
        };
        let backwards: Vec<usize> = (0..24).rev().collect();
        for size in [1, 5, 7] {
            check(run(&["x", "y"], Shards::whole(), batches(&order, size)).unwrap());
            check(run(&["x", "y"], Shards::whole(), batches(&backwards, size)).unwrap());
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            check(pool.install(|| run(&["x", "y"], Shards::whole(), batches(&order, 6))).unwrap());
        }
        let shard = |i: u32| {
            let mine: Vec<usize> = order.iter().copied().filter(|n| n % 3 == i as usize).collect();
            run(&["x", "y"], Shards::one(i, 3).unwrap(), batches(&mine, 2)).unwrap()
        };
        let mut merged = shard(2);
        merged.merge(shard(0)).unwrap();
        assert!(matches!(tables(&merged, 99.9, &[Choice::Auto]), Err(CalibrateError::Incomplete { missing: 2, .. })));
        merged.merge(shard(1)).unwrap();
        check(merged);
    }

    #[test]
    fn a_value_that_is_not_finite_names_tensor_and_sample() {
        let mut bad = batches(&[0, 1, 2], 3);
        let mut values = bad[0].inputs["x"].to_f32();
        values[WIDTH + 3] = f32::MAX;
        bad[0].inputs.insert("x".to_owned(), Tensor::from_f32(vec![3, WIDTH], values).unwrap());
        let message = |names: &[&str]| {
            let batches = bad.iter().map(|b| Batch { ids: b.ids.clone(), inputs: b.inputs.clone(), held_out: false });
            run(names, Shards::whole(), batches.collect()).unwrap_err().to_string()
        };
        assert!(
            message(&["y"]).contains("tensor `y` holds NaN or an infinity for sample 1.jpg"),
            "{}",
            message(&["y"])
        );
        assert!(message(&["sum"]).contains("for one of 0.jpg, 1.jpg, 2.jpg"), "{}", message(&["sum"]));
    }

    #[test]
    fn what_cannot_be_calibrated_is_an_error() {
        let message = |names: &[&str], batches| run(names, Shards::whole(), batches).unwrap_err().to_string();
        assert!(message(&["z"], batches(&[0], 1)).contains("`z` is neither an input nor an output"));
        assert!(message(&["classes"], batches(&[0], 1)).contains("`classes` holds int64"));
        assert!(message(&["y"], vec![]).contains("no sample"));
    }
}
