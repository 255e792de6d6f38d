use std::collections::BTreeSet;

use super::*;
use crate::{
    calibrate::{Recovered, Rounding},
    onnx::{Model, proto::TypeProto},
    quantize::{
        QuantizeOptions, Quantized, SchemeOptions, quantize,
        testing::{TestModel, no_shapes, table},
    },
};

/// Two convolutions that share a weight, and a graph output of the same name stem.
fn shared_weight() -> Model {
    TestModel::new(17)
        .input("x", &[1, 16, 8, 8])
        .weight("w", &[16, 16, 1, 1])
        .op("Conv", &["x", "w"], "c1")
        .op("Conv", &["c1", "w"], "x_quantized")
        .output("x_quantized", &[1, 16, 8, 8])
        .build()
}

fn quantized(model: &Model, ranges: &[(&str, f32)], scheme: SchemeOptions) -> Result<Quantized, QuantizeError> {
    quantize(model, &no_shapes(), Some(&table(ranges)), &QuantizeOptions { scheme, ..QuantizeOptions::default() })
}

fn int8(model: &Model, ranges: &[(&str, f32)]) -> GraphProto {
    quantized(model, ranges, SchemeOptions::default()).unwrap().model.graph().clone()
}

fn signature(node: &NodeProto) -> String {
    format!("{}({}) -> {}", node.op_type(), node.input.join(", "), node.output.join(", "))
}

#[test]
fn pairs_stand_between_producer_and_consumer_under_fresh_names() {
    let graph = int8(&shared_weight(), &[("x", 1.27), ("c1", 2.54)]);
    let nodes: Vec<_> = graph.node.iter().map(signature).collect();
    let expected = [
        "QuantizeLinear(x, x_scale, x_zero_point) -> x_quantized_1",
        "DequantizeLinear(x_quantized_1, x_scale, x_zero_point) -> x_dequantized",
        "DequantizeLinear(w_quantized, w_scale, w_zero_point) -> w_dequantized",
        "Conv(x_dequantized, w_dequantized) -> c1",
        "QuantizeLinear(c1, c1_scale, c1_zero_point) -> c1_quantized",
        "DequantizeLinear(c1_quantized, c1_scale, c1_zero_point) -> c1_dequantized",
        "DequantizeLinear(w_quantized, w_scale, w_zero_point) -> w_dequantized_1",
        "Conv(c1_dequantized, w_dequantized_1) -> x_quantized",
    ];
    assert_eq!(nodes, expected);
    let names: BTreeSet<_> = graph.node.iter().map(NodeProto::name).collect();
    assert_eq!(names.len(), graph.node.len());
    assert_eq!(graph.node[2].attr_i("axis"), Some(0));

    let initializer = |name: &str| graph.initializer.iter().find(|tensor| tensor.name() == name);
    assert!(initializer("w").is_none(), "the float weight is gone");
    assert_eq!(initializer("x_scale").unwrap().to_tensor().unwrap().to_f32(), [0.01]);
    assert_eq!(initializer("c1_scale").unwrap().to_tensor().unwrap().to_f32(), [0.02]);
    assert_eq!(initializer("w_quantized").unwrap().dims, [16, 16, 1, 1]);
    assert_eq!(initializer("w_scale").unwrap().dims, [16]);
    GraphView::new(&graph).unwrap();
}

#[test]
fn dequantized_weights_are_within_half_a_step() {
    let model = shared_weight();
    let graph = int8(&model, &[("x", 1.0), ("c1", 1.0)]);
    let values = |graph: &GraphProto, name: &str| {
        graph.initializer.iter().find(|tensor| tensor.name() == name).unwrap().to_tensor().unwrap().to_f32()
    };
    let (float, codes, scales) = (values(model.graph(), "w"), values(&graph, "w_quantized"), values(&graph, "w_scale"));
    for (index, (float, code)) in float.iter().zip(codes).enumerate() {
        let scale = scales[index / 16];
        assert!((float - code * scale).abs() <= scale * 0.5001 && code.abs() <= 127.0);
    }
}

