//! Every error around engines, provoked with the real libraries: what is said, exit status 2, nothing written.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::Value;

use super::{CAPABILITY, build, demo, fails, libraries, python, root, text};

/// Standard error of a build that must fail with status 2 and leave no engine.
fn refused(model: &Path, extra: &[&str]) -> String {
    let engine = model.with_extension("refused.plan");
    let error = fails(&[&["build", "--model", text(model), "-o", text(&engine)], extra].concat());
    assert!(!engine.exists(), "nothing is written when a build fails");
    error
}

/// The same with `CALIB_TENSORRT_DIR`.
fn refused_with_library(model: &Path, folder: &Path) -> String {
    let mut command = calib_test_support::calib().unwrap();
    let engine = model.with_extension("refused.plan");
    command.env("CALIB_TENSORRT_DIR", folder).args(["build", "--model", text(model), "-o", text(&engine)]);
    let output = command.args(CAPABILITY).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(!error.contains("internal error") && !engine.exists(), "{error}");
    error
}

#[test]
fn a_folder_that_is_named_holds_the_library_or_nothing_does() {
    if !libraries() {
        return;
    }
    let (folder, model) = demo();
    let runtime = root().join(".runtime/tensorrt-rtx");
    let library = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };

    let missing = folder.path().join("no-such-folder");
    let error = refused_with_library(&model, &missing);
    assert!(error.contains(text(&missing)) && !error.contains(".runtime"), "{error}");

    let other = library("other");
    fs::write(other.join("libnvinfer.so.11"), b"").unwrap();
    let error = refused_with_library(&model, &other);
    assert!(error.contains("libnvinfer.so.11") && error.contains("make build TENSORRT=11"), "{error}");

    let lonely = library("lonely");
    symlink(runtime.join("libtensorrt_rtx.so.1"), lonely.join("libtensorrt_rtx.so.1")).unwrap();
    let error = refused_with_library(&model, &lonely);
    assert!(error.contains("only runs engines") && error.contains("libtensorrt_onnxparser_rtx.so.1"), "{error}");
    let engine = model.with_extension("refused.plan");
    let asked = ["build", "--model", text(&model), "-o", text(&engine), "--tensorrt-dir", text(&lonely)];
    assert!(fails(&asked).contains("only runs engines"), "the flag is the same");

    let broken = library("broken");
    for name in ["libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"] {
        fs::write(broken.join(name), b"\x7fELF no library").unwrap();
    }
    let error = refused_with_library(&model, &broken);
    assert!(error.contains("cannot load") && error.contains("broken/libtensorrt_rtx.so.1"), "{error}");

    let half = library("half");
    symlink(runtime.join("libtensorrt_rtx.so.1"), half.join("libtensorrt_rtx.so.1")).unwrap();
    fs::write(half.join("libtensorrt_onnxparser_rtx.so.1"), b"\x7fELF no library").unwrap();
    let error = refused_with_library(&model, &half);
    assert!(error.contains("cannot load") && error.contains("half/libtensorrt_onnxparser_rtx.so.1"), "{error}");

    // Libraries, but not what their names say.
    let lean = root().join(".runtime/tensorrt-lean/libnvinfer_lean.so.11");
    if lean.is_file() {
        let disguised = library("disguised");
        for name in ["libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"] {
            symlink(&lean, disguised.join(name)).unwrap();
        }
        let error = refused_with_library(&model, &disguised);
        assert!(error.contains("disguised/libtensorrt_rtx.so.1") && error.contains("version 11.4"), "{error}");
    }
}

