//! What stops a command early: Ctrl-C and SIGTERM within two seconds, and defects of this program.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    panic::{AssertUnwindSafe, PanicHookInfo},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::ExitStatus;
use crate::printer::Printer;
use trtcalib::{backend::onnxruntime::panic_is_expected, session::describe};

/// Set by Ctrl-C and SIGTERM; long loops look at it between batches.
pub(super) static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Time for loops to notice. After it the process ends wherever it is: in a long inference, say, or an engine's build.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Makes Ctrl-C, SIGTERM and SIGHUP end the command.
pub(super) fn stop_on_signals(printer: &Printer, command: &'static str) {
    let own = printer.clone();
    let stop = move || {
        // A second signal does not wait. Files are renamed into place, so nothing half-written is left in any case.
        if !INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::thread::sleep(PATIENCE);
        }
        own.error(&interrupted(command));
        // SAFETY: ends the process at once. Handlers that run at exit would pull the runtimes' memory from under the
        // threads that still compute.
        unsafe { libc::_exit(2) };
    };
    if let Err(error) = ctrlc::set_handler(stop) {
        printer.warn(&format!("Ctrl-C will not stop cleanly: {error}"));
    }
}

fn interrupted(command: &str) -> String {
    match command {
        // Its figures are written at the end only.
        "bisect --target" => "interrupted; nothing of it is kept, and the same command begins anew".to_owned(),
        "run" | "bisect" => "interrupted; what was done is kept, and the same command goes on from there".to_owned(),
        _ => "interrupted".to_owned(),
    }
}

/// Runs a command: 0 passed, 1 a gate failed, 2 an error, an interrupt, or a panic on any thread that ended it.
pub(super) fn guarded(
    printer: &Printer,
    command: &'static str,
    action: impl FnOnce() -> anyhow::Result<ExitStatus>,
) -> u8 {
    let own = printer.clone();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic_is_expected() {
            own.error(&internal_error(command, panic));
        }
    }));
    match std::panic::catch_unwind(AssertUnwindSafe(action)) {
        Ok(Ok(ExitStatus::Passed)) => 0,
        Ok(Ok(ExitStatus::GateFailed)) => 1,
        Ok(Err(_)) if INTERRUPTED.load(Ordering::Relaxed) => {
            printer.error(&interrupted(command));
            2
        }
        Ok(Err(error)) => {
            printer.error(&describe(error.as_ref()));
            2
        }
        // The hook has said what happened.
        Err(_) => 2,
    }
}

/// Whether a panic tells that the system refused to start a thread.
fn is_about_threads(what: &str) -> bool {
    ["failed to spawn thread", "global thread pool has not been initialized"].iter().any(|known| what.contains(known))
}

/// What a defect looks like to the user.
fn internal_error(command: &str, panic: &PanicHookInfo<'_>) -> String {
    // Libraries that start threads end in a panic where the system refuses one.
    if panic.payload_as_str().is_some_and(is_about_threads) {
        return format!(
            "no thread could be started while {}; let the program take more memory with --max-memory-mb, or use fewer threads \
             with --threads",
            Printer::activity()
        );
    }
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let what = panic.payload_as_str().unwrap_or("no message");
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let trace = if backtrace.status() == BacktraceStatus::Captured { format!("\n{backtrace}") } else { String::new() };
    format!(
        "internal error in `calib {command}` while {}: {what} (at {place}, thread {}). This is a bug in calib {}: please \
         report it with this message, the command and, if you may share it, the model{trace}",
        Printer::activity(),
        thread.name().unwrap_or("without a name"),
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::GlobalArgs;

    #[test]
    fn a_panic_on_any_thread_is_status_2() {
        let printer = Printer::new(&GlobalArgs { quiet: true, ..GlobalArgs::default() });
        let failed = |action: fn() -> anyhow::Result<ExitStatus>| {
            assert_eq!(guarded(&printer, "test", action), 2);
        };
        failed(|| panic!("on this thread"));
        failed(|| std::thread::scope(|scope| scope.spawn(|| panic!("on a worker")).join()).map_err(|_| unreachable!()));
        failed(|| {
            use rayon::prelude::*;
            (0..4).into_par_iter().for_each(|i| assert!(i < 2, "in a pool"));
            Ok(ExitStatus::Passed)
        });
        failed(|| anyhow::bail!("an error"));
        assert_eq!(guarded(&printer, "test", || Ok(ExitStatus::GateFailed)), 1);
    }
}
