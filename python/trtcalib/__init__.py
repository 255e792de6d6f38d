"""INT8 calibration and precision validation for TensorRT."""
