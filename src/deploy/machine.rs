//! The machine that measured, from what the script wrote down and what trtexec said.

use std::collections::BTreeMap;

use crate::report::Machine;

/// Reads `machine.txt` (lines `key: value`) and trtexec's logs. `None` where neither names a GPU or a board.
pub(super) fn machine(written: &str, logs: &[String]) -> Option<Machine> {
    let facts: BTreeMap<&str, &str> = written
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let fact = |key: &str| facts.get(key).map(|value| (*value).to_owned());
    let logged = |key: &str| logs.iter().find_map(|log| after(log, key));
    Some(Machine {
        name: fact("board").or_else(|| fact("gpu")).or_else(|| logged("Selected Device: "))?,
        tensorrt: fact("tensorrt").or_else(|| version(logs)),
        driver: fact("driver"),
        os: fact("os"),
        date: fact("date"),
    })
}

fn version(logs: &[String]) -> Option<String> {
    logs.iter().find_map(|log| {
        let packed = || after(log, "[TensorRT v")?.split(']').next().and_then(unpacked);
        after(log, "TensorRT version: ").or_else(packed)
    })
}

/// `10.3.0` from `100300`, and `8.6.1` from `8601`.
fn unpacked(digits: &str) -> Option<String> {
    let number: u32 = digits.parse().ok()?;
    let unit = if number >= 100_000 { [10_000, 100] } else { [1000, 100] };
    Some(format!("{}.{}.{}", number / unit[0], number % unit[0] / unit[1], number % unit[1]))
}

/// The rest of the first line that holds `key`.
fn after(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| Some(line.split_once(key)?.1.trim()))?;
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_comes_before_its_gpu_and_logs_fill_the_gaps() {
        let written = "date: 2026-11-27T09:00:00Z\nos: Linux 5.15 aarch64\nboard: NVIDIA Jetson Orin Nano\ngpu: Orin (nvgpu)\ndriver:\n";
        let log = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec\n[01/02/2026-03:04:05] [I] Selected Device: Orin\n";
        let found = machine(written, &[log.to_owned()]).unwrap();
        assert_eq!((&*found.name, found.tensorrt.as_deref()), ("NVIDIA Jetson Orin Nano", Some("10.3.0")));
        assert_eq!((found.driver, found.date.as_deref()), (None, Some("2026-11-27T09:00:00Z")));
        let said = "[I] Selected Device: Tesla T4\n[I] TensorRT version: 8.6.1\n".to_owned();
        let found = machine("", &[said]).unwrap();
        assert_eq!((&*found.name, found.tensorrt.as_deref()), ("Tesla T4", Some("8.6.1")));
        assert_eq!(machine("os: Linux\n", &[]), None);
        assert_eq!((unpacked("8601").as_deref(), unpacked("x")), (Some("8.6.1"), None));
    }
}
