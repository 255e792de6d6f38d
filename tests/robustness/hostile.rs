//! The lists of bad data and bad models, through the real binary.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use trtcalib::{
    npz::write_npz,
    tensor::{Tensor, TensorMap},
};

use super::{calib, demo_run, models, root};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Copies `count` of the demo's images.
fn images(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        let name = format!("{index:04}.png");
        fs::copy(root().join("calib_data/images").join(&name), folder.join(&name)).unwrap();
    }
}

/// A run over `data`, with images of any size made to fit.
fn run_over(data: &Path, out: &Path) -> Option<Command> {
    let mut command = demo_run(out)?;
    command.arg("--data").arg(data).args(["--preset", "unit", "--calib-samples", "20"]);
    Some(command)
}

#[test]
fn bad_data_is_skipped_and_listed_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    images(&data, 50);
    let fixtures = root().join("tests/fixtures/images");
    for name in [
        "bad_empty.jpg",
        "bad_huge.jpg",
        "bad_huge.png",
        "bad_text.jpg",
        "bad_truncated.jpg",
        "bad_truncated.png",
        "jpeg_cmyk.jpg",
        "png_rgb16.png",
        "png_one_pixel.png",
        "webp_animated.webp",
    ] {
        fs::copy(fixtures.join(name), data.join(name)).unwrap();
    }
    symlink("loop_b.png", data.join("loop_a.png")).unwrap();
    symlink("loop_a.png", data.join("loop_b.png")).unwrap();
    symlink(".", data.join("folder_loop")).unwrap();
    let odd = ["with space.png", "with\nnewline.png", "<b>&\"quoted'.png", "$(touch pwned); `x`.png"];
    // What stands behind the picture makes it no copy of another.
    let picture = fs::read(data.join("0000.png")).unwrap();
    for name in odd.iter().map(|name| name.as_bytes()).chain([&b"bytes\xff\xfe.png"[..]]) {
        fs::write(data.join(std::ffi::OsStr::from_bytes(name)), [&picture, name].concat()).unwrap();
    }
    let status = Command::new("mkfifo").arg(data.join("pipe.png")).status().unwrap();
    assert!(status.success());
    fs::create_dir(data.join("folder.png")).unwrap();

    let Some(mut command) = run_over(&data, &out) else { return };
    let output = command.args(["--max-bad", "30%"]).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", text(&output));
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let skipped: Vec<(&str, &str)> = report["dataset"]["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|skipped| (skipped["sample"].as_str().unwrap(), skipped["reason"].as_str().unwrap()))
        .collect();
    let names: Vec<&str> = skipped.iter().map(|(name, _)| *name).collect();
    let expected = [
        "bad_empty.jpg",
        "bad_huge.jpg",
        "bad_huge.png",
        "bad_text.jpg",
        "bad_truncated.jpg",
        "bad_truncated.png",
        "loop_a.png",
        "loop_b.png",
        "pipe.png",
    ];
    assert_eq!(names, expected, "{skipped:?}");
    assert!(skipped.iter().all(|(_, reason)| reason.len() > 8), "{skipped:?}");
    let used = |name: &str| {
        ["calibration", "evaluation"]
            .iter()
            .any(|part| report["dataset"][part].as_array().unwrap().iter().any(|id| id == name))
    };
    for name in odd.iter().chain(&["bytes\\xff\\xfe.png", "jpeg_cmyk.jpg", "png_one_pixel.png", "webp_animated.webp"]) {
        assert!(used(name), "{name:?}");
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(!page.contains("<b>&\"quoted"), "a file name stands in the page unescaped");
    assert!(!Path::new("pwned").exists() && !data.join("pwned").exists());
    assert!(report["calibration"]["peak_rss_bytes"].as_u64().unwrap() < 1 << 30);

    let output = run_over(&data, &out).unwrap().output().unwrap();
    assert!(output.status.code() == Some(2) && text(&output).contains("--max-bad"), "{}", text(&output));
    let output = run_over(&data, &out).unwrap().arg("--strict").output().unwrap();
    assert!(output.status.code() == Some(2) && text(&output).contains("--strict"), "{}", text(&output));
}

#[test]
fn files_that_vanish_during_the_run_are_bad_samples() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    images(&data, 200);
    let Some(mut command) = run_over(&data, &out) else { return };
    command.args(["--max-bad", "100%"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let started = Instant::now();
    while !out.join("histograms.calib").exists() && started.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
    for index in (0..200).step_by(3) {
        fs::remove_file(data.join(format!("{index:04}.png"))).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", text(&output));
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    for skipped in report["dataset"]["skipped"].as_array().unwrap() {
        assert!(skipped["reason"].as_str().unwrap().contains("cannot be read"), "{skipped}");
    }
}

#[test]
fn nan_names_sample_and_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("x.npz");
    let Some(mut command) = calib() else { return };
    let size = demo_size();
    let mut values = vec![0.25_f32; 4 * 3 * size * size];
    values[2 * 3 * size * size + 5] = f32::NAN;
    let tensor = Tensor::from_f32(vec![4, 3, size, size], values).unwrap();
    write_npz(&data, &TensorMap::from([("input".to_owned(), tensor)])).unwrap();
    command.args(["calibrate", "--model"]).arg(root().join("calib_data/demo.onnx")).arg("--data").arg(&data);
    let output = command.arg("-o").arg(folder.path().join("t.json")).output().unwrap();
    let error = text(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("`input`") && error.contains("sample 2") && error.contains("NaN"), "{error}");
    assert!(!folder.path().join("t.json").exists());
}

#[test]
fn where_nothing_can_be_read_the_first_sample_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (data, table) = (folder.path().join("data"), folder.path().join("t.json"));
    fs::create_dir(&data).unwrap();
    for name in ["a.png", "b.png"] {
        fs::write(data.join(name), "no picture").unwrap();
    }
    let Some(mut command) = calib() else { return };
    command
        .args(["calibrate", "--max-bad", "100%", "--preset", "unit", "--model"])
        .arg(root().join("calib_data/demo.onnx"));
    let output = command.arg("--data").arg(&data).arg("-o").arg(&table).output().unwrap();
    let error = text(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("no sample to calibrate on can be read; the first is"), "{error}");
    assert!(error.contains(".png: ") && !table.exists(), "{error}");
}

/// Side of the demo's pictures.
fn demo_size() -> usize {
    let bytes = fs::read(root().join("calib_data/images/0000.png")).unwrap();
    u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize
}

#[test]
fn labels_that_are_missing_doubled_or_out_of_range_are_said_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    images(&data, 30);
    let labels = folder.path().join("labels.csv");
    let rows = |change: &dyn Fn(usize) -> String| (0..30).map(change).collect::<String>();
    let run = |content: String| {
        fs::write(&labels, content).unwrap();
        let mut command = run_over(&data, &out)?;
        Some(command.arg("--labels").arg(&labels).output().unwrap())
    };
    let plain = |index: usize| format!("{index:04}.png,{}\n", index % 10);
    let Some(output) = run(rows(&plain) + "0003.png,7\n") else { return };
    assert!(output.status.code() == Some(2) && text(&output).contains("0003.png"), "{}", text(&output));
    let output = run(rows(&|index| if index % 3 == 0 { String::new() } else { plain(index) })).unwrap();
    let error = text(&output);
    assert!(error.contains("evaluation samples have no label") && error.contains("the first is 00"), "{error}");
    let output = run(rows(&|index| format!("{index:04}.png,{}\n", 1000 + index))).unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", text(&output));
    assert!(text(&output).contains("labels lie beyond the model's"), "{}", text(&output));
    // Labels of calibration samples alone leave nothing to measure accuracy on.
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let calibrated = report["dataset"]["calibration"][0].as_str().unwrap();
    let output = run(format!("{calibrated},1\n")).unwrap();
    assert!(text(&output).contains("10 of 10 evaluation samples have no label"), "{}", text(&output));
}

