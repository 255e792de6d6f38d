//! `scripts/try_tensorrt.sh`, which is for machines that have a TensorRT: here it runs against the stand-in.

use std::{
    path::Path,
    process::{Command, Output},
};

use calib_test_support::{calib_path, root};

use super::{error_of, outputs, text, with_stand_in};

fn tried(folder: &Path, orders: &str, more: &[&str]) -> Output {
    let mut command = Command::new(root().join("scripts/try_tensorrt.sh"));
    with_stand_in(&mut command, orders);
    command.arg("--calib").arg(calib_path()).arg("--out").arg(folder.join("tried"));
    command.args(["--seconds", "0.05", "--only-embedded"]).args(more).output().unwrap()
}

/// The names in the archive.
fn archived(folder: &Path) -> String {
    let listed = Command::new("tar").arg("-tzf").arg(folder.join("tried.tar.gz")).output().unwrap();
    assert!(listed.status.success(), "{}", error_of(&listed));
    String::from_utf8(listed.stdout).unwrap()
}

#[test]
fn the_script_tries_every_precision_and_leaves_one_archive() {
    let folder = tempfile::tempdir().unwrap();
    // A model without classes, in a folder of a name with a space.
    outputs::save_detector(folder.path());
    let pictures = folder.path().join("the pictures");
    std::fs::rename(folder.path().join("images"), &pictures).unwrap();
    let boxes = folder.path().join("boxes.onnx");
    let output = tried(folder.path(), "", &[text(&boxes), text(&pictures)]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", error_of(&output));
    assert!(said.lines().any(|line| line.starts_with("boxes-run ") && line.ends_with("passed")), "{said}");
    for precision in ["fp32", "fp16", "bf16", "int8", "fp8"] {
        for step in ["inspect", "compare", "bench", "bisect"] {
            let step = format!("demo-{precision}-{step}");
            assert!(said.lines().any(|line| line.starts_with(&step) && line.ends_with("passed")), "{step}: {said}");
        }
    }
    let archived = archived(folder.path());
    for name in ["machine.txt", "steps.txt", "doctor.txt", "demo-run.txt", "demo/report.json", "demo/report.html"] {
        assert!(archived.lines().any(|line| line == format!("tried/{name}")), "{name}: {archived}");
    }
    assert!(!archived.contains(".onnx\n") && !archived.contains(".plan\n"), "{archived}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join("tried").join(name)).unwrap();
    // ONNX Runtime's CPU provider does not run the model in BF16, and the engine is compared all the same.
    assert!(read("demo-bf16-compare.txt").contains("from which an engine was built, is left out"));
    let machine = read("machine.txt");
    assert!(machine.contains("calib ") && machine.contains("Linux"), "{machine}");
}

#[test]
fn the_script_keeps_what_is_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("tried/thesis.txt");
    std::fs::create_dir(own.parent().unwrap()).unwrap();
    std::fs::write(&own, "years of work").unwrap();
    let output = tried(folder.path(), "", &[]);
    assert_eq!(output.status.code(), Some(2), "{}", error_of(&output));
    assert!(error_of(&output).contains("not of this script") && own.exists(), "{}", error_of(&output));
}

/// What fails is what the archive is for.
#[test]
fn the_script_goes_on_after_a_failure_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = tried(folder.path(), "refuse-gpu", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", error_of(&output));
    assert!(said.contains("FAILED (exit status 2; demo-fp32-bench.txt)"), "{said}");
    assert!(archived(folder.path()).contains("tried/demo-fp32-bench.txt"));
    let told = std::fs::read_to_string(folder.path().join("tried/demo-fp32-bench.txt")).unwrap();
    assert!(told.contains("does not run it on this"), "{told}");
}
