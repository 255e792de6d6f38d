//! What a session tells while it works, and what it is told from outside: to stop.
//!
//! Every warning and note reaches the sink and is kept, so that whoever writes a report has them all.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::timings::Stages;
use crate::{bisect::trials, compare::Gate, report::StageTime};

/// Something that happens while a session works.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Work named `what` stands at `done` of `total` steps (0 where their number is not known); the first of a kind comes
    /// with nothing done.
    Progress {
        /// The work, e.g. `calibrating`.
        what: &'a str,
        /// Steps done (samples, mostly).
        done: u64,
        /// All steps.
        total: u64,
    },
    /// That work has ended, well or not.
    Finished {
        /// The work.
        what: &'a str,
    },
    /// What must be known before a result is trusted; it stands in the report.
    Warning(&'a str),
    /// What belongs beside the figures; it stands in the report.
    Note(&'a str),
    /// What has been done.
    Info(&'a str),
    /// What is being done, for those who want to know all.
    Detail(&'a str),
    /// A file was written.
    Artifact(&'a Path),
    /// The session is over: what it waited for, by stage.
    Timings(&'a [StageTime]),
    /// A plan was tried.
    Trial {
        /// The plan, and what it gave.
        progress: trials::Progress<'a>,
        /// What it was judged by.
        gates: &'a [Gate],
    },
}

/// Where events go. They may come from any thread.
pub type Sink = dyn Fn(Event<'_>) + Send + Sync;

/// The user asked a session to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Who runs a session: hears its events, and may stop it. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    sink: Arc<Sink>,
    stop: Arc<AtomicBool>,
    notes: Arc<Mutex<Vec<String>>>,
    stages: Arc<Mutex<Stages>>,
}

impl Default for Host {
    /// Hears nothing and never stops.
    fn default() -> Self {
        Self::new(|_| {}, Arc::default())
    }
}

impl Host {
    /// Hears events by `sink`; the session ends with an error soon after `stop` is set.
    pub fn new(sink: impl Fn(Event<'_>) + Send + Sync + 'static, stop: Arc<AtomicBool>) -> Self {
        Self { sink: Arc::new(sink), stop, notes: Arc::default(), stages: opening() }
    }

    /// The same host, with no notes and no times yet: every session keeps its own.
    pub(crate) fn afresh(&self) -> Self {
        Self { notes: Arc::default(), stages: opening(), ..self.clone() }
    }

    /// Ends a stage between batches when set.
    pub fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// An error once the session is to stop.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.stop.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// Warnings and notes so far, in order, each once.
    pub fn notes(&self) -> Vec<String> {
        self.kept().clone()
    }

    /// What was waited for until now, by stage: the times add up to that since the session began to open.
    pub fn timings(&self) -> Vec<StageTime> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).times()
    }

    /// What is waited for from now on.
    pub(crate) fn stage(&self, stage: &'static str) {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).turn_to(stage);
    }

    pub(crate) fn warn(&self, text: &str) {
        self.keep(text);
        (self.sink)(Event::Warning(text));
    }

    pub(crate) fn note(&self, text: &str) {
        self.keep(text);
        (self.sink)(Event::Note(text));
    }

    /// Notes that come before all others.
    pub(crate) fn note_first(&self, texts: Vec<String>) {
        for text in &texts {
            (self.sink)(Event::Note(text));
        }
        self.kept().splice(0..0, texts);
    }

    pub(crate) fn info(&self, text: &str) {
        (self.sink)(Event::Info(text));
    }

    pub(crate) fn detail(&self, text: &str) {
        (self.sink)(Event::Detail(text));
    }

    pub(crate) fn wrote(&self, path: &Path) {
        (self.sink)(Event::Artifact(path));
    }

    pub(crate) fn trial(&self, progress: trials::Progress<'_>, gates: &[Gate]) {
        (self.sink)(Event::Trial { progress, gates });
    }

    /// Work of `total` steps begins; it ends when this is dropped.
    pub(crate) fn begin<'a>(&'a self, what: &'a str, total: usize) -> Work<'a> {
        let work = Work { host: self, what, total: total as u64, done: AtomicU64::new(0) };
        self.tell(what, 0, work.total);
        work
    }

    /// Work stands at `done` of `total` steps.
    pub(crate) fn tell(&self, what: &str, done: u64, total: u64) {
        (self.sink)(Event::Progress { what, done, total });
    }

    fn keep(&self, text: &str) {
        let mut notes = self.kept();
        if !notes.iter().any(|known| known == text) {
            notes.push(text.to_owned());
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn opening() -> Arc<Mutex<Stages>> {
    Arc::new(Mutex::new(Stages::begin("opening")))
}

/// Tells the times of a session when it is dropped.
pub(super) struct TellTimings(pub(super) Host);

impl Drop for TellTimings {
    fn drop(&mut self) {
        (self.0.sink)(Event::Timings(&self.0.timings()));
    }
}

/// Work that goes on.
pub(crate) struct Work<'a> {
    host: &'a Host,
    what: &'a str,
    total: u64,
    done: AtomicU64,
}

impl Work<'_> {
    /// Some more steps are done.
    pub(crate) fn advance(&self, steps: usize) {
        let done = self.done.fetch_add(steps as u64, Ordering::Relaxed) + steps as u64;
        self.host.tell(self.what, done, self.total);
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        (self.host.sink)(Event::Finished { what: self.what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_notes_are_heard_and_kept_once_and_progress_adds_up() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = Arc::clone(&heard);
        let sink = move |event: Event<'_>| {
            let text = match event {
                Event::Progress { what, done, total } => format!("{what} {done}/{total}"),
                Event::Finished { what } => format!("{what} ended"),
                Event::Warning(text) => format!("warning {text}"),
                Event::Note(text) => format!("note {text}"),
                _ => "other".to_owned(),
            };
            ears.lock().unwrap().push(text);
        };
        let stop = Arc::new(AtomicBool::new(false));
        let host = Host::new(sink, Arc::clone(&stop));
        host.warn("a");
        host.clone().note("b");
        host.warn("a");
        host.note_first(vec!["c".to_owned()]);
        let work = host.begin("reading", 5);
        work.advance(2);
        work.advance(3);
        drop(work);
        assert_eq!(host.notes(), ["c", "a", "b"]);
        let expected = "warning a|note b|warning a|note c|reading 0/5|reading 2/5|reading 5/5|reading ended";
        assert_eq!(heard.lock().unwrap().join("|"), expected);
        host.check().unwrap();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(host.check().unwrap_err().to_string(), "interrupted");
    }
}
