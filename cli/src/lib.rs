//! The programs `calib` and `compare`: what can be typed, and what is printed. All work is the library's, `trtcalib`.

use std::{ffi::OsString, io};

use clap::Parser;

pub mod args;
pub mod commands;
pub mod heap;
pub mod printer;
mod table;

/// Runs `calib` with the words of a command line, the program's name first, and returns its exit status: 0 passed,
/// 1 a gate failed, 2 an error.
pub fn calib(words: impl IntoIterator<Item = OsString>) -> u8 {
    let words: Vec<OsString> = words.into_iter().collect();
    parsed::<args::Cli>(&words, |cli| commands::main(&cli.global, cli.command), commands::not_understood)
}

/// Runs `compare`, which is the same as `calib compare`.
pub fn compare(words: impl IntoIterator<Item = OsString>) -> u8 {
    let words: Vec<OsString> = words.into_iter().collect();
    let compare = |cli: args::CompareCli| commands::main(&cli.global, args::Command::Compare(cli.compare));
    parsed(&words, compare, |_, _| ())
}

/// What cannot be parsed, and help and versions, are printed by clap; of the former `refused` hears as well.
fn parsed<C: Parser>(words: &[OsString], run: impl FnOnce(C) -> u8, refused: impl FnOnce(&[OsString], &str)) -> u8 {
    match C::try_parse_from(words) {
        Ok(cli) => run(cli),
        Err(error) => {
            // A reader that went away is not an error.
            let is_unheard = error.print().is_err_and(|failed| failed.kind() != io::ErrorKind::BrokenPipe);
            if error.use_stderr() {
                let text = error.to_string();
                let reason = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
                refused(words, reason);
            }
            if is_unheard { 2 } else { u8::try_from(error.exit_code()).unwrap_or(2) }
        }
    }
}
