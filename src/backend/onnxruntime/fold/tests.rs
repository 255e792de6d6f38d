//! Folding with the real library; skipped with a note where it is not at hand.

use std::path::Path;

use super::*;
use crate::{
    backend::{
        Backend,
        onnxruntime::tests::{floats, model, runtime},
    },
    onnx::{
        proto::{self, AttributeProto, StringStringEntryProto, TypeValue},
        tests::{float_info, small_model},
    },
    tensor::{ElementType, Tensor, TensorMap, Values},
};

/// `x [n,2] -> Conv 1x1 (weights 1, 2; bias 0.5) -> BatchNorm -> MatMul by a transposed constant -> Add`.
fn batch_norm_model(element_type: ElementType) -> Model {
    let weight = |name: &str, shape: &[usize], values: &[f32]| {
        let values = match element_type {
            ElementType::F16 => Values::F16(values.iter().map(|&x| half::f16::from_f32(x)).collect()),
            _ => Values::F32(values.to_vec()),
        };
        TensorProto::from_tensor(name, Tensor::new(shape.to_vec(), values).unwrap())
    };
    let nodes = vec![
        NodeProto::new("Conv", "conv", &["x", "w", "b"], &["c"]),
        NodeProto::new("BatchNormalization", "bn", &["c", "scale", "shift", "mean", "variance"], &["n"])
            .with(AttributeProto::float("epsilon", 0.0)),
        NodeProto::new("Flatten", "flat", &["n"], &["f"]),
        NodeProto::new("Transpose", "turn", &["v"], &["vt"]).with(AttributeProto::ints("perm", &[1, 0])),
        NodeProto::new("MatMul", "fc", &["f", "vt"], &["m"]),
        NodeProto::new("Add", "bias", &["m", "one"], &["y"]),
    ];
    let initializers = vec![
        weight("w", &[2, 1, 1, 1], &[1.0, 2.0]),
        weight("b", &[2], &[0.5, 0.5]),
        weight("scale", &[2], &[2.0, 1.0]),
        weight("shift", &[2], &[1.0, -1.0]),
        weight("mean", &[2], &[0.5, 0.0]),
        weight("variance", &[2], &[4.0, 0.25]),
        weight("v", &[1, 2], &[1.0, 10.0]),
        weight("one", &[1], &[1.0]),
    ];
    let mut input = float_info("x", &[-1, 1, 1, 1]);
    if let Some(TypeValue::TensorType(declared)) = &mut input.r#type.as_mut().unwrap().value {
        declared.elem_type = Some(element_type.onnx());
    }
    let mut model = model(nodes, input, "y", initializers);
    model.proto.metadata_props =
        vec![StringStringEntryProto { key: Some("k".to_owned()), value: Some("v".to_owned()) }];
    model
}

fn names(model: &Model) -> Vec<&str> {
    model.graph().node.iter().map(NodeProto::name).collect()
}

#[test]
fn batch_norm_and_constants_go_and_the_rest_keeps_its_name() {
    let Some(runtime) = runtime() else { return };
    let mut model = batch_norm_model(ElementType::F32);
    // A weight that is also an input must not keep the batch norm from folding.
    model.graph_mut().input.push(float_info("w", &[2, 1, 1, 1]));
    let folded = runtime.fold(&model).unwrap();
    assert_eq!(names(&folded), ["conv", "flat", "fc", "bias"]);
    assert_eq!(folded.graph().input.len(), 1);
    assert_eq!(folded.graph().output, model.graph().output);
    assert_eq!(folded.proto.opset_import, model.proto.opset_import);
    assert_eq!(folded.proto.metadata_props, model.proto.metadata_props);
    assert_eq!((folded.proto.ir_version, &folded.hash), (Some(8), &model.hash));
    // Conv gives 3x+0.5... by hand for x = 3: c = (3.5, 6.5), n = (3.5-0.5)/2*2+1 = 4, 6.5/0.5-1 = 12.
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 1, 1, 1], &[3.0]))]);
    let outputs = runtime.build(&folded, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
    assert_eq!(outputs["y"], floats(&[1, 1], &[4.0 + 10.0 * 12.0 + 1.0]));
}

#[test]
fn half_precision_models_keep_their_precision() {
    let Some(runtime) = runtime() else { return };
    let folded = runtime.fold(&batch_norm_model(ElementType::F16)).unwrap();
    assert_eq!(names(&folded), ["conv", "flat", "fc", "bias"]);
    let weight = &folded.graph().initializer[0];
    assert!(folded.graph().initializer.iter().all(|w| w.element_type().unwrap() == ElementType::F16), "{weight:?}");
}

