//! The machine that measured, from what the script wrote down and what trtexec said.

use std::collections::BTreeMap;

use crate::report::Machine;

/// What a test double of TensorRT is called in all that it has a part in.
const STAND_IN: &str = " (stand-in)";

/// Reads `machine.txt` (lines `key: value`) and the logs of trtexec or calib. `None` where they name neither a board, a GPU nor
/// a host.
pub(super) fn machine(written: &str, logs: &[String]) -> Option<Machine> {
    let facts: BTreeMap<&str, &str> = written
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let fact = |key: &str| facts.get(key).map(|value| (*value).to_owned());
    let logged = |key: &str| logs.iter().find_map(|log| after(log, key));
    let tensorrt = fact("tensorrt").or_else(|| version(logs));
    let ran = tensorrt.clone().unwrap_or_default();
    let mut machine = Machine {
        name: fact("board").or_else(|| fact("gpu")).or_else(|| logged("Selected Device: ")).or_else(|| fact("host"))?,
        tensorrt,
        driver: fact("driver"),
        os: fact("os"),
        date: fact("date"),
    };
    ran_by(&mut machine, &ran);
    Some(machine)
}

fn version(logs: &[String]) -> Option<String> {
    logs.iter().find_map(|log| {
        let packed = || after(log, "[TensorRT v")?.split(']').next().and_then(unpacked);
        after(log, "TensorRT version: ").or_else(packed).or_else(|| named(log))
    })
}

/// What calib calls the library, `TensorRT 11.4.0` or `TensorRT-RTX 1.7.1 (stand-in)`: of the former the version alone.
fn named(log: &str) -> Option<String> {
    ["TensorRT-RTX ", "TensorRT "].into_iter().find_map(|name| {
        log.split(name).skip(1).find_map(|rest| {
            let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            let mark = if rest[version.len()..].starts_with(STAND_IN) { STAND_IN } else { "" };
            let flavour = if name.contains("RTX") { name } else { "" };
            version.contains('.').then(|| format!("{flavour}{}{mark}", version.trim_end_matches('.')))
        })
    })
}

/// Says of a machine that what it ran only stands in for TensorRT, if `library` does. Its name says so, too, for it is all
/// that charts, `layers.csv` and trends tell of a machine.
pub(super) fn ran_by(machine: &mut Machine, library: &str) {
    if !library.ends_with(STAND_IN) {
        return;
    }
    let version = machine.tensorrt.get_or_insert_with(|| "TensorRT".to_owned());
    if !version.ends_with(STAND_IN) {
        version.push_str(STAND_IN);
    }
    if !machine.name.contains("stand-in") {
        machine.name.push_str(STAND_IN);
    }
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
        let of_calib = |said: &str| machine("host: node7\n", &[said.to_owned()]).unwrap();
        let found = of_calib("engine: TensorRT-RTX 1.7.1 (stand-in), 4 MB\n");
        assert_eq!(
            (&*found.name, found.tensorrt.as_deref()),
            ("node7 (stand-in)", Some("TensorRT-RTX 1.7.1 (stand-in)"))
        );
        assert_eq!(of_calib("TensorRT warned; ran by TensorRT 11.4.0.\n").tensorrt.as_deref(), Some("11.4.0"));
        let mut marked = of_calib("");
        ran_by(&mut marked, "tensorrt");
        assert_eq!((&*marked.name, marked.tensorrt.as_deref()), ("node7", None));
        for _ in 0..2 {
            ran_by(&mut marked, "tensorrt (stand-in)");
            let found = (&*marked.name, marked.tensorrt.as_deref());
            assert_eq!(found, ("node7 (stand-in)", Some("TensorRT (stand-in)")));
        }
        assert_eq!((unpacked("8601").as_deref(), unpacked("x")), (Some("8.6.1"), None));
    }
}
