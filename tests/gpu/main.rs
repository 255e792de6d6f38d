//! Tests that need an NVIDIA GPU; `make test-gpu` runs them, and `compute-sanitizer` on the same binary finds what they
//! do to memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what cannot fail in a test is a failure of the test")]

mod analysis;
mod evaluation;
mod layer;
mod magnitudes;
mod pairs;
mod session;
mod values;
