//! Valid files of every format, damaged by a seed: none makes the library panic, hang or take gigabytes.
//!
//! Models stop here before ONNX Runtime: those that pass the diagnosis go through the real binary, a process each.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use trtcalib::{
    onnx::{Model, Severity, diagnose},
    stats::SplitMix64,
};

use super::{calib, formats, memory::take_peak, models, mutate::damage_protobuf, root};

/// The most that one file may cost.
const MOST_TIME: Duration = Duration::from_secs(5);
const MOST_BYTES: usize = 1 << 30;
/// Time after which a file counts as a hang and the test gives up.
const HANG: Duration = Duration::from_mins(1);

#[derive(Default)]
struct Tally {
    tried: usize,
    refused: usize,
    slowest: Duration,
    most_bytes: usize,
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn damaged_files_are_refused_or_read_never_a_crash() {
    let (count, first) = (number("CALIB_MUTANTS", 4000), number("CALIB_MUTANT", 0));
    let folder = tempfile::tempdir().unwrap();
    let formats = formats::all(folder.path());
    for format in &formats {
        let path = folder.path().join(format.file);
        std::fs::write(&path, &format.valid[0]).unwrap();
        (format.read)(&path).unwrap_or_else(|reason| panic!("a valid {} is refused: {reason}", format.name));
    }
    let tallies: Mutex<BTreeMap<&str, Tally>> = Mutex::default();
    let failures: Mutex<Vec<String>> = Mutex::default();
    let next = AtomicUsize::new(first);
    let begun: Vec<Mutex<Option<(usize, Instant)>>> = (0..2).map(|_| Mutex::default()).collect();
    let started = Instant::now();
    take_peak();
    std::thread::scope(|scope| {
        for slot in &begun {
            scope.spawn(|| {
                let folder = tempfile::tempdir().unwrap();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= first + count {
                        break;
                    }
                    let format = &formats[index % formats.len()];
                    let mut random = SplitMix64::new(index as u64);
                    let valid = &format.valid[random.below(format.valid.len())];
                    let path = folder.path().join(format.file);
                    std::fs::write(&path, (format.damage)(valid, &mut random)).unwrap();
                    let begin = Instant::now();
                    *slot.lock().unwrap() = Some((index, begin));
                    let result = catch_unwind(AssertUnwindSafe(|| (format.read)(&path)));
                    *slot.lock().unwrap() = None;
                    let (time, bytes) = (begin.elapsed(), take_peak());
                    if result.is_err() || time > MOST_TIME || bytes > MOST_BYTES {
                        let panicked = if result.is_err() { "panicked, " } else { "" };
                        let text = format!("{} {index}: {panicked}{time:.1?}, {} MB", format.name, bytes >> 20);
                        failures.lock().unwrap().push(text);
                    }
                    let mut tallies = tallies.lock().unwrap();
                    let tally = tallies.entry(format.name).or_default();
                    tally.tried += 1;
                    tally.refused += usize::from(matches!(result, Ok(Err(_))));
                    tally.slowest = tally.slowest.max(time);
                    tally.most_bytes = tally.most_bytes.max(bytes);
                }
            });
        }
        scope.spawn(|| {
            while next.load(Ordering::Relaxed) < first + count {
                std::thread::sleep(Duration::from_millis(200));
                for slot in &begun {
                    if let Some((index, begin)) = *slot.lock().unwrap()
                        && begin.elapsed() > HANG
                    {
                        println!("{} {index} hangs", formats[index % formats.len()].name);
                        std::process::abort();
                    }
                }
            }
        });
    });
    let mut total = Tally::default();
    println!("{:<18} {:>6} {:>8} {:>10} {:>8}", "format", "tried", "refused", "slowest", "MB");
    for (name, tally) in tallies.into_inner().unwrap() {
        println!(
            "{name:<18} {:>6} {:>8} {:>10.1?} {:>8}",
            tally.tried,
            tally.refused,
            tally.slowest,
            tally.most_bytes >> 20
        );
        total.tried += tally.tried;
        total.refused += tally.refused;
    }
    let failures = failures.into_inner().unwrap();
    println!(
        "tried {}, refused {}, read {}, failed {} in {:.0?}; `CALIB_MUTANT=<number> CALIB_MUTANTS=1` repeats one",
        total.tried,
        total.refused,
        total.tried - total.refused - failures.len(),
        failures.len(),
        started.elapsed()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // A harness whose damage is never noticed, or always at the first byte, tests nothing.
    assert!(first > 0 || (total.refused > count / 4 && total.refused < count));
}

/// Damaged models that the diagnosis lets through reach ONNX Runtime, which may end the process: one each.
#[test]
fn damaged_models_that_pass_the_diagnosis_do_not_end_the_process() {
    let count = number("CALIB_MODEL_RUNS", 12);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    // The demo can be quantized, the small model has branches.
    let demo = std::fs::read(root().join("calib_data/demo.onnx")).unwrap();
    let healthy = [(demo, "int8"), (models::small(), "fp16")];
    let (mut ran, mut refused, mut crashed) = (0, 0, Vec::new());
    for seed in 0.. {
        if ran + refused >= count {
            break;
        }
        let mut random = SplitMix64::new(seed);
        let (healthy, precision) = &healthy[seed as usize % 2];
        let Some(bytes) = damage_protobuf(healthy, &mut random) else { continue };
        std::fs::write(&path, bytes).unwrap();
        let Ok(model) = Model::load(&path) else { continue };
        if diagnose(&model).iter().any(|finding| finding.severity == Severity::Error) {
            continue;
        }
        let Some(mut command) = calib() else { return };
        command.args(["run", "--random-data", "--calib-samples", "2", "--eval-samples", "2", "--bench-seconds", "0"]);
        command
            .args(["--precisions", precision, "--tensorrt", "off", "--model"])
            .arg(&path)
            .arg("--out")
            .arg(folder.path().join("out"));
        // More memory than this ends the process, which would be seen.
        let mut limited = Command::new("bash");
        limited.args(["-c", "ulimit -v 8000000; exec \"$@\"", "bash"]).arg(command.get_program());
        let begin = Instant::now();
        let output = limited.args(command.get_args()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0 | 1) => ran += 1,
            Some(2) if !error.contains("internal error") => refused += 1,
            _ => {
                crashed.push(format!("{seed}: {} {error}", output.status));
                refused += 1;
            }
        }
        assert!(begin.elapsed() < HANG, "{seed} takes {:?}", begin.elapsed());
    }
    println!("models through the binary: {ran} ran, {refused} were refused, {} crashed", crashed.len());
    assert!(crashed.is_empty(), "{}", crashed.join("\n"));
    assert!(ran > refused, "most damage leaves a model that runs");
}
