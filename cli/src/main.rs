//! `calib`: the command line over the library. Exit status: 0 passed, 1 a gate failed, 2 error.

use std::process::ExitCode;

use calib_cli::{args::Cli, commands};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    commands::main(&cli.global, cli.command)
}
