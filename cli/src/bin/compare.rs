//! `compare`: the same as `calib compare`.

use std::process::ExitCode;

#[global_allocator]
static HEAP: calib_cli::heap::Heap = calib_cli::heap::Heap;

fn main() -> ExitCode {
    ExitCode::from(calib_cli::compare(std::env::args_os()))
}
