//! Collects what TensorRT says.
//!
//! TensorRT keeps a pointer to the logger in everything that it makes and expects one logger for the whole process, so
//! there is one, and it is never dropped. Calls into the library take a [`Turn`], one at a time: what is logged
//! meanwhile belongs to it.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Message, Severity, explain::explain, layers::is_listing};

static LOGGER: OnceLock<trtx::Logger> = OnceLock::new();
static TURN: Mutex<()> = Mutex::new(());
static MESSAGES: Mutex<Vec<Message>> = Mutex::new(Vec::new());

fn messages() -> MutexGuard<'static, Vec<Message>> {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process's logger.
pub(super) fn logger() -> trtx::Result<&'static trtx::Logger> {
    if let Some(logger) = LOGGER.get() {
        return Ok(logger);
    }
    let made = trtx::Logger::new(Collector)?;
    Ok(LOGGER.get_or_init(|| made))
}

/// The right to call the library, and what it says during that time.
pub(super) struct Turn(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Turn {
    /// Waits for other calls to end.
    pub(super) fn take() -> Self {
        let turn = Self(TURN.lock().unwrap_or_else(PoisonError::into_inner));
        messages().clear();
        turn
    }

    /// Everything so far that is at least as grave as `least`, each on one line and once.
    pub(super) fn messages(&self, least: Severity) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        for text in self.said(least) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        texts
    }

    #[expect(clippy::unused_self, reason = "only the holder of the turn may ask")]
    fn said(&self, least: Severity) -> Vec<String> {
        let on_one_line = |message: &Message| message.text.split_whitespace().collect::<Vec<_>>().join(" ");
        let texts = messages().iter().filter(|message| message.severity <= least).map(on_one_line).collect::<Vec<_>>();
        texts.into_iter().filter(|text| !text.is_empty()).collect()
    }

    /// The last list of layers that the builder printed.
    #[expect(clippy::unused_self, reason = "only the holder of the turn may ask")]
    pub(super) fn listing(&self) -> Option<String> {
        messages().iter().rev().find(|message| is_listing(&message.text)).map(|message| message.text.clone())
    }

    /// The errors in one line, with the node named where TensorRT names it; `fallback` when it said nothing.
    pub(super) fn reason(&self, fallback: &str) -> String {
        explain(&self.said(Severity::Error)).unwrap_or_else(|| fallback.to_owned())
    }
}

struct Collector;

impl trtx::LogHandler for Collector {
    fn log(&self, severity: trtx::Severity, message: &str) {
        let severity = match severity {
            trtx::Severity::InternalError | trtx::Severity::Error => Severity::Error,
            trtx::Severity::Warning => Severity::Warning,
            trtx::Severity::Info => Severity::Info,
            // The one verbose message that is used: what the engine inspector would tell, without a GPU.
            trtx::Severity::Verbose if is_listing(message) => Severity::Verbose,
            trtx::Severity::Verbose => return,
        };
        let text = message.to_owned();
        if severity <= Severity::Warning {
            tracing::info!(target: "calib::tensorrt", ?severity, "{text}");
        } else {
            tracing::debug!(target: "calib::tensorrt", ?severity, "{text}");
        }
        messages().push(Message { severity, text });
    }
}
