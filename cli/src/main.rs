//! `calib`: the command line over the library. Exit status: 0 passed, 1 a gate failed, 2 error.

use std::process::ExitCode;

#[global_allocator]
static HEAP: calib_cli::heap::Heap = calib_cli::heap::Heap;

fn main() -> ExitCode {
    ExitCode::from(calib_cli::calib(std::env::args_os()))
}