#[test]
fn bad_models_are_errors_that_name_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("short.bin"), [0; 100]).unwrap();
    fs::write(folder.path().join("secret.bin"), [0; 324]).unwrap();
    symlink("../secret.bin", inside.join("link.bin")).unwrap();
    let path = inside.join("m.onnx");
    let mut wrong = Vec::new();
    let all = models::broken();
    for (what, word, bytes) in &all {
        fs::write(&path, bytes).unwrap();
        let Some(mut command) = calib() else { return };
        let started = Instant::now();
        let out = folder.path().join("out");
        command.args(["run", "--random-data", "--calib-samples", "2", "--eval-samples", "2", "--bench-seconds", "0"]);
        let output = command.arg("--model").arg(&path).arg("--out").arg(&out).output().unwrap();
        let error = text(&output);
        let refused = output.status.code() == Some(2) && error.contains(word) && !error.contains("internal error");
        if !refused || started.elapsed() > Duration::from_secs(20) {
            wrong.push(format!("{what}: {:?} after {:.1?}: {error}", output.status, started.elapsed()));
        }
    }
    println!("{} bad models, {} not refused by name", all.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_far_larger_than_any_of_their_kind_are_refused_before_they_are_read() {
    use trtcalib::{calibrate::cache::CalibrationCache, config::RunConfig, dataset};
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 40).unwrap();
    let path = file.path();
    let chain = |error: &dyn std::error::Error| {
        format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
    };
    let errors = [
        RunConfig::load(path).map_err(|error| chain(&error)).err(),
        CalibrationCache::load(path).map_err(|error| chain(&error)).err(),
        dataset::load_classes(path).map_err(|error| chain(&error)).err(),
        dataset::load_preprocessor(path, None).map_err(|error| chain(&error)).err(),
    ];
    for error in errors {
        let error = error.unwrap();
        let is_named = error.contains(&path.display().to_string());
        assert!(is_named && error.contains("1099511627776 bytes are more than the "), "{error}");
    }
}

