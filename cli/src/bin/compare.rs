//! `compare`: the same as `calib compare`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(calib_cli::compare(std::env::args_os()))
}
