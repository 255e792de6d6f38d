//! The programs `calib` and `compare`: what can be typed, and what is printed. All work is the library's, `trtcalib`.

pub mod args;
pub mod commands;
pub mod printer;
