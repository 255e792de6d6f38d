//! What TensorRT, the driver and the GPU refuse, and what calib says then.

use std::fs;

use calib_test_support::root;
use trtcalib::onnx::proto::{AttributeProto, NodeProto};

use super::{Engines, FLAVOUR, calib_command, ends, error_of, has_ended, models, real_driver, stand_in, text};

#[test]
fn every_refusal_of_tensorrt_is_an_error_that_says_why() {
    let engines = Engines::build();
    let plan = engines.path("fp32.plan");
    let compare = ["compare", "--ref", "ort", "--target", &plan, "--samples", "4"];
    let bench = ["bench", &plan, "--seconds", "0.02"];
    let graph = [&bench[..], &["--cuda-graph"]].concat();
    let profile = [&bench[..], &["--layer-times"]].concat();
    let other_version = if FLAVOUR == "11" { "version=110300" } else { "version=10600" };
    let cases: [(&str, &[&str], &str); 10] = [
        ("refuse-gpu", &compare, "does not run it on this"),
        (other_version, &compare, "it was built by TensorRT"),
        ("null-runtime", &compare, "no runtime could be made"),
        ("null-plan", &compare, "Failed to deserialize engine; build it again on this machine"),
        ("null-context", &bench, "OutOfMemory"),
        ("enqueue-fails=1", &compare, "an illegal memory access"),
        ("enqueue-fails=3", &bench, "an illegal memory access"),
        // The first call is outside of the recording, the second in it.
        ("enqueue-fails=2", &graph, "an illegal memory access"),
        ("enqueue-fails=40", &profile, "an illegal memory access"),
        ("refuse-addresses", &compare, "refused as ordered"),
    ];
    for (orders, arguments, expected) in cases {
        let error = ends(2, orders, arguments);
        assert!(error.contains(expected), "{orders}: {error}");
    }
}

#[test]
fn every_refusal_of_the_builder_is_an_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (model, plan) = (root().join("calib_data/demo.onnx"), folder.path().join("demo.plan"));
    let build = ["build", "--model", text(&model), "-o", text(&plan)];
    let cases = [
        ("version=90000", "calls itself version 9.0.0"),
        ("null-builder", "Failed to create builder"),
        ("null-config", "BuilderConfig"),
        ("null-network", "Failed to create network"),
        ("null-profile", "Failed to create optimization profile"),
        ("null-parser", "Failed to create ONNX parser"),
        ("null-engine", "Failed to build serialized network"),
    ];
    for (orders, expected) in cases {
        let error = ends(2, orders, &build);
        assert!(error.contains(expected), "{orders}: {error}");
        assert!(!plan.exists());
    }
    // A run that requires engines reports what it has, and fails.
    let (config, out) = (root().join("configs/demo.toml"), folder.path().join("run"));
    let run = ["run", "--config", text(&config), "--out", text(&out), "--tensorrt", "require", "--bench-seconds", "0"];
    let few = ["--calib-samples", "8", "--eval-samples", "8", "--method", "minmax", "--precisions", "fp32,int8"];
    let error = ends(2, "null-engine", &[&run[..], &few].concat());
    assert!(error.contains("--tensorrt require: no engine ran in fp32, int8"), "{error}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["verdict"]["passed"], false, "{}", report["verdict"]);
    assert!(fs::read_to_string(out.join("report.junit.xml")).unwrap().contains("errors=\"2\""));
    let node = NodeProto::new("Frobnicate", "strange", &["x"], &["y"]);
    models::save(
        folder.path(),
        "odd",
        vec![node],
        vec![models::float("x", &[1, 4])],
        vec![models::float("y", &[1, 4])],
        vec![],
    );
    let odd = folder.path().join("odd.onnx");
    let error = ends(2, "", &["build", "--model", text(&odd), "-o", text(&plan)]);
    assert!(error.contains("odd.onnx") && error.contains("`strange` (Frobnicate)"), "{error}");
    for (name, input, output, place) in
        [("wide", 19, models::FP8, "input `x`: "), ("widened", models::FP8, 19, "node `cast` (Cast): ")]
    {
        let cast = NodeProto::new("Cast", "cast", &["x"], &["y"]).with(AttributeProto::int("to", output.into()));
        let (x, y) = (models::value("x", input, &[1, 4]), models::value("y", output, &[1, 4]));
        models::save(folder.path(), name, vec![cast], vec![x], vec![y], vec![]);
        let model = folder.path().join(format!("{name}.onnx"));
        let error = ends(2, "", &["build", "--model", text(&model), "-o", text(&plan)]);
        assert!(error.contains(&format!("{name}.onnx: {place}")) && error.contains("8-bit float E5M2"), "{error}");
    }
    let warned = ends(0, "build-warns=half precision is not exact", &build);
    assert!(warned.contains("demo.plan"), "{warned}");
    let sidecar = fs::read_to_string(folder.path().join("demo.plan.json")).unwrap();
    assert!(sidecar.contains("half precision is not exact"), "{sidecar}");
}

