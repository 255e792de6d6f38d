//! What is read stays as it is, what failed is not green, and what was made of other data is not joined.

use std::{fs, path::Path};

use super::{calib, demo, demo_flags, error_of, json, root};

/// Copies some images of the example; each has the content of the one `shifted` places behind it.
fn images(folder: &Path, shifted: usize) {
    fs::create_dir_all(folder).unwrap();
    let mut files: Vec<_> = fs::read_dir(demo("images")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.truncate(24);
    for (place, file) in files.iter().enumerate() {
        fs::copy(&files[(place + shifted) % files.len()], folder.join(file.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_refused_summary_is_not_written_over() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("images"), 0);
    let names = fs::read_dir(folder.path().join("images")).unwrap().map(|file| file.unwrap().file_name());
    let list: String = names.map(|name| format!("images/{}\n", name.display())).collect();
    fs::write(folder.path().join("list.txt"), list).unwrap();
    fs::copy(demo("demo.onnx"), folder.path().join("m.onnx")).unwrap();
    fs::write(folder.path().join("c.toml"), "model = \"m.onnx\"\ndata = \"images\"\npreset = \"unit\"\n").unwrap();
    let sample = folder.path().join("images/0003.png");
    let before = fs::read(&sample).unwrap();
    for given in [&["--model", "m.onnx", "--data", "list.txt"][..], &["--config", "c.toml"]] {
        let mut run = calib().unwrap();
        run.arg("run").args(given).args(["--summary", "images/0003.png", "--out", "out"]).current_dir(folder.path());
        assert!(error_of(&mut run).contains("would be written over"));
        assert_eq!(fs::read(&sample).unwrap(), before);
    }
    // What a run was told by stays, too.
    fs::create_dir(folder.path().join("out")).unwrap();
    let told = "# mine\nmodel = \"../m.onnx\"\ndata = \"../images\"\npreset = \"unit\"\nprecisions = [\"fp32\"]\n";
    fs::write(folder.path().join("out/run.toml"), told).unwrap();
    let mut run = calib().unwrap();
    run.args(["run", "--config", "out/run.toml", "--out", "out", "--bench-seconds", "0", "--tensorrt", "off"]);
    run.current_dir(folder.path()).assert().success();
    assert_eq!(fs::read_to_string(folder.path().join("out/former/run.toml")).unwrap(), told);
    assert!(fs::read_to_string(folder.path().join("out/run.toml")).unwrap().contains("bench_seconds = 0"));
}

#[test]
fn a_report_or_a_join_that_fails_leaves_nothing_green() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let example = root().join("reports/example");
    for page in ["review.html", "review.md", "review.csv"] {
        let report = |runs: &[&Path]| {
            let mut command = calib().unwrap();
            command.current_dir(folder.path()).arg("report").args(runs).args(["-o", page]);
            command
        };
        report(&[&example]).assert().success();
        let green = read(page);
        let error = error_of(&mut report(&[Path::new("nothere"), Path::new("--baseline"), &example]));
        assert!(error.contains("nothere"), "{error}");
        let red = read(page);
        assert!(red != green && red.contains("report failed") && red.contains("nothere"), "{red}");
    }
    fs::create_dir(folder.path().join("joined")).unwrap();
    for name in ["report.html", "report.junit.xml"] {
        fs::write(folder.path().join("joined").join(name), "green").unwrap();
    }
    let mut merge = calib().unwrap();
    let error = error_of(merge.current_dir(folder.path()).args(["merge", "nothere.part", "--out", "joined"]));
    assert!(error.contains("nothere.part"), "{error}");
    let tests = read("joined/report.junit.xml");
    assert!(tests.contains("errors=\"1\"") && tests.contains("nothere.part"), "{tests}");
    assert!(read("joined/report.html").contains("the run failed"));
}

#[test]
fn a_command_line_that_is_not_understood_leaves_nothing_green() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("d/configs/demo.toml", "out = \"../runs/demo\"\n");
    write("a/report.json", "{}");
    write("c.toml", "out = \"told\"\n");
    let left = |line: &str, file: &str| {
        write(file, "green");
        let error = error_of(calib().unwrap().current_dir(folder.path()).args(line.split(' ')));
        assert!(error.starts_with("error: "), "{line}: {error}");
        fs::read_to_string(folder.path().join(file)).unwrap_or_default()
    };
    for (line, file) in [
        ("run m.onnx --bogus --out out", "out/report.html"),
        ("run --bogus=1 --model m.onnx --out=out", "out/report.junit.xml"),
        ("run m.onnx n.onnx --gate top1=0.9 --gate nonsense=1 --out out", "out/report.html"),
        ("run m.onnx --out out --gate", "out/report.html"),
        ("run m.onnx --out out --shard 1/2", "out/report.html"),
        ("run m.onnx --precisions int8,int3", "runs/m/report.html"),
        ("run --config c.toml --preset a --letterbox centre", "told/report.html"),
        ("demo d --bogus", "d/runs/demo/report.html"),
        ("demo d --bogus -- --out=out", "out/report.html"),
        ("merge a.part --bogus --out out", "out/report.junit.xml"),
        ("merge --out out", "out/report.html"),
        ("bisect m.onnx --find=nothing --out out", "out/bisect.html"),
        ("bisect m.onnx --bogus --max-trials many", "runs/m/bisect.json"),
        ("report a --bogus -o page.html", "page.html"),
        ("report -o page.md", "page.md"),
        ("report a --trend --baseline b -o page.csv", "page.csv"),
        ("report a --bogus", "report.html"),
    ] {
        assert!(!left(line, file).contains("green"), "{line}");
    }
    // What would not have been written stays, and so do inputs.
    for (line, file) in [
        ("run m.onnx --bogus --out out --print-config", "out/report.html"),
        ("run m.onnx --bogus --out out --eval --part p", "out/report.html"),
        ("run --bogus", "runs/model/report.html"),
        ("compare ort --bogus --out out", "out/report.html"),
        ("report a --bogus --measured deploy.tar", "report.html"),
        ("report page.html --bogus -o page.html", "page.html"),
        ("report a/report.json -o a/layers.csv", "a/layers.csv"),
    ] {
        assert_eq!(left(line, file), "green", "{line}");
    }
}

#[test]
fn what_is_worse_than_the_baseline_is_said_before_the_gates_that_passed() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let example = root().join("reports/example");
    let mut worse = json(&example.join("report.json"));
    for precision in worse["precisions"].as_array_mut().unwrap() {
        if let Some(top1) = precision.pointer_mut("/agreement/top1") {
            *top1 = 0.1.into();
        }
    }
    fs::create_dir(folder.path().join("worse")).unwrap();
    fs::write(folder.path().join("worse/report.json"), worse.to_string()).unwrap();
    let against = |run: &Path, code: i32| {
        let mut report = calib().unwrap();
        report.current_dir(folder.path()).arg("report").arg(run).arg("--baseline").arg(&example).args(["-o", "r.md"]);
        report.assert().code(code);
        fs::read_to_string(folder.path().join("r.md")).unwrap()
    };
    assert!(against(&example, 0).starts_with("### ✅ Nothing is worse than in the baseline\n"));
    let told = against(Path::new("worse"), 1);
    assert!(told.starts_with("### ❌ Worse than the baseline: "), "{told}");
}

