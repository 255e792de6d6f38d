//! Errors by tensor and by operator: what bisecting, a run's report and calibration stand on.
//!
//! * [`graphwise`]: every tensor of the target against the reference's, in one pass.
//! * [`layerwise`]: the error that each quantized operator makes by itself and why, in one pass, from [`operators`]
//!   (what is quantized) and `twins` (the graph that measures); [`rounded`] lets it measure FP16 and BF16 the same way,
//!   and `widened` models in these that were made elsewhere.
//! * `bias`: the mean error of each operator, which its bias can take back.
//! * [`cost`]: multiply-accumulates and times of operators.
//! * [`advice`]: what follows from the figures, in sentences.

pub mod advice;
pub(crate) mod bias;
pub mod cost;
#[cfg(test)]
pub(crate) mod fixture;
pub mod graphwise;
pub mod layerwise;
pub mod operators;
pub mod rounded;
mod twins;
pub(crate) mod widened;