#[test]
fn a_weight_with_other_uses_stays_and_a_declared_one_leaves_the_inputs() {
    let mut model = shared_weight();
    model.graph_mut().input.push(crate::quantize::testing::info("w", &[16, 16, 1, 1]));
    let graph = int8(&model, &[("x", 1.0), ("c1", 1.0)]);
    assert_eq!(graph.input.len(), 1);
    model.graph_mut().node.push(NodeProto::new("Identity", "same", &["w"], &["same"]));
    let graph = int8(&model, &[("x", 1.0), ("c1", 1.0)]);
    assert_eq!(graph.input.len(), 2);
    assert!(graph.initializer.iter().any(|tensor| tensor.name() == "w"));
}

#[test]
fn missing_and_impossible_ranges_are_named() {
    let message =
        |ranges: &[(&str, f32)]| quantized(&shared_weight(), ranges, SchemeOptions::default()).unwrap_err().to_string();
    assert!(message(&[("x", 1.0)]).contains("no range for tensor `c1`, which node `x_quantized` needs"));
    assert!(message(&[("x", 1.0), ("c1", f32::INFINITY)]).contains("range inf for tensor `c1`"));
}

#[test]
fn shared_scales_take_the_largest_range() {
    let mut placement = Placement::default();
    for (node, tensor) in ["a", "b", "c"].into_iter().enumerate() {
        placement.activations.push(super::super::ActivationEdge { tensor: tensor.to_owned(), node, input: 0 });
    }
    placement.shared_scales = vec![vec!["a".to_owned(), "c".to_owned()]];
    let table = table(&[("a", 1.27), ("b", 12.7), ("c", 2.54)]);
    let types = ScaleTypes { tensors: BTreeMap::new(), usual: crate::tensor::ElementType::F32, half: None };
    let scales = activation_scales(&placement, &table, Precision::Int8, &types).unwrap();
    assert_eq!(scales.into_values().collect::<Vec<_>>(), [0.02, 0.1, 0.02]);
}

#[test]
fn a_weight_has_one_scale_where_asked() {
    let mut model = TestModel::new(13).input("x", &[1, 16, 8, 8]).weight("w", &[16, 16, 1, 1]).weight("b", &[16]);
    model = model.op("Conv", &["x", "w", "b"], "y").output("y", &[1, 16, 8, 8]);
    let mut model = model.build();
    let values = |name: &str, values: Vec<f32>, shape: &[usize]| {
        TensorProto::from_tensor(name, crate::tensor::Tensor::from_f32(shape.to_vec(), values).unwrap())
    };
    let weights = (0..256).map(|index| index as f32 / 255.0).collect();
    let scheme = SchemeOptions { per_tensor_weights: true, ..SchemeOptions::default() };
    let mut scale_with = |bias: f32| {
        let bias = [vec![0.0; 15], vec![bias]].concat();
        model.graph_mut().initializer =
            vec![values("w", Vec::clone(&weights), &[16, 16, 1, 1]), values("b", bias, &[16])];
        let result = quantized(&model, &[("x", 1.27)], scheme.clone()).unwrap().model;
        let view = GraphView::new(result.graph()).unwrap();
        let scale = view.initializer("w_scale").unwrap().to_tensor().unwrap();
        assert_eq!(scale.shape(), [0usize; 0]);
        scale.to_f32()[0]
    };
    assert_eq!(scale_with(1.0), 1.0 / 127.0);
    // The bias of any channel fits its 31 bits.
    let large = (1u32 << 30) as f32;
    assert_eq!(scale_with(large), 100.0);
}

#[test]
fn fp8_uses_its_own_scale_and_opset() {
    let scheme = SchemeOptions { precision: Precision::Fp8, ..SchemeOptions::default() };
    let model = quantized(&shared_weight(), &[("x", 448.0), ("c1", 0.0)], scheme).unwrap().model;
    assert_eq!((model.opset(""), model.proto.ir_version), (Some(19), Some(9)));
    let initializer =
        |name: &str| model.graph().initializer.iter().find(|tensor| tensor.name() == name).unwrap().clone();
    assert_eq!(initializer("x_scale").to_tensor().unwrap().to_f32(), [1.0]);
    assert_eq!(initializer("c1_scale").to_tensor().unwrap().to_f32(), [crate::qparams::ZERO_SCALE]);
    assert_eq!((initializer("w_quantized").data_type, initializer("x_zero_point").data_type), (Some(17), Some(17)));
}

