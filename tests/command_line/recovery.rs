//! What recovery is asked for on the command line, and what it leaves.

use std::path::Path;

use serde_json::Value;

use super::{calib, demo, demo_flags, error_of, json};

/// The table of the demo model by `calib calibrate` with these flags.
fn table(folder: &Path, flags: &[&str]) -> Option<Value> {
    let mut command = calib()?;
    command.arg("calibrate").args(&demo_flags()[..2]).args(["--calib-samples", "24", "--effort", "default", "-o"]);
    command.arg(folder.join("table.json")).args(flags).assert().success();
    Some(json(&folder.join("table.json")))
}

fn steps(recovered: &Value) -> Vec<&str> {
    recovered["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

#[test]
fn a_gate_ends_recovery_where_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let Some(all) = table(folder.path(), &[]) else { return };
    let all = steps(&all["recovered"]);
    assert!(all.len() > 3, "{all:?}");
    let with = |gates: &[&str]| table(folder.path(), gates).unwrap()["recovered"].clone();
    let low = with(&["--gate", "sqnr_db=1"]);
    let mut run = calib().unwrap();
    run.args(["run", "--bench-seconds", "0"]).args(demo_flags()).args(["--precisions", "int8", "--gate", "sqnr_db=1"]);
    run.args(["--calib-samples", "24", "--eval-samples", "40", "--out"])
        .arg(folder.path().join("out"))
        .assert()
        .success();
    let notes = json(&folder.path().join("out/report.json"))["notes"].to_string();
    assert!(notes.contains("recovery, gates: they hold at 95 %"), "{notes}");
    assert_eq!(steps(&low), ["gates"]);
    let said = low["steps"][0]["what"].as_str().unwrap();
    assert!(said.contains("at 95 % on held-out samples"), "{said}");
    assert_eq!(steps(&with(&["--gate", "sqnr_db=1", "--gate", "sqnr_db=90"])), all, "all of them have to hold");
    assert_eq!(steps(&with(&["--gate", "top1=0.9"])), all, "ten of ten may be 72 of 100");
    assert_eq!(steps(&with(&["--gate", "size_mb=9"])), all, "that is nothing of the outputs");
    assert_eq!(steps(&with(&["--gate", "fp8:sqnr_db=1"])), all, "that is nothing of INT8");
    let mut wrong = calib().unwrap();
    wrong.arg("calibrate").args(&demo_flags()[..2]).args(["--gate", "sqnr_db[nowhere]=1", "-o"]);
    let error = error_of(wrong.arg(folder.path().join("wrong.json")));
    assert!(error.contains("`nowhere` is neither an output of the model nor"), "{error}");
    assert!(!folder.path().join("wrong.json").exists());
}

#[test]
fn fp8_is_recovered_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let Some(table) = table(folder.path(), &["--precisions", "int8,fp8"]) else { return };
    let fp8 = &table["fp8"];
    assert!(steps(&fp8["recovered"]).starts_with(&["biases", "ranges"]), "{fp8}");
    assert!(fp8["recovered"]["shifts"].is_null() && !table["recovered"]["shifts"].is_null());
    assert_eq!(fp8["amax"].as_object().unwrap().len(), table["tensors"].as_object().unwrap().len());
    let mut inspect = calib().unwrap();
    let said = inspect.arg("inspect").arg(folder.path().join("table.json")).output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&said).contains("for FP8 ranges of its own"));
    let out = folder.path().join("out");
    let mut run = calib().unwrap();
    run.args(["run", "--bench-seconds", "0"]).args(demo_flags()).args(["--precisions", "int8,fp8", "--out"]).arg(&out);
    run.args(["--calib-samples", "24", "--eval-samples", "40"]).assert().success();
    let report = json(&out.join("report.json"));
    assert_eq!(steps(&report["recovery_fp8"]), steps(&fp8["recovered"]));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Recovery of INT8, step by step") && page.contains("Recovery of FP8, step by step"));
    // A table without it says the same of INT8, and nothing of FP8.
    let sqnr = |out: &Path| {
        let report = json(&out.join("report.json"));
        let rows = report["precisions"].as_array().unwrap().clone();
        let row = rows.into_iter().find(|row| row["precision"] == "fp8").unwrap();
        row["outputs"][0]["sqnr_db"].as_f64().unwrap()
    };
    let mut without = json(&out.join("calibration.json"));
    without.as_object_mut().unwrap().remove("fp8");
    let file = folder.path().join("without.json");
    std::fs::write(&file, without.to_string()).unwrap();
    let plain = folder.path().join("plain");
    let mut again = calib().unwrap();
    again.args(["run", "--bench-seconds", "0"]).args(demo_flags()).args(["--precisions", "fp8", "--table"]).arg(&file);
    again.args(["--eval-samples", "40", "--out"]).arg(&plain).assert().success();
    let (recovered, plain) = (sqnr(&out), sqnr(&plain));
    assert!(recovered > plain + 0.3, "{recovered} {plain}");
}

#[test]
fn no_more_nodes_are_lifted_than_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let few = ["--lift-budget", "100%", "--lift-nodes", "1"];
    let Some(table) = table(folder.path(), &few) else { return };
    let lifted = table["recovered"]["lifted"].as_array().map_or(0, Vec::len);
    assert!(lifted <= 1 && steps(&table["recovered"]).contains(&"lifting"), "{table}");
    let mut run = calib().unwrap();
    run.args(["run", "--lift-nodes", "1", "--table", "table.json", "--model"]).arg(demo("demo.onnx"));
    let error = error_of(&mut run);
    assert!(error.contains("--lift-nodes"), "{error}");
}