#[test]
fn subgraphs_survive_folding_and_what_is_refused_says_why() {
    let Some(runtime) = runtime() else { return };
    let folded = runtime.fold(&small_model()).unwrap();
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 4], &[1.0; 4]))]);
    let run = |model: &Model| runtime.build(model, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
    assert_eq!(run(&folded), run(&small_model()));
    let mut broken = small_model();
    broken.graph_mut().node[1].op_type = Some("Frobnicate".to_owned());
    let error = runtime.fold(&broken).unwrap_err().to_string();
    assert!(error.contains("Frobnicate"), "{error}");
}

fn cast(name: &str, input: &str, to: ElementType) -> NodeProto {
    NodeProto::new("Cast", name, &[input], &[name]).with(AttributeProto::int("to", to.onnx().into()))
}

#[test]
fn casts_that_the_runtime_joins_with_its_own_are_kept() {
    let Some(runtime) = runtime() else { return };
    let half = Values::F16([1.0, 2.0, 3.0, 4.0].map(half::f16::from_f32).to_vec());
    let weight = TensorProto::from_tensor("w", Tensor::new(vec![4, 1], half).unwrap());
    let nodes = vec![
        NodeProto::new("Greater", "g", &["x", "zero"], &["g"]),
        cast("wide", "g", ElementType::F32),
        cast("narrow", "wide", ElementType::F16),
        NodeProto::new("MatMul", "m", &["narrow", "w"], &["m"]),
        cast("y", "m", ElementType::F32),
    ];
    let zero = TensorProto::from_tensor("zero", floats(&[], &[0.0]));
    let model = model(nodes, float_info("x", &[1, 4]), "y", vec![weight, zero]);
    let folded = runtime.fold(&model).unwrap();
    assert_eq!(names(&folded), ["g", "wide", "narrow", "m", "y"]);
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 4], &[1.0, -1.0, 1.0, 1.0]))]);
    let outputs = runtime.build(&folded, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
    assert_eq!(outputs["y"], floats(&[1, 1], &[8.0]));
}

#[test]
fn nodes_between_casts_keep_their_type() {
    let Some(runtime) = runtime() else { return };
    for (op_type, inputs) in [("Relu", vec!["narrow"]), ("Mul", vec!["narrow", "narrow"]), ("Softmax", vec!["narrow"])]
    {
        let nodes = vec![
            NodeProto::new("Neg", "before", &["x"], &["before"]),
            cast("narrow", "before", ElementType::F16),
            NodeProto::new(op_type, "inner", &inputs, &["inner"]),
            cast("wide", "inner", ElementType::F32),
            NodeProto::new("Neg", "after", &["wide"], &["y"]),
        ];
        let model = model(nodes, float_info("x", &[1, 4]), "y", Vec::new());
        let folded = runtime.fold(&model).unwrap();
        assert_eq!(names(&folded), ["before", "narrow", "inner", "wide", "after"], "{op_type}");
        let infos = runtime.infer_shapes(&folded, &["inner".to_owned()]).unwrap();
        assert_eq!(infos["inner"].element_type, Some(ElementType::F16), "{op_type}");
    }
}

#[test]
fn shapes_of_intermediate_tensors_are_inferred() {
    let Some(runtime) = runtime() else { return };
    let tensors = ["c", "vt", "f"].map(str::to_owned);
    let infos = runtime.infer_shapes(&batch_norm_model(ElementType::F32), &tensors).unwrap();
    assert_eq!(infos["c"].shape, [None, Some(2), Some(1), Some(1)]);
    assert_eq!(infos["vt"].shape, [Some(2), Some(1)]);
    assert_eq!((infos["f"].element_type, infos.len()), (Some(ElementType::F32), 3));
}

/// Models of one operator each, named `kept`, that ONNX defines as functions.
#[test]
fn operators_that_onnx_defines_as_functions_are_kept() {
    let Some(runtime) = runtime() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/function_operators");
    let files: BTreeSet<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 40);
    let mut lost = Vec::new();
    for path in files {
        let op_type = path.file_stem().unwrap().to_string_lossy().into_owned();
        // The body of Bernoulli does not run on a CPU.
        if op_type == "Bernoulli" {
            continue;
        }
        let model = Model::load(&path).unwrap();
        let folded = runtime.fold(&model).unwrap_or_else(|error| panic!("{op_type}: {error}"));
        let is_there = folded.graph().node.iter().any(|node| node.name() == "kept" && node.op_type() == op_type);
        // Windows of a constant length are constants; ranges too.
        if !is_there || folded.graph().node.len() != model.graph().node.len() {
            lost.push((op_type, names(&folded).join(" ")));
        }
    }
    assert_eq!(lost, []);
}

