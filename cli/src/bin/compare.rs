//! `compare`: the same as `calib compare`.

use std::process::ExitCode;

use calib_cli::{
    args::{Command, CompareCli},
    commands,
};
use clap::Parser;

fn main() -> ExitCode {
    let cli = CompareCli::parse();
    commands::main(&cli.global, Command::Compare(cli.compare))
}