#[test]
fn shards_of_other_data_under_the_same_names_do_not_join() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("a"), 0);
    images(&folder.path().join("b"), 1);
    let shard = |words: &[&str], data: &str, shard: &str, flag: &str| {
        let mut command = calib().unwrap();
        command.current_dir(folder.path()).args(words).args(["--preset", "unit", "--data", data, "--shard", shard]);
        command
            .args([flag, &format!("{data}{}", &shard[..1])])
            .arg("--model")
            .arg(demo("demo.onnx"))
            .assert()
            .success();
    };
    for (data, part) in [("a", "1/2"), ("a", "2/2"), ("b", "2/2")] {
        shard(&["compare", "ort", "ort"], data, part, "--part");
    }
    let merge = |files: &[&str]| {
        let mut command = calib().unwrap();
        command.current_dir(folder.path()).arg("merge").args(files);
        command
    };
    merge(&["a1", "a2"]).assert().success();
    assert!(error_of(&mut merge(&["a1", "b2"])).contains("parts of different comparisons"));
    for (data, part) in [("a", "1/2"), ("a", "2/2"), ("b", "2/2")] {
        shard(&["calibrate", "--calib-samples", "12"], data, part, "--histograms");
    }
    merge(&["a1", "a2"]).assert().success();
    assert!(error_of(&mut merge(&["a1", "b2"])).contains("shards of different data"));
    // With the model biases are corrected, on the pictures that the shards observed.
    let with = |data: &str| {
        let mut command = merge(&["a1", "a2", "--preset", "unit", "--calib-samples", "12", "--data", data, "--model"]);
        command.arg(demo("demo.onnx"));
        command
    };
    with("a").assert().success();
    assert!(error_of(&mut with("b")).contains("is not what the shards observed under this name"));
}

/// A comparison of a model with itself on random data.
fn with_itself(model: &Path, folder: &Path) -> Option<assert_cmd::Command> {
    let mut compare = calib()?;
    compare
        .current_dir(folder)
        .args(["compare", "ort", "ort", "--random-data", "--samples", "8", "--model"])
        .arg(model);
    Some(compare)
}