#[test]
fn functions_in_branches_and_behind_batch_norms_are_kept() {
    let Some(runtime) = runtime() else { return };
    let mut model = batch_norm_model(ElementType::F32);
    let branch = |name: &str| {
        let graph = GraphProto {
            name: Some(name.to_owned()),
            node: vec![NodeProto::new("HardSwish", "inner", &["s"], &[name])],
            output: vec![proto::ValueInfoProto { name: Some(name.to_owned()), ..Default::default() }],
            ..GraphProto::default()
        };
        AttributeProto::graph(if name == "yes" { "then_branch" } else { "else_branch" }, graph)
    };
    let graph = model.graph_mut();
    graph.node[2].input[0] = "s".to_owned();
    graph.node.insert(2, NodeProto::new("HardSwish", "swish", &["n"], &["s"]));
    graph.node.push(NodeProto::new("ReduceMax", "top", &["y"], &["top"]).with(AttributeProto::int("keepdims", 0)));
    graph.node.push(NodeProto::new("Greater", "c", &["top", "zero"], &["which"]));
    graph.node.push(NodeProto::new("If", "if", &["which"], &["z"]).with(branch("yes")).with(branch("no")));
    graph.initializer.push(TensorProto::from_tensor("zero", floats(&[], &[0.0])));
    graph.output[0].name = Some("z".to_owned());
    let folded = runtime.fold(&model).unwrap();
    assert_eq!(names(&folded), ["conv", "swish", "flat", "fc", "bias", "top", "c", "if"]);
    let branches = folded.graph().node.iter().flat_map(NodeProto::subgraphs);
    let inner: Vec<_> = branches.flat_map(|graph| &graph.node).map(NodeProto::op_type).collect();
    assert_eq!(inner, ["HardSwish"; 2]);
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 1, 1, 1], &[3.0]))]);
    let run = |model: &Model| runtime.build(model, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
    let (before, after) = (run(&model)["z"].to_f32(), run(&folded)["z"].to_f32());
    assert!(before.iter().zip(&after).all(|(before, after)| (before - after).abs() < 1e-5), "{before:?} {after:?}");
}

#[test]
fn constants_that_are_computed_from_little_stay_computed() {
    let Some(runtime) = runtime() else { return };
    let shape = Tensor::new(vec![2], Values::I64(vec![512, 512])).unwrap();
    let small = Tensor::new(vec![2], Values::I64(vec![4, 4])).unwrap();
    let nodes = vec![
        NodeProto::new("Expand", "large", &["one", "shape"], &["large"]),
        NodeProto::new("Sqrt", "root", &["large"], &["root"]),
        NodeProto::new("Expand", "little", &["one", "small"], &["little"]),
        NodeProto::new("ReduceSum", "sum", &["little"], &["sum"]),
        NodeProto::new("Mul", "mul", &["x", "root"], &["m"]),
        NodeProto::new("Add", "add", &["m", "sum"], &["y"]),
    ];
    let constants = [("one", floats(&[1], &[4.0])), ("shape", shape), ("small", small)];
    let constants = constants.map(|(name, tensor)| TensorProto::from_tensor(name, tensor)).to_vec();
    let folded = runtime.fold(&model(nodes, float_info("x", &[1, 512]), "y", constants)).unwrap();
    assert_eq!(names(&folded), ["large", "root", "mul", "add"]);
    let inputs = TensorMap::from([("x".to_owned(), floats(&[1, 512], &[3.0; 512]))]);
    let outputs = runtime.build(&folded, &BuildOptions::default()).unwrap().infer(&inputs).unwrap();
    assert!(outputs["y"].to_f32().iter().all(|&value| value == 3.0 * 2.0 + 64.0));
}

#[test]
fn a_constant_that_is_repeated_stays_so() {
    let Some(runtime) = runtime() else { return };
    for (op_type, times) in [("Concat", 16), ("Sum", 1)] {
        let join = NodeProto::new(op_type, "join", &vec!["part"; times], &["all"]);
        let join = if times > 1 { join.with(AttributeProto::int("axis", 1)) } else { join };
        let nodes = vec![join, NodeProto::new("MatMul", "product", &["x", "all"], &["y"])];
        let part = TensorProto::from_tensor("part", floats(&[64, 512], &vec![0.5; 64 * 512]));
        let folded = runtime.fold(&model(nodes, float_info("x", &[1, 64]), "y", vec![part])).unwrap();
        assert_eq!(names(&folded), if times > 1 { vec!["join", "product"] } else { vec!["product"] });
    }
}
