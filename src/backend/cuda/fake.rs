//! A stand-in for a device in tests: tensors lie in host memory, behind addresses that only the device may read, and
//! batches of more than a number of rows do not fit.

use std::sync::Arc;

use super::{BINS, CudaError, DeviceView, MIN_EXPONENT, Magnitudes, NonFinite, PIECE, Pair, PieceSums};
use crate::{
    backend::{
        Accelerator, Backend, BackendError, BuildOptions, Counter, Given, Inputs, OptimizationLevel, Runner, Sent,
        Show, TensorInfo, Tensors, Visit,
    },
    onnx::Model,
    tensor::{Tensor, TensorMap, ValuesView, filled},
};

/// Runs models on another backend, with batches of at most `most` rows; with `device`, outputs are left on a [`Fake`].
pub(crate) struct FakeBackend<'a> {
    pub inner: &'a dyn Backend,
    pub most: usize,
    pub device: bool,
}

impl Backend for FakeBackend<'_> {
    fn build(&self, model: &Model, options: &BuildOptions) -> Result<Box<dyn Runner>, BackendError> {
        // As models stand: what fusions round does not matter here.
        let options = BuildOptions { optimization: OptimizationLevel::Basic, ..options.clone() };
        let device = self.device.then(|| Arc::new(Fake));
        Ok(Box::new(FakeRunner { inner: self.inner.build(model, &options)?, most: self.most, device }))
    }
}

struct FakeRunner {
    inner: Box<dyn Runner>,
    most: usize,
    device: Option<Arc<Fake>>,
}

impl FakeRunner {
    fn fits(&self, inputs: &TensorMap) -> Result<(), BackendError> {
        let rows = inputs.values().next().and_then(|tensor| tensor.shape().first().copied());
        if rows > Some(self.most) { Err(CudaError::OutOfMemory.into()) } else { Ok(()) }
    }
}

impl Runner for FakeRunner {
    fn inputs(&self) -> &[TensorInfo] {
        self.inner.inputs()
    }

    fn outputs(&self) -> &[TensorInfo] {
        self.inner.outputs()
    }

    fn visit(&mut self, inputs: &TensorMap, visit: &mut Visit<'_>) -> Result<(), BackendError> {
        self.fits(inputs)?;
        self.inner.visit(inputs, visit)
    }

    fn show(&mut self, inputs: Inputs<'_>, show: &mut Show<'_>) -> Result<(), BackendError> {
        let taken = inputs.filled().into_owned();
        // What was sent ahead for a larger batch is of no use now.
        let shapes = |tensors: &TensorMap| tensors.values().map(|tensor| tensor.shape().to_vec()).collect::<Vec<_>>();
        let sent = inputs.sent.and_then(Sent::get::<TensorMap>).filter(|sent| shapes(sent) == shapes(&taken));
        assert!(sent.is_none_or(|sent| *sent == taken), "other inputs were sent ahead");
        self.fits(&taken)?;
        let Some(device) = self.device.clone() else {
            return self.inner.show(Inputs::plain(&taken), show);
        };
        let outputs = self.inner.infer(&taken)?;
        let (inputs, outputs) = (Fake::views(&taken), Fake::views(&outputs));
        let given = Given { inputs: Tensors::Device(&*device, inputs), outputs: Tensors::Device(&*device, outputs) };
        show(&given).map_err(BackendError::Visitor)
    }

    fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.device.clone().map(|device| device as Arc<dyn Accelerator>)
    }
}

/// The device.
struct Fake;

impl Fake {
    fn views(tensors: &TensorMap) -> Vec<(&str, DeviceView<'_>)> {
        tensors
            .iter()
            .map(|(name, tensor)| {
                let address = tensor.values().view().bytes().as_ptr() as u64;
                // SAFETY: the tensor's own values, which outlive the view; only `read` takes them from there.
                (name.as_str(), unsafe { DeviceView::from_raw(address, tensor.shape(), tensor.element_type()) })
            })
            .collect()
    }

