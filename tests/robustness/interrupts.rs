//! Ctrl-C, SIGTERM and two runs at once.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::demo_run;

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
}

#[test]
fn signals_end_a_run_within_two_seconds_and_say_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    for (name, delay) in [("TERM", 150), ("INT", 500), ("TERM", 1200)] {
        let Some(mut command) = demo_run(folder.path()) else { return };
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        signal(&child, name);
        let sent = Instant::now();
        let output = child.wait_with_output().unwrap();
        // On a busy machine a fast run may end before the signal arrives.
        if output.status.success() {
            continue;
        }
        assert!(sent.elapsed() < Duration::from_millis(2500), "{name}: {:?}", sent.elapsed());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("interrupted") && error.contains("the same command goes on"), "{error}");
        assert!(!error.contains("internal error"), "{error}");
    }
}

#[test]
fn two_runs_into_one_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut command) = demo_run(folder.path()) else { return };
    let lock = File::create(folder.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("another run is writing into"), "{error}");
    // A lock whose owner is gone, its file still there, is not a lock.
    drop(lock);
    let output = command.args(["--calib-samples", "8", "--eval-samples", "8"]).output().unwrap();
    assert_ne!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
