//! Where a quantized model leaves its float reference, and the least that must be lifted to bring it back.
//!
//! * [`graphwise`]: every tensor of the target against the reference's, in one pass.
//! * [`layerwise`]: the error that each quantized operator makes by itself and why, in one pass, from `operators` (what
//!   is quantized) and `twins` (the graph that measures); [`rounded`] lets it measure FP16 and BF16 the same way.
//! * [`bias`]: the mean error of each operator, which its bias can take back.
//! * [`probes`]: tensors of an engine, which shows its outputs only: a few marked at a time.
//! * [`first`]: the first node after which the target diverges, from few probes; pure, from tensors to metrics.
//! * [`search`]: the smallest set of nodes in a higher precision that passes a gate; pure, from plan to verdict.
//!   [`groups`] lifts nodes together, [`trials`] is its cache and log.
//! * [`lift`]: that search on real models; [`cost`] is what lifting a node costs.
//! * [`advice`]: what follows from the figures, in sentences.
//! * [`findings`]: all of that as one value.

pub mod advice;
pub mod bias;
pub mod cost;
pub mod findings;
pub mod first;
#[cfg(test)]
mod fixture;
pub mod graphwise;
pub mod groups;
pub mod layerwise;
pub mod lift;
pub mod operators;
pub mod probes;
pub mod rounded;
pub mod search;
pub mod trials;
mod twins;