#[test]
fn an_engine_of_another_version_or_program_is_refused_by_its_sidecar() {
    if !libraries() {
        return;
    }
    let (_folder, model) = demo();
    let engine = build(&model, &["--batch", "2"]);
    let sidecar = engine.with_extension("plan.json");
    let written: Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    let with = |key: &str, value: Value| {
        let mut changed = written.clone();
        changed[key] = value;
        fs::write(&sidecar, changed.to_string()).unwrap();
        let error = fails(&["compare", "--ref", "ort", "--target", text(&engine), "--random-data"]);
        let bench = fails(&["bench", text(&engine)]);
        assert!(error.ends_with(bench.trim_start_matches("error: ")), "{bench}");
        assert!(error.contains("demo.plan"), "{error}");
        error
    };
    let error = with("library_version", "1.6.0".into());
    assert!(error.contains("built by TensorRT-RTX 1.6.0, and the library here is 1.7"), "{error}");
    let error = with("format_version", 99.into());
    assert!(error.contains("demo.plan.json") && error.contains("99"), "{error}");
    let error = with("engine_hash", "0".repeat(64).into());
    assert!(error.contains("its hash is another"), "{error}");
    let error = with("inputs", Value::Null);
    assert!(error.contains("demo.plan.json"), "{error}");
    // The version of an engine without a sidecar stands in its header.
    fs::remove_file(&sidecar).unwrap();
    let mut bytes = fs::read(&engine).unwrap();
    bytes[25] = 9;
    fs::write(&engine, bytes).unwrap();
    let error =
        fails(&["compare", "--ref", "ort", "--target", text(&engine), "--model", text(&model), "--random-data"]);
    assert!(error.contains("built by TensorRT-RTX 1.9.1"), "{error}");
}

#[test]
fn shapes_that_do_not_go_with_the_model_are_named_before_anything_is_built() {
    if !libraries() {
        return;
    }
    let (_folder, model) = demo();
    let cases: [(&[&str], &str); 6] = [
        (&["--profile", "inptu=1x3x64x64:2x3x64x64:4x3x64x64"], "no input `inptu`; its inputs are input (?x3x64x64)"),
        (&["--profile", "input=4x3x64x64:2x3x64x64:1x3x64x64"], "min ≤ opt ≤ max"),
        (&["--profile", "input=1x3x64x64"], "min:opt:max"),
        (&["--profile", "input=1x4x64x64:2x4x64x64:4x4x64x64"], "cannot have the shape 1x4x64x64"),
        (&["--profile", "input=1x3x64:2x3x64:4x3x64"], "cannot have the shape 1x3x64"),
        (&["--shape", "pixels=1x3x64x64"], "no input `pixels`"),
    ];
    for (arguments, expected) in cases {
        let error = refused(&model, arguments);
        assert!(error.contains(expected), "{error}");
    }
    let error = refused(&model, &["--compute-capability", "9.0"]);
    assert!(error.contains("not for 9.0"), "{error}");
    let error = refused(&model, &["--version-compatible"]);
    assert!(error.contains("options of TensorRT 11"), "{error}");
}

/// The builder itself says whether likely shapes and values go together.
#[test]
fn values_of_shape_inputs_reach_the_builder() {
    if !libraries() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let write = "import sys, onnx\n\
        from onnx import helper as h, TensorProto as T\n\
        values = [h.make_tensor_value_info('x', T.FLOAT, ['n', 4]), h.make_tensor_value_info('to', T.INT64, [2])]\n\
        y = h.make_tensor_value_info('y', T.FLOAT, ['a', 'b'])\n\
        graph = h.make_graph([h.make_node('Reshape', ['x', 'to'], ['y'], name='reshape')], 'g', values, [y])\n\
        onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8), sys.argv[1])";
    let model = folder.path().join("reshaped.onnx");
    python(write, &[&model]);
    let error = refused(&model, &CAPABILITY);
    assert!(error.contains("the values of input `to` decide shapes"), "{error}");
    let likely = |to: &'static str| [&CAPABILITY[..], &["--profile", "x=1x4:2x4:8x4", "--profile", to]].concat();
    let error = refused(&model, &likely("to=1x1:3x3:8x4"));
    assert!(error.contains("kOPT values for profile 0 violate shape constraints"), "{error}");
    build(&model, &likely("to=-1x1:4x2:8x4")[CAPABILITY.len()..]);
}