#[test]
fn parts_of_a_comparison_on_random_data_and_what_is_joined_of_them_say_so() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let compare = |more: &[&str]| {
        let mut command = with_itself(&demo("demo.onnx"), folder.path()).unwrap();
        command.args(more).assert().success().get_output().stdout.clone()
    };
    for (shard, part) in [("1/2", "1.part"), ("2/2", "2.part")] {
        compare(&["--shard", shard, "--part", part]);
        assert_eq!(json(&folder.path().join(part))["part"]["comparing"]["random_data"], true);
    }
    let merged = calib().unwrap().current_dir(folder.path()).args(["merge", "1.part", "2.part"]).assert().success();
    let merged = merged.get_output().stdout.clone();
    for said in [merged, compare(&[])] {
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("RANDOM DATA: these figures say nothing about real inputs"), "{said}");
    }
    let found: serde_json::Value = serde_json::from_slice(&compare(&["--json"])).unwrap();
    assert_eq!(found["random_data"], true);
}

/// Telemetry would keep a database there, and end processes that end at the same time.
#[test]
fn nothing_is_left_in_the_users_folder() {
    let (home, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(mut compare) = with_itself(&demo("demo.onnx"), folder.path()) else { return };
    compare.env("HOME", home.path()).env_remove("XDG_CACHE_HOME").assert().success();
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn parts_of_a_former_comparison_are_not_joined_where_this_one_fails() {
    if calib().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let compare = |model: &Path, more: &[&str]| {
        let mut command = with_itself(model, folder.path()).unwrap();
        command.args(["--shard", "1/1", "--part", "1.part"]).args(more);
        command
    };
    let (model, nowhere) = (demo("demo.onnx"), Path::new("nowhere.onnx"));
    for (model_of_this, more) in [(nowhere, &[][..]), (&model, &["--frob"]), (&model, &["--ort-library", "none.so"])] {
        compare(&model, &[]).assert().success();
        assert!(folder.path().join("1.part").exists());
        error_of(&mut compare(model_of_this, more));
        assert!(!folder.path().join("1.part").exists(), "{more:?}");
    }
    // Who only asks what would be done loses nothing.
    compare(&model, &[]).assert().success();
    let mut run = calib().unwrap();
    run.current_dir(folder.path()).args(["run", "--random-data", "--eval", "--part", "1.part", "--print-config"]);
    run.arg(&model).assert().success();
    assert!(folder.path().join("1.part").exists());
    // What is no part was named by mistake.
    fs::write(folder.path().join("1.part"), "notes").unwrap();
    error_of(&mut compare(nowhere, &[]));
    assert_eq!(fs::read_to_string(folder.path().join("1.part")).unwrap(), "notes");
}

#[test]
fn what_a_bisection_on_random_data_leaves_says_so() {
    let Some(mut bisect) = calib() else { return };
    let folder = tempfile::tempdir().unwrap();
    bisect.current_dir(folder.path()).args(["bisect", "--random-data", "--calib-samples", "4", "--samples", "2"]);
    bisect.args(["--method", "minmax", "--effort", "off", "--tensorrt", "off", "--gate", "sqnr_db=60", "--out", "out"]);
    let output = bisect.arg("--model").arg(demo("demo.onnx")).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["bisect.json", "trials.json", "plan.json"] {
        assert_eq!(json(&folder.path().join("out").join(name))["random_data"], true, "{name}");
    }
    assert!(fs::read_to_string(folder.path().join("out/bisect.html")).unwrap().contains("RANDOM DATA"));
    // Who quantizes by such a plan hears it.
    let mut quantize = calib().unwrap();
    quantize.current_dir(folder.path()).args(["quantize", "-o", "q.onnx", "--plan", "out/plan.json", "--table"]);
    let output = quantize.arg("out/calibration.json").arg(demo("demo.onnx")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("plan was searched on random numbers"), "{told}");
    // So does who looks at what was made by it: with ranges of real data all but the plan says something.
    let (table, mut quantize) = (folder.path().join("real.json"), calib().unwrap());
    let mut calibrate = calib().unwrap();
    calibrate.args(["calibrate", "--effort", "off", "--calib-samples", "8", "-o"]).arg(&table);
    calibrate.args(&demo_flags()[..2]).assert().success();
    quantize.current_dir(folder.path()).args(["quantize", "-o", "q.onnx", "--plan", "out/plan.json", "--table"]);
    quantize.arg(&table).arg(demo("demo.onnx")).assert().success();
    for (name, mark) in
        [("q.onnx", "FROM RANDOM DATA"), ("out/plan.json", "RANDOM DATA"), ("out/bisect.json", "RANDOM DATA")]
    {
        let (said, _) = super::output(0, calib().unwrap().current_dir(folder.path()).args(["inspect", name]));
        assert!(said.lines().next().unwrap().contains(mark), "{name}: {said}");
    }
    let mut run = calib().unwrap();
    run.current_dir(folder.path()).args(["run", "--bench-seconds", "0", "--eval-samples", "8", "--out", "run"]);
    run.args(demo_flags()).args(["--plan", "out/plan.json", "--table"]).arg(&table).output().unwrap();
    assert_eq!(json(&folder.path().join("run/report.json"))["calibration"]["random_data"], true);
}
