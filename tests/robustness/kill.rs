//! The real binary, stopped at random moments of a run: what is on disk is whole, and the same command finishes the run
//! to the same bytes as one that was never stopped.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use calib::{artifact::ContentHash, stats::SplitMix64};
use serde_json::Value;

use super::demo_run;

/// Times a run is stopped before it may finish, at most.
const STOPS_IN_A_ROW: usize = 5;

fn run(out: &Path) -> Option<Command> {
    let mut command = demo_run(out)?;
    command.args(["--calib-samples", "40", "--eval-samples", "80"]);
    // Many checkpoints, so that many of them are cut short.
    command.env("CALIB_CHECKPOINT_SECONDS", "0.02").stdout(Stdio::null()).stderr(Stdio::piped());
    Some(command)
}

/// What must be the same in every run: all but times and dates.
fn without_times(report: &[u8]) -> Value {
    let mut report: Value = serde_json::from_slice(report).unwrap();
    report.as_object_mut().unwrap().remove("created");
    let calibration = report["calibration"].as_object_mut().unwrap();
    for key in ["seconds", "images_per_second", "peak_rss_bytes"] {
        calibration.remove(key);
    }
    report
}

/// Files under their final names.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            let inner = self::files(&entry.path());
            files.extend(inner.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if !name.starts_with('.') {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// Checks every file against the run that was never stopped: whole and the same, or of this run and whole.
fn check(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in found {
        match name.as_str() {
            "report.json" => assert_eq!(without_times(bytes), without_times(&expected[name]), "{name}"),
            "report.html" => assert!(bytes.ends_with(b"</html>\n") || bytes.ends_with(b"</html>"), "{name}"),
            "report.junit.xml" => assert!(bytes.trim_ascii_end().ends_with(b"</testsuites>"), "{name}"),
            "checkpoints-run/context" => assert_eq!(bytes.len(), 64),
            _ if name.ends_with(".checkpoint") => {
                let (content, hash) = bytes.split_at(bytes.len() - 32);
                let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(ContentHash::of_bytes(content).as_str(), hash, "{name}");
            }
            _ => assert!(expected.get(name) == Some(bytes), "{name} differs from the uninterrupted run"),
        }
    }
}

fn stop(child: &mut Child, term: bool) {
    if term {
        // Ends by itself, keeping what was done; it may have ended already.
        let _ = Command::new("kill").arg(child.id().to_string()).stderr(Stdio::null()).status();
    } else {
        child.kill().unwrap();
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let kills = std::env::var("CALIB_KILLS").ok().map_or(10, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let Some(mut command) = run(&out) else { return };
    let started = Instant::now();
    assert!(command.status().unwrap().code().is_some_and(|code| code < 2));
    let duration = started.elapsed();
    let expected = files(&out);
    assert!(expected.len() >= 10 && !expected.keys().any(|name| name.contains("checkpoint")), "{:?}", expected.keys());

    let mut random = SplitMix64::new(7);
    let (mut killed, mut terminated, mut finished, mut resumed, mut with_checkpoints) = (0, 0, 0, 0, 0);
    while killed < kills {
        fs::remove_dir_all(&out).unwrap();
        for _ in 0..=random.below(STOPS_IN_A_ROW) {
            let mut child = run(&out).unwrap().spawn().unwrap();
            let moment = Duration::from_micros(random.below(duration.as_micros() as usize) as u64);
            std::thread::sleep(moment);
            let term = random.below(4) == 0;
            stop(&mut child, term);
            let output = child.wait_with_output().unwrap();
            resumed += usize::from(String::from_utf8_lossy(&output.stderr).contains("going on"));
            if !out.exists() {
                continue;
            }
            let found = files(&out);
            check(&found, &expected);
            with_checkpoints += usize::from(found.keys().any(|name| name.ends_with(".checkpoint")));
            if output.status.code().is_some_and(|code| code < 2) {
                continue;
            }
            killed += usize::from(!term);
            terminated += usize::from(term);
        }
        let output = run(&out).unwrap().output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code < 2), "{text}");
        resumed += usize::from(text.contains("going on"));
        finished += 1;
        let found = files(&out);
        check(&found, &expected);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        let litter: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(litter.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{litter:?}");
    }
    println!(
        "killed {killed}, terminated {terminated}, finished {finished} runs of {:.1} s; {resumed} went on from an \
         earlier one; {with_checkpoints} stops left checkpoints; not whole 0, lost 0",
        duration.as_secs_f64()
    );
    assert!(resumed > 0 && with_checkpoints > 0);
}

#[test]
fn other_options_start_over_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for tries in 0..8 {
        let Some(mut command) = run(&out) else { return };
        let mut child = command.spawn().unwrap();
        let checkpoint = out.join("checkpoints-run/calibration.checkpoint");
        let started = Instant::now();
        while !checkpoint.exists() && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if checkpoint.exists() {
            break;
        }
        assert!(tries < 7, "no run left a checkpoint");
    }
    let output = run(&out).unwrap().args(["--method", "mse"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("starting over") && text.contains("other options"), "{text}");
    let fresh = folder.path().join("fresh");
    run(&fresh).unwrap().args(["--method", "mse"]).output().unwrap();
    for name in ["calibration.json", "histograms.calib", "model.int8.onnx", "layers.csv"] {
        assert!(fs::read(out.join(name)).unwrap() == fs::read(fresh.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn runs_and_thread_counts_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut found = Vec::new();
    for threads in ["1", "1", "3"] {
        let Some(mut command) = run(&out) else { return };
        let status = command.args(["--threads", threads]).status().unwrap();
        assert!(status.code().is_some_and(|code| code < 2));
        let mut files = files(&out);
        // These tell the number of threads.
        for name in ["run.toml", "report.json", "report.html", "report.junit.xml"] {
            files.remove(name);
        }
        found.push(files);
        fs::remove_dir_all(&out).unwrap();
    }
    for (name, bytes) in &found[0] {
        assert!(found[1].get(name) == Some(bytes), "{name} differs between two runs");
        assert!(found[2].get(name) == Some(bytes), "{name} differs between thread counts");
    }
}
