//! INT8 calibration and precision validation for TensorRT.
//!
//! A float ONNX model and a folder of images go in; out come calibrated ranges, a model with explicit Q/DQ, and a
//! report that says what each precision loses, where it loses it and what it gains. `docs/architecture.md` has the
//! map, with what each module may use; `examples/` has programs that use it.

pub mod artifact;
pub mod npz;
pub(crate) mod qparams;
pub mod stats;
pub mod tensor;
pub mod words;

pub mod analyse;
pub mod backend;
pub mod bench;
pub mod bisect;
pub mod calibrate;
pub mod compare;
pub mod dataset;
pub mod deploy;
pub mod onnx;
pub mod pass;
pub mod quantize;
pub mod recover;
pub mod report;
pub mod session;

pub mod config;
