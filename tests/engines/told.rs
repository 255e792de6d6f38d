//! Whatever shows a result of a stand-in says that it is one of a stand-in.

use std::{fs, path::Path};

use calib_test_support::root;

use super::{Engines, FLAVOUR, ends, json, succeeds, text};

/// What stands beside the version, and beside the backend's name.
const MARK: &str = "(stand-in)";

fn library() -> String {
    if FLAVOUR == "11" { format!("TensorRT 11.4.0 {MARK}") } else { format!("TensorRT-RTX 1.7.1 {MARK}") }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn terminal_json_and_files_of_every_command_name_the_stand_in() {
    let engines = Engines::build();
    let (int8, library) = (engines.path("int8.plan"), library());
    let model = root().join("calib_data/demo.onnx");
    let other = engines.path("other.plan");
    assert!(succeeds(&["build", "--model", text(&model), "-o", &other]).contains(&library));
    let version = library.split_once(' ').unwrap().1;
    assert!(read(&format!("{other}.json")).contains(&format!("\"library_version\": \"{version}\"")));
    assert!(succeeds(&["doctor"]).contains(&library));

    let bare = engines.path("bare.plan");
    fs::copy(&int8, &bare).unwrap();
    let compare = ["compare", "--ref", "ort", "--target", &int8, "--samples", "2"];
    for command in [&compare[..], &["inspect", &int8], &["inspect", &bare]] {
        assert!(succeeds(command).contains(&library), "{command:?}");
        assert!(json("", command).to_string().contains(&library), "{command:?}");
    }

    // Saved outputs say what gave them, and so does what is made of them later.
    let saved = engines.path("saved.npz");
    succeeds(&[&compare[..], &["--save-target", &saved]].concat());
    let bytes = fs::read(&saved).unwrap();
    assert!(bytes.windows(library.len()).any(|window| window == library.as_bytes()), "{saved}");
    let (again, data) = (engines.path("again.npz"), root().join("calib_data/images"));
    let later = ["compare", "--ref", "ort", "--model", text(&model), "--data", text(&data), "--samples", "2"];
    let later = [&later[..], &["--calibration-samples", "--target", &saved, "--save-target", &again]].concat();
    assert!(succeeds(&later).contains(&library));
    assert!(json("", &later).to_string().contains(&library));
    assert!(fs::read(&again).unwrap().windows(MARK.len()).any(|window| window == MARK.as_bytes()));

    // So do the parts of a comparison, and what is joined of them.
    let part = |number: &str| {
        let part = engines.path(&format!("part{number}.json"));
        succeeds(&[&compare[..], &["--shard", &format!("{number}/2"), "--part", &part]].concat());
        assert!(read(&part).contains(&library));
        part
    };
    let (first, second) = (part("1"), part("2"));
    assert!(succeeds(&["merge", &first, &second]).contains(&library));
    assert!(json("", &["merge", &first, &second]).to_string().contains(&library));

    let (times, profile) = (engines.path("times.json"), engines.path("profile.json"));
    let bench =
        ["bench", &int8, "--seconds", "0.02", "--export-times", &times, "--export-profile", &profile, "--layer-times"];
    assert!(succeeds(&bench).contains(&library));
    let found = json("", &bench);
    assert_eq!(found["environment"]["libraries"][library.split_once(' ').unwrap().0], version);
    for text in [found["measurements"][0].to_string(), read(&times), read(&profile)] {
        assert!(text.contains(MARK), "{text}");
    }

    // Pictures of layers and of times name what they are of.
    let page = engines.path("graph.html");
    let inside = engines.path("inside.json");
    fs::write(&inside, json("", &["inspect", &bare, "--all"]).to_string()).unwrap();
    // Only the builder of TensorRT-RTX lists the layers that a sidecar keeps.
    let layers = if FLAVOUR == "11" { inside.clone() } else { int8.clone() };
    let beside = if FLAVOUR == "11" { inside.clone() } else { format!("{int8}.json") };
    for drawn in [
        &[text(&model), "--profile", &profile][..],
        &[&inside],
        &[&layers],
        &[&beside],
        &[text(&model), "--against", &layers],
    ] {
        succeeds(&[&["inspect", "--graph"], drawn, &["-o", &page]].concat());
        assert!(read(&page).contains(MARK), "{drawn:?}");
    }

    let out = engines.path("bisect");
    let told = succeeds(&["bisect", "--target", &engines.path("fp32.plan"), "--samples", "2", "--out", &out]);
    for text in [told, read(&format!("{out}/bisect.json")), read(&format!("{out}/bisect.html"))] {
        assert!(text.contains(&library), "{text}");
    }

    let (config, run) = (root().join("configs/demo.toml"), engines.path("run"));
    let few = [
        "--calib-samples",
        "8",
        "--eval-samples",
        "8",
        "--method",
        "minmax",
        "--bench-seconds",
        "0.02",
        "--gate",
        "top1=0.1",
    ];
    let tensorrt =
        ["run", "--config", text(&config), "--out", &run, "--tensorrt", "require", "--precisions", "fp32,int8"];
    assert!(ends(0, "", &[&tensorrt[..], &few].concat()).contains(MARK));
    let runs = engines.path("runs.html");
    succeeds(&["report", &run, "-o", &runs]);
    for file in ["report.json", "report.html", "report.junit.xml"] {
        let text = read(text(&Path::new(&run).join(file)));
        assert!(text.contains(MARK), "{file}");
    }
    assert!(read(&runs).contains(MARK));
}
