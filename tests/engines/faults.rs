//! A fault planted into each node of an engine's model, one after the other: the node is named, however little of it arrives at
//! the outputs.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use calib_test_support::root;
use serde_json::Value;
use trtcalib::onnx::{Model, proto::NodeProto};

use super::{Engines, ends, json, models, text};

/// Processes at a time.
const AT_ONCE: usize = 4;

/// Nodes of the embedded model that compute.
fn nodes() -> Vec<String> {
    let model = Model::load(&root().join("calib_data/demo.onnx")).unwrap();
    let computes = model.graph().node.iter().filter(|node| node.op_type() != "Constant");
    computes.map(NodeProto::name).map(str::to_owned).collect()
}

/// Runs `work` for every number below `count`, some at a time.
pub(super) fn side_by_side(count: usize, work: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let one = next.fetch_add(1, Ordering::Relaxed);
                    if one >= count {
                        break;
                    }
                    work(one);
                }
            });
        }
    });
}

/// What `calib bisect --find first` finds in an engine.
fn found(orders: &str, engine: &str, more: &[&str]) -> Value {
    let out = tempfile::tempdir().unwrap();
    let bisect = ["bisect", "--target", engine, "--find", "first", "--out", text(out.path())];
    json(orders, &[&bisect[..], more].concat())
}

#[test]
fn whichever_node_has_a_fault_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (config, out) = (root().join("configs/demo.toml"), folder.path().join("run"));
    let run =
        ["run", "--config", text(&config), "--out", text(&out), "--tensorrt", "require", "--precisions", "fp32,int8"];
    ends(0, "", &[&run[..], &["--bench-seconds", "0", "--eval-samples", "20"]].concat());
    let engine = |name: &str| text(&out.join("engines").join(name)).to_owned();
    // Activations that recovery shifts, and padding that it puts in, have no counterpart in the float model.
    let source = out.join("model.int8.onnx");
    let shifted = Model::load(&source).unwrap().graph().node.iter().any(|node| node.output[0].ends_with("_shifted"));
    assert!(shifted, "nothing was shifted: another model is needed");
    let (float, int8) = (engine("fp32.plan"), engine("int8.plan"));
    let beside_float: &[&str] = &[];
    let beside_source: &[&str] = &["--model", text(&source)];
    let few: &[&str] = &["--probe-tensors", "3"];
    let modes = [(&float, beside_float, 5), (&int8, beside_float, 1), (&int8, beside_source, 5), (&int8, few, 25)];
    // Where minutes are too long, `CALIB_FAULTS_STEP` leaves all but every so manieth of these out.
    let step: usize = std::env::var("CALIB_FAULTS_STEP").map_or(1, |step| step.parse().unwrap());
    let nodes = nodes();
    let cases: Vec<_> = modes
        .iter()
        .flat_map(|&(engine, more, every)| nodes.iter().step_by(every * step).map(move |node| (engine, more, node)))
        .collect();
    let missed = Mutex::new(BTreeSet::new());
    side_by_side(cases.len(), &|number| {
        let (engine, more, node) = cases[number];
        let found = found(&format!("fault={node}"), engine, more);
        let named = &found["first"]["culprit"]["node"];
        assert!(found["backend"].as_str().unwrap().ends_with("(stand-in)"), "{found}");
        assert_eq!(found["probes"]["judged"], "by_itself", "{found}");
        if more != few {
            assert_eq!(found["probes"]["builds"], 1, "one engine shows everything: {found}");
        }
        if named != node {
            missed.lock().unwrap().insert(format!("{node} in {engine} {more:?}: {named}"));
        }
    });
    assert_eq!(missed.into_inner().unwrap(), BTreeSet::new());
    nodes_of_the_source_count_as_part_of_their_reader(&source, &int8, &nodes);
    for (engine, more, _) in modes {
        assert_eq!(found("", engine, more)["first"]["culprit"], Value::Null, "{engine} {more:?}");
    }
}

/// Padding that recovery put in: beside the float model its fault is one of the node that reads it, which is said, and beside the
/// model that the engine was built from it is named.
fn nodes_of_the_source_count_as_part_of_their_reader(source: &Path, engine: &str, nodes: &[String]) {
    let model = Model::load(source).unwrap();
    let pad = model.graph().node.iter().find(|node| node.op_type() == "Pad").unwrap();
    let mut reader = pad;
    while !nodes.iter().any(|name| name == reader.name()) {
        reader = model.graph().node.iter().find(|node| node.input.contains(&reader.output[0])).unwrap();
    }
    let (fault, out) = (format!("fault={}", pad.name()), tempfile::tempdir().unwrap());
    let told = ends(0, &fault, &["bisect", "--target", engine, "--find", "first", "--out", text(out.path())]);
    assert!(told.contains(&format!("first divergence: `{}`", reader.name())), "{told}");
    assert!(told.contains("count as part of the node: --model with that model's file"), "{told}");
    let found = found(&fault, engine, &["--model", text(source)]);
    assert_eq!(found["first"]["culprit"]["node"], pad.name(), "{found}");
}

/// Marks may undo the fusion that is at fault. Then it is looked for with few marks at a time, and what they do is told.
#[test]
fn a_fault_that_is_gone_where_it_is_looked_at_is_still_told() {
    let engines = Engines::build();
    let node = "/blocks/blocks.2/depthwise/conv/Conv";
    let found = found(&format!("fused-fault={node}"), &engines.path("fp32.plan"), &["--threshold-db", "40"]);
    assert_eq!(found["probes"]["judged"], "added_up_only", "{found}");
    // Its own output is as it should be as soon as it is marked: the one behind it is the first that is not.
    assert_eq!(found["first"]["culprit"]["node"], "/blocks/blocks.2/depthwise/act/Relu", "{found}");
    assert!(!found["probes"]["disturbances"].as_array().unwrap().is_empty(), "{found}");
}

/// Types that ONNX Runtime does not add: the fault is there all the same, and only there.
#[test]
fn a_fault_is_planted_in_tensors_of_every_type() {
    let folder = tempfile::tempdir().unwrap();
    models::save_kinds(folder.path());
    let of_types = models::TYPES.map(|(name, _)| ("types", name, name));
    for (model, node, output) in of_types.into_iter().chain([("through fp8", "as fp8", "y"), ("through fp8", "y", "y")])
    {
        let plan = text(&folder.path().join(format!("{model}.plan"))).to_owned();
        let model = text(&folder.path().join(format!("{model}.onnx"))).to_owned();
        ends(0, "", &["build", "--model", &model, "-o", &plan]);
        let compare = ["compare", "--ref", "ort", "--target", &plan, "--random-data", "--samples", "4"];
        for orders in [format!("fault={node}"), "fault=no such node".to_owned()] {
            let found = json(&orders, &compare);
            for figures in found["targets"][0]["result"]["outputs"].as_array().unwrap() {
                let is_off = figures["max_abs"].as_f64().unwrap() > 0.0;
                // Integers of numbers below one are 0, and twice as much.
                let is_zero = ["as int64", "as int32", "as uint8"].contains(&node);
                let expected = figures["name"] == *output && orders.ends_with(node) && !is_zero;
                assert_eq!(is_off, expected, "{model}, {orders}: {figures}");
            }
        }
    }
}
