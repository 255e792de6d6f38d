//! One file a subcommand: each turns flags into options, calls the library and prints what it returns.

use std::{
    ffi::OsString,
    sync::{Arc, Mutex, PoisonError},
};

use clap::{CommandFactory, FromArgMatches, Parser, error::ContextKind};
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
    keep_no_records();
    memory::refuse_large_files_by_error();
    keep_inputs();
    start_logging(global, &printer);
    let name = command_name(&command);
    guard::stop_on_signals(&printer, name);
    guard::guarded(&printer, name, || {
        // What is to be kept is known before anything is written, also by those who say that nothing was done.
        let limited = memory::limit(global.max_memory_mb);
        if let Err(error) = limited.and(overwrites::check(&command)) {
            refused(&printer, &command, &error.to_string());
            return Err(error);
        }
        dispatch(&printer, global, command)
    })
}

/// The telemetry of ONNX Runtime 1.31 keeps a database in the user's cache folder, which processes that end at the same time
/// take from each other: the one that comes late ends by SIGBUS. Who asks for it by the same variable has it.
fn keep_no_records() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread of ours runs yet that could read or change the environment.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// What tells of a former job is replaced, or goes, where this one does not begin.
fn refused(printer: &Printer, command: &Command, reason: &str) {
    match command {
        Command::Run(args) => run::refused(printer, args, reason),
        Command::Compare(args) => compare::refused(printer, args.part.as_deref()),
        Command::Merge(args) => calibrate::not_merged(printer, args, reason),
        Command::Bisect(args) => bisect::failed(printer, args),
        Command::Report(args) => report::failed(printer, args, reason),
        Command::Demo(args) => demo::refused(args, reason),
        _ => {}
    }
}

/// What follows from a command line that is not understood: the job that it names fails, as far as it is understood.
pub fn not_understood(words: &[OsString], reason: &str) {
    keep_inputs();
    let Some(cli) = understood(words.to_vec()) else { return };
    // An output that is an input stays.
    let _ = overwrites::check(&cli.command);
    refused(&Printer::new(&cli.global), &cli.command, reason);
}

/// What a command line says without the words that clap does not take.
fn understood(mut words: Vec<OsString>) -> Option<Cli> {
    loop {
        match Cli::try_parse_from(&words) {
            Ok(cli) => return Some(cli),
            Err(error) if leave_out(&mut words, &error) => {}
            // Something is missing.
            Err(_) => {
                let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).ok()?;
                return Cli::from_arg_matches(&matches).ok();
            }
        }
    }
}

/// Takes the argument away that an error is about, with its value; false where it is about none.
fn leave_out(words: &mut Vec<OsString>, error: &clap::Error) -> bool {
    let told = |kind| error.get(kind).map(ToString::to_string);
    let Some(argument) = told(ContextKind::InvalidArg) else { return false };
    // As in the usage: `--gate <METRIC=VALUE>`.
    let (flag, takes_value) = argument.split_once(' ').map_or((&*argument, false), |(flag, _)| (flag, true));
    let has_value = takes_value && told(ContextKind::InvalidValue).is_none_or(|value| !value.is_empty());
    let is_it = |word: &OsString| word.to_string_lossy().split('=').next() == Some(flag);
    let Some(at) = words.iter().rposition(is_it) else { return false };
    let has_value = has_value && words[at] == flag && at + 1 < words.len();
    words.drain(at..=at + usize::from(has_value));
    true
}

fn dispatch(printer: &Printer, global: &GlobalArgs, command: Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Demo(args) => demo::demo(printer, global, &args),
        Command::Doctor => doctor::doctor(printer, global),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "calib", &mut script);
            printer.result(&String::from_utf8_lossy(&script))?;
            Ok(ExitStatus::Passed)
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            printer.result(&String::from_utf8_lossy(&page))?;
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