/// The builder ends the program on such a model.
#[test]
fn a_scale_that_is_computed_as_the_model_runs_is_refused_before_the_builder() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = vec![
        NodeProto::new("ReduceMax", "largest", &["x"], &["s"]).with(AttributeProto::int("keepdims", 0)),
        NodeProto::new("QuantizeLinear", "q", &["x", "s"], &["c"]),
        NodeProto::new("DequantizeLinear", "dq", &["c", "s"], &["y"]),
    ];
    let [input, output] = ["x", "y"].map(|name| vec![models::float(name, &[1, 4])]);
    models::save(folder.path(), "dynamic", nodes, input, output, vec![]);
    let (model, plan) = (folder.path().join("dynamic.onnx"), folder.path().join("dynamic.plan"));
    let error = ends(2, "", &["build", "--model", text(&model), "-o", text(&plan)]);
    assert!(error.contains("node `q`: its scale is computed as the model runs"), "{error}");
    assert!(!plan.exists());
}

/// Options go to the builder as they were given; those of the other flavour are refused.
#[test]
fn every_option_of_the_builder_reaches_it() {
    let folder = tempfile::tempdir().unwrap();
    let (model, plan) = (root().join("calib_data/demo.onnx"), folder.path().join("demo.plan"));
    let build = ["build", "--model", text(&model), "-o", text(&plan)];
    let told = |more: &[&str]| {
        let arguments = [&build[..], more].concat();
        ends(0, "tell-options", &arguments);
        fs::read_to_string(folder.path().join("demo.plan.json")).unwrap()
    };
    assert!(told(&[]).contains("options: workspace 0, level -1\""));
    let shared = ["--tf32", "--workspace-mb", "64", "--optimization-level", "2"];
    assert!(told(&shared).contains("options: workspace 67108864, level 2, TF32\""));
    let of_11 = ["--version-compatible", "--hardware-compatible"];
    let of_rtx = ["--compute-capability", "7.5,8.0,8.6,8.9,12.0,12.1"];
    let refused = |more: &[&str]| ends(2, "", &[&build[..], more].concat());
    assert!(refused(&["--batch", "0"]).contains("`batch`: must be at least 1"));
    if FLAVOUR == "11" {
        assert!(told(&of_11).contains("options: workspace 0, level -1, version compatible, hardware compatible\""));
        assert!(refused(&of_rtx).contains("--compute-capability is an option of TensorRT-RTX"));
    } else {
        assert!(
            told(&of_rtx)
                .contains("options: workspace 0, level -1, for 75, for 80, for 86, for 89, for 120, for 121\"")
        );
        assert!(of_11.iter().all(|option| refused(&[option]).contains("are options of TensorRT 11")));
        assert!(refused(&["--compute-capability", "9.0"]).contains("not for 9.0"));
    }
}

