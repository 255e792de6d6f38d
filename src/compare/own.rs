//! A metric of the caller's own: a number made of the outputs of all samples, such as a word error rate or the mAP of one's
//! own decoder. It is a function, so it stands in no file and on no command line.

use std::{fmt, sync::Arc};

use super::CompareError;
use crate::tensor::TensorMap;

/// What a model gave for one or several samples.
#[derive(Debug)]
pub struct Answers {
    /// Names of the samples.
    pub ids: Vec<String>,
    /// The outputs by name; the first axis counts the samples, which one sample alone need not have.
    pub outputs: TensorMap,
}

type Function = dyn Fn(Vec<Answers>) -> Result<f64, String> + Send + Sync;

/// A number for the outputs of samples, larger for better. NaN is worse than any number.
#[derive(Clone)]
pub struct OwnMetric(Arc<Function>);

impl OwnMetric {
    /// A metric by a function, which gives a reason where it fails.
    pub fn new(function: impl Fn(Vec<Answers>) -> Result<f64, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(function))
    }

    /// The number for `answers`.
    ///
    /// # Errors
    /// The function fails.
    pub fn value(&self, answers: Vec<Answers>) -> Result<f64, CompareError> {
        (self.0)(answers).map_err(CompareError::OwnMetric)
    }

    /// Whether `after` is better than `before`; `None` where they are equal.
    pub fn prefers(before: f64, after: f64) -> Option<bool> {
        let of = |value: f64| if value.is_nan() { f64::NEG_INFINITY } else { value };
        (of(before) != of(after)).then(|| of(after) > of(before))
    }
}

impl fmt::Debug for OwnMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnMetric")
    }
}