#[test]
fn a_pipe_in_place_of_a_file_is_refused_by_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name).display().to_string();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    let [onnx, json, npz, toml, other] = ["m.onnx", "p.json", "p.npz", "p.toml", "p"].map(pipe);
    let [demo, out] =
        [root().join("calib_data/demo.onnx"), folder.path().join("out")].map(|path| path.display().to_string());
    let (demo, out) = (demo.as_str(), out.as_str());
    let run = ["run", "--model", demo, "--random-data", "--out", out];
    let commands: [&[&str]; 12] = [
        &["inspect", &onnx],
        &["inspect", &json],
        &["inspect", &npz],
        &["bench", &onnx],
        &["run", "--config", &toml],
        &["quantize", "--model", demo, "--table", &json, "-o", out],
        &["compare", "--ref", "ort", "--model", demo, "--target", &npz, "--random-data"],
        &["compare", "--ref", "ort", "--model", demo, "--target", demo, "--data", &json],
        &["merge", &other, "-o", out],
        &["report", &json, "-o", out],
        &[&run[..], &["--plan", &json]].concat(),
        &[&run[..], &["--table", &json]].concat(),
    ];
    for arguments in commands {
        let Some(command) = calib() else { return };
        let mut limited = Command::new("timeout");
        limited.arg("20").arg(command.get_program()).args(arguments);
        limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = limited.output().unwrap();
        let error = text(&output);
        assert!(output.status.code() == Some(2) && error.contains("regular file"), "{arguments:?}: {error}");
    }
}

#[test]
fn archives_that_unpack_to_far_more_are_refused_one_member_or_many() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.npz");
    for (members, megabytes) in [(1, 300), (4, 100)] {
        let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for member in 0..members {
            archive.start_file(format!("{member}.npy"), options).unwrap();
            let header =
                format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({}, 1024), }}\n", megabytes << 10);
            archive.write_all(b"\x93NUMPY\x01\x00").unwrap();
            archive.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
            archive.write_all(header.as_bytes()).unwrap();
            let zeros = vec![0; 1 << 20];
            (0..megabytes).for_each(|_| archive.write_all(&zeros).unwrap());
        }
        archive.finish().unwrap();
        let packed = fs::metadata(&path).unwrap().len();
        assert!(packed < 2 << 20, "{packed}");
        let read = trtcalib::npz::read_npz(&path).unwrap_err().to_string();
        let saved = trtcalib::compare::SavedOutputs::open(&path).err().unwrap().to_string();
        let causes = format!("{read} {saved}");
        assert!(read.contains("refused as a bomb"), "{causes}");
    }
}
