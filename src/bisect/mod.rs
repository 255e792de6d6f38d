//! The least that must be lifted to bring a quantized model back to its float reference, and where it leaves it first.
//!
//! * [`first`]: the first node after which the target diverges, from few probes; pure, from tensors to metrics.
//! * [`probes`]: tensors of an engine, which shows its outputs only: some marked at a time.
//! * `own`: what every node of an engine adds by itself.
//! * [`search`]: the smallest set of nodes in a higher precision that passes a gate; pure, from plan to verdict.
//!   `groups` lifts nodes together, [`trials`] is its cache and log.
//! * [`lift`]: that search on real models.
//! * `advice`: the result of a search, in a sentence.
//! * [`findings`]: all of that, and what [`crate::analyse`] tells, as one value.

pub(crate) mod advice;
pub mod findings;
pub mod first;
pub(crate) mod groups;
pub mod lift;
pub(crate) mod own;
pub mod probes;
pub mod search;
pub mod trials;