#[test]
fn broken_models_are_told_by_what_is_broken() {
    if !libraries() {
        return;
    }
    let (folder, demo) = demo();
    let write = "import sys, pathlib, numpy as np, onnx\n\
        from onnx import helper as h, numpy_helper as n, TensorProto as T\n\
        folder = pathlib.Path(sys.argv[1])\n\
        def save(name, nodes, weights=(), shape=(1, 4), out=(1, 4), data=T.FLOAT, result=None, **more):\n\
        \x20   graph = h.make_graph(nodes, 'g', [h.make_tensor_value_info('x', data, shape)],\n\
        \x20       [h.make_tensor_value_info('y', result or data, out)], [n.from_array(v, k) for k, v in weights])\n\
        \x20   opsets = [h.make_opsetid('', 17), h.make_opsetid('acme', 1)]\n\
        \x20   onnx.save(h.make_model(graph, opset_imports=opsets, ir_version=8), folder / f'{name}.onnx', **more)\n\
        f = lambda *shape: np.ones(shape, np.float32)\n\
        node = h.make_node\n\
        save('operators', [node('Frobnicate', ['x'], ['a'], name='strange_one', domain='acme'),\n\
        \x20   node('Bamboozle', ['a'], ['y'], name='strange_two', domain='acme')])\n\
        save('channels', [node('Conv', ['x', 'w'], ['y'], name='odd_conv')], [('w', f(4, 3, 3, 3))],\n\
        \x20   shape=(1, 4, 8, 8), out=(1, 4, 6, 6))\n\
        save('shapes', [node('Add', ['x', 'w'], ['y'], name='misfit')], [('w', f(1, 3))])\n\
        save('strings', [node('Identity', ['x'], ['y'], name='same')], data=T.STRING)\n\
        save('narrow', [node('Cast', ['x'], ['y'], name='cast', to=T.FLOAT)], data=T.FLOAT8E5M2)\n\
        save('narrowed', [node('Cast', ['x'], ['y'], name='to_e5m2', to=T.FLOAT8E5M2)], result=T.FLOAT8E5M2)\n\
        save('values', [node('NonZero', ['x'], ['y'], name='positions')], out=(2, 'n'), data=T.FLOAT)\n\
        save('external', [node('MatMul', ['x', 'w'], ['y'], name='product')], [('w', f(4, 4))],\n\
        \x20   save_as_external_data=True, location='weights.bin', size_threshold=0)\n\
        (folder / 'weights.bin').unlink()\n\
        (folder / 'text.onnx').write_text('this is not a model')\n\
        (folder / 'short.onnx').write_bytes((folder / 'demo.onnx').read_bytes()[:3000])";
    python(write, &[folder.path()]);
    let refused = |name: &str| refused(&folder.path().join(format!("{name}.onnx")), &CAPABILITY);
    let error = refused("operators");
    assert!(
        error.contains("`strange_one` (Frobnicate)") && error.contains("`strange_two` (Bamboozle)"),
        "every refused node: {error}"
    );
    assert!(error.contains("not part of TensorRT's ONNX parser"), "{error}");
    for (name, expected) in [
        ("channels", "`odd_conv` (Conv)"),
        ("shapes", "`misfit` (Add)"),
        ("values", "`positions` (NonZero)"),
        ("strings", "input `x`: "),
        ("narrow", "input `x`: "),
        ("narrow", "the 8-bit float E5M2"),
        ("narrowed", "node `to_e5m2` (Cast)"),
        ("narrowed", "the 8-bit float E5M2"),
        ("external", "weights.bin"),
        ("text", "text.onnx"),
        ("short", "short.onnx"),
    ] {
        let error = refused(name);
        assert!(error.contains(expected), "{name}: {error}");
    }
    let error = fails(&["build", "--model", text(&folder.path().join("absent.onnx"))]);
    assert!(error.contains("absent.onnx"), "{error}");
    // The model is good; what cannot be written is the engine.
    let error = fails(&["build", "--model", text(&demo), "-o", "/dev/null/engine.plan"]);
    assert!(error.contains("/dev/null/engine.plan"), "{error}");
}
