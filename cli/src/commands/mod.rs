//! One file a subcommand: each turns flags into options, calls the library and prints what it returns.

use std::{
    ffi::OsString,
    sync::{Arc, Mutex, PoisonError},
};

use clap::CommandFactory;
use indicatif::ProgressBar;

use crate::{
    args::{Cli, Command, Find, GlobalArgs},
    printer::Printer,
};
use trtcalib::{
    artifact::keep_inputs,
    session::{Event, Host},
};

mod bench;
mod bisect;
mod build;
mod calibrate;
mod compare;
mod demo;
mod doctor;
mod guard;
mod inspect;
mod memory;
mod overwrites;
mod quantize;
mod report;
mod run;
mod settings;

use guard::INTERRUPTED;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done; every gate passed.
    Passed,
    /// Done; a gate failed.
    GateFailed,
}

/// Runs a command and reports how it ended: 0 passed, 1 a gate failed, 2 error.
pub fn main(global: &GlobalArgs, command: Command) -> u8 {
    let printer = Printer::new(global);
    memory::share_heaps();
    memory::refuse_large_files_by_error();
    keep_inputs();
    start_logging(global, &printer);
    let name = command_name(&command);
    guard::stop_on_signals(&printer, name);
    guard::guarded(&printer, name, || {
        if let Err(error) = memory::limit(global.max_memory_mb).and_then(|()| overwrites::check(&command)) {
            refused(&printer, &command, &error.to_string());
            return Err(error);
        }
        dispatch(&printer, global, command)
    })
}

/// What tells of a former job is replaced, or goes, where this one does not begin.
fn refused(printer: &Printer, command: &Command, reason: &str) {
    match command {
        Command::Run(args) => run::refused(printer, args, reason),
        Command::Merge(args) => calibrate::not_merged(printer, args, reason),
        Command::Bisect(args) => bisect::failed(printer, args),
        _ => {}
    }
}

/// What follows from a command line that is not understood: a run fails. What cannot be written then changes nothing.
pub fn not_understood(words: &[OsString], reason: &str) {
    let _ = run::not_understood(words, reason);
}

fn dispatch(printer: &Printer, global: &GlobalArgs, command: Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Demo(args) => demo::demo(printer, global, &args),
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
        Command::Merge(args) => calibrate::merge(printer, global, &args),
        Command::Quantize(args) => quantize::quantize(printer, global, &args),
        Command::Build(args) => build::build(printer, &args),
        Command::Compare(args) => compare::compare(printer, global, &args),
        Command::Bench(args) => bench::bench(printer, global, &args),
        Command::Inspect(args) => inspect::inspect(printer, global, &args),
        Command::Report(args) => report::report(printer, global, &args),
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
        Command::Bisect(args) if args.target.is_some() && !matches!(args.find, Some(Find::Plan | Find::Layers)) => {
            "bisect --target"
        }
        Command::Bisect(_) => "bisect",
        Command::Inspect(_) => "inspect",
        Command::Demo(_) => "demo",
        Command::Doctor => "doctor",
        Command::Completions { .. } => "completions",
        Command::Man => "man",
    }
}

/// What a session is run by here: its events are printed, and Ctrl-C stops it.
fn host(printer: &Printer) -> Host {
    let printer = printer.clone();
    let bar: Mutex<Option<(String, ProgressBar)>> = Mutex::new(None);
    let show = move |event: Event<'_>| match event {
        Event::Progress { what, done, total } => {
            let mut shown = bar.lock().unwrap_or_else(PoisonError::into_inner);
            if shown.as_ref().is_none_or(|(name, _)| name != what) {
                clear(&mut shown);
                *shown = Some((what.to_owned(), printer.progress(total, what)));
            }
            if let Some((_, bar)) = &*shown {
                bar.set_length(total);
                bar.set_position(done);
            }
        }
        Event::Finished { .. } => clear(&mut bar.lock().unwrap_or_else(PoisonError::into_inner)),
        Event::Warning(text) => printer.warn(text),
        Event::Info(text) => printer.note(text),
        Event::Timings(stages) => printer.timings(stages),
        Event::Trial { progress, gates } => printer.note(&bisect::text::trial(progress, gates)),
        Event::Note(text) | Event::Detail(text) => printer.detail(text),
        _ => {}
    };
    Host::new(show, Arc::clone(&INTERRUPTED))
}

fn clear(shown: &mut Option<(String, ProgressBar)>) {
    if let Some((_, bar)) = shown.take() {
        bar.finish_and_clear();
    }
}

fn start_logging(global: &GlobalArgs, printer: &Printer) {
    let level = match global.verbose {
        // What ONNX Runtime logs as an error comes back as one, and is said once.
        0 => "error,ort=off",
        1 => "warn,ort=off",
        2 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(if global.quiet { "off" } else { level }));
    // A logger that someone else set up stays in force.
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = logger.with_ansi(printer.is_colored()).try_init();
}
