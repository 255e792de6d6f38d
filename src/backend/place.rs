//! Tensors where a runner left them: in host memory, or on a device that can count and compare them there.

use std::{any::Any, borrow::Cow};

use super::BackendError;
pub use super::cuda::{BINS, DeviceView, MIN_EXPONENT, Magnitudes, NonFinite, Pair, PieceSums};
use crate::tensor::{TensorMap, TensorView, filled};

/// A device that keeps tensors and works on them where they lie.
pub trait Accelerator: Send + Sync {
    /// Which one it is: tensors can be compared where both lie on the same.
    fn index(&self) -> u32;

    /// Begins to copy inputs to the device, into the memory of `used` ones where that is large enough. With `rows`,
    /// tensors of fewer rows are filled up with their last one.
    ///
    /// # Errors
    /// No memory, or a failure of the device.
    fn send(&self, inputs: &TensorMap, rows: Option<usize>, used: Option<Sent>) -> Result<Sent, BackendError>;

    /// Copies of tensors in host memory.
    ///
    /// # Errors
    /// A failure of the device.
    fn to_host(&self, tensors: &[(&str, DeviceView<'_>)]) -> Result<TensorMap, BackendError>;

    /// What counts the magnitudes of `tensors` tensors.
    ///
    /// # Errors
    /// No memory, or a failure of the device.
    fn counter(&self, tensors: usize) -> Result<Box<dyn Counter>, BackendError>;

    /// The sums of every pair, a list of pieces each, in order.
    ///
    /// # Errors
    /// Tensors of different lengths or of other than floating-point numbers, or a failure of the device.
    fn sums(&self, pairs: &[Pair<'_>]) -> Result<Vec<Vec<PieceSums>>, BackendError>;

    /// The `k` largest values of each row with their indices, the best first; among equals the lowest index, NaN never.
    ///
    /// # Errors
    /// As [`Self::sums`].
    fn top_k(&self, rows: &[DeviceView<'_>], k: usize) -> Result<Vec<Vec<(u32, f64)>>, BackendError>;
}

/// Counts the magnitudes of a fixed set of tensors on a device.
pub trait Counter {
    /// Counts the values of a batch, each tensor under its number; tells the lowest-numbered tensor with values that are
    /// not finite, which are not counted. Nothing is counted when it fails for want of memory.
    ///
    /// # Errors
    /// A tensor of other than floating-point numbers, or a failure of the device.
    fn count(&mut self, batch: &[(usize, DeviceView<'_>)]) -> Result<Option<NonFinite>, BackendError>;

    /// What was counted, by tensor number.
    ///
    /// # Errors
    /// A failure of the device.
    fn finish(self: Box<Self>) -> Result<Vec<Magnitudes>, BackendError>;
}

/// Inputs of one batch on a device, or on their way there, in the device's own form.
pub struct Sent(Box<dyn Any + Send>);

impl Sent {
    /// Wraps what a device made.
    pub fn new<T: Send + 'static>(sent: T) -> Self {
        Self(Box::new(sent))
    }

    /// What a device made, if it was one of this kind.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }

    /// The same, to be used again.
    pub fn take<T: 'static>(self) -> Option<T> {
        self.0.downcast().ok().map(|sent| *sent)
    }
}

/// The inputs of one call.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The model's inputs.
    pub tensors: &'a TensorMap,
    /// Rows that they are filled up to with their last one, if they are.
    pub rows: Option<usize>,
    /// The same inputs where they were sent ahead; others are sent again.
    pub sent: Option<&'a Sent>,
}

impl<'a> Inputs<'a> {
    /// Inputs that run as they are.
    pub fn plain(tensors: &'a TensorMap) -> Self {
        Self { tensors, rows: None, sent: None }
    }

    /// The inputs filled up in host memory.
    pub fn filled(&self) -> Cow<'a, TensorMap> {
        self.rows.map_or(Cow::Borrowed(self.tensors), |rows| Cow::Owned(filled(self.tensors, rows)))
    }
}

/// Named tensors where they lie.
#[derive(Clone)]
pub enum Tensors<'a> {
    /// In host memory.
    Host(Vec<(&'a str, TensorView<'a>)>),
    /// On a device. Whatever writes them is finished.
    Device(&'a dyn Accelerator, Vec<(&'a str, DeviceView<'a>)>),
}

impl<'a> Tensors<'a> {
    /// Their names.
    pub fn names(&self) -> Vec<&'a str> {
        match self {
            Self::Host(tensors) => tensors.iter().map(|(name, _)| *name).collect(),
            Self::Device(_, tensors) => tensors.iter().map(|(name, _)| *name).collect(),
        }
    }

    /// Shape of each.
    pub fn shapes(&self) -> Vec<&'a [usize]> {
        match self {
            Self::Host(tensors) => tensors.iter().map(|(_, view)| view.shape).collect(),
            Self::Device(_, tensors) => tensors.iter().map(|(_, view)| view.shape()).collect(),
        }
    }

    /// Shows them in host memory: in place, or copied from the device.
    ///
    /// # Errors
    /// As `show`, or a failure of the device.
    pub fn on_host<R, E: From<BackendError>>(
        &self,
        show: impl FnOnce(&[(&str, TensorView<'_>)]) -> Result<R, E>,
    ) -> Result<R, E> {
        match self {
            Self::Host(tensors) => show(tensors),
            Self::Device(device, tensors) => {
                let copied = device.to_host(tensors)?;
                show(&views(&copied))
            }
        }
    }

    /// Copies in host memory.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn to_host(&self) -> Result<TensorMap, BackendError> {
        match self {
            Self::Host(tensors) => {
                Ok(tensors.iter().map(|&(name, view)| (name.to_owned(), TensorView::to_owned(view))).collect())
            }
            Self::Device(device, tensors) => device.to_host(tensors),
        }
    }

    /// Shows the same tensors with the first `samples` of `rows` rows only; those of another first extent stay as they are.
    pub(crate) fn cut<R>(&self, rows: usize, samples: usize, show: impl FnOnce(&Tensors<'_>) -> R) -> R {
        let cut = |shape: &[usize]| {
            let mut shape = shape.to_vec();
            if let Some(extent) = shape.first_mut().filter(|extent| **extent == rows) {
                *extent = samples.min(rows);
            }
            shape
        };
        let shapes: Vec<Vec<usize>> = self.shapes().into_iter().map(cut).collect();
        match self {
            Self::Host(tensors) => {
                let cut = tensors.iter().zip(&shapes).map(|((name, view), shape)| {
                    let values = view.values.slice(0..shape.iter().product());
                    (*name, TensorView { shape, values })
                });
                show(&Tensors::Host(cut.collect()))
            }
            Self::Device(device, tensors) => {
                let cut =
                    tensors.iter().zip(&shapes).filter_map(|((name, view), shape)| Some((*name, view.begin(shape)?)));
                show(&Tensors::Device(*device, cut.collect()))
            }
        }
    }
}

impl<'a> From<&'a TensorMap> for Tensors<'a> {
    fn from(tensors: &'a TensorMap) -> Self {
        Self::Host(views(tensors))
    }
}

impl<'a> From<&Tensors<'a>> for Tensors<'a> {
    fn from(tensors: &Tensors<'a>) -> Self {
        tensors.clone()
    }
}

fn views(tensors: &TensorMap) -> Vec<(&str, TensorView<'_>)> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect()
}

/// What one call took and gave, valid while it is shown.
pub struct Given<'a> {
    /// The inputs where the model read them, fillers included.
    pub inputs: Tensors<'a>,
    /// The outputs.
    pub outputs: Tensors<'a>,
}

/// Called once a run with what it took and gave.
pub type Show<'a> = dyn FnMut(&Given<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;
