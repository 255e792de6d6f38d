//! Full disks and folders that take no files: errors, and nothing half-written.

use std::{fs, path::Path, process::Command};

use calib_test_support::Need;

use super::{demo_run, root};

/// A small file system in memory; unmounted when dropped. Only root can have one.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path())
            .output()
            .is_ok_and(|output| output.status.success());
        Need::Tmpfs.or_skip(if mounted { Ok(Self(folder)) } else { Err("no tmpfs can be mounted here") })
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Every file under a final name must be whole: JSON parses, the others end as they should.
fn check_whole(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() || name.starts_with('.') {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        files += 1;
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => drop(serde_json::from_slice::<serde_json::Value>(&bytes).expect(&name)),
            Some("calib") => drop(trtcalib::calibrate::Histograms::from_bytes(&bytes).expect(&name)),
            Some("onnx") => drop(trtcalib::onnx::Model::from_bytes(bytes).expect(&name)),
            Some("toml") => drop(trtcalib::config::RunConfig::load(&path).expect(&name)),
            _ => assert!(!bytes.is_empty(), "{name}"),
        }
    }
    files
}

fn small(command: &mut Command) -> &mut Command {
    command.args(["--calib-samples", "8", "--eval-samples", "8"])
}

#[test]
fn a_full_disk_is_an_error_and_leaves_whole_files() {
    let mut found = Vec::new();
    for kilobytes in [4, 40, 100, 200, 400, 600] {
        let Some(disk) = Tmpfs::new(&format!("size={kilobytes}k")) else { return };
        let Some(mut command) = demo_run(disk.0.path()) else { return };
        let output = small(&mut command).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{kilobytes} kB: {error}");
        assert!(error.contains("cannot ") && error.contains("No space left"), "{kilobytes} kB: {error}");
        found.push(check_whole(disk.0.path()));
    }
    assert!(found.iter().any(|&files| files > 1), "{found:?}");
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_leaves_whole_files() {
    let folder = tempfile::tempdir().unwrap();
    for kilobytes in [1, 60, 150, 300] {
        let Some(command) = demo_run(folder.path()) else { return };
        // The limit's signal is ignored, so that writes fail as on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$@\"");
        let mut limited = Command::new("bash");
        limited.args(["-c", &script, "bash"]).arg(command.get_program()).args(command.get_args());
        let output = small(&mut limited).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!error.contains("internal error"), "{error}");
        let enough = kilobytes >= 300;
        assert!(enough || output.status.code() == Some(2), "{kilobytes} kB: {error}");
        check_whole(folder.path());
    }
}

#[test]
fn a_folder_that_takes_no_files_is_an_error() {
    let Some(mut command) = demo_run(&root().join("Cargo.toml").join("out")) else { return };
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("cannot make the output folder"), "{error}");
    let Some(disk) = Tmpfs::new("ro") else { return };
    let output = demo_run(disk.0.path()).unwrap().output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("Read-only file system"), "{error}");
}
