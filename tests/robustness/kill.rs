//! The real binary, stopped at random moments of a run: what is on disk is whole, and the same command finishes the run
//! to the same bytes as one that was never stopped.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use trtcalib::{artifact::ContentHash, stats::SplitMix64};

use super::{calib, demo_run, root};

/// Times a run is stopped before it may finish, at most.
const STOPS_IN_A_ROW: usize = 5;

/// Many checkpoints, so that many of them are cut short.
fn with_many_checkpoints(mut command: Command) -> Command {
    command.env("CALIB_CHECKPOINT_SECONDS", "0.02").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn run(out: &Path) -> Option<Command> {
    let mut command = demo_run(out)?;
    command.args(["--calib-samples", "40", "--eval-samples", "80"]);
    Some(with_many_checkpoints(command))
}

fn bisect(out: &Path) -> Option<Command> {
    let mut command = calib()?;
    command.arg("bisect").arg("--config").arg(root().join("configs/demo.toml")).args(["--tensorrt", "off", "--out"]);
    command.arg(out).args(["--calib-samples", "40", "--samples", "24", "--gate", "sqnr_db=25", "--max-trials", "16"]);
    Some(with_many_checkpoints(command))
}

/// How far a stopped run had come, by what it kept.
fn stage(found: &BTreeMap<String, Vec<u8>>) -> &'static str {
    let kept = |stage: &str| found.keys().any(|name| name.ends_with(&format!("/{stage}.checkpoint")));
    match () {
        () if found.contains_key("trials.json") => "bisection",
        () if kept("evaluation") => "evaluation",
        () if kept("choice") => "evaluation, layers",
        () if kept("calibration") => "calibration or choice",
        () if found.keys().any(|name| name.starts_with("checkpoints")) => "before calibration",
        () => "start or end",
    }
}

/// What must be the same in every run: all but times and dates.
fn without_times(document: &[u8]) -> Value {
    let mut document: Value = serde_json::from_slice(document).unwrap();
    for object in ["", "/calibration"] {
        let Some(Value::Object(object)) = document.pointer_mut(object) else { continue };
        for key in ["created", "seconds", "images_per_second", "peak_rss_bytes", "timings"] {
            object.remove(key);
        }
    }
    let steps = document.pointer_mut("/recovery/steps").and_then(Value::as_array_mut);
    steps.into_iter().flatten().filter_map(Value::as_object_mut).for_each(|step| drop(step.remove("seconds")));
    document
}

/// Where reports of former runs go.
const FORMER: &str = "former/";

/// What a deployment is called while it is made: its files are whole, and not yet all there.
const MAKING: &str = ".deploy.new";

/// Files under their final names.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name == MAKING {
            continue;
        }
        if entry.path().is_dir() {
            let inner = self::files(&entry.path());
            files.extend(inner.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if !name.starts_with('.') {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// What stands in a page between its head and its foot.
fn content(page: &[u8]) -> &str {
    let page = std::str::from_utf8(page).unwrap();
    let (_, behind) = page.split_once("<main").unwrap();
    behind.split_once("</main>").unwrap().0
}

/// Checks every file against the run that was never stopped: whole and the same, or of this run and whole.
fn check(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in found {
        // What a run that was stopped had written is kept there by the next one.
        let name = name.strip_prefix(FORMER).unwrap_or(name);
        match name {
            "report.json" | "bisect.json" => assert_eq!(without_times(bytes), without_times(&expected[name]), "{name}"),
            // Its head has a nonce, and its foot the seconds.
            "bisect.html" => assert_eq!(content(bytes), content(&expected[name]), "{name}"),
            "report.html" => assert!(bytes.ends_with(b"</html>\n") || bytes.ends_with(b"</html>"), "{name}"),
            "report.junit.xml" => assert!(bytes.trim_ascii_end().ends_with(b"</testsuites>"), "{name}"),
            "trials.json" => {
                // A part of the trials while it runs, the same in the end.
                let (found, all) = (without_times(bytes), without_times(&expected[name]));
                let (found, all) = (found["trials"].as_array().unwrap(), all["trials"].as_array().unwrap());
                assert!(all.starts_with(found), "{name} differs from the uninterrupted run");
            }
            _ if name.ends_with("/context") => assert_eq!(bytes.len(), 64),
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

/// Stops a command at random moments until `kills` were SIGKILL; every few times in a row it may finish.
fn stop_and_go_on(command: fn(&Path) -> Option<Command>, kills: usize, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let Some(mut whole) = command(&out) else { return };
    let started = Instant::now();
    assert!(whole.status().unwrap().code().is_some_and(|code| code < 2));
    let duration = started.elapsed();
    let expected = files(&out);
    assert!(expected.len() >= 6 && !expected.keys().any(|name| name.contains("checkpoint")), "{:?}", expected.keys());

    let mut random = SplitMix64::new(seed);
    let (mut killed, mut terminated, mut finished, mut resumed) = (0, 0, 0, 0);
    let mut stages: BTreeMap<&str, usize> = BTreeMap::new();
    while killed < kills {
        fs::remove_dir_all(&out).unwrap();
        for _ in 0..=random.below(STOPS_IN_A_ROW) {
            let mut child = command(&out).unwrap().spawn().unwrap();
            let moment = Duration::from_micros(random.below(duration.as_micros() as usize) as u64);
            std::thread::sleep(moment);
            let term = random.below(4) == 0;
            stop(&mut child, term);
            let output = child.wait_with_output().unwrap();
            resumed += usize::from(String::from_utf8_lossy(&output.stderr).contains("going on"));
            let found = if out.exists() { files(&out) } else { BTreeMap::new() };
            check(&found, &expected);
            if output.status.code().is_some_and(|code| code < 2) {
                continue;
            }
            *stages.entry(stage(&found)).or_default() += 1;
            killed += usize::from(!term);
            terminated += usize::from(term);
        }
        let output = command(&out).unwrap().output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code < 2), "{text}");
        resumed += usize::from(text.contains("going on"));
        finished += 1;
        let found = files(&out);
        check(&found, &expected);
        let names = found.keys().filter(|name| !name.starts_with(FORMER));
        assert_eq!(names.collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found.get("trials.json") == expected.get("trials.json"), "trials.json differs in the end");
        let litter: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(litter.iter().all(|name| !name.to_string_lossy().ends_with(".tmp") && name != MAKING), "{litter:?}");
    }
    println!(
        "killed {killed}, terminated {terminated}, at {stages:?}; finished {finished} runs of {:.1} s; {resumed} starts \
         went on from an earlier one; not whole 0, lost 0",
        duration.as_secs_f64()
    );
    assert!(resumed > 0 && stages.len() > 1, "{stages:?}");
}

/// Of all kills asked for, the share of one command.
fn kills(percent: usize) -> usize {
    std::env::var("CALIB_KILLS").ok().map_or(12, |text| text.parse::<usize>().unwrap()) * percent / 100
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    stop_and_go_on(run, kills(60), 7);
}

#[test]
fn a_killed_bisection_goes_on_to_the_same_bytes() {
    stop_and_go_on(bisect, kills(40), 11);
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
