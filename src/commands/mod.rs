//! One file a subcommand: each turns flags into options, calls the library and prints what it returns.

use std::{
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::CommandFactory;

use crate::{
    cli::{Cli, Command, GlobalArgs},
    printer::Printer,
};

mod bench;
mod bisect;
mod build;
mod calibrate;
mod compare;
mod doctor;
mod inspect;
mod quantize;
mod report;
mod run;
mod settings;
mod spec;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done; every gate passed.
    Passed,
    /// Done; a gate failed.
    GateFailed,
}

/// Set by Ctrl-C and SIGTERM; long loops look at it between batches.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The user asked the program to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// An error once the user asked the program to stop.
pub fn check_interrupt() -> Result<(), Interrupted> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}

/// Runs a command and reports how it ended: 0 passed, 1 a gate failed, 2 error.
pub fn main(global: &GlobalArgs, command: Command) -> ExitCode {
    let printer = Printer::new(global);
    share_one_heap();
    start_logging(global);
    // A second Ctrl-C ends the program at once; files are renamed into place, so nothing half-written is left.
    let handler = || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(2);
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        printer.warn(&format!("Ctrl-C will not stop cleanly: {error}"));
    }
    let name = command_name(&command);
    match std::panic::catch_unwind(AssertUnwindSafe(|| dispatch(&printer, global, command))) {
        Ok(Ok(ExitStatus::Passed)) => ExitCode::SUCCESS,
        Ok(Ok(ExitStatus::GateFailed)) => ExitCode::from(1),
        Ok(Err(error)) => {
            printer.error(&describe(&error));
            ExitCode::from(2)
        }
        Err(_) => {
            printer.error(&format!(
                "internal error in `calib {name}`; the message above says where. This is a bug in calib {}: please \
                 report it with the command and, if you may share it, the model",
                env!("CARGO_PKG_VERSION")
            ));
            ExitCode::from(2)
        }
    }
}

/// One heap for all threads: each thread's own would keep the memory of the largest image it ever decoded, and the
/// peak would grow with the number of images.
fn share_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets an option of the allocator, before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn dispatch(printer: &Printer, global: &GlobalArgs, command: Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Doctor => doctor::doctor(printer, global),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "calib", &mut script);
            printer.result(&String::from_utf8_lossy(&script));
            Ok(ExitStatus::Passed)
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            printer.result(&String::from_utf8_lossy(&page));
            Ok(ExitStatus::Passed)
        }
        Command::Run(args) => run::run(printer, global, &args),
        Command::Calibrate(args) => calibrate::calibrate(printer, global, &args),
        Command::Merge(args) => calibrate::merge(printer, &args),
        Command::Quantize(args) => quantize::quantize(printer, global, &args),
        Command::Build(args) => build::build(printer, global, &args),
        Command::Compare(args) => compare::compare(printer, global, &args),
        Command::Bench(args) => bench::bench(printer, global, &args),
        Command::Inspect(args) => inspect::inspect(printer, &args),
        Command::Report(args) => report::report(printer, &args),
        Command::Bisect(args) => bisect::bisect(printer, global, &args),
    }
}

fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Run(_) => "run",
        Command::Calibrate(_) => "calibrate",
        Command::Merge(_) => "merge",
        Command::Quantize(_) => "quantize",
        Command::Bench(_) => "bench",
        Command::Build(_) => "build",
        Command::Compare(_) => "compare",
        Command::Report(_) => "report",
        Command::Bisect(_) => "bisect",
        Command::Inspect(_) => "inspect",
        Command::Doctor => "doctor",
        Command::Completions { .. } => "completions",
        Command::Man => "man",
    }
}

/// An error with its causes, each said once.
fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn start_logging(global: &GlobalArgs) {
    let level = match global.verbose {
        0 => "error",
        1 => "warn",
        2 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(if global.quiet { "off" } else { level }));
    // A logger that someone else set up stays in force.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
