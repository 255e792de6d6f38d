//! A run without a GPU, completed where there is one: its `deploy_calib.sh` runs on the stand-ins, and the report takes what
//! it packed.

use std::{fs, process::Command};

use calib_test_support::{calib_path, root};
use serde_json::Value;

use super::{ends, succeeds, text, with_stand_in};

#[test]
fn what_deploy_calib_packs_completes_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let config = root().join("configs/demo.toml");
    let here = ["run", "--config", text(&config), "--out", text(&run), "--tensorrt", "off", "--bench-seconds", "0"];
    succeeds(&[&here[..], &["--calib-samples", "16", "--eval-samples", "20", "--precisions", "fp32,int8"]].concat());
    let page = || fs::read_to_string(run.join("report.html")).unwrap();
    assert!(!page().contains("Measured elsewhere"), "nothing was measured yet");

    let mut there = Command::new(run.join("deploy/deploy_calib.sh"));
    with_stand_in(&mut there, "");
    let output = there.env("CALIB", calib_path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let archive = run.join("deploy/deploy.tar");
    succeeds(&["report", text(&run), "--measured", text(&archive), "--machine", "stand-in"]);

    let report: Value = serde_json::from_slice(&fs::read(run.join("report.json")).unwrap()).unwrap();
    for (number_type, at_least) in [("fp32", 80.0), ("int8", 40.0)] {
        let rows = report["precisions"].as_array().unwrap();
        let there = &rows.iter().find(|row| row["precision"] == number_type).unwrap()["measured_elsewhere"][0];
        assert_eq!((&there["machine"]["name"], &there["tied_by"]), (&"stand-in".into(), &"hash".into()), "{there}");
        assert_eq!(there["engine"]["summary"]["compute_by_type"][number_type], 26, "{there}");
        assert!(there["latency_ms"]["median"].as_f64().unwrap() > 0.0, "{there}");
        assert!(!there["layer_times"].as_array().unwrap().is_empty(), "{there}");
        // The stand-in computes in ONNX Runtime as well: what it adds is as good as nothing.
        let engine = there["outputs"]["engine"][0]["sqnr_db"].as_f64().unwrap_or(f64::INFINITY);
        assert!(engine > at_least, "{number_type}: {engine}");
    }
    assert!(report["layers"].as_array().unwrap().iter().any(|layer| layer["times"][0]["machine"] == "stand-in"));
    let page = page();
    let chart = page.split_once("Quality over latency").unwrap().1.split_once("</figcaption>").unwrap().0;
    assert!(["fp32 · stand-in", "int8 · stand-in"].iter().all(|point| chart.contains(point)), "{chart}");

    // Whichever file comes alone says what ran it, and so does whatever names nothing but the machine.
    let measured = run.join("deploy/measured");
    for (flag, file) in [
        ("--times", "times.json"),
        ("--profile", "profile.json"),
        ("--layers", "layers.json"),
        ("--outputs", "outputs.npz"),
    ] {
        let given = format!("fp32={}", text(&measured.join(format!("fp32.{file}"))));
        succeeds(&["report", text(&run), flag, &given, "--machine", &flag[2..]]);
        let report: Value = serde_json::from_slice(&fs::read(run.join("report.json")).unwrap()).unwrap();
        let rows = report["precisions"].as_array().unwrap();
        let there =
            rows.iter().find(|row| row["precision"] == "fp32").unwrap()["measured_elsewhere"].as_array().unwrap();
        let there = there.last().unwrap();
        assert_eq!(there["machine"]["name"], format!("{} (stand-in)", &flag[2..]), "{flag}: {there}");
        assert!(there["machine"]["tensorrt"].as_str().unwrap().ends_with("(stand-in)"), "{flag}: {there}");
    }
    // A profile alone is of INT8 where it names what no other model of the run has.
    let given = format!("int8={}", text(&measured.join("int8.profile.json")));
    succeeds(&["report", text(&run), "--profile", &given, "--machine", "profile"]);
    succeeds(&["report", text(&run), "--measured", text(&archive), "--machine", "board"]);
    assert!(fs::read_to_string(run.join("layers.csv")).unwrap().contains(",board (stand-in),"));
    let overlay = folder.path().join("overlay.json");
    succeeds(&[
        "report",
        text(&run),
        "-o",
        text(&folder.path().join("again.html")),
        "--model-explorer",
        text(&overlay),
    ]);
    let times = fs::read_to_string(folder.path().join("overlay.time.json")).unwrap();
    assert!(times.contains("on board (stand-in) (ms)"), "{times}");

    // Another run's report does not take it.
    let other = folder.path().join("other");
    let again = ["run", "--config", text(&config), "--out", text(&other), "--tensorrt", "off", "--bench-seconds", "0"];
    let minmax = ["--method", "minmax", "--calib-samples", "16", "--eval-samples", "20", "--precisions", "fp32,int8"];
    succeeds(&[&again[..], &minmax].concat());
    let refused = ends(2, "", &["report", text(&other), "--measured", text(&archive)]);
    assert!(refused.contains("its model of int8 is not one of this report"), "{refused}");
}
