//! `calib`: the command line over the library. Exit status: 0 passed, 1 a gate failed, 2 error.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(calib_cli::calib(std::env::args_os()))
}
