//! Numbers as people read them. The unit stands behind a no-break space; what is missing is a dash.

use std::time::{SystemTime, UNIX_EPOCH};

/// Stands for a value that was not measured.
pub(super) const MISSING: &str = "–";

/// A share between 0 and 1 as a percentage; more samples carry more decimals.
pub(super) fn percent(share: f64, samples: usize) -> String {
    format!("{:.*}\u{a0}%", if samples < 2000 { 1 } else { 2 }, share * 100.0)
}

/// A share as a percentage with as many decimals as it needs, two at most: `98 %`, `97.65 %`.
pub(super) fn exact_percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    format!("{}\u{a0}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// An interval of shares, in percent, without the unit.
pub(super) fn percent_interval([low, high]: [f64; 2], samples: usize) -> String {
    let decimals = if samples < 2000 { 1 } else { 2 };
    format!("{:.decimals$}…{:.decimals$}", low * 100.0, high * 100.0)
}

/// A share that is usually tiny (values clipped): `0`, `< 0.001 %`, `0.012 %`.
pub(super) fn small_share(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0".to_owned(),
        p if p < 0.001 => "<\u{a0}0.001\u{a0}%".to_owned(),
        p => format!("{}\u{a0}%", significant(p, 2)),
    }
}

/// Decibels with one decimal.
pub(super) fn decibels(db: f64) -> String {
    format!("{db:.1}\u{a0}dB")
}

/// Milliseconds with three significant digits.
pub(super) fn milliseconds(ms: f64) -> String {
    format!("{}\u{a0}ms", significant(ms, 3))
}

/// A number with `digits` significant digits, in plain notation where that is short enough.
pub(super) fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // Rounding first: 9.996 has three digits before rounding and four characters after.
    let scientific = format!("{value:.*e}", digits.saturating_sub(1));
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if !(-4..=6).contains(&exponent) {
        return scientific;
    }
    format!("{value:.*}", (digits as i32 - 1 - exponent).max(0) as usize)
}

/// A size in bytes, with binary prefixes.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value < 100.0);
    format!("{value:.decimals$}\u{a0}{}", UNITS[unit])
}

/// A count with its thousands apart: `4 650 000`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A duration in seconds as `0.92 s`, `12 s`, `3 min 20 s`, `1 h 5 min`.
pub(super) fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.2}\u{a0}s"),
        10..120 => format!("{whole}\u{a0}s"),
        120..7200 => format!("{}\u{a0}min {}\u{a0}s", whole / 60, whole % 60),
        _ => format!("{}\u{a0}h {}\u{a0}min", whole / 3600, whole / 60 % 60),
    }
}

/// A message as a sentence of its own: begins with a capital letter, unless that is a name.
pub(super) fn sentence(text: &str) -> String {
    let word = text.split([' ', ':', ',']).next().unwrap_or("");
    let mut characters = text.chars();
    match characters.next() {
        Some(first) if word.chars().all(|c| c.is_ascii_lowercase()) => {
            first.to_ascii_uppercase().to_string() + characters.as_str()
        }
        _ => text.to_owned(),
    }
}

/// A path's last component.
pub(super) fn file_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).unwrap_or(path)
}

/// At most `limit` characters: the middle is left out, for the ends of node names tell them apart.
pub(super) fn shorten(text: &str, limit: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= limit {
        return text.to_owned();
    }
    let tail = limit / 2;
    let head = limit - tail - 1;
    characters[..head].iter().chain(&['…']).chain(&characters[characters.len() - tail..]).collect()
}

/// A word of a POSIX shell's command line, quoted where it must be.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Arguments as one line that a shell reads back as the same arguments.
pub(super) fn shell_line(arguments: &[String]) -> String {
    arguments.iter().map(|argument| shell_word(argument)).collect::<Vec<_>>().join(" ")
}

/// A time in UTC as RFC 3339 with whole seconds, for [`super::Report::created`].
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // Days to date: years begin in March, so that the leap day is a year's last; eras have 400 years, 146097 days.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for text in ["a b", "it's", "$HOME", "plain/path-1.onnx", "", "/blocks/.*", "é"] {
            let command = format!("printf %s {}", shell_word(text));
            let echoed = std::process::Command::new("sh").arg("-c").arg(command).output();
            assert_eq!(String::from_utf8_lossy(&echoed.unwrap().stdout), text);
        }
        assert_eq!(shell_word("plain/path-1.onnx"), "plain/path-1.onnx");
    }

    #[test]
    fn numbers_keep_their_significant_digits() {
        let cases =
            [(0.012_345_6, "0.0123"), (9.996, "10.0"), (123_456.0, "123456"), (1.5e-9, "1.50e-9"), (-2.0, "-2.00")];
        for (value, text) in cases {
            assert_eq!(significant(value, 3), text);
        }
        assert_eq!(percent(0.978, 1000), "97.8\u{a0}%");
        assert_eq!(percent(0.97802, 50_000), "97.80\u{a0}%");
        assert_eq!((exact_percent(0.98), exact_percent(0.9765)), ("98\u{a0}%".into(), "97.65\u{a0}%".into()));
        assert_eq!(small_share(0.000_001), "<\u{a0}0.001\u{a0}%");
        assert_eq!((bytes(1023), bytes(1_048_570)), ("1023\u{a0}B".into(), "1.0\u{a0}MiB".into()));
        assert_eq!((count(7), count(1_234_567)), ("7".into(), "1\u{202f}234\u{202f}567".into()));
        assert_eq!(seconds(200.2), "3\u{a0}min 20\u{a0}s");
    }

    #[test]
    fn sentences_begin_with_a_capital_and_names_stay_as_they_are() {
        for (text, expected) in [
            ("preprocessing: the best", "Preprocessing: the best"),
            ("int8 is slower", "int8 is slower"),
            ("`a/b` is clipped", "`a/b` is clipped"),
            ("model_x, at batch 1", "model_x, at batch 1"),
            ("", ""),
        ] {
            assert_eq!(sentence(text), expected);
        }
    }

    #[test]
    fn dates_agree_with_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_795_237_897, "2026-11-21T05:11:37Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn names_are_shortened_in_the_middle_and_quoted_for_the_shell() {
        assert_eq!(shorten("/blocks.0/conv/Conv", 11), "/bloc…/Conv");
        assert_eq!(shorten("日本語のノード名", 5), "日本…ド名");
        let arguments = ["calib", "--data", "a b", "it's", ""].map(str::to_owned);
        assert_eq!(shell_line(&arguments), r"calib --data 'a b' 'it'\''s' ''");
        assert_eq!((file_name("models/a.onnx"), file_name("/data/"), file_name("/")), ("a.onnx", "data", "/"));
    }
}
