//! Where a quantized model leaves its float reference, and the least that must be lifted to bring it back.
//!
//! * [`search`]: the smallest set of nodes in a higher precision that passes a gate; pure, from plan to verdict.
//! * [`first`]: the first node after which the target diverges, from few probes; pure, from tensors to metrics.
//! * [`groups`]: nodes that are lifted together.

pub mod first;
pub mod groups;
pub mod search;
pub mod trials;
