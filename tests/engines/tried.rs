//! `scripts/try_tensorrt.sh`, which is for machines that have a TensorRT: here it runs against the stand-in.

use std::{
    path::Path,
    process::{Command, Output},
};

use calib_test_support::{calib_path, root};

use trtcalib::{
    npz::write_npz,
    onnx::proto::NodeProto,
    tensor::{Tensor, TensorMap},
};

use super::{error_of, models, outputs, text, with_stand_in};

fn tried(folder: &Path, orders: &str, more: &[&str]) -> Output {
    let mut command = Command::new(root().join("scripts/try_tensorrt.sh"));
    with_stand_in(&mut command, orders);
    command.arg("--calib").arg(calib_path()).arg("--out").arg(folder.join("tried/"));
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
    // A batch that is fixed and sides that are free: only the data tell what to time.
    let nodes = vec![
        NodeProto::new("Conv", "conv", &["x", "k"], &["a"]),
        NodeProto::new("GlobalAveragePool", "mean", &["a"], &["y"]),
    ];
    let kernel = models::weight("k", &[5, 3, 1, 1], (0..15).map(|i| (i * 7 % 15) as f32 - 7.0).collect());
    let (x, y) = (vec![models::float("x", &[4, 3, -2, -3])], vec![models::float("y", &[4, 5, 1, 1])]);
    models::save(folder.path(), "fours", nodes, x, y, vec![kernel]);
    let (fours, rows) = (folder.path().join("fours.onnx"), folder.path().join("rows.npz"));
    let numbers = (0..16 * 3 * 48).map(|i| ((i * 53 % 97) as f32 - 48.0) / 48.0).collect();
    write_npz(&rows, &TensorMap::from([("x".to_owned(), Tensor::from_f32(vec![16, 3, 6, 8], numbers).unwrap())]))
        .unwrap();
    let output = tried(folder.path(), "", &[text(&boxes), text(&pictures), text(&fours), text(&rows)]);
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
    assert!(!folder.path().join("tried/.tar.gz").exists());
    for name in [
        "machine.txt",
        "steps.txt",
        "left_out.txt",
        "doctor.txt",
        "demo-run.txt",
        "demo/report.json",
        "demo/report.html",
    ] {
        assert!(archived.lines().any(|line| line == format!("tried/{name}")), "{name}: {archived}");
    }
    assert!(!archived.contains(".onnx\n") && !archived.contains(".plan\n"), "{archived}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join("tried").join(name)).unwrap();
    // ONNX Runtime's CPU provider does not run the model in BF16, and the engine is compared all the same.
    let told = read("demo-bf16-compare.txt");
    assert!(
        told.contains("from which an engine was built, is left out") && told.contains("an implementation for Conv"),
        "{told}"
    );
    // Nothing of it is worth 8 bits.
    assert!(read("left_out.txt").contains("fours-int8: there is no engine; fours-run.txt says why"));
    for precision in ["fp32", "fp16", "bf16"] {
        let told =
            format!("fours-{precision}-bench: batches 1 and 8 are not timed, but the usual one: error: --batch 1 was");
        assert!(read("left_out.txt").contains(&told), "{}", read("left_out.txt"));
        assert!(read(&format!("fours-{precision}-bench.txt")).contains("\"batch\": 4"));
    }
    assert!(!read("left_out.txt").contains("demo"), "{}", read("left_out.txt"));
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

#[test]
fn the_script_tells_its_options() {
    let output = Command::new(root().join("scripts/try_tensorrt.sh")).arg("--help").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("[--calib PROGRAM] [--out FOLDER]"),
        "{said}{}",
        error_of(&output)
    );
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
