//! Who runs a session from Python: the interpreter's lock is released, Ctrl-C stops, events reach a callable.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use pyo3::prelude::*;
use trtcalib::session::{Event, Host, PipelineError};

use crate::errors::{CalibError, exception};

/// How often signals are looked at, and how often progress is told.
const PERIOD: Duration = Duration::from_millis(100);

/// The process that ran the library first. One that is forked from it lacks the threads that were started for that, and
/// would wait for them for ever.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// Runs `work` on a thread of its own while Python may do other things; `listener` is called with
/// `(kind, text, done, total)` for every event.
pub fn run<T: Send>(
    py: Python<'_>,
    listener: Option<Py<PyAny>>,
    work: impl FnOnce(&Host) -> Result<T, PipelineError> + Send,
) -> PyResult<T> {
    if *PROCESS.get_or_init(std::process::id) != std::process::id() {
        return Err(CalibError::new_err(
            "this process was forked from one that had used trtcalib, whose threads it lacks; start it by \
             multiprocessing.get_context(\"spawn\"), or use trtcalib in one of them only",
        ));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let host = Host::new(listening(listener), Arc::clone(&stop));
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The other end waits for this.
            let _ = send.send(work(&host));
        });
        let receive = Mutex::new(receive);
        loop {
            let wait = || receive.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(PERIOD);
            match py.detach(wait) {
                Ok(result) => return result.map_err(|error| exception(&error)),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(interrupt) = py.check_signals() {
                        stop.store(true, Ordering::Relaxed);
                        let end = || receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let _ = py.detach(end);
                        return Err(interrupt);
                    }
                }
                // The thread panicked; joining it tells so.
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(CalibError::new_err("internal error: the work ended without a result"));
                }
            }
        }
    })
}

fn listening(listener: Option<Py<PyAny>>) -> impl Fn(Event<'_>) + Send + Sync + 'static {
    let last = Mutex::new(None::<Instant>);
    move |event| {
        let Some(listener) = &listener else { return };
        let (kind, text, done, total) = match event {
            Event::Progress { what, done, total } => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                // The first and the last step are always told.
                if done > 0 && done < total && last.is_some_and(|last| last.elapsed() < PERIOD) {
                    return;
                }
                *last = Some(Instant::now());
                ("progress", what.to_owned(), done, total)
            }
            Event::Finished { what } => ("finished", what.to_owned(), 0, 0),
            Event::Warning(text) => ("warning", text.to_owned(), 0, 0),
            Event::Note(text) => ("note", text.to_owned(), 0, 0),
            Event::Info(text) => ("info", text.to_owned(), 0, 0),
            Event::Detail(text) => ("detail", text.to_owned(), 0, 0),
            Event::Artifact(path) => ("artifact", path.display().to_string(), 0, 0),
            _ => return,
        };
        Python::attach(|py| {
            // A listener that fails must not end the work; Python says what happened.
            if let Err(error) = listener.call1(py, (kind, text, done, total)) {
                error.write_unraisable(py, None);
            }
        });
    }
}