/// A folder that was named is the only one that is looked into.
#[test]
fn libraries_that_are_incomplete_or_of_the_other_flavour() {
    let engines = Engines::build();
    let folder = engines.path("libraries");
    fs::create_dir(&folder).unwrap();
    let (library, other) = if FLAVOUR == "11" { ("libnvinfer.so.11", "rtx") } else { ("libtensorrt_rtx.so.1", "11") };
    let (model, plan, fp32) =
        (root().join("calib_data/demo.onnx"), engines.path("new.plan"), engines.path("fp32.plan"));
    let build = |folder: &str| {
        ["build", "--model", text(&model), "-o", &plan, "--tensorrt-dir", folder].map(str::to_owned).to_vec()
    };
    let refused = |arguments: &[String]| ends(2, "", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let error = refused(&build(&folder));
    assert!(error.contains(&folder) && error.contains("not found"), "{error}");
    if stand_in().join(other).exists() {
        let error = refused(&build(text(&stand_in().join(other))));
        assert!(error.contains(&format!("stand_in/{other}")), "{error}");
    }
    // Without its parser beside it, a library runs engines and builds none.
    fs::copy(stand_in().join(FLAVOUR).join(library), format!("{folder}/{library}")).unwrap();
    let error = refused(&build(&folder));
    assert!(error.contains("parser"), "{error}");
    let mut compare = calib_command("", &["compare", "--ref", "ort", "--target", &fp32, "--samples", "2", "-vv"]);
    let output = compare.env("CALIB_TENSORRT_DIR", &folder).output().unwrap();
    assert!(has_ended(output.status.code(), 0), "{}", error_of(&output));
    let log = format!("{}{}", String::from_utf8_lossy(&output.stdout), error_of(&output));
    assert!(log.contains("stand-in for TensorRT: nothing that it gives"), "{log}");
}

#[test]
fn a_driver_that_refuses_is_an_error_that_says_why() {
    if real_driver() {
        return;
    }
    let engines = Engines::build();
    let plan = engines.path("fp32.plan");
    let compare = ["compare", "--ref", "ort", "--target", &plan, "--samples", "12"];
    let cases = [
        ("no-device", "the CUDA driver finds no GPU"),
        ("driver=12080", "offers CUDA 12.8, and 13.0 is needed"),
        ("memory=20000", "the GPU is out of memory"),
        ("fail=cuMemHostAlloc:1:2", "the GPU is out of memory"),
        ("fail=cuStreamSynchronize:2:719", "unspecified launch failure"),
        ("fail=cuMemcpyHtoDAsync_v2:2:719", "enqueueV3: CUDA error 719"),
        ("vanish=cuMemcpyDtoHAsync_v2:3", "enqueueV3: CUDA error 999"),
        ("vanish=cuEventRecord:2", "unknown error"),
    ];
    for (orders, expected) in cases {
        let error = ends(2, orders, &compare);
        assert!(error.contains(expected), "{orders}: {error}");
    }
    let bench = ["bench", &plan, "--seconds", "0.02", "--cuda-graph"];
    for orders in ["fail=cuStreamBeginCapture_v2:1:719", "fail=cuStreamEndCapture:1:719", "fail=cuGraphLaunch:1:719"] {
        let error = ends(2, orders, &bench);
        assert!(error.contains("unspecified launch failure"), "{orders}: {error}");
    }
}

#[cfg(feature = "tensorrt-rtx")]
#[test]
fn what_the_header_of_an_engine_says_is_told_apart() {
    let engines = Engines::build();
    let plan = engines.path("fp32.plan");
    let compare = ["compare", "--ref", "ort", "--target", &plan, "--samples", "4"];
    for (bits, expected) in
        [(4, "driver is older"), (8, "driver is older"), (16, "too little free memory"), (64, "header invalid")]
    {
        let error = ends(2, &format!("invalid={bits}"), &compare);
        assert!(error.contains(expected), "{bits}: {error}");
    }
    let model = root().join("calib_data/demo.onnx");
    let other = engines.path("other.plan");
    ends(0, "", &["build", "--model", text(&model), "-o", &other, "--compute-capability", "7.5,8.6"]);
    let data = root().join("calib_data/images");
    let error = ends(2, "capability=8.9", &["compare", "--ref", "ort", "--target", &other, "--data", text(&data)]);
    assert!(
        real_driver() || error.contains("built for 7.5, 8.6: build it again with --compute-capability 8.9"),
        "{error}"
    );
    if real_driver() {
        return;
    }
    // It was built for this one: to build it for this one again would not help.
    let error = ends(2, "capability=8.6;refuse-gpu", &["bench", &other, "--seconds", "0.02"]);
    assert!(error.contains("built for 7.5, 8.6, so") && !error.contains("--compute-capability"), "{error}");
    // An engine for any GPU that TensorRT-RTX knows is none for one that it does not.
    for command in [&["bench", &other][..], &["bench", &plan], &["inspect", &plan], &compare] {
        let error = ends(2, "capability=9.0", command);
        assert!(error.contains("TensorRT-RTX runs on 7.5"), "{command:?}: {error}");
    }
}

/// The inspector may tell nothing: then what the builder told is taken, or the error is.
#[test]
fn an_inspector_that_tells_nothing() {
    let engines = Engines::build();
    let bare = engines.path("bare.plan");
    fs::copy(engines.path("int8.plan"), &bare).unwrap();
    // Without a sidecar, nobody knows the ONNX model: Q/DQ are told all the same.
    let told = ends(0, "", &["inspect", &bare]);
    assert!(told.contains("Q/DQ alone  input_QuantizeLinear"), "{told}");
    for (orders, expected) in [
        ("names-only", "build it with detailed profiling verbosity"),
        ("no-inspection", "Could not get layer information"),
        ("null-inspector", "Failed to create engine inspector"),
    ] {
        let output = calib_command(orders, &["inspect", &bare]).output().unwrap();
        let all = format!("{}{}", String::from_utf8_lossy(&output.stdout), error_of(&output));
        assert!(all.contains(expected), "{orders}: {all}");
    }
    // Only the builder of TensorRT-RTX lists the layers that the sidecar keeps.
    let listed = FLAVOUR == "rtx";
    let told = ends(if listed { 0 } else { 2 }, "names-only", &["inspect", &engines.path("int8.plan")]);
    let expected = if listed { "layers      as the builder listed them (" } else { "detailed profiling verbosity" };
    assert!(told.contains(expected) && told.contains("multiply: INT8") == listed, "{told}");
}
