//! Collects what TensorRT says.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Message, Severity};

/// A log that the library writes and we read.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Message>>>);

impl Log {
    /// Everything so far that is at least as grave as `least`.
    pub(super) fn messages(&self, least: Severity) -> Vec<String> {
        let messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.iter().filter(|message| message.severity <= least).map(|message| message.text.clone()).collect()
    }

    /// The errors in one line, with the node named where TensorRT names it; `fallback` when it said nothing.
    pub(super) fn reason(&self, fallback: &str) -> String {
        let mut errors: Vec<String> = Vec::new();
        for text in self.messages(Severity::Error) {
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            if !text.is_empty() && !errors.contains(&text) {
                errors.push(text);
            }
        }
        if errors.is_empty() { fallback.to_owned() } else { errors.join("; ") }
    }
}

impl trtx::LogHandler for Log {
    fn log(&self, severity: trtx::Severity, message: &str) {
        let severity = match severity {
            trtx::Severity::InternalError | trtx::Severity::Error => Severity::Error,
            trtx::Severity::Warning => Severity::Warning,
            trtx::Severity::Info => Severity::Info,
            trtx::Severity::Verbose => return,
        };
        let text = message.to_owned();
        tracing::debug!(target: "calib::tensorrt", ?severity, "{text}");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Message { severity, text });
    }
}
