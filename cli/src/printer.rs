//! What people and programs read: results on standard output, everything else on standard error.

use std::{
    borrow::Cow,
    fmt,
    io::{ErrorKind, IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use crate::args::{ColorChoice, GlobalArgs};
use trtcalib::report::StageTime;

/// A size in bytes, as the report has it.
pub(crate) fn size(bytes: u64) -> String {
    trtcalib::report::bytes(bytes).replace('\u{a0}', " ")
}

/// What the program is doing, for the report of a defect.
static ACTIVITY: Mutex<String> = Mutex::new(String::new());

/// Prints by the wishes of the command line.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub struct Printer {
    quiet: bool,
    verbose: u8,
    json: bool,
    progress: bool,
    color: bool,
    timings: bool,
}

impl Printer {
    /// A printer for the given options; honours `NO_COLOR`, and shows progress only on a terminal.
    pub fn new(global: &GlobalArgs) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let color = match global.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        Self {
            quiet: global.quiet,
            verbose: global.verbose,
            json: global.json,
            progress: terminal && !global.no_progress && !global.quiet,
            color,
            timings: global.timings,
        }
    }

    /// True when the result is to be JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// True when standard error takes colours.
    pub fn is_colored(&self) -> bool {
        self.color
    }

    /// A result for people, on standard output; nothing with `--json`.
    pub fn result(&self, text: &str) -> std::io::Result<()> {
        if self.json { Ok(()) } else { print(&harmless(text)) }
    }

    /// The result: `value` as JSON with `--json`, otherwise what `text` gives.
    pub fn outcome<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.json {
            print(&serde_json::to_string_pretty(value)?)?;
        } else {
            print(&harmless(&text()))?;
        }
        Ok(())
    }

    /// What is being done; not with `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line("", "", text);
        }
    }

    /// Details, with `-v`.
    pub fn detail(&self, text: &str) {
        text.clone_into(&mut ACTIVITY.lock().unwrap_or_else(PoisonError::into_inner));
        if self.verbose > 0 {
            self.line("", "", text);
        }
    }

    /// What the program said last that it is doing.
    pub fn activity() -> String {
        let activity = ACTIVITY.lock().unwrap_or_else(PoisonError::into_inner);
        if activity.is_empty() { "starting".to_owned() } else { activity.clone() }
    }

    /// Something the user should know before trusting the result.
    pub fn warn(&self, text: &str) {
        self.line("\x1b[33;1m", "warning: ", text);
    }

    /// Why the program stops.
    pub fn error(&self, text: &str) {
        self.line("\x1b[31;1m", "error: ", text);
    }

    /// What a session waited for, with `--timings`.
    pub fn timings(&self, stages: &[StageTime]) {
        if self.timings {
            self.line("", "", &table_of(stages));
        }
    }

    /// A progress bar over `length` steps with rate and time left; hidden when there is no terminal.
    pub fn progress(&self, length: u64, what: &str) -> ProgressBar {
        self.detail(what);
        let target = if self.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        // What follows a point in a template is a colour, not a precision.
        let template = "{msg:<12} {bar:30} {pos}/{len} {rate} eta {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
                let _ = text.write_str(&rate(state.per_sec()));
            };
            bar.set_style(style.with_key("rate", rate).progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn line(&self, style: &str, label: &str, text: &str) {
        let text = harmless(text);
        let (style, end) = if self.color && !label.is_empty() { (style, "\x1b[0m") } else { ("", "") };
        // Where nobody can be told, the exit status still tells.
        let _ = writeln!(std::io::stderr(), "{style}{label}{end}{text}");
    }
}

/// The stages of a session, and their sum.
fn table_of(stages: &[StageTime]) -> String {
    let mut table = crate::table::table(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["stage", "waited s", "CPU s", "sessions built", "passes", "samples read"]);
    let row = |stage: &str, times: [f64; 2], counts: [String; 3]| {
        let times = times.map(|seconds| format!("{seconds:.2}"));
        std::iter::once(stage.to_owned()).chain(times).chain(counts).collect::<Vec<_>>()
    };
    for StageTime { stage, seconds, cpu_seconds, sessions, passes, samples_read } in stages {
        let count = |count: &u64| if *count == 0 { String::new() } else { count.to_string() };
        let counts = [sessions, passes, samples_read].map(count);
        table.add_row(row(stage, [*seconds, *cpu_seconds], counts));
    }
    let sum = |of: fn(&StageTime) -> u64| stages.iter().map(of).sum::<u64>().to_string();
    let times = [stages.iter().map(|stage| stage.seconds).sum(), stages.iter().map(|stage| stage.cpu_seconds).sum()];
    let counts = [sum(|stage| stage.sessions), sum(|stage| stage.passes), sum(|stage| stage.samples_read)];
    table.add_row(row("all", times, counts));
    table.to_string()
}

/// Steps in a second: whole ones where there are many, with a digit where there are few.
fn rate(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1}/s") } else { format!("{per_second:.0}/s") }
}

/// Names from models and files, which may hold anything, must not drive the terminal: control characters other than
/// ends of lines and tabs are shown as codes, and so is what reverses the direction of writing.
fn harmless(text: &str) -> Cow<'_, str> {
    let drives = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(drives) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if drives(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// Prints a line; a reader that went away (`| head`) is not an error, a full disk is.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(std::io::Error::new(error.kind(), format!("the result cannot be written to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short_and_never_nothing_for_a_slow_model() {
        assert_eq!([0.25, 9.96, 10.2, 1234.5].map(rate), ["0.2/s", "10.0/s", "10/s", "1234/s"]);
    }

    #[test]
    fn stages_stand_in_a_table_with_their_sum() {
        let stage = |stage: &str, seconds, samples_read| StageTime {
            stage: stage.to_owned(),
            seconds,
            cpu_seconds: 2.0 * seconds,
            sessions: 2,
            passes: 0,
            samples_read,
        };
        let text = table_of(&[stage("opening", 0.25, 0), stage("comparing", 1.5, 40)]);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(rows.contains(&vec!["comparing", "1.50", "3.00", "2", "40"]), "{text}");
        assert!(rows.contains(&vec!["all", "1.75", "3.50", "4", "0", "40"]), "{text}");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(harmless("é\tplain\nlines"), "é\tplain\nlines");
        assert_eq!(harmless("a\x1b[2Jb\r\u{9b}c\u{202e}d"), "a\\u{1b}[2Jb\\u{d}\\u{9b}c\\u{202e}d");
    }
}
