//! INT8 calibration and precision validation for TensorRT.
//!
//! A float ONNX model and a folder of images go in; out come calibrated ranges, a model with explicit Q/DQ, and a
//! report that says what each precision loses, where it loses it and what it gains. `docs/architecture.md` has the
//! map. Modules are listed from the lowest to the highest: each may use those above it, none below.

pub mod artifact;
pub mod qparams;
pub mod stats;
pub mod tensor;

pub mod backend;
pub mod bench;
pub mod bisect;
pub mod calibrate;
pub mod compare;
pub mod dataset;
pub mod onnx;
pub mod quantize;
pub mod report;