    fn read(view: &DeviceView<'_>) -> Tensor {
        let size = view.len() * view.element_type().size();
        let bytes: &[u8] = if size == 0 {
            &[]
        } else {
            // SAFETY: views of this device are those of `views` and parts of them.
            unsafe { std::slice::from_raw_parts(view.address() as *const u8, size) }
        };
        let values = ValuesView::from_bytes(view.element_type(), bytes).unwrap();
        Tensor::new(view.shape().to_vec(), values.to_owned()).unwrap()
    }
}

impl Accelerator for Fake {
    fn index(&self) -> u32 {
        0
    }

    fn send(&self, inputs: &TensorMap, rows: Option<usize>, _used: Option<Sent>) -> Result<Sent, BackendError> {
        Ok(Sent::new(rows.map_or_else(|| inputs.clone(), |rows| filled(inputs, rows))))
    }

    fn to_host(&self, tensors: &[(&str, DeviceView<'_>)]) -> Result<TensorMap, BackendError> {
        Ok(tensors.iter().map(|(name, view)| ((*name).to_owned(), Self::read(view))).collect())
    }

    fn counter(&self, tensors: usize) -> Result<Box<dyn Counter>, BackendError> {
        Ok(Box::new(Values(vec![Vec::new(); tensors])))
    }

    fn sums(&self, pairs: &[Pair<'_>]) -> Result<Vec<Vec<PieceSums>>, BackendError> {
        let pieces = |pair: &Pair<'_>| {
            let (reference, target) = (Self::read(&pair.reference).to_f32(), Self::read(&pair.target).to_f32());
            let pieces = reference.chunks(PIECE).zip(target.chunks(PIECE));
            pieces.map(|(r, t)| sums(r, t, pair.threshold)).collect()
        };
        Ok(pairs.iter().map(pieces).collect())
    }

    fn top_k(&self, rows: &[DeviceView<'_>], k: usize) -> Result<Vec<Vec<(u32, f64)>>, BackendError> {
        let best = |view: &DeviceView<'_>| {
            let values = Self::read(view).to_f32();
            let mut best: Vec<(u32, f64)> = values.iter().enumerate().map(|(i, &v)| (i as u32, f64::from(v))).collect();
            best.sort_by(|a, b| b.1.total_cmp(&a.1));
            best.truncate(k);
            best
        };
        Ok(rows.iter().map(best).collect())
    }
}

fn sums(reference: &[f32], target: &[f32], threshold: f32) -> PieceSums {
    let mut sums = PieceSums::default();
    for (&r, &t) in reference.iter().zip(target) {
        sums.beyond += u64::from(r.abs() >= threshold);
        let (r, t) = (f64::from(r), f64::from(t));
        sums.reference_squares += r * r;
        sums.target_squares += t * t;
        sums.error_squares += (r - t) * (r - t);
        sums.error_sum += (r - t).abs();
        sums.error_max = sums.error_max.max((r - t).abs());
        sums.count += 1;
    }
    sums
}

/// Finite values of every tensor, counted at the end.
struct Values(Vec<Vec<f32>>);

impl Counter for Values {
    fn count(&mut self, batch: &[(usize, DeviceView<'_>)]) -> Result<Option<NonFinite>, BackendError> {
        for (tensor, view) in batch {
            self.0[*tensor].extend(Fake::read(view).to_f32());
        }
        Ok(None)
    }

    fn finish(self: Box<Self>) -> Result<Vec<Magnitudes>, BackendError> {
        let count = |values: &Vec<f32>| {
            let (min, max) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
            let amax = min.abs().max(max.abs());
            let mut exponent = MIN_EXPONENT;
            while !values.is_empty() && f64::from(amax) >= 2_f64.powi(exponent) {
                exponent += 1;
            }
            let mut counts = vec![0; BINS];
            for value in values {
                counts[(f64::from(value.abs()) / 2_f64.powi(exponent) * BINS as f64) as usize] += 1;
            }
            Magnitudes { counts, zeros: values.iter().filter(|value| **value == 0.0).count() as u64, min, max }
        };
        Ok(self.0.iter().map(count).collect())
    }
}