#[test]
fn provenance_and_value_info_are_kept() {
    let mut model = shared_weight();
    let info = crate::quantize::testing::info("c1", &[1, 16, 8, 8]);
    assert_ne!(info.r#type, Some(TypeProto::default()));
    model.graph_mut().value_info.push(info.clone());
    let result = quantized(&model, &[("x", 1.0), ("c1", 1.0)], SchemeOptions::default()).unwrap().model;
    assert_eq!(result.graph().value_info, [info]);
    let keys: Vec<_> = result.proto.metadata_props.iter().map(|entry| entry.key().to_owned()).collect();
    assert_eq!(keys, ["calib.version", "calib.source_hash", "calib.precision", "calib.table_hash"]);
}

/// What is told of the scales is what a reader of the file finds, also after rounding for 16 bits.
#[test]
fn scales_that_are_told_are_those_in_the_file() {
    for high_precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
        let options = QuantizeOptions { high_precision, ..QuantizeOptions::default() };
        let ranges = table(&[("x", 1.3), ("c1", 2.7)]);
        let result = quantize(&shared_weight(), &no_shapes(), Some(&ranges), &options).unwrap();
        let file = Model::from_bytes(result.model.to_bytes().unwrap()).unwrap();
        let view = GraphView::new(file.graph()).unwrap();
        let read = |node: &str, input: usize| {
            let dequantized = &view.node(view.node_named(node).unwrap()).input[input];
            let dequantize = view.node(view.producer(dequantized).unwrap());
            view.initializer(&dequantize.input[1]).unwrap().to_tensor().unwrap().to_f32()
        };
        assert_eq!(result.scales.len(), 4, "two activations, and one weight for two nodes");
        for written in &result.scales {
            assert_eq!(written.scales, read(&written.node, written.input), "{written:?} with {high_precision}");
        }
        assert_eq!(result.activation_scales().keys().collect::<Vec<_>>(), ["c1", "x"]);
        let rounded = result.activation_scales()["x"] != QuantType::Int8.scale(1.3);
        assert_eq!(rounded, high_precision != Precision::Fp32);
    }
}

#[test]
fn codes_move_by_what_recovery_found() {
    let codes_by = |rounding: Option<Vec<i8>>, per_tensor_weights| {
        let mut table = table(&[("x", 1.0), ("c1", 1.0)]);
        let rounding = rounding.map(|differences| [("w".to_owned(), Rounding::new(&differences))].into());
        table.recovered = rounding.map(|rounding| Recovered { rounding, ..Recovered::default() });
        let scheme = SchemeOptions { per_tensor_weights, ..SchemeOptions::default() };
        let options = QuantizeOptions { scheme, ..QuantizeOptions::default() };
        let quantized = quantize(&shared_weight(), &no_shapes(), Some(&table), &options)?;
        let view = GraphView::new(quantized.model.graph())?;
        Ok::<_, QuantizeError>(view.initializer("w_quantized").unwrap().to_tensor()?.to_f32())
    };
    let codes = |rounding| codes_by(rounding, false);
    let nearest = codes(None).unwrap();
    let lowest = nearest.iter().position(|&code| code == -127.0).unwrap();
    let mut differences = vec![0; 256];
    (differences[3], differences[4], differences[lowest]) = (2, -1, -1);
    let moved = codes(Some(differences)).unwrap();
    let changes: Vec<f32> = moved.iter().zip(&nearest).map(|(moved, nearest)| moved - nearest).collect();
    assert_eq!((changes[3], changes[4], changes[lowest]), (2.0, -1.0, 0.0), "weights never get -128");
    assert_eq!(changes.iter().filter(|change| **change != 0.0).count(), 2);
    let refusal = codes(Some(vec![0; 250])).unwrap_err().to_string();
    assert!(refusal.contains("256 codes of weight `w`"), "{refusal}");
    let refusal = codes_by(Some(vec![0; 256]), true).unwrap_err().to_string();
    assert!(refusal.contains("weight `w` for a scale for each output channel"), "{refusal}");
}
